"""What the page needs to follow a threshold: P(defective) of every tyre, and the exact interval of every count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tyre_lightning.decision.bounds import interval_ends
from tyre_lightning.decision.novelty import is_novel
from tyre_lightning.decision.operating_point import Calibration, doubtful
from tyre_lightning.evaluation.curves import evenly
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.inspector import Inspector

UNLIKE = 48  # images that look least like good tyres of training
LISTED = 10_000  # of the images nearest to being wrong on each side: those that the page names
STEPS = 2_000  # of the others
_DIGITS = 8  # of an interval's end


@dataclass(frozen=True)
class Side:
    """Defective tyres, the lowest P(defective) first, or good ones, the highest first: those at the front are wrong.

    Whatever the threshold, its overkills are the first so many of them, and its escapes those of the first so many that
    are not novel. Each is shown by the picture with its highest P(defective).

    Args:
        keys: of the pictures of the first :data:`LISTED`, L of T.
        tyres: their names.
        pictures: how many there are of each, shape (L,).
        said: the likeliest classes of those pictures, indices, shape (L,).
        probabilities: of those pictures, [L, classes].
        shows: whether each shows a class, [T, classes].
        scores: P(defective), shape (T,).
        novel: whether each is so unlike good tyres that it is not accepted, shape (T,).
        reviewed: what further tyres show, which are reviewed whatever the threshold, [R, classes].
    """

    keys: list[str]
    tyres: list[str]
    pictures: NDArray[np.int64]
    said: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    shows: NDArray[np.bool_]
    scores: NDArray[np.float64]
    novel: NDArray[np.bool_]
    reviewed: NDArray[np.bool_]

    @property
    def total(self) -> int:
        """All tyres of this side."""
        return len(self.scores) + len(self.reviewed)

    @property
    def step(self) -> int:
        """To the next of so many tyres the page counts beyond the first :data:`LISTED`."""
        return _step(len(self.scores))

    def to_dict(self, exact: Sequence[int] = ()) -> dict[str, Any]:
        """Plain values, of which there are no more than of some 12,000 tyres.

        Of the first :data:`LISTED` the page has all. Of the others it has the scores of :data:`STEPS` that are as far
        from each other as from the last one, and sums of all before each: it counts to the next of these places.

        Args:
            exact: numbers of tyres, to which it counts too.
        """
        further = _steps(len(self.scores), exact)
        return {
            "keys": self.keys,
            "tyres": self.tyres,
            "pictureCounts": self.pictures.tolist(),
            "labels": [np.flatnonzero(row).tolist() for row in self.shows[:LISTED]],
            "said": self.said.tolist(),
            "scores": self.scores[np.r_[: min(LISTED, len(self.scores)), further]].tolist(),  # all digits, as Python
            "probabilities": self.probabilities.round(4).tolist(),
            "novel": np.flatnonzero(self.novel[:LISTED]).tolist(),
            "further": further.tolist(),
            "sums": self._sums(np.r_[further, len(self.scores)]),
            "judged": len(self.scores),
            "total": self.total,
        }

    def _sums(self, places: NDArray[np.int64]) -> dict[str, Any]:
        """Of the tyres before each place: how many are novel, how many show each class, and the same of novel ones."""
        novel = np.r_[0, np.cumsum(self.novel)][places]
        both = [_running(self.shows, places), _running(self.shows & self.novel[:, None], places)]
        return {"novel": novel.tolist(), "classes": both[0], "novelClasses": both[1]}


def _running(shows: NDArray[np.bool_], places: NDArray[np.int64]) -> list[list[int]]:
    """How many rows before each place show each class."""
    columns = [np.r_[0, np.cumsum(column)][places] for column in shows.T]
    return [*np.stack(columns, axis=1).tolist()]


def _steps(total: int, exact: Sequence[int]) -> NDArray[np.int64]:
    """Places from :data:`LISTED` on, at most :data:`STEPS` that are evenly apart, and exact ones."""
    evenly = np.arange(LISTED, total, _step(total))
    return np.unique([*evenly, *(place for place in exact if LISTED < place < total)]).astype(np.int64)


def _step(total: int) -> int:
    """How far such places are from each other."""
    return max(1, -(-(total - LISTED) // STEPS))


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
    judged = tyres.whole if calibration is None else ~doubtful(tyres, calibration)
    shows = np.stack([tyres.showing(index) for index in range(scores.logits.shape[1])], axis=1)

    def side(hit: NDArray[np.bool_], order: NDArray[np.float64]) -> Side:
        places = np.flatnonzero(hit & judged)
        places = places[np.argsort(order[places], kind="stable")]
        first = places[:LISTED]
        worst = tyres.deciding[first]
        logits = scores.logits[worst]
        novel = np.zeros(len(places), bool)
        if calibration is not None:
            novel = is_novel(calibration.novelty(tyres.distances[places]), novel_rate)
        return Side(
            keys=scores.keys.take(pa.array(worst)).to_pylist(),
            tyres=tyres.names.take(pa.array(first)).to_pylist(),
            pictures=tyres.pictures[first],
            said=scores.outputs.likeliest(logits),
            probabilities=scores.outputs.probabilities(logits, temperature),
            shows=shows[places],
            scores=tyres.scores[places],
            novel=novel,
            reviewed=shows[hit & ~judged],
        )

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


def interval_table(total: int, confidence: float) -> dict[str, list[Any]]:
    """The ``low`` and the ``high`` end of the interval of ``counts`` of tyres, from none to all ``total``.

    Of every count, or, where there are more than the page can carry, of the lowest, the highest and others evenly
    between them: a straight line from one to the next is then less than a millionth off.
    """
    counts = np.arange(total + 1)
    if total > LISTED:
        counts = np.unique(np.r_[counts[:STEPS], evenly(total + 1, STEPS), counts[-STEPS:]])
    low, high = interval_ends(counts, total, confidence)
    return {"counts": counts.tolist(), "low": low.round(_DIGITS).tolist(), "high": high.round(_DIGITS).tolist()}


def decision_data(inspector: Inspector, defective: Side, good: Side, confidence: float) -> dict[str, Any]:
    """What the page's script works with, as plain values."""
    counts = (defective.shows.sum(axis=0) + defective.reviewed.sum(axis=0)).tolist()
    limits = [] if inspector.point is None else [inspector.point.threshold, inspector.point.reject_from]
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
        "defective": defective.to_dict([int((defective.scores < limit).sum()) for limit in limits]),
        "good": good.to_dict([int((good.scores >= limit).sum()) for limit in limits]),
    }
