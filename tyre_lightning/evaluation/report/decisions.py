"""What the page needs to follow a threshold: P(defective) of every tyre, and the exact interval of every count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tyre_lightning.decision.bounds import interval_ends
from tyre_lightning.decision.novelty import is_novel
from tyre_lightning.decision.operating_point import Calibration, doubtful
from tyre_lightning.decision.tyres import Tyres
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.inspector import Inspector

UNLIKE = 48  # images that look least like good tyres of training
LISTED = 10_000  # of the images nearest to being wrong on each side: those that the page names
_DIGITS = 8  # of an interval's end


@dataclass(frozen=True)
class Side:
    """Defective tyres, the lowest P(defective) first, or good ones, the highest first: those at the front are wrong.

    Whatever the threshold, its overkills are the first so many of them, and its escapes those of the first so many that
    are not novel. Each is shown by the picture with its highest P(defective).

    Args:
        keys: of those pictures, shape (T,).
        tyres: names, shape (T,).
        pictures: how many there are of each, shape (T,).
        shows: whether each shows a class, [T, classes].
        said: the likeliest classes of those pictures, indices, shape (T,).
        scores: P(defective), shape (T,).
        probabilities: of those pictures, [T, classes].
        novel: whether each is so unlike good tyres that it is not accepted, shape (T,).
        reviewed: what further tyres show, which are reviewed whatever the threshold, [R, classes].
    """

    keys: list[str]
    tyres: list[str]
    pictures: NDArray[np.int64]
    shows: NDArray[np.bool_]
    said: NDArray[np.int64]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    novel: NDArray[np.bool_]
    reviewed: NDArray[np.bool_]

    @property
    def total(self) -> int:
        """All tyres of this side."""
        return len(self.scores) + len(self.reviewed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; keys and probabilities of the first :data:`LISTED`."""
        return {
            "keys": self.keys[:LISTED],
            "tyres": self.tyres[:LISTED],
            "pictureCounts": self.pictures[:LISTED].tolist(),
            "labels": [np.flatnonzero(row).tolist() for row in self.shows],
            "said": self.said[:LISTED].tolist(),
            "scores": self.scores.tolist(),  # all digits: the page must decide as Python does
            "probabilities": self.probabilities[:LISTED].round(4).tolist(),
            "novel": np.flatnonzero(self.novel).tolist(),
            "total": self.total,
        }


def sides(
    scores: Scores, good: int, calibration: Calibration | None, novel_rate: float | None = None
) -> tuple[Side, Side]:
    """The defective and the good tyres, nearest to being wrong first.

    Args:
        scores: of images.
        good: the good class's index.
        calibration: what the validation tyres said, if anything.
        novel_rate: from where tyres are novel, see :class:`OperatingPoint`.
    """
    temperature = 1.0 if calibration is None else calibration.temperature
    tyres = scores.counted(good, temperature)
    probabilities = scores.outputs.probabilities(scores.logits, temperature)
    likeliest = scores.outputs.likeliest(scores.logits)
    judged = tyres.whole if calibration is None else ~doubtful(tyres, calibration)

    def side(hit: NDArray[np.bool_], order: NDArray[np.float64]) -> Side:
        found, reviewed = tyres.take(hit & judged), _shows(tyres.take(hit & ~judged), probabilities.shape[1])
        found = found.take(np.argsort(order[hit & judged], kind="stable"))
        keys, names = scores.keys.take(pa.array(found.deciding)).to_pylist(), found.names.to_pylist()
        table = probabilities[found.deciding]
        shows, said = _shows(found, table.shape[1]), likeliest[found.deciding]
        novel = np.zeros(len(found), bool)
        if calibration is not None:
            novel = is_novel(calibration.novelty(found.distances), novel_rate)
        return Side(keys, names, found.pictures, shows, said, found.scores, table, novel, reviewed)

    return side(tyres.labels != good, tyres.scores), side(tyres.labels == good, -tyres.scores)


def most_unlike(scores: Scores, good: int, calibration: Calibration) -> tuple[list[str], dict[str, Any]]:
    """The images that look least like the good tyres of training: their keys, and what the page says of them.

    Args:
        scores: of images.
        good: the good class's index.
        calibration: what the validation tyres said.
    """
    far = scores.distances()
    places = np.argsort(-far, kind="stable")[: min(UNLIKE, int((~np.isnan(far)).sum()))]
    probabilities = scores.outputs.probabilities(scores.logits[places], calibration.temperature)
    shows = scores.shows[places] if scores.shows is not None else None
    labels = scores.labels[places, None] if shows is None else [np.flatnonzero(row) for row in shows]
    keys = scores.keys.take(pa.array(places)).to_pylist()
    return keys, {
        "keys": keys,
        "tyres": scores.tyres.take(pa.array(places)).to_pylist(),
        "labels": [[int(label) for label in row if label >= 0] for row in labels],
        "said": scores.outputs.likeliest(scores.logits[places]).tolist(),
        "scores": (1 - probabilities[:, good]).tolist(),
        "probabilities": probabilities.round(4).tolist(),
        "novelty": calibration.novelty(far[places]).round(4).tolist(),
    }


def _shows(tyres: Tyres, classes: int) -> NDArray[np.bool_]:
    return np.stack([tyres.showing(index) for index in range(classes)], axis=1)


def interval_table(total: int, confidence: float) -> list[list[float]]:
    """The low and the high end of the interval of every count of tyres, from none to all ``total``."""
    ends = interval_ends(np.arange(total + 1), total, confidence)
    return [values.round(_DIGITS).tolist() for values in ends]


def decision_data(inspector: Inspector, defective: Side, good: Side, confidence: float) -> dict[str, Any]:
    """What the page's script works with, as plain values."""
    counts = np.concatenate([defective.shows, defective.reviewed]).sum(axis=0).tolist()
    return {
        "classes": inspector.classes,
        "counts": counts,
        "goodClass": inspector.good_class,
        "byTyre": inspector.group_pattern is not None,
        "point": None if inspector.point is None else inspector.point.to_dict(),
        "confidence": confidence,
        "intervals": {
            "escape": interval_table(defective.total, confidence),
            "overkill": interval_table(good.total, confidence),
            "review": interval_table(defective.total + good.total, confidence),
            "classes": [interval_table(count, confidence) for count in counts],
        },
        "defective": defective.to_dict(),
        "good": good.to_dict(),
    }
