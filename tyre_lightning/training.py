"""Training, top to bottom: data, model, fit, test, judge, register."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch.multiprocessing.spawn import ProcessRaisedException

from tyre_lightning.checkpointing import BEST, model_alone, save_whole
from tyre_lightning.checks import balanced_weights, check_means, check_monitors, check_readable, limited
from tyre_lightning.config import (
    ClassWeights,
    OperatingPointConfig,
    Sampling,
    TrainConfig,
    TrainerConfig,
    Unreadable,
    to_train_config,
)
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.decision.operating_point import JUDGEMENT
from tyre_lightning.errors import UnreadableImage, UserError
from tyre_lightning.evaluation.answer import answer
from tyre_lightning.evaluation.judgement import fit_calibration
from tyre_lightning.evaluation.likeness import UNKNOWN, Likeness, draw, learn_reference
from tyre_lightning.evaluation.sampling import sample_of
from tyre_lightning.evaluation.scores import SCORES, Scores
from tyre_lightning.files import disk_errors
from tyre_lightning.memory import memory_errors
from tyre_lightning.messages import quiet
from tyre_lightning.model.classifier import FORMAT, MADE_AS, REFERENCE, TyreClassifier
from tyre_lightning.model.engine import check_export
from tyre_lightning.model.examples import EXAMPLES
from tyre_lightning.model.imbalance import adjustment
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.model.weights import load_weights
from tyre_lightning.opening import open_data
from tyre_lightning.progress import progress_bar
from tyre_lightning.recording import (
    UNSHARED,
    describe,
    record_class_metrics,
    record_cost,
    record_data,
    record_decision_metrics,
    record_scores,
    record_setup,
    run_tags,
)
from tyre_lightning.resuming import check_checkpoint, done_before, find_checkpoint, run_folder, starting_point
from tyre_lightning.slurm import claim, requeued_when_told
from tyre_lightning.telling import tell_device, tell_end, tell_work
from tyre_lightning.titles import run_name
from tyre_lightning.tracking.journal import Journal
from tyre_lightning.tracking.pages import model_note
from tyre_lightning.tracking.registry import model_uri, register, run_model
from tyre_lightning.tracking.report import log_report
from tyre_lightning.tracking.runs import send_left, tracked_run
from tyre_lightning.tracking.sweeps import in_sweep
from tyre_lightning.tracking.tables import PREDICTIONS_TABLE, predictions_table
from tyre_lightning.trainer import best_checkpoint, build_trainer, epochs_of, gpus

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
@memory_errors("data.batch_size or data.image_size")
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
    epochs = epochs_of(config.trainer, len(data.train), config.data.batch_size)
    config = replace(config, trainer=replace(config.trainer, max_epochs=epochs))
    catalogs = data.tagged()
    setup = describe(cfg, data, catalogs, epochs)
    if (done := done_before(config, setup)) is not None:
        send_left(Path(config.paths.output_dir), config.logger.tracking_uri)
        return finished_before(done)
    resume, unfinished = starting_point(config, asked, setup)
    check_monitors(config.callbacks, data)
    model = build_model(config, data, pretrained=resume is None)
    if resume is not None:
        check_checkpoint(resume, model, None if unfinished else epochs)
    folder = unfinished or run_folder(config)
    tell_work(config, data, model, folder)
    if unfinished is None:
        send_left(Path(config.paths.output_dir), config.logger.tracking_uri)
    name, tags = run_name(config, data.preprocessing.size), run_tags(config.trainer, setup["found"])
    tracked = tracked_run(config.logger, folder, name, tags, go_on=unfinished is not None)
    with tracked as run, requeued_when_told():  # before MLflow is waited for
        claim(folder)
        record_setup(run, cfg, setup)
        record_data(run, data, catalogs)
        run.flush()  # a server that takes nothing is a reason to stop now, and none later
        seen = find_shared(data)
        check_readable(data, config)
        trainer = build_trainer(config, run, folder, new=unfinished is None, callbacks=callbacks)
        fit(trainer, model, data, resume)
        best = best_checkpoint(trainer, folder)
        inspector = replace(Inspector.from_checkpoint(best), group_pattern=config.data.group_pattern)
        inspector.reference, learnt, inspector.examples = learn_good_tyres(inspector, data, config.trainer)
        scores = score(inspector, data, config.trainer)
        record_scores(run, inspector, scores, folder / SCORES)
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        metrics |= record_class_metrics(run, inspector, scores, trainer.global_step + 1)
        judged = fresh(readable(scores), seen)
        fit_decisions(inspector, config.operating_point, judged.get("val"), learnt)
        if "val" in judged:
            inspector.validation = sample_of(inspector, judged["val"])
        metrics |= record_decision_metrics(run, inspector, judged, config.operating_point.confidence)
        run.log_table(predictions_table(scores["test" if "test" in scores else "val"], inspector), PREDICTIONS_TABLE)
        add_judgement(best, inspector)
        metrics |= record_cost(run, inspector, data)
        said = answer(inspector, readable(scores), config.operating_point, seen)
        about = model_note(said, inspector.name, inspector.preprocessing.size, setup["found"])
        register(run, inspector, about, challenger=config.data.folds is None and not in_sweep())
        shown = config.trainer.enable_progress_bar
        log_report(run, inspector, data, readable(scores), config.operating_point, progress=shown)
    tell_end(run, said)
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
        optimizer=options.optimizer.rates(),
        multi_label=config.data.multi_label,
        log_priors=priors(config, data),
    )
    model.use(options.loss, options.optimizer.own)
    if pretrained:
        load_weights(model.network, options.backbone, options.weights, config.s3)
    check_export(model.network, options.backbone, data.preprocessing.size)
    return model


def priors(config: TrainConfig, data: TyreDataModule) -> list[float] | None:
    """What cross-entropy adds to logits for rare classes; None where that is off, or balancing does as much."""
    options = config.model
    balanced = options.class_weights is ClassWeights.balanced or config.data.sampling is Sampling.balanced
    if balanced or config.data.multi_label or not options.logit_adjustment:
        return None
    return adjustment([*data.train.counts().values()], options.logit_adjustment)


def find_shared(data: TyreDataModule) -> dict[str, list[str]]:
    """Keys of images of tyres that training sees too, by usage; warns of them, and of what else copies may spoil."""
    found = data.grouping
    if found.copies:
        log.info("%d pairs of images are copies or near-copies: each stays on one side of a split", len(found.copies))
    if found.conflicts:
        log.warning(
            "%d pairs of copies or near-copies lie in different classes (%s and %s, ...): "
            "`python -m tyre_lightning.audit` shows them%s", len(found.conflicts), *found.conflicts[0],
            _way_out(data.contradicting()),
        )  # fmt: skip
    seen = {usage: data.shared_with_train(usage) for usage in ("val", "test")}
    if shared := seen["val"]:
        log.warning(
            "%d of %d validation images are of tyres that training sees too (%s, ...): nothing is promised by them",
            len(shared), len(data.val), shared[0],
        )  # fmt: skip
    if shared := seen["test"]:
        log.warning(
            "%d of %d test images are of tyres that training sees too (%s, ...): the metrics without them are "
            "recorded as test_unshared/...", len(shared), len(data.test or ()), shared[0],
        )  # fmt: skip
    return seen


def _way_out(contents: int) -> str:
    """What to do about copies in several folders of defects, where the setting would do it."""
    if not contents:
        return ""
    return (
        f"; {contents} of them are the same file in several folders of defects: data.multi_label=true makes each one "
        "picture with several defects"
    )


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


def learn_good_tyres(inspector: Inspector, data: TyreDataModule, options: TrainerConfig) -> Likeness:
    """What the good tyres of training look like to the trained network; nothing where no class is known as theirs."""
    if inspector.good_class is None:
        return UNKNOWN
    count = len(limited(data.train, options.limit_train_batches, data.config.batch_size))
    kept = draw(data.train, count, data.seed)
    with progress_bar(options.enable_progress_bar) as progress:
        task = progress.add_task("learning what good tyres look like", total=len(kept))
        return learn_reference(
            inspector,
            data.reader(),
            kept,
            data.shown("train"),
            lambda count: progress.advance(task, count),
            gpus(options),
        )


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
                traits=usage == "val",
            )
            for usage, catalog in catalogs.items()
        }
    for problem in reader.problems:
        log.warning("%s", problem)
    return found


def readable(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Without the usages of which no image could be read."""
    return {usage: found for usage, found in scores.items() if found.keys}


def fresh(scores: Mapping[str, Scores], seen: Mapping[str, Sequence[str]]) -> dict[str, Scores]:
    """The scores that say something of new tyres, by usage.

    Args:
        scores: of readable images.
        seen: keys of images of tyres of which training saw other pictures. Those of validation are left out; where some
            of the test images are among them, the others are :data:`UNSHARED` too.
    """
    found = {usage: one.without(seen["val"]) if usage == "val" else one for usage, one in scores.items()}
    if seen["test"] and "test" in scores:
        found[UNSHARED] = scores["test"].without(seen["test"])
    return readable(found)


def fit_decisions(
    inspector: Inspector, wanted: OperatingPointConfig, scores: Scores | None, learnt: NDArray[np.float64]
) -> None:
    """Give an inspector its temperature and operating point.

    Args:
        inspector: the model.
        wanted: what it is to promise.
        scores: of validation images of new tyres.
        learnt: how far good tyres of training are from each other, see :class:`Likeness`.
    """
    if scores is None:
        log.warning("no validation image of a tyre that training did not see could be read: nothing is calibrated")
        return
    good = inspector.good_class
    inspector.calibration = fit_calibration(scores, None if good is None else inspector.classes.index(good), learnt)
    try:
        if good is not None:  # else the data module has said so
            inspector.promise(wanted)
    except UserError as error:
        log.warning("the model gets no operating point: %s", error)


def add_judgement(checkpoint: Path, inspector: Inspector) -> None:
    """Write what decides into a checkpoint, so that it answers as the registered model does.

    The best one keeps the model alone, since a training goes on from the last.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = model_alone(content) if checkpoint.name == BEST else content
    judged: dict[str, Any] = {JUDGEMENT: inspector.judgement()}
    if inspector.reference is not None:  # older versions would leave it out, and accept what this one does not
        judged |= {MADE_AS: FORMAT, REFERENCE: inspector.reference_tensors(), EXAMPLES: inspector.example_tensors()}
    save_whole({**kept, **judged}, checkpoint)
