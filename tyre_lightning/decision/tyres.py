"""From pictures to tyres: the line rejects tyres, so that whatever is promised or counted is of tyres.

A tyre is defective if any of its pictures is, and its score is the highest P(defective) of its pictures: a defect is to
be seen from one side only, and the views that show none must not outvote the one that does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tyre_lightning.lake.texts import are_among, each, numbered

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tyres:
    """T tyres, in the order of their names.

    Args:
        names: a column of T texts.
        scores: P(defective), shape (T,): the highest of a tyre's pictures; NaN where that of one is no number.
        labels: class indices, shape (T,): the good class where all pictures are of it; else that of the defective
            picture with the highest P(defective).
        deciding: the place of the picture with the highest P(defective) among all pictures, shape (T,).
        pictures: how many could be read, shape (T,).
        whole: whether all could, shape (T,).
        distances: from what good tyres look like, shape (T,): the largest of a tyre's pictures; NaN where not known.
        shows: [T, classes], whether any of its pictures shows a class; [T, 0] where pictures show one class each.
    """

    names: pa.ChunkedArray
    scores: Floats
    labels: Ints
    deciding: Ints
    pictures: Ints
    whole: Bools
    distances: Floats
    shows: Bools

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(
        cls,
        names: pa.ChunkedArray,
        scores: Floats,
        labels: Ints,
        good: int,
        damaged: Collection[str] = (),
        shows: Bools | None = None,
        distances: Floats | None = None,
    ) -> Tyres:
        """Tyres by their N pictures that could be read; those of which none could are not among them.

        Args:
            names: of the tyre that each shows, a column of N texts.
            scores: P(defective), shape (N,).
            labels: class indices, shape (N,).
            good: the index of the class without a defect.
            damaged: tyres of which a picture could not be read.
            shows: [N, classes], where pictures may show several defects.
            distances: from what good tyres look like, shape (N,), where that is known.
        """
        found, place = numbered(names)
        worst = -np.where(np.isnan(scores), np.inf, scores)  # nothing must hide behind what cannot be told
        order = np.lexsort((worst, place))
        deciding = order[_first_of_each(place[order])]
        telling = np.lexsort((worst, labels == good, place))  # a tyre's defective pictures first
        true = labels[telling[_first_of_each(place[telling])]]
        shown = np.zeros((len(found), 0 if shows is None else shows.shape[1]), bool)
        if shows is not None:
            np.logical_or.at(shown, place, shows)
        farthest = np.full(len(found), np.nan)
        if distances is not None:
            np.fmax.at(farthest, place, distances)
        pictures, whole = np.bincount(place, minlength=len(found)), ~are_among(found, damaged)
        return cls(found, scores[deciding], true, deciding, pictures, whole, farthest, shown)

    def showing(self, index: int) -> Bools:
        """Which of them show a class, shape (T,)."""
        return self.shows[:, index] if self.shows.shape[1] else self.labels == index

    def take(self, kept: Bools | Ints) -> Tyres:
        """Some of them."""
        places = np.arange(len(self))[kept]
        names = self.names.take(pa.array(places))
        return Tyres(names, *(getattr(self, item.name)[places] for item in fields(self)[1:]))

    def one_of_each(self, groups: pa.ChunkedArray) -> Tyres:
        """One tyre of each group, since others would say the same again; which one is left to a hash of its name.

        Args:
            groups: of each tyre, a column of T texts.
        """
        different, place = numbered(groups)
        if len(different) == len(self):
            return self
        ranks = np.fromiter(map(_rank, each(self.names)), np.uint64, len(self))
        order = np.lexsort((ranks, place))
        return self.take(np.sort(order[_first_of_each(place[order])]))


def _rank(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


def _first_of_each(ordered: Ints) -> Bools:
    """Where a run of equal numbers begins."""
    return np.asarray(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
