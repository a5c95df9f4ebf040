"""Two models on the same test images: what each does to the tyres, and how surely one lets no more escape."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tyre_lightning.config import GateConfig
from tyre_lightning.decision.operating_point import ACCEPT, REJECT, REVIEW, decisions, reviewed_as_novel
from tyre_lightning.decision.paired import passes, smallest_margin, smallest_total, upper_bound
from tyre_lightning.decision.tyres import Tyres
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.latency import latencies_ms
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.texts import are_among
from tyre_lightning.lake.tyres import Shown
from tyre_lightning.model.inspector import Inspector

_TIMED = 30  # images

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TestSet:
    """The images that models are judged by.

    Args:
        reader: fetches them.
        catalog: lists them.
        shown: which tyres they show.
        good_class: the class of tyres without a defect.
    """

    reader: Reader
    catalog: Catalog
    shown: Shown
    good_class: str

    __test__ = False  # no test for pytest to run


@dataclass(frozen=True)
class Verdicts:
    """What becomes of T tyres.

    Args:
        names: in order, a column of T texts.
        decisions: accept, review or reject, shape (T,).
        defective: whether each tyre is, shape (T,).
        novel: whether each is reviewed only because it is unlike good tyres, shape (T,).
        novel_rate: of good tyres no larger share is to be reviewed for that.
    """

    names: pa.ChunkedArray
    decisions: NDArray[np.object_]
    defective: Bools
    novel: Bools
    novel_rate: float = 0.0

    def escaped(self, tyres: pa.ChunkedArray) -> tuple[int, int]:
        """Of some defective tyres, how many are accepted, and how many there are."""
        mine = self.defective & are_among(self.names, tyres)
        return int((self.decisions[mine] == ACCEPT).sum()), int(mine.sum())

    def excused(self) -> float:
        """The share of all tyres whose review is not held against a model.

        Had it accepted the defective ones, they would have escaped; of the good ones it is the promised share at most.
        """
        good = min(int((self.novel & ~self.defective).sum()), self.novel_rate * int((~self.defective).sum()))
        return (int((self.novel & self.defective).sum()) + good) / max(1, len(self.defective))


@dataclass(frozen=True)
class Performance:
    """What a model does to the tyres of the test images that can be read."""

    verdicts: Verdicts
    escape_rate: float  # share of defective tyres that are accepted
    overkill_rate: float  # share of good tyres that are rejected
    review_rate: float  # share of all tyres
    novel_rate: float  # share of good tyres that are reviewed only because they are unlike the others
    f1: float  # macro, of what is said of images: their likeliest classes, or all that a model of several lists
    latency_ms: float  # from bytes to an answer, one image at a time on this machine; the median
    by_class: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of tyres with a defect: accepted, and all

    def numbers(self) -> dict[str, float]:
        """The measurements by name."""
        names = ("escape_rate", "overkill_rate", "review_rate", "novel_rate", "f1", "latency_ms")
        return {name: getattr(self, name) for name in names}


def perform(inspector: Inspector, test: TestSet) -> Performance:
    """Let a model decide on every tyre, by the scores that its training would have recorded.

    Raises:
        UserError: an object cannot be read.
    """
    few = [test.catalog.entry(place) for place in range(min(len(test.catalog), _TIMED))]
    times = latencies_ms(inspector, test.reader.read(few))
    scores = Scores.of(inspector, test.reader, test.catalog, test.shown)
    names = [*dict.fromkeys([*test.catalog.classes, *inspector.classes])]
    shows = test.catalog.truth(names)[test.catalog.places(scores.keys)]
    said = np.zeros_like(shows)
    said[:, [names.index(name) for name in inspector.classes]] = scores.outputs.listed(scores.logits)
    verdicts = judge_tyres(inspector, scores, ~shows[:, names.index(test.good_class)])
    found = performance(verdicts, macro_f1(shows, said), statistics.median(times) if times else float("nan"))
    by_class = {
        name: verdicts.escaped(scores.tyres.filter(pa.array(shows[:, place])))
        for place, name in enumerate(names)
        if name != test.good_class
    }
    return replace(found, by_class=by_class)


def judge_tyres(inspector: Inspector, scores: Scores, defective: Bools) -> Verdicts:
    """A model's verdict on every tyre; of those that cannot be told apart one is judged.

    Args:
        inspector: with an operating point.
        scores: of N images.
        defective: whether each shows a defect, shape (N,); the model may not know its class.
    """
    assert inspector.point is not None and inspector.calibration is not None and inspector.good_class is not None
    known = scores.defective(inspector.classes.index(inspector.good_class), inspector.temperature)
    labels = defective.astype(np.int64)
    found = Tyres.of(scores.tyres, known, labels, 0, scores.damaged, distances=scores.distances())
    found = found.one_of_each(scores.groups.take(pa.array(found.deciding)))
    decided = decisions(inspector.point, found, inspector.calibration)
    novel = reviewed_as_novel(inspector.point, found, inspector.calibration)
    rate = inspector.point.novel_rate
    promised = 0.0 if rate is None else inspector.calibration.scale.average(rate)
    return Verdicts(found.names, decided, found.labels == 1, novel, promised)


def macro_f1(shows: Bools, said: Bools) -> float:
    """Macro F1 of what N images show and what is said of them, [N, classes], over the classes that occur; 0 without."""
    occurs = shows.any(axis=0)
    if not occurs.any():
        return 0.0
    hits, both = (shows & said).sum(axis=0), shows.sum(axis=0) + said.sum(axis=0)
    return float((2 * hits[occurs] / both[occurs]).mean())


def performance(verdicts: Verdicts, f1: float, latency_ms: float) -> Performance:
    """The rates that follow from verdicts, beside what was measured on images."""
    decided, defective = verdicts.decisions, verdicts.defective
    return Performance(
        verdicts,
        escape_rate=_share(decided == ACCEPT, defective),
        overkill_rate=_share(decided == REJECT, ~defective),
        review_rate=_share(decided == REVIEW, np.ones_like(defective)),
        novel_rate=_share(verdicts.novel, ~defective),
        f1=f1,
        latency_ms=latency_ms,
    )


def escape_bound(challenger: Performance, other: Performance, gate: GateConfig) -> float:
    """At most by how much the challenger's escape rate is above another's, with the gate's confidence.

    It is at most ``gate.margin`` just where the exact test of :mod:`tyre_lightning.decision.paired` proves that margin.

    Raises:
        UserError: there are so few defective tyres that even without a difference the margin is not proven.
    """
    assert challenger.verdicts.names.equals(other.verdicts.names)  # both saw the same images
    defective = challenger.verdicts.defective
    total = int(defective.sum())
    if not passes(0, 0, total, gate.margin, gate.confidence):
        raise UserError(_too_few(total, gate))
    escaped, escaped_theirs = (one.verdicts.decisions[defective] == ACCEPT for one in (challenger, other))
    more, less = int((escaped & ~escaped_theirs).sum()), int((escaped_theirs & ~escaped).sum())
    return upper_bound(more, less, total, gate.margin, gate.confidence)


def _too_few(total: int, gate: GateConfig) -> str:
    needed = smallest_total(gate.margin, gate.confidence)
    least = math.ceil(1000 * smallest_margin(total, gate.confidence)) / 1000
    return (
        f"the {total} defective tyres in the test images cannot prove gate.margin={gate.margin:g} with a confidence "
        f"of {gate.confidence:g}, which takes {needed}: add test images"
        + (f", or give gate.margin={least:g}" if least < 0.5 else "")
    )


def _share(hit: Bools, of: Bools) -> float:
    return float((hit & of).sum() / max(1, of.sum()))
