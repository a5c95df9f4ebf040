"""A bounded sample of a stream of pictures, by tyres: each tyre is as likely to be drawn as any other, whole or not."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from tyre_lightning.data.traits import TRAITS
from tyre_lightning.decision.sample import Sample
from tyre_lightning.evaluation.scores import UNKNOWN, Scores
from tyre_lightning.lake.texts import each, numbered
from tyre_lightning.lake.tyres import tyre_names
from tyre_lightning.model.inspector import NOVELTY, Inspector, Sighting

NUMBERS = ("p_defective", NOVELTY, "distance", "pictures", "unreadable", *TRAITS)
KEPT = 2000  # tyres of validation: 0.5 MB in a model's folder
_ALL = 2.0**64


class Draw:
    """The tyres with the lowest hashes of their names, of those that have passed (bottom-k sampling).

    A first pass over a listing gives every tyre to :meth:`add`; a second one looks at those that it :meth:`holds`. No
    more than ``most`` numbers are kept, and how many tyres there were follows from the highest of them (Bar-Yossef et
    al., Counting distinct elements in a data stream, RANDOM 2002).

    Args:
        most: tyres that are drawn.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lowest: list[int] = []  # negative, so that the highest hash comes first
        self._known: set[int] = set()

    def add(self, tyre: str) -> None:
        """Let a tyre pass, as often as there are pictures of it."""
        number = _hash(tyre)
        if number in self._known or (len(self._lowest) == self.most and number >= -self._lowest[0]):
            return
        self._known.add(number)
        if len(self._lowest) < self.most:
            heapq.heappush(self._lowest, -number)
        else:
            self._known.remove(-heapq.heappushpop(self._lowest, -number))

    def holds(self, tyre: str) -> bool:
        """Whether a tyre is drawn, when all have passed."""
        return _hash(tyre) in self._known

    @property
    def tyres(self) -> int:
        """How many have passed; about, where more have than are drawn."""
        if len(self._lowest) < self.most:
            return len(self._lowest)
        return round((self.most - 1) / max(-self._lowest[0] / _ALL, 1 / _ALL))


def _hash(tyre: str) -> int:
    return int.from_bytes(blake2b(tyre.encode("utf-8", "surrogatepass"), digest_size=8).digest())


@dataclass
class _Tyre:
    sighting: Sighting = field(default_factory=Sighting)
    key: str = ""  # of its first picture
    decision: str | None = None  # of the line, where it is known already
    distance: float = float("nan")  # the largest
    measured: int = 0  # pictures
    traits: Any = 0.0  # their sum, shape (TRAITS,)


class Gathering:
    """Puts together what is seen of the pictures of each tyre.

    Args:
        inspector: whose answers it is given.
    """

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._tyres: dict[str, _Tyre] = {}

    def add(
        self,
        row: Mapping[str, Any],
        distance: float = float("nan"),
        traits: Sequence[float] | None = None,
        decision: str | None = None,
    ) -> None:
        """Count a picture.

        Args:
            row: its ``key``, ``tyre`` and answer, see :meth:`Inspector.answers_to`, with ``error``.
            distance: from what good tyres look like, if that is known.
            traits: what it looks like, if that was measured.
            decision: on its tyre, if that has been made.
        """
        tyre = self._tyres.setdefault(row["tyre"], _Tyre(key=row["key"], decision=decision))
        tyre.sighting.add(self._inspector, row)
        tyre.distance = float(np.fmax(tyre.distance, distance))
        if traits is not None:
            tyre.measured += 1
            tyre.traits = tyre.traits + np.array(traits)

    def sample(self, about: Mapping[str, Any]) -> Sample:
        """All tyres; ``about`` says of what they were drawn."""
        return Sample.of([self._row(name, self._tyres[name]) for name in sorted(self._tyres)], NUMBERS, about)

    def _row(self, name: str, tyre: _Tyre) -> dict[str, Any]:
        seen = tyre.sighting
        nothing = [float("nan")] * len(TRAITS)
        traits = (tyre.traits / tyre.measured).tolist() if tyre.measured else nothing
        return {
            "tyre": name,
            "key": seen.key or tyre.key,
            "class": seen.class_name,
            "decision": tyre.decision or self._inspector.verdict(seen).decision,
            "p_defective": seen.score if seen.pictures and self._inspector.good_class is not None else float("nan"),
            NOVELTY: float("nan") if seen.novelty is None else seen.novelty,
            "distance": tyre.distance,
            "pictures": float(seen.pictures + seen.unreadable),
            "unreadable": float(seen.unreadable),
            **dict(zip(TRAITS, traits, strict=True)),
        }


def sample_of(inspector: Inspector, scores: Scores, most: int = KEPT) -> Sample:
    """At most so many good tyres of scored images, with their looks where those were measured.

    A line's mix of good and defective tyres is not that of any lake, so that only good ones can be compared. Where no
    class is known to be the good one, all tyres are kept.
    """
    tyres, place = numbered(tyre_names(scores.keys, inspector.group_pattern))
    fine = np.ones(len(tyres), bool)
    if inspector.good_class is not None:
        fine[place[~np.isin(scores.true(), (inspector.classes.index(inspector.good_class), UNKNOWN))]] = False
    draw, gathered = Draw(most), Gathering(inspector)
    for tyre in each(tyres.filter(pa.array(fine))):
        draw.add(tyre)
    drawn = np.fromiter(map(draw.holds, each(tyres)), bool, len(tyres)) & fine
    kept = replace(scores.take(np.flatnonzero(drawn[place])), unreadable=())
    traits = [None] * len(kept) if kept.traits is None else kept.traits.tolist()
    seen = dict(zip(each(kept.keys), zip(kept.distances().tolist(), traits, strict=True), strict=True))
    for row in kept.answers(inspector).to_pylist():
        gathered.add(row, *seen[row["key"]])
    return gathered.sample({"tyres": draw.tyres, "pictures": int(fine[place].sum())})
