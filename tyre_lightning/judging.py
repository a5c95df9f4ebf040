"""What a trained network is worth and what it may decide: learn good tyres, score, calibrate, record, register."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.checks import limited
from tyre_lightning.config import TrainConfig, TrainerConfig, Unreadable
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.errors import UnreadableImage, UserError
from tyre_lightning.evaluation.answer import answer
from tyre_lightning.evaluation.judgement import fit_calibration
from tyre_lightning.evaluation.likeness import UNKNOWN, Likeness, draw, learn_reference
from tyre_lightning.evaluation.sampling import sample_of
from tyre_lightning.evaluation.scores import SCORES, Scores
from tyre_lightning.model.glance import open_glance
from tyre_lightning.model.imbalance import leaning
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.progress import progress_bar
from tyre_lightning.recording import (
    UNSHARED,
    record_class_metrics,
    record_cost,
    record_decision_metrics,
    record_scores,
)
from tyre_lightning.tracking.pages import model_note
from tyre_lightning.tracking.registry import register
from tyre_lightning.tracking.report import log_report
from tyre_lightning.tracking.runs import Run
from tyre_lightning.tracking.sweeps import in_sweep
from tyre_lightning.tracking.tables import PREDICTIONS_TABLE, predictions_table
from tyre_lightning.trainer import gpus

log = logging.getLogger(__name__)

Seen = Mapping[str, Sequence[str]]  # keys of images of tyres that training sees too, by usage


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


def settle(
    run: Run, inspector: Inspector, data: TyreDataModule, config: TrainConfig, seen: Seen, step: int
) -> tuple[dict[str, Scores], dict[str, float]]:
    """Let a network learn what good tyres look like, score, and decide; gives the scores, and the metrics by name.

    Args:
        run: records it.
        inspector: gets reference, temperature, operating point and what validation looks like.
        data: the images.
        config: what it is to promise.
        seen: see :func:`find_shared`.
        step: of the metrics.

    Raises:
        UserError: an image cannot be fetched, or not decoded where that is an error.
    """
    inspector.calibration = inspector.point = None  # of before: what is scored here is the network alone
    inspector.reference, learnt, inspector.examples = learn_good_tyres(inspector, data, config.trainer)
    scores = score(inspector, data, config.trainer)
    judged = fresh(readable(scores), seen)
    fit_decisions(inspector, config, judged.get("val"), learnt, data)
    scores, judged = (
        {usage: one.shifted(inspector.offsets) for usage, one in found.items()} for found in (scores, judged)
    )
    record_scores(run, inspector, scores, run.journal.folder.parent / SCORES)
    metrics = record_class_metrics(run, inspector, scores, step)
    if "val" in judged:
        inspector.validation = sample_of(inspector, judged["val"])
    metrics |= record_decision_metrics(run, inspector, judged, config.operating_point.confidence)
    run.log_table(predictions_table(scores["test" if "test" in scores else "val"], inspector), PREDICTIONS_TABLE)
    return scores, metrics


def hand_over(
    run: Run,
    inspector: Inspector,
    data: TyreDataModule,
    config: TrainConfig,
    scores: Mapping[str, Scores],
    seen: Seen,
    found: Mapping[str, Any],
) -> tuple[str, dict[str, float]]:
    """Register a model that has been settled, with its report; gives what is said of it, and what it costs.

    Args:
        run: records it.
        inspector: the model.
        data: the images.
        config: of the run.
        scores: see :func:`settle`.
        seen: likewise.
        found: what the data turned out to be.
    """
    cost = record_cost(run, inspector, data)
    said = answer(inspector, readable(scores), config.operating_point, seen)
    about = model_note(said, inspector.name, inspector.preprocessing.size, found)
    register(run, inspector, about, challenger=config.data.folds is None and not in_sweep())
    shown = config.trainer.enable_progress_bar
    log_report(run, inspector, data, readable(scores), config.operating_point, progress=shown)
    return said, cost


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


def learn_good_tyres(inspector: Inspector, data: TyreDataModule, options: TrainerConfig) -> Likeness:
    """What the good tyres of training look like to the trained network; nothing where no class is known as theirs."""
    if inspector.good_class is None:
        return UNKNOWN
    inspector.network.glance = open_glance()
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
    return {usage: found for usage, found in scores.items() if len(found)}


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


def _unproven(scores: Scores, inspector: Inspector, counts: Mapping[str, int]) -> list[str]:
    """The classes, in quotation marks, that training has images of and validation none.

    Args:
        scores: of validation images.
        inspector: the model.
        counts: of training images, by class.
    """
    shown = {*(scores.labels if scores.shows is None else np.nonzero(scores.shows)[1]).tolist()}
    return [f"'{name}'" for place, name in enumerate(inspector.classes) if counts.get(name) and place not in shown]


def fit_decisions(
    inspector: Inspector,
    config: TrainConfig,
    scores: Scores | None,
    learnt: NDArray[np.float64],
    data: TyreDataModule,
) -> None:
    """Give an inspector its offsets, its temperature and its operating point.

    Args:
        inspector: the model.
        config: what it is to promise.
        scores: of validation images of new tyres.
        learnt: how far good tyres of training are from each other, see :class:`Likeness`.
        data: what it was trained with.
    """
    if scores is None:
        log.warning("no validation image of a tyre that training did not see could be read: nothing is calibrated")
        return
    good = inspector.good_class
    counts = data.train.counts()
    leans = leaning(config, [counts.get(name, 0) for name in inspector.classes])
    index = None if good is None else inspector.classes.index(good)
    inspector.calibration = fit_calibration(scores, index, learnt, leans)
    if good is not None and (missing := _unproven(scores, inspector, counts)):
        log.warning("no validation image shows %s: the promise says nothing of such tyres", " or ".join(missing))
    try:
        if good is not None:  # else the data module has said so
            inspector.promise(config.operating_point)
    except UserError as error:
        log.warning("the model gets no operating point: %s", error)
