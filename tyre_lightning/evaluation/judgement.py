"""From scores to a judgement: a temperature, an operating point, and what both are worth on the test images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tyre_lightning.decision.bounds import Interval
from tyre_lightning.decision.calibration import (
    brier_score,
    expected_calibration_error,
    fit_offsets,
    fit_temperature,
    softmax,
)
from tyre_lightning.decision.novelty import NOBODY
from tyre_lightning.decision.operating_point import Calibration, OperatingPoint, Rates, measure_rates
from tyre_lightning.evaluation.auroc import auroc_interval
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.lake.texts import numbered


def fit_calibration(
    scores: Scores,
    good: int | None,
    learnt: NDArray[np.float64] = NOBODY,
    leaning: Sequence[float] | None = None,
) -> Calibration:
    """What validation images say.

    Args:
        scores: of them, without offsets.
        good: the index of the class without defects, if one is known.
        learnt: see :meth:`Calibration.of`.
        leaning: see :func:`tyre_lightning.model.imbalance.leaning`; None: logits get no offsets.
    """
    place = numbered(scores.groups)[1]
    weights = 1 / np.bincount(place)[place]
    offsets: list[float] = []
    if leaning is not None:
        offsets = fit_offsets(scores.logits, scores.labels, np.array(leaning)).tolist()
        scores = scores.shifted(np.array(offsets))
    temperature = fit_temperature(*scores.outputs.outcomes(scores.logits, scores.labels), weights)
    if good is None:
        return Calibration(temperature, [], 0, [], 0, offsets=offsets)
    return replace(Calibration.of(scores.counted(good, temperature), good, temperature, learnt), offsets=offsets)


def class_metrics(scores: Scores, classes: Sequence[str], good_class: str | None) -> dict[str, float]:
    """What :class:`InspectionMetrics` measures, by name."""
    from tyre_lightning.model.metrics import metrics_of  # torchmetrics takes longer to load than a prediction's model

    metrics = metrics_of(classes, good_class, multi_label=scores.shows is not None)
    labels = scores.labels if scores.shows is None else scores.shows.astype(np.int64)
    metrics.update(torch.from_numpy(scores.logits), torch.from_numpy(labels))
    return {name: float(value) for name, value in metrics.compute().items()}


def confusion(scores: Scores) -> NDArray[np.int64]:
    """Confusion matrix [classes, classes] of the likeliest classes: rows are the true classes, columns the predicted.

    An image with several defects of which one is the likeliest class is in that one's row, else in its first one's.
    """
    matrix: NDArray[np.int64] = np.zeros((scores.logits.shape[1],) * 2, np.int64)
    np.add.at(matrix, (scores.true(), scores.outputs.likeliest(scores.logits)), 1)
    return matrix


def auroc_ends(scores: Scores, good: int, confidence: float) -> dict[str, float]:
    """The ends of the interval of ``auroc_defective``, by name; none where :func:`auroc_interval` gives none."""
    raw = scores.defective(good, 1.0)  # as the AUROC itself is measured
    ends = auroc_interval(raw, scores.labels != good, numbered(scores.groups)[1], confidence)
    return {} if ends is None else {"auroc_defective_low": ends[0], "auroc_defective_high": ends[1]}


def decision_metrics(
    scores: Scores,
    classes: Sequence[str],
    good_class: str | None,
    calibration: Calibration | None,
    point: OperatingPoint | None,
    confidence: float,
) -> dict[str, float]:
    """What calibration and operating point are worth on some images, by name.

    Calibration error and Brier score with the temperature and without it (``_uncalibrated``); the ends (``_low``,
    ``_high``) of the interval of ``auroc_defective``, and escape, overkill and review rates of tyres with theirs. Where
    images may show several defects, the first two are of P(defective), and ``caught`` is each defect's recall at the
    operating point, 1 - its escape rate.
    """
    temperature = 1.0 if calibration is None else calibration.temperature
    found = _faults(scores, temperature, "") | _faults(scores, 1.0, "_uncalibrated")
    if good_class is None:
        return found
    good = classes.index(good_class)
    found |= auroc_ends(scores, good, confidence)
    tyres = scores.counted(good, temperature)
    found["tyres"] = float(len(tyres))
    if point is None or calibration is None:
        return found
    rates = measure_rates(point, tyres, calibration, classes, good_class)
    found |= rates_by_name(rates)
    if scores.shows is not None:
        found |= {f"caught/{name}": 1 - part.share for name, part in rates.escape_by_class.items()}
    return found


def _faults(scores: Scores, temperature: float, name: str) -> dict[str, float]:
    """Calibration error and Brier score; ``name`` is how theirs end."""
    logits, labels = scores.outputs.outcomes(scores.logits, scores.labels)
    probabilities = softmax(logits, temperature)
    error, brier = expected_calibration_error(probabilities, labels), brier_score(probabilities, labels)
    return {f"ece{name}": error, f"brier{name}": brier}


def rates_by_name(found: Rates) -> dict[str, float]:
    """Rates and the ends of their intervals as metrics; those that nothing can be said of are left out."""
    named = {"escape_rate": found.escape, "overkill_rate": found.overkill, "review_rate": found.review}
    if found.novel_rate is not None:
        named["novel_rate"] = found.novel
    named |= {f"escape_rate/{name}": part for name, part in found.escape_by_class.items()}
    return {key: value for name, part in named.items() for key, value in _with_ends(name, part)}


def _with_ends(name: str, part: Interval) -> Iterator[tuple[str, float]]:
    if part.total:  # else there is nothing to say
        rate, separator, of = name.partition("/")
        for end, value in (("", part.share), ("_low", part.low), ("_high", part.high)):
            yield f"{rate}{end}{separator}{of}", value
