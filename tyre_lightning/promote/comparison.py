"""Two models on the same test images: what each does to the tyres, and how surely one lets no more escape."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from tyre_lightning.config import GateConfig
from tyre_lightning.decision.paired import passes, smallest_margin, smallest_total, upper_bound
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.latency import latencies_ms
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.prediction import predict_batches
from tyre_lightning.promote.tyres import Verdicts, by_tyre

_BATCH = 32
_TIMED = 30  # images

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages:
    """N readable or unreadable test images.

    Args:
        entries: as listed, N.
        labels: class names, shape (N,).
        tyres: a number for the tyre that each shows, shape (N,).
        good_class: the class of tyres without a defect.
    """

    entries: Sequence[Entry]
    labels: NDArray[np.object_]
    tyres: Ints
    good_class: str


@dataclass(frozen=True)
class Performance:
    """What a model does to the test images that can be read."""

    verdicts: Verdicts  # on the tyres
    escape_rate: float  # share of defective tyres that are accepted
    overkill_rate: float  # share of good tyres that are rejected
    review_rate: float  # share of all tyres
    f1: float  # macro, of the likeliest classes of images
    latency_ms: float  # from bytes to an answer, one image at a time on this machine; the median

    def numbers(self) -> dict[str, float]:
        """The measurements by name."""
        names = ("escape_rate", "overkill_rate", "review_rate", "f1", "latency_ms")
        return {name: getattr(self, name) for name in names}


def perform(inspector: Inspector, test: LabelledImages, reader: Reader) -> Performance:
    """Let a model decide on every test image, as predict.py does.

    Raises:
        UserError: an object cannot be read.
    """
    times = latencies_ms(inspector, reader.read(test.entries[:_TIMED]))
    batches = predict_batches(inspector, reader.store, test.entries, _BATCH)
    rows: list[dict[str, Any]] = [row for batch in batches for row in batch]
    decisions = np.array([row["decision"] for row in rows], dtype=object)
    predicted = np.array([row["class"] for row in rows], dtype=object)
    known = predicted != None  # noqa: E711 (elementwise)
    labels, said = test.labels[known].astype(str), predicted[known].astype(str)
    return performance(
        by_tyre(decisions, test.labels != test.good_class, test.tyres),
        f1=float(f1_score(labels, said, labels=np.unique(labels), average="macro")) if len(labels) else 0.0,
        latency_ms=statistics.median(times) if times else float("nan"),
    )


def performance(verdicts: Verdicts, f1: float, latency_ms: float) -> Performance:
    """The rates that follow from verdicts, beside what was measured on images."""
    decisions, defective = verdicts.decisions, verdicts.defective
    known = decisions != None  # noqa: E711 (elementwise)
    return Performance(
        verdicts,
        escape_rate=_share(decisions == "accept", known & defective),
        overkill_rate=_share(decisions == "reject", known & ~defective),
        review_rate=_share(decisions == "review", known),
        f1=f1,
        latency_ms=latency_ms,
    )


def escape_bound(challenger: Performance, other: Performance, gate: GateConfig) -> float:
    """At most by how much the challenger's escape rate is above another's, with the gate's confidence.

    It is at most ``gate.margin`` just where the exact test of :mod:`tyre_lightning.decision.paired` proves that margin.

    Raises:
        UserError: there are so few defective tyres that even without a difference the margin is not proven.
    """
    ours, theirs = challenger.verdicts.decisions, other.verdicts.decisions
    judged = challenger.verdicts.defective & (ours != None) & (theirs != None)  # noqa: E711 (elementwise)
    total = int(judged.sum())
    if not passes(0, 0, total, gate.margin, gate.confidence):
        raise UserError(_too_few(total, gate))
    escaped, escaped_theirs = ours[judged] == "accept", theirs[judged] == "accept"
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
