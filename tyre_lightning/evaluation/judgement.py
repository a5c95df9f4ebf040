"""From scores to a judgement: a temperature, an operating point, and what both are worth on the test images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tyre_lightning.decision.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    softmax,
)
from tyre_lightning.decision.operating_point import Calibration, Interval, OperatingPoint, Rates, rates
from tyre_lightning.evaluation.auroc import auroc_interval
from tyre_lightning.evaluation.metrics import InspectionMetrics
from tyre_lightning.evaluation.scores import Scores


def calibrate(scores: Scores, good: int | None) -> Calibration:
    """What validation images say; ``good`` is the index of the class without defects, if one is known."""
    temperature = fit_temperature(scores.logits, scores.labels)
    if good is None:
        return Calibration.of(np.empty(0), np.empty(0, bool), np.empty(0, np.int64), temperature)
    defective = defective_scores(scores, good, temperature)
    return Calibration.of(defective, scores.labels != good, scores.tyres, temperature)


def defective_scores(scores: Scores, good: int, temperature: float) -> NDArray[np.float64]:
    """P(defective) = 1 - P(good), shape (N,)."""
    return np.asarray(1 - softmax(scores.logits, temperature)[:, good])


def quality(scores: Scores, classes: Sequence[str], good_class: str | None) -> dict[str, float]:
    """What :class:`InspectionMetrics` measures, by name."""
    metrics = InspectionMetrics(classes, good_class)
    metrics.update(torch.from_numpy(scores.logits), torch.from_numpy(scores.labels))
    return {name: float(value) for name, value in metrics.compute().items()}


def confusion(labels: NDArray[np.int64], logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Confusion matrix [classes, classes] of the likeliest classes: rows are the true classes, columns the predicted.

    Args:
        labels: class indices, shape (N,).
        logits: [N, classes].
    """
    matrix: NDArray[np.int64] = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(matrix, (labels, logits.argmax(axis=1)), 1)
    return matrix


def auroc_ends(scores: Scores, good: int, confidence: float) -> dict[str, float]:
    """The ends of the interval of ``auroc_defective``, by name; none where :func:`auroc_interval` gives none."""
    raw = defective_scores(scores, good, 1.0)  # as the AUROC itself is measured
    ends = auroc_interval(raw, scores.labels != good, scores.tyres, confidence)
    return {} if ends is None else {"auroc_defective_low": ends[0], "auroc_defective_high": ends[1]}


def assess(
    scores: Scores,
    classes: Sequence[str],
    good_class: str | None,
    temperature: float,
    point: OperatingPoint | None,
    confidence: float,
) -> dict[str, float]:
    """What temperature and operating point are worth on some images, by name.

    Calibration error and Brier score with the temperature and without it (``_uncalibrated``); the ends (``_low``,
    ``_high``) of the interval of ``auroc_defective``, and escape, overkill and review rates with theirs.
    """
    found = {}
    for name, divisor in (("", temperature), ("_uncalibrated", 1.0)):
        probabilities = softmax(scores.logits, divisor)
        found[f"ece{name}"] = expected_calibration_error(probabilities, scores.labels)
        found[f"brier{name}"] = brier_score(probabilities, scores.labels)
    if good_class is None:
        return found
    good = classes.index(good_class)
    found |= auroc_ends(scores, good, confidence)
    if point is None:
        return found
    defective = defective_scores(scores, good, temperature)
    return found | _decisions(rates(point, defective, scores.labels, scores.tyres, classes, good_class))


def _decisions(found: Rates) -> dict[str, float]:
    named = {"escape_rate": found.escape, "overkill_rate": found.overkill, "review_rate": found.review}
    named |= {f"escape_rate/{name}": part for name, part in found.escape_by_class.items()}
    return {key: value for name, part in named.items() for key, value in _with_ends(name, part)}


def _with_ends(name: str, part: Interval) -> Iterator[tuple[str, float]]:
    if part.total:  # else there is nothing to say
        rate, separator, of = name.partition("/")
        for end, value in (("", part.share), ("_low", part.low), ("_high", part.high)):
            yield f"{rate}{end}{separator}{of}", value
