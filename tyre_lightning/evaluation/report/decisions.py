"""What the page needs to follow a threshold: P(defective) of every image, and the exact interval of every count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.decision.calibration import softmax
from tyre_lightning.decision.operating_point import interval_ends, worth
from tyre_lightning.evaluation.judgement import defective_scores
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.inspector import Inspector

LISTED = 10_000  # of the images nearest to being wrong on each side: those that the page names
_DIGITS = 8  # of an interval's end


@dataclass(frozen=True)
class Side:
    """Defective images, the lowest P(defective) first, or good ones, the highest first: those at the front are wrong.

    Whatever the threshold, its escapes (or overkills) are the first so many of them.
    """

    keys: list[str]
    labels: NDArray[np.int64]  # class indices, shape (N,)
    tyres: NDArray[np.int64]  # shape (N,)
    scores: NDArray[np.float64]  # P(defective), shape (N,)
    probabilities: NDArray[np.float64]  # [N, classes]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; keys and probabilities of the first :data:`LISTED`."""
        return {
            "keys": self.keys[:LISTED],
            "labels": self.labels.tolist(),
            "scores": self.scores.tolist(),  # all digits: the page must decide as Python does
            "probabilities": self.probabilities[:LISTED].round(4).tolist(),
        }


def sides(scores: Scores, good: int, temperature: float) -> tuple[Side, Side]:
    """The defective and the good images, nearest to being wrong first; ``good`` is the good class's index."""
    defective = defective_scores(scores, good, temperature)
    probabilities = softmax(scores.logits, temperature)

    def side(hit: NDArray[np.bool_], order: NDArray[np.float64]) -> Side:
        place = np.flatnonzero(hit)[np.argsort(order[hit], kind="stable")]
        keys = [scores.keys[index] for index in place]
        return Side(keys, scores.labels[place], scores.tyres[place], defective[place], probabilities[place])

    return side(scores.labels != good, defective), side(scores.labels == good, -defective)


def interval_table(tyres: NDArray[np.int64], confidence: float) -> list[list[float]]:
    """The low and the high end of the interval of every count of images, from none to all.

    Args:
        tyres: that each image shows, shape (N,).
        confidence: of the interval.
    """
    ends = interval_ends(np.arange(len(tyres) + 1), len(tyres), worth(tyres), confidence)
    return [values.round(_DIGITS).tolist() for values in ends]


def decision_data(inspector: Inspector, defective: Side, good: Side, confidence: float) -> dict[str, Any]:
    """What the page's script works with, as plain values."""
    counts = np.bincount(defective.labels, minlength=len(inspector.classes)).tolist()
    by_class = [defective.tyres[defective.labels == index] for index in range(len(inspector.classes))]
    both = np.concatenate([defective.tyres, good.tyres])
    return {
        "classes": inspector.classes,
        "counts": counts,
        "goodClass": inspector.good_class,
        "point": None if inspector.point is None else inspector.point.to_dict(),
        "confidence": confidence,
        "intervals": {
            "escape": interval_table(defective.tyres, confidence),
            "overkill": interval_table(good.tyres, confidence),
            "review": interval_table(both, confidence),
            "classes": [interval_table(tyres, confidence) for tyres in by_class],
        },
        "defective": defective.to_dict(),
        "good": good.to_dict(),
    }
