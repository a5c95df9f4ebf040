"""What a training records in its run: settings, images, scores, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tyre_lightning.config import TrainerConfig
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.errors import without_passwords
from tyre_lightning.evaluation.figures import confusion_figure, decision_figure
from tyre_lightning.evaluation.judgement import class_metrics, confusion, decision_metrics
from tyre_lightning.evaluation.latency import latencies_ms
from tyre_lightning.evaluation.scores import SCORES, Scores
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.fingerprint import fingerprint
from tyre_lightning.lake.pinned import save as save_catalogs
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.slurm import JOB_TAG, job
from tyre_lightning.tracking.pages import data_version
from tyre_lightning.tracking.runs import CATALOG, CONFIG, Run
from tyre_lightning.tracking.sweeps import SWEEP_TAG, in_sweep
from tyre_lightning.trainer import device_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNSHARED = "test_unshared"  # the test images of tyres of which training saw no picture
_TIMED = 15  # images


def run_tags(options: TrainerConfig, found: Mapping[str, Any]) -> dict[str, str]:
    """On what and with which data a run trains, and which sweep and which job of SLURM it belongs to, if to any."""
    about = {
        "device": device_name(options),
        "data.version": data_version(found["root"]),
        "data.fingerprint": found["fingerprint"],
    }
    of_sweep = {SWEEP_TAG: HydraConfig.get().sweep.dir} if in_sweep() else {}
    return about | of_sweep | ({} if (name := job()) is None else {JOB_TAG: name})


def describe(cfg: DictConfig, data: TyreDataModule, catalogs: Mapping[str, Catalog], epochs: int) -> dict[str, Any]:
    """A run's parameters: the resolved config, and what the data turned out to be and to need."""
    found = {
        "root": data.store.root,
        "classes": list(data.classes),
        "good_class": data.good_class,
        "images": {usage: catalog.counts() for usage, catalog in catalogs.items()},
        "ignored": data.ignored,
        "image_size": data.preprocessing.size,
        "epochs": epochs,
        "fingerprint": fingerprint([*catalogs.values()]),
    }
    if data.provenance is not None:
        found["labels"] = str(data.provenance)
    if data.config.near_copies and not data.looked:
        found["near_copies"] = False
    if data.config.multi_label:
        found["further"] = {usage: len(catalog.further()[0]) for usage, catalog in catalogs.items()}
    return {**_shown(cfg), "found": found}


def record_setup(run: Run, cfg: DictConfig, setup: Mapping[str, Any]) -> None:
    """Record a run's parameters, and its config as a file."""
    run.log_params(setup)
    run.log_text(OmegaConf.to_yaml(_shown(cfg)), CONFIG)


def record_data(run: Run, data: TyreDataModule, catalogs: Mapping[str, Catalog]) -> None:
    """Record which images the run saw: their fingerprints as inputs, the list of them as an artifact."""
    for usage, catalog in catalogs.items():
        run.log_dataset(usage, fingerprint([catalog]), data.store.root, len(catalog), catalog.counts())
    with TemporaryDirectory() as folder:
        shown = {usage: data.shown(usage) for usage in catalogs}
        save_catalogs(path := Path(folder, CATALOG), data.store.root, catalogs, shown)
        run.log_file(path)


def record_scores(run: Run, inspector: Inspector, scores: Mapping[str, Scores], folder: Path) -> None:
    """Keep what was said of each image as ``<usage>.parquet``, an artifact of the run too."""
    for usage, found in scores.items():
        found.save(path := folder / f"{usage}.parquet", inspector.classes)
        run.log_file(path, SCORES)


def record_class_metrics(run: Run, inspector: Inspector, scores: Mapping[str, Scores], step: int) -> dict[str, float]:
    """Record what the scores are worth, and the test images' confusion matrix; gives the metrics by name.

    Those of the validation images are the last point, at ``step``, of what was recorded epoch by epoch: a run's latest
    value is that of the model which it registers.
    """
    metrics: dict[str, float] = {}
    for usage, found in scores.items():
        values = class_metrics(found, inspector.classes, inspector.good_class) if len(found) else {}
        metrics |= {f"{usage}/{name}": value for name, value in values.items()}
        metrics[f"{usage}/unreadable"] = float(len(found.unreadable))
    run.log_metrics(metrics, step)
    if "test" in scores:
        matrix = confusion(scores["test"])
        run.log_figure(confusion_figure(matrix, inspector.classes), "confusion_matrix.png")
    return metrics


def record_decision_metrics(
    run: Run, inspector: Inspector, scores: Mapping[str, Scores], confidence: float
) -> dict[str, float]:
    """Record what temperature and operating point are worth, where there are any; gives the metrics by name.

    Args:
        run: of the training.
        inspector: its model.
        scores: as :func:`tyre_lightning.judging.fresh` gives them.
        confidence: of the intervals.
    """
    if inspector.calibration is None:
        return {}
    classes, good = inspector.classes, inspector.good_class
    metrics = {"temperature": inspector.temperature}
    if inspector.point is not None:
        metrics |= {"threshold": inspector.point.threshold, "reject_from": inspector.point.reject_from}
    for usage, found in scores.items():
        values = decision_metrics(found, classes, good, inspector.calibration, inspector.point, confidence)
        if usage == UNSHARED:
            values = class_metrics(found, classes, good) | values
        metrics |= {f"{usage}/{name}": value for name, value in values.items()}
        if good is not None:
            run.log_figure(_decision_figure(found, classes.index(good), inspector), f"{usage}_decisions.png")
    run.log_metrics(metrics)
    return metrics


def record_cost(run: Run, inspector: Inspector, data: TyreDataModule) -> dict[str, float]:
    """Record what a model costs: its parameters, and the time for an image on this machine's CPU."""
    files = data.reader().read([data.val.entry(index) for index in range(min(len(data.val), _TIMED))])
    times, parts = latencies_ms(inspector, files), (inspector.network.backbone, inspector.network.head)
    values = {
        "model/latency_ms": min(times, default=float("nan")),  # what others do on this machine must not count
        "model/parameters": float(sum(part.numel() for own in parts for part in own.parameters())),
    }
    run.log_metrics(values)
    return values


def _shown(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without a password."""
    resolved = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(resolved, dict)
    return {str(key): without_passwords(value) for key, value in resolved.items()}


def _decision_figure(scores: Scores, good: int, inspector: Inspector) -> Figure:
    threshold = None if inspector.point is None else inspector.point.threshold
    tyres = scores.counted(good, inspector.temperature)
    return decision_figure(tyres.labels != good, tyres.scores, threshold)
