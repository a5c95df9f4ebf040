"""Training, top to bottom: data, model, fit, test, judge, register."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.multiprocessing.spawn import ProcessRaisedException

from tyre_lightning.checkpointing import save_whole
from tyre_lightning.checks import balanced_weights, check_means, check_monitors, check_readable, limited
from tyre_lightning.config import (
    ClassWeights,
    OperatingPointConfig,
    TrainConfig,
    TrainerConfig,
    Unreadable,
    to_train_config,
)
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.errors import UnreadableImage, UserError, without_passwords
from tyre_lightning.evaluation.figures import confusion_figure, decision_figure
from tyre_lightning.evaluation.judgement import assess, calibrate, confusion, quality
from tyre_lightning.evaluation.latency import latencies_ms
from tyre_lightning.evaluation.scores import SCORES, Scores
from tyre_lightning.files import disk_errors
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.fingerprint import fingerprint
from tyre_lightning.lake.pinned import save as save_catalogs
from tyre_lightning.messages import quiet
from tyre_lightning.model.classifier import JUDGEMENT, TyreClassifier
from tyre_lightning.model.engine import check_export
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.model.weights import load_weights
from tyre_lightning.opening import open_data
from tyre_lightning.progress import progress_bar
from tyre_lightning.resuming import check_checkpoint, done_before, find_checkpoint, going_on, run_folder, starting_point
from tyre_lightning.slurm import JOB_TAG, claim, job, requeued_when_told
from tyre_lightning.telling import tell_device, tell_end, tell_work
from tyre_lightning.tracking.journal import Journal
from tyre_lightning.tracking.registry import model_uri, register, run_model
from tyre_lightning.tracking.report import log_report
from tyre_lightning.tracking.runs import CATALOG, CONFIG, Run, send_left, tracked_run
from tyre_lightning.tracking.sweeps import SWEEP_TAG, in_sweep
from tyre_lightning.trainer import build_trainer, checkpoints, gpus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIMED = 15  # images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a training has left.

    Args:
        run_id: of its run in MLflow.
        folder: of its checkpoints and its journal.
        model: the URI of its model.
        metrics: the last value of each, by name.
    """

    run_id: str
    folder: Path
    model: str
    metrics: dict[str, float]


@disk_errors()
@requeued_when_told()
def train(cfg: DictConfig, callbacks: Sequence[L.Callback] = ()) -> Trained:
    """Train on a composed config, judge the best checkpoint and register it.

    Args:
        cfg: the config.
        callbacks: beside this project's.

    Raises:
        UserError: something in the config, the lake or the addresses it names cannot be used.
    """
    config = to_train_config(cfg)
    quiet()
    asked = find_checkpoint(config)
    check_means(config)
    tell_device(config.trainer)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = open_data(config)
    catalogs = data.tagged()
    setup = describe(cfg, data, catalogs)
    if (done := done_before(config, setup)) is not None:
        send_left(Path(config.paths.output_dir), config.logger.tracking_uri)
        return finished_before(done)
    resume, unfinished = starting_point(config, asked, setup)
    check_monitors(config.callbacks, data)
    model = build_model(config, data, pretrained=resume is None)
    if resume is not None:
        check_checkpoint(resume, model, None if unfinished else config.trainer.max_epochs)
    folder = unfinished or run_folder(config)
    tell_work(config, data, model, folder)
    name = config.logger.run_name or config.model.name
    if unfinished is None:
        send_left(Path(config.paths.output_dir), config.logger.tracking_uri)
    tracked = tracked_run(config.logger, folder, name, run_tags(), go_on=unfinished is not None)
    with going_on(folder), tracked as run, requeued_when_told():  # before MLflow is waited for
        claim(folder)
        record_setup(run, cfg, setup)
        record_data(run, data, catalogs)
        run.flush()  # a server that takes nothing is a reason to stop now, and none later
        shared = find_shared(data)
        check_readable(data, config)
        trainer = build_trainer(config, run, folder, new=unfinished is None, callbacks=callbacks)
        fit(trainer, model, data, resume)
        best, *others = checkpoints(trainer, folder)
        inspector = replace(Inspector.from_checkpoint(best), group_pattern=config.data.group_pattern)
        scores = score(inspector, data, config.trainer)
        record_scores(run, inspector, scores, folder / SCORES)
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        metrics |= measure(run, inspector, scores, trainer.global_step + 1)
        metrics |= judge(run, inspector, config.operating_point, scores, shared, data.shared_with_train("val"))
        add_judgement(best, inspector)
        for path in (best, *others):
            run.log_file(path, "checkpoints")
        metrics |= weigh(run, inspector, data)
        register(run, inspector, challenger=config.data.folds is None and not in_sweep())
        shown = config.trainer.enable_progress_bar
        log_report(run, inspector, data, readable(scores), config.operating_point, progress=shown)
    tell_end(run, inspector, readable(scores), config.operating_point, data)
    found = {name: float(value) for name, value in metrics.items()}
    return Trained(run.id, folder, model_uri(run), found)


def finished_before(journal: Journal) -> Trained:
    """What a run that is not done again has left."""
    run_id = journal.run()["run_id"]
    return Trained(run_id, journal.folder.parent, run_model(run_id), journal.metrics())


def build_model(config: TrainConfig, data: TyreDataModule, *, pretrained: bool) -> TyreClassifier:
    """The classifier for a data set; ``pretrained`` fills it with the configured weights.

    Raises:
        UserError: the weights cannot be had.
    """
    options = config.model
    balanced = options.class_weights is ClassWeights.balanced
    model = TyreClassifier(
        name=options.backbone,
        classes=list(data.classes),
        preprocessing=data.preprocessing.to_dict(),
        good_class=data.good_class,
        dropout=options.dropout,
        label_smoothing=options.label_smoothing,
        class_weights=balanced_weights(data) if balanced else None,
        freeze_epochs=options.freeze_epochs,
        freeze_stages=0 if options.weights == "none" else options.freeze_stages,
        channels_last=options.channels_last,
        optimizer=asdict(options.optimizer),
    )
    if pretrained:
        load_weights(model.network, options.backbone, options.weights, config.s3)
    check_export(model.network, options.backbone, data.preprocessing.size)
    return model


def run_tags() -> dict[str, str]:
    """Which sweep and which job of SLURM a run belongs to, if to any."""
    of_sweep = {SWEEP_TAG: HydraConfig.get().sweep.dir} if in_sweep() else {}
    return of_sweep | ({} if (name := job()) is None else {JOB_TAG: name})


def describe(cfg: DictConfig, data: TyreDataModule, catalogs: Mapping[str, Catalog]) -> dict[str, Any]:
    """A run's parameters: the resolved config, and what the data turned out to be."""
    found = {
        "root": data.store.root,
        "classes": list(data.classes),
        "good_class": data.good_class,
        "images": {usage: catalog.counts() for usage, catalog in catalogs.items()},
        "ignored": data.ignored,
        "fingerprint": fingerprint([*catalogs.values()]),
    }
    return {**_shown(cfg), "found": found}


def record_setup(run: Run, cfg: DictConfig, setup: Mapping[str, Any]) -> None:
    """Record a run's parameters, and its config as a file."""
    run.log_params(setup)
    run.log_text(OmegaConf.to_yaml(_shown(cfg)), CONFIG)


def _shown(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without a password."""
    resolved = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(resolved, dict)
    return {str(key): without_passwords(value) for key, value in resolved.items()}


def record_data(run: Run, data: TyreDataModule, catalogs: Mapping[str, Catalog]) -> None:
    """Record which images the run saw: their fingerprints as inputs, the list of them as an artifact."""
    for usage, catalog in catalogs.items():
        run.log_dataset(usage, fingerprint([catalog]), data.store.root, catalog.counts())
    with TemporaryDirectory() as folder:
        shown = {usage: data.shown(usage) for usage in catalogs}
        save_catalogs(path := Path(folder, CATALOG), data.store.root, catalogs, shown)
        run.log_file(path)


def find_shared(data: TyreDataModule) -> list[str]:
    """The keys of test images of tyres that training sees too; warns of them, and of what else copies may spoil."""
    found = data.grouping
    if found.copies:
        log.info("%d pairs of images are copies or near-copies: each stays on one side of a split", len(found.copies))
    if found.conflicts:
        log.warning(
            "%d pairs of copies or near-copies lie in different classes (%s and %s, ...): "
            "`python -m tyre_lightning.audit` shows them", len(found.conflicts), *found.conflicts[0],
        )  # fmt: skip
    if shared := data.shared_with_train("val"):
        log.warning(
            "%d of %d validation images are of tyres that training sees too (%s, ...): nothing is promised by them",
            len(shared), len(data.val), shared[0],
        )  # fmt: skip
    if shared := data.shared_with_train("test"):
        log.warning(
            "%d of %d test images are of tyres that training sees too (%s, ...): the metrics without them are "
            "recorded as test_unshared/...", len(shared), len(data.test or ()), shared[0],
        )  # fmt: skip
    return shared


def fit(trainer: L.Trainer, model: TyreClassifier, data: TyreDataModule, resume: Path | None) -> None:
    """Fit; Ctrl-C and SIGTERM leave ``last.ckpt`` and go on as the KeyboardInterrupt that Lightning makes an exit of.

    Raises:
        UserError: also where one of several processes raised it, of which torch only hands on the traceback's text.
    """
    try:
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        if trainer.received_sigterm:  # when the last step was done
            raise SystemExit
    except SystemExit:
        raise KeyboardInterrupt from None
    except ProcessRaisedException as error:
        found = re.search(rf"^{re.escape(UserError.__module__)}\.\w+: (.+)", str(error), re.MULTILINE)
        if found is None:
            raise
        raise UserError(found[1]) from None


def score(inspector: Inspector, data: TyreDataModule, options: TrainerConfig) -> dict[str, Scores]:
    """What the model to be registered says of the validation and test images, by usage: as predict.py asks it.

    Raises:
        UserError: an image cannot be fetched, or not decoded where that is an error.
    """

    def fail(error: UnreadableImage) -> None:
        if data.config.unreadable is Unreadable.error:
            raise error
        log.warning("%s; it is left out", error)

    limits = {"val": options.limit_val_batches, "test": options.limit_test_batches}
    catalogs = {
        usage: limited(catalog, limits[usage], data.config.batch_size)
        for usage, catalog in data.catalogs().items()
        if usage in limits
    }
    reader, devices = data.reader(), gpus(options)
    with progress_bar(options.enable_progress_bar) as progress:
        task = progress.add_task("scoring", total=sum(map(len, catalogs.values())))
        found = {
            usage: Scores.of(
                inspector,
                reader,
                catalog,
                data.shown(usage),
                fail,
                lambda count: progress.advance(task, count),
                devices,
            )
            for usage, catalog in catalogs.items()
        }
    for problem in reader.problems:
        log.warning("%s", problem)
    return found


def record_scores(run: Run, inspector: Inspector, scores: Mapping[str, Scores], folder: Path) -> None:
    """Keep what was said of each image as ``<usage>.parquet``, an artifact of the run too."""
    for usage, found in scores.items():
        found.save(path := folder / f"{usage}.parquet", inspector.classes)
        run.log_file(path, SCORES)


def readable(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Without the usages of which no image could be read."""
    return {usage: found for usage, found in scores.items() if found.keys}


def measure(run: Run, inspector: Inspector, scores: Mapping[str, Scores], step: int) -> dict[str, float]:
    """Record what the scores are worth, and the test images' confusion matrix; gives the metrics by name.

    Those of the validation images are the last point, at ``step``, of what was recorded epoch by epoch: a run's latest
    value is that of the model which it registers.
    """
    metrics: dict[str, float] = {}
    for usage, found in scores.items():
        values = quality(found, inspector.classes, inspector.good_class) if found.keys else {}
        metrics |= {f"{usage}/{name}": value for name, value in values.items()}
        metrics[f"{usage}/unreadable"] = float(len(found.unreadable))
    run.log_metrics(metrics, step)
    if "test" in scores:
        matrix = confusion(scores["test"].labels, scores["test"].logits)
        run.log_figure(confusion_figure(matrix, inspector.classes), "confusion_matrix.png")
    return metrics


def judge(
    run: Run,
    inspector: Inspector,
    wanted: OperatingPointConfig,
    scores: Mapping[str, Scores],
    shared: Sequence[str],
    seen: Sequence[str] = (),
) -> dict[str, float]:
    """Give an inspector its temperature and operating point, by the scores of the validation images.

    Those in ``seen``, of tyres of which training saw other pictures, say nothing of new tyres and are left out. Records
    what both are worth on the test images, where there are some, and gives it; where ``shared`` names test images of
    tyres that training saw too, then also without them, as ``test_unshared/...``.
    """
    classes, good = inspector.classes, inspector.good_class
    scores = readable(scores)
    unseen = scores["val"].without(seen) if "val" in scores else None
    if unseen is None or not unseen.keys:
        log.warning("no validation image of a tyre that training did not see could be read: nothing is calibrated")
        return {}
    scores = {**scores, "val": unseen}
    inspector.calibration = calibrate(unseen, None if good is None else classes.index(good))
    try:
        if good is not None:  # else the data module has said so
            inspector.promise(wanted)
    except UserError as error:
        log.warning("the model gets no operating point: %s", error)
    metrics = {"temperature": inspector.temperature}
    if inspector.point is not None:
        metrics |= {"threshold": inspector.point.threshold, "reject_from": inspector.point.reject_from}
    if shared and "test" in scores and (unshared := scores["test"].without({*shared})).keys:
        scores = {**scores, "test_unshared": unshared}
        metrics |= {f"test_unshared/{name}": value for name, value in quality(unshared, classes, good).items()}
    for usage, found in scores.items():
        values = assess(found, classes, good, inspector.calibration, inspector.point, wanted.confidence)
        metrics |= {f"{usage}/{name}": value for name, value in values.items()}
        if good is not None:
            run.log_figure(_decision_figure(found, classes.index(good), inspector), f"{usage}_decisions.png")
    run.log_metrics(metrics)
    return metrics


def weigh(run: Run, inspector: Inspector, data: TyreDataModule) -> dict[str, float]:
    """Record what a model costs: its parameters, and the time for an image on this machine's CPU."""
    files = data.reader().read([data.val.entry(index) for index in range(min(len(data.val), _TIMED))])
    times = latencies_ms(inspector, files)
    values = {
        "model/latency_ms": min(times, default=float("nan")),  # what others do on this machine must not count
        "model/parameters": float(sum(part.numel() for part in inspector.network.parameters())),
    }
    run.log_metrics(values)
    return values


def add_judgement(checkpoint: Path, inspector: Inspector) -> None:
    """Write temperature and operating point into a checkpoint, so that it answers as the registered model does."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    save_whole({**content, JUDGEMENT: inspector.judgement()}, checkpoint)


def _decision_figure(scores: Scores, good: int, inspector: Inspector) -> Figure:
    threshold = None if inspector.point is None else inspector.point.threshold
    tyres = scores.counted(good, inspector.temperature)
    return decision_figure(tyres.labels != good, tyres.scores, threshold)
