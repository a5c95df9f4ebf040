"""Two models on the same test images: what each decides, and how surely one lets no more escape than the other."""

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
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.latency import latencies_ms
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.prediction import predict_batches

_BATCH = 32
_HAIR = 1e-9  # above what was seen, where the bound begins
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

    decisions: NDArray[np.object_]  # accept, review or reject; None where an image is unreadable
    escape_rate: float  # share of defective images that are accepted
    overkill_rate: float  # share of good images that are rejected
    review_rate: float  # share of all
    f1: float  # macro, of the likeliest classes
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
    decisions = np.array([row["picture_decision"] for row in rows], dtype=object)
    predicted = np.array([row["class"] for row in rows], dtype=object)
    known = predicted != None  # noqa: E711 (elementwise)
    good = test.labels == test.good_class
    labels, said = test.labels[known].astype(str), predicted[known].astype(str)
    return Performance(
        decisions,
        escape_rate=_share(decisions == "accept", known & ~good),
        overkill_rate=_share(decisions == "reject", known & good),
        review_rate=_share(decisions == "review", known),
        f1=float(f1_score(labels, said, labels=np.unique(labels), average="macro")) if len(labels) else 0.0,
        latency_ms=statistics.median(times) if times else float("nan"),
    )


def escape_bound(challenger: Performance, champion: Performance, test: LabelledImages, gate: GateConfig) -> float:
    """At most by how much the challenger's escape rate is above the champion's, with the gate's confidence.

    Pictures of one tyre count for fewer: all of them as many as there are tyres.

    Raises:
        UserError: there are so few defective images that even without a difference the bound is above the margin.
    """
    defective = (test.labels != test.good_class) & (champion.decisions != None)  # noqa: E711 (elementwise)
    ours, theirs = (one.decisions[defective] == "accept" for one in (challenger, champion))
    images, total = int(defective.sum()), float(len(np.unique(test.tyres[defective])))
    if (least := difference_bound(0, 0, total, gate.confidence)) > gate.margin:
        raise UserError(
            f"the {images} defective test images, which count for {int(total)} by the tyres that they show, cannot "
            f"prove gate.margin={gate.margin:g} with a confidence of {gate.confidence:g}: add test images, or give "
            f"gate.margin={math.ceil(1000 * least) / 1000:g}"
        )
    scale = total / images
    more, less = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return difference_bound(more * scale, less * scale, total, gate.confidence)


def difference_bound(more: float, less: float, total: float, confidence: float) -> float:
    """The one-sided upper score bound of a difference of two paired shares (Tango, Statistics in Medicine 17, 1998).

    Args:
        more: pairs that only the first has.
        less: pairs that only the second has.
        total: all pairs.
        confidence: of the bound, more than a half.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if not total:
        return 1.0
    z = float(norm.ppf(confidence))

    def distance(difference: float) -> float:
        """How far the difference that was seen is above the smallest that is compatible with this one; 0 at the end."""
        linear = (2 * total - more + less) * difference - more - less
        constant = -less * difference * (1 - difference)
        only_second = (np.sqrt(linear**2 - 8 * total * constant) - linear) / (4 * total)
        variance = total * (2 * only_second + difference * (1 - difference))
        return float(more - less - total * difference + z * np.sqrt(max(variance, 0.0)))

    seen = (more - less) / total
    return 1.0 if seen > 1 - _HAIR else float(brentq(distance, seen + _HAIR, 1.0))


def _share(hit: Bools, of: Bools) -> float:
    return float((hit & of).sum() / max(1, of.sum()))
