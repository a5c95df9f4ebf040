"""Training, top to bottom: data, model, fit, test, judge, register."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import callbacks as lc
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf

from tyre_lightning.audit.copies import read_copies
from tyre_lightning.config import ClassWeights, OperatingPointConfig, TrainConfig, to_train_config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.figures import decision_figure
from tyre_lightning.evaluation.judgement import assess, calibrate, defective_scores, quality
from tyre_lightning.evaluation.latency import latencies_ms
from tyre_lightning.evaluation.metrics import class_weights
from tyre_lightning.evaluation.scores import RecordScores, Scores
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.fingerprint import fingerprint
from tyre_lightning.lake.pinned import save as save_catalogs
from tyre_lightning.model.averaging import weight_average
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.best_epoch import BestEpoch
from tyre_lightning.model.classifier import JUDGEMENT, TyreClassifier
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.model.weights import load_weights
from tyre_lightning.tracking.callbacks import LogConfusion
from tyre_lightning.tracking.journal import Journal
from tyre_lightning.tracking.logger import RunLogger
from tyre_lightning.tracking.pruning import pruning
from tyre_lightning.tracking.registry import model_uri, register
from tyre_lightning.tracking.report import log_report
from tyre_lightning.tracking.runs import (
    CATALOG,
    Run,
    as_params,
    fetch_catalog,
    send_left,
    tracked_run,
    without_password,
)
from tyre_lightning.tracking.sweeps import SWEEP_TAG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIMED = 15  # images
SCORES = "scores"  # the folder of what the best checkpoint said of each image

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> dict[str, float]:
    """Train on a composed config, judge the best checkpoint and register it; gives the last metrics by name.

    Raises:
        UserError: something in the config, the lake or the addresses it names cannot be used.
    """
    config = to_train_config(cfg)
    quiet()
    if config.data.from_run is not None:
        config.data.catalog = fetch_catalog(config.data.from_run, config.logger.tracking_uri, run_folder(config))
    L.seed_everything(config.seed, workers=True, verbose=False)
    preprocessing = Preprocessing.of(preset(config.model.name), config.data)
    copies = read_copies if config.data.near_copies else None
    data = TyreDataModule(config.data, config.s3, preprocessing, config.seed, copies)
    catalogs = data.tagged()
    setup = describe(cfg, data, catalogs)
    if (done := done_before(setup)) is not None:
        return done
    resume, unfinished = starting_point(config, setup)
    model = build_model(config, data, pretrained=resume is None)
    if resume is not None:
        check_checkpoint(resume, model, config.trainer.max_epochs)
    folder = unfinished or run_folder(config)
    name = config.logger.run_name or config.model.name
    if unfinished is None:
        send_left(Path(config.paths.output_dir), config.logger.tracking_uri)
    with tracked_run(config.logger, folder, name, run_tags(), go_on=unfinished is not None) as run:
        record_setup(run, cfg, setup)
        record_data(run, data, catalogs)
        run.flush()  # a server that takes nothing is a reason to stop now, and none later
        shared = find_shared(data)
        trainer = build_trainer(config, run, folder)
        fit(trainer, model, data, resume)
        best = checkpoints(trainer)[0]
        metrics = evaluate(trainer, model, data, best)
        inspector = Inspector.from_checkpoint(best)
        scores = read_scores(folder, data)
        metrics |= judge(run, inspector, config.operating_point, scores, shared)
        add_judgement(best, inspector)
        for path in checkpoints(trainer):
            run.log_file(path, "checkpoints")
        metrics |= weigh(run, inspector, data)
        register(run, inspector)
        shown = config.trainer.enable_progress_bar
        log_report(run, inspector, data, scores, config.operating_point, progress=shown)
    uri = model_uri(run)
    log.info("run %s, best checkpoint %s", run.id, best)
    log.info("model %s; python predict.py model=%s input=... uses it", uri, uri)
    return {name: float(value) for name, value in metrics.items()}


def quiet() -> None:
    """Silence what libraries say to their own developers, and Lightning's second copy of every message."""
    logging.getLogger("lightning.pytorch").propagate = False
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "litlogger" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # the data module is


def build_model(config: TrainConfig, data: TyreDataModule, *, pretrained: bool) -> TyreClassifier:
    """The classifier for a data set; ``pretrained`` fills it with the configured weights.

    Raises:
        UserError: the weights cannot be had.
    """
    options = config.model
    balanced = options.class_weights is ClassWeights.balanced
    model = TyreClassifier(
        name=options.name,
        classes=list(data.classes),
        preprocessing=data.preprocessing.to_dict(),
        good_class=data.good_class,
        dropout=options.dropout,
        label_smoothing=options.label_smoothing,
        class_weights=class_weights(list(data.train.counts().values())) if balanced else None,
        freeze_epochs=options.freeze_epochs,
        freeze_stages=0 if options.weights == "none" else options.freeze_stages,
        channels_last=options.channels_last,
        optimizer=asdict(options.optimizer),
    )
    if pretrained:
        load_weights(model.network, options.name, options.weights, config.s3)
    return model


def build_trainer(config: TrainConfig, run: Run, folder: Path) -> L.Trainer:
    """Lightning's trainer with this project's callbacks.

    Raises:
        UserError: the accelerator is missing.
    """
    options = config.trainer
    gpu = uses_gpu(options.accelerator)
    precision: Any = options.precision
    if precision == "auto":
        precision = "bf16-mixed" if gpu else "32-true"
    count = device_count(options.devices, gpu)
    # Processes started by spawn come back to this one when fit or test ends, so that everything round it (a sweep, the
    # registry) happens once; Lightning's "ddp" would run the whole script again on every rank.
    unused = config.model.freeze_epochs > 0
    strategy: Any = DDPStrategy(start_method="spawn", find_unused_parameters=unused) if count > 1 else "auto"
    return L.Trainer(
        accelerator="gpu" if gpu else options.accelerator,
        devices=options.devices,
        strategy=strategy,
        precision=precision,
        max_epochs=options.max_epochs,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val,
        deterministic="warn" if options.deterministic else False,
        sync_batchnorm=gpu and count > 1,
        log_every_n_steps=options.log_every_n_steps,
        limit_train_batches=_share(options.limit_train_batches),
        limit_val_batches=_share(options.limit_val_batches),
        limit_test_batches=_share(options.limit_test_batches),
        enable_progress_bar=options.enable_progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module's own sampler repeats no image in evaluation
        num_sanity_val_steps=0,
        logger=RunLogger(run),
        callbacks=[*build_callbacks(config, folder), *(pruning() if count == 1 else [])],
        default_root_dir=folder,
    )


def build_callbacks(config: TrainConfig, folder: Path) -> list[L.Callback]:
    """Checkpoints (best and last), learning rates, the confusion matrix, and what is switched on beside them."""
    options = config.callbacks
    found: list[L.Callback] = [
        BestEpoch(
            dirpath=folder / "checkpoints",
            filename="best",
            monitor=options.checkpoint.monitor,
            mode=options.checkpoint.mode,
            enable_version_counter=False,
        ),
        # Apart from the best, so that what an interrupt leaves never takes the best one's place.
        lc.ModelCheckpoint(
            save_on_exception=True,
            save_on_train_epoch_end=True,
            filename="last",
            dirpath=folder / "checkpoints",
            enable_version_counter=False,
        ),
        # Within an epoch too, against what leaves no time to save: a lost node, kill -9.
        lc.ModelCheckpoint(
            train_time_interval=timedelta(minutes=options.checkpoint.minutes),
            filename="last",
            dirpath=folder / "checkpoints",
            enable_version_counter=False,
        ),
        lc.LearningRateMonitor(logging_interval="step"),
        LogConfusion(),
        RecordScores(folder / SCORES),
    ]
    stop = options.early_stopping
    if stop.patience is not None:
        found.append(lc.EarlyStopping(stop.monitor, mode=stop.mode, patience=stop.patience))
    if options.ema.decay is not None:
        found.append(weight_average(options.ema.decay))
    return found


def uses_gpu(accelerator: str) -> bool:
    """Whether a GPU is used.

    Raises:
        UserError: one is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if accelerator in ("gpu", "cuda") and not available:
        raise UserError("trainer.accelerator=gpu, but PyTorch sees no GPU here: use trainer=cpu")
    return available and accelerator in ("gpu", "cuda", "auto")


def device_count(devices: Any, gpu: bool) -> int:
    """How many processes ``trainer.devices`` asks for.

    Raises:
        UserError: it is neither a count, -1 nor a list of indices.
    """
    if OmegaConf.is_list(devices) or isinstance(devices, list):
        return len(devices)
    if not isinstance(devices, int) or devices == 0 or devices < -1:
        raise UserError(f"trainer.devices={devices} must be a count, -1 for all, or a list of indices")
    if devices == -1:
        return torch.cuda.device_count() if gpu else 1
    return devices


def done_before(setup: Mapping[str, Any]) -> dict[str, float] | None:
    """The metrics of a run of a sweep that has been continued, where that run has finished already."""
    journal = Journal.at(Path(HydraConfig.get().runtime.output_dir)) if in_sweep() else None
    if journal is None or journal.status() != "FINISHED" or different(journal, setup):
        return None
    log.info("this run has finished before: %s", journal.run()["run_id"])
    return journal.metrics()


def starting_point(config: TrainConfig, setup: Mapping[str, Any]) -> tuple[str | None, Path | None]:
    """The checkpoint that training begins with, and the folder of the unfinished run that goes on with it, if any.

    Raises:
        UserError: there is no such checkpoint.
    """
    resume = find_checkpoint(config)
    unfinished = unfinished_run(resume, setup)
    if config.ckpt_path is None and unfinished is None:
        return None, None
    return resume, unfinished


def find_checkpoint(config: TrainConfig) -> str | None:
    """The checkpoint to resume from: the one that is asked for, or what a sweep that is continued has left here.

    Raises:
        UserError: there is none.
    """
    if config.ckpt_path is None:
        left = run_folder(config) / "checkpoints" / "last.ckpt"
        return str(left) if in_sweep() and left.is_file() else None
    if config.ckpt_path != "last":
        if not os.path.isfile(config.ckpt_path):
            raise UserError(f"ckpt_path={config.ckpt_path} does not exist: give a checkpoint's path, or last")
        return config.ckpt_path
    found = sorted(Path(config.paths.output_dir, "train").glob("*/checkpoints/last.ckpt"), key=os.path.getmtime)
    if not found:
        raise UserError(f"ckpt_path=last: no run in {config.paths.output_dir}/train has left a checkpoint yet")
    log.info("resuming from %s", found[-1])
    return str(found[-1])


def check_checkpoint(path: str, model: TyreClassifier, epochs: int) -> None:
    """Refuse to resume another model's training, or one that is done.

    Raises:
        UserError: the file is no checkpoint, its backbone or classes differ, or its run had as many epochs.
    """
    saved = Inspector.from_checkpoint(path)
    journal = Journal.at(Path(path).absolute().parent.parent)
    done = torch.load(path, map_location="cpu", weights_only=True)["epoch"] + 1
    if journal is not None and journal.status() == "FINISHED" and done >= epochs:
        raise UserError(f"{path} is of a run that has done its {done} epochs: give a greater trainer.max_epochs")
    for key, theirs, ours in (
        ("model.name", saved.name, model.hparams["name"]),
        ("data.classes", saved.classes, model.hparams["classes"]),
    ):
        if theirs != ours:
            raise UserError(f"{path} was trained with {key}={theirs}, not {ours}: give that, or another ckpt_path")


def unfinished_run(resume: str | None, setup: Mapping[str, Any]) -> Path | None:
    """The folder of the run that left a checkpoint and goes on now: it did not finish, and its parameters are these."""
    folder = None if resume is None else Path(resume).absolute().parent.parent
    journal = None if folder is None else Journal.at(folder)
    if journal is None or journal.status() == "FINISHED":
        return None
    if differing := different(journal, setup):
        log.info("this is a new run, because %s is not what run %s had", ", ".join(differing), journal.run()["run_id"])
        return None
    return folder


def different(journal: Journal, setup: Mapping[str, Any]) -> list[str]:
    """The names of the parameters in which a run differs from the one that a journal is of."""
    recorded, given = journal.params(), as_params(setup)
    return sorted(key for key in recorded | given if recorded.get(key) != given.get(key) and key != "ckpt_path")


def in_sweep() -> bool:
    """Whether this is a run of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_folder(config: TrainConfig) -> Path:
    """The folder of this run: Hydra's, or ``paths.output_dir`` when called from Python."""
    return Path(HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else config.paths.output_dir)


def run_tags() -> dict[str, str]:
    """Which sweep a run belongs to, if to any."""
    return {SWEEP_TAG: HydraConfig.get().sweep.dir} if in_sweep() else {}


def describe(cfg: DictConfig, data: TyreDataModule, catalogs: Mapping[str, Catalog]) -> dict[str, Any]:
    """A run's parameters: the resolved config, and what the data turned out to be."""
    resolved = OmegaConf.to_container(_shown(cfg), resolve=True, enum_to_str=True)
    assert isinstance(resolved, dict)
    found = {
        "root": data.store.root,
        "classes": list(data.classes),
        "good_class": data.good_class,
        "images": {usage: catalog.counts() for usage, catalog in catalogs.items()},
        "ignored": data.ignored,
        "fingerprint": fingerprint([*catalogs.values()]),
    }
    return {**{str(key): value for key, value in resolved.items()}, "found": found}


def record_setup(run: Run, cfg: DictConfig, setup: Mapping[str, Any]) -> None:
    """Record a run's parameters, and its config as a file."""
    run.log_params(setup)
    run.log_text(OmegaConf.to_yaml(_shown(cfg), resolve=True), "config.yaml")


def _shown(cfg: DictConfig) -> DictConfig:
    """The config without a password."""
    shown = cfg.copy()
    shown.logger.tracking_uri = without_password(cfg.logger.tracking_uri)
    return shown


def record_data(run: Run, data: TyreDataModule, catalogs: Mapping[str, Catalog]) -> None:
    """Record which images the run saw: their fingerprints as inputs, the list of them as an artifact."""
    for usage, catalog in catalogs.items():
        run.log_dataset(usage, fingerprint([catalog]), data.store.root, catalog.counts())
        ignored = f" ({data.ignored[usage]} other files ignored)" if usage in data.ignored else ""
        log.info("%s: %d images, %s%s", usage, len(catalog), catalog.counts(), ignored)
    with TemporaryDirectory() as folder:
        save_catalogs(path := Path(folder, CATALOG), data.store.root, catalogs)
        run.log_file(path)


def find_shared(data: TyreDataModule) -> list[str]:
    """The keys of test images of tyres that training sees too; warns of them, and of what else copies may spoil."""
    if data.copies:
        log.info("%d pairs of images are copies or near-copies: each stays on one side of a split", len(data.copies))
    if data.conflicts:
        log.warning(
            "%d pairs of copies or near-copies lie in different classes (%s and %s, ...): "
            "`python -m tyre_lightning.audit` shows them", len(data.conflicts), *data.conflicts[0],
        )  # fmt: skip
    if shared := data.shared_with_train("val"):
        log.warning(
            "%d of %d validation images are of tyres that training sees too (%s, ...): what they promise is too good",
            len(shared), len(data.val), shared[0],
        )  # fmt: skip
    if shared := data.shared_with_train("test"):
        log.warning(
            "%d of %d test images are of tyres that training sees too (%s, ...): the metrics without them are "
            "recorded as test_unshared/...", len(shared), len(data.test or ()), shared[0],
        )  # fmt: skip
    return shared


def fit(trainer: L.Trainer, model: TyreClassifier, data: TyreDataModule, resume: str | None) -> None:
    """Fit; a Ctrl-C leaves ``last.ckpt`` and goes on as the KeyboardInterrupt that Lightning makes an exit of."""
    try:
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        raise KeyboardInterrupt from None


def evaluate(trainer: L.Trainer, model: TyreClassifier, data: TyreDataModule, best: str) -> dict[str, Any]:
    """Validate the best checkpoint, and test it where there are test images; gives all metrics so far."""
    metrics = dict(trainer.callback_metrics)
    trainer.validate(model, data, ckpt_path=best, weights_only=True, verbose=False)
    metrics |= trainer.callback_metrics
    if data.test is not None:
        trainer.test(model, data, ckpt_path=best, weights_only=True)
        metrics |= trainer.callback_metrics
    return metrics


def read_scores(folder: Path, data: TyreDataModule) -> dict[str, Scores]:
    """What the best checkpoint said of each image, by usage; none of a usage of which no image could be read."""
    usages = [usage for usage in ("val", "test") if usage in data.catalogs()]
    found = {usage: Scores.read(folder / SCORES, usage, data.tyres(usage)) for usage in usages}
    return {usage: scores for usage, scores in found.items() if scores is not None}


def judge(
    run: Run, inspector: Inspector, wanted: OperatingPointConfig, scores: Mapping[str, Scores], shared: Sequence[str]
) -> dict[str, float]:
    """Give an inspector its temperature and operating point, by the scores of the validation images.

    Records what they are worth on the test images, where there are some, and gives it; where ``shared`` names test
    images of tyres that training saw too, then also without them, as ``test_unshared/...``.
    """
    classes, good = inspector.classes, inspector.good_class
    if "val" not in scores:
        log.warning("no validation image could be read, so that probabilities are not calibrated")
        return {}
    inspector.calibration = calibrate(scores["val"], None if good is None else classes.index(good))
    try:
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
        values = assess(found, classes, good, inspector.temperature, inspector.point, wanted.confidence)
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


def add_judgement(checkpoint: str, inspector: Inspector) -> None:
    """Write temperature and operating point into a checkpoint, so that it answers as the registered model does."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    torch.save({**content, JUDGEMENT: inspector.judgement()}, checkpoint)


def checkpoints(trainer: L.Trainer) -> list[str]:
    """The paths of the best checkpoint and the last."""
    best, *others = [
        item.best_model_path for item in trainer.checkpoint_callbacks if isinstance(item, lc.ModelCheckpoint)
    ]
    return [best, *sorted({*others} - {""})]


def _decision_figure(scores: Scores, good: int, inspector: Inspector) -> Figure:
    threshold = None if inspector.point is None else inspector.point.threshold
    return decision_figure(scores.labels != good, defective_scores(scores, good, inspector.temperature), threshold)


def _share(limit: float | None) -> int | float | None:
    """Lightning takes a whole number as a count of batches and a fraction as a share."""
    return int(limit) if limit is not None and limit > 1 else limit
