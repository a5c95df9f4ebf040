"""Where the line decides: from a promised escape rate to a threshold on P(defective).

The threshold is chosen on calibration images (the validation split). A defective tyre escapes where its P(defective)
is below the threshold. Of n defective images let k lie below a threshold: the true escape rate is then at most the
Clopper-Pearson upper bound of k in n with the wanted confidence (Clopper and Pearson, Biometrika 26, 1934). Escapes
only grow with the threshold, so that thresholds may be tested from the lowest up and the last that passes be taken
without a correction for trying many (fixed-sequence testing, as in Angelopoulos et al., Learn then Test,
arXiv:2110.01052). The bound needs tyres at the line that are like the calibration images, drawn independently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.errors import UserError

KEPT = 10_000  # of the lowest and highest scores; a promise that needs more of them is made from these, more strictly
_HAIR = 1e-6  # by which a threshold lies below a score, so that rounding makes no escape of it

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Promise:
    """A share of tyres is at most ``rate``, with this ``confidence``."""

    rate: float
    confidence: float

    def needed(self) -> int:
        """Defective calibration images without which no threshold can promise it: (1 - rate)^n <= 1 - confidence."""
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.rate) - 1e-9)

    def allowed(self, defective: int) -> int:
        """How many of ``defective`` calibration images may lie below the threshold; -1: it cannot be promised."""
        from scipy.stats import binom

        # P(Binomial(n, rate) <= k) <= 1 - confidence says the same as the Clopper-Pearson bound of k being <= rate.
        count = int(binom.ppf(1 - self.confidence, defective, self.rate))
        while count >= 0 and binom.cdf(count, defective, self.rate) > 1 - self.confidence:
            count -= 1
        return count


@dataclass(frozen=True)
class Interval:
    """A share with its two-sided Clopper-Pearson interval; ``share`` is NaN where there is nothing to count."""

    count: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share itself."""
        return self.count / self.total if self.total else math.nan


def interval(count: int, total: int, confidence: float) -> Interval:
    """The exact binomial interval of ``count`` in ``total`` (Clopper and Pearson, 1934)."""
    low, high = interval_ends(np.array([count]), total, confidence)
    return Interval(count, total, float(low[0]), float(high[0]))


def interval_ends(counts: NDArray[np.int64], total: int, confidence: float) -> tuple[Floats, Floats]:
    """The low and the high ends, each shape (N,), of :func:`interval` for ``counts``, shape (N,), of one ``total``."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    # Without a count, or with all, one end is known, and the other parameter would be 0.
    low = np.where(counts > 0, beta.ppf(tail, np.maximum(counts, 1), total - counts + 1), 0.0)
    high = np.where(counts < total, beta.ppf(1 - tail, counts + 1, np.maximum(total - counts, 1)), 1.0)
    return low, high


@dataclass(frozen=True)
class OperatingPoint:
    """Three decisions on P(defective): below ``threshold`` accept, from ``reject_from`` on reject, review between.

    Without a review band both are the same.
    """

    threshold: float
    reject_from: float
    promised: OperatingPointConfig

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OperatingPoint:
        """The inverse of :meth:`to_dict`."""
        return cls(values["threshold"], values["reject_from"], OperatingPointConfig(**values["promised"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for checkpoints."""
        return asdict(self)

    def decide(self, defective: float) -> str:
        """The decision on a tyre whose P(defective) is ``defective``."""
        if defective < self.threshold:
            return "accept"
        return "reject" if defective >= self.reject_from else "review"


@dataclass(frozen=True)
class Calibration:
    """What calibration images say: a temperature, and how defective and good tyres score.

    Args:
        temperature: that logits are divided by.
        defective: the lowest P(defective) of defective images, ascending, at most ``KEPT``.
        defective_total: how many defective images there were.
        good: the highest P(defective) of good images, descending, at most ``KEPT``.
        good_total: how many good images there were.
    """

    temperature: float
    defective: list[float]
    defective_total: int
    good: list[float]
    good_total: int

    @classmethod
    def of(cls, scores: Floats, defective: NDArray[np.bool_], temperature: float) -> Calibration:
        """From P(defective) of calibration images, shape (N,), and whether each is defective, shape (N,)."""
        bad, good = np.sort(scores[defective]), np.sort(scores[~defective])[::-1]
        return cls(temperature, bad[:KEPT].tolist(), len(bad), good[:KEPT].tolist(), len(good))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """The inverse of :meth:`to_dict`."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def operating_point(self, wanted: OperatingPointConfig) -> OperatingPoint:
        """The highest threshold that keeps a promise.

        Raises:
            UserError: there are too few calibration images to promise it; says how many are needed.
        """
        promise = Promise(wanted.max_escape_rate, wanted.confidence)
        escapes = promise.allowed(self.defective_total)
        if escapes < 0:
            raise UserError(_too_few("escape", "defective", promise, self.defective_total))
        threshold = self.defective[min(escapes, len(self.defective) - 1)] * (1 - _HAIR)
        if wanted.max_overkill_rate is None:
            return OperatingPoint(threshold, threshold, wanted)
        other = Promise(wanted.max_overkill_rate, wanted.confidence)
        overkills = other.allowed(self.good_total)
        if overkills < 0:
            raise UserError(_too_few("overkill", "good", other, self.good_total))
        reject_from = self.good[min(overkills, len(self.good) - 1)] * (1 + _HAIR)
        return OperatingPoint(threshold, max(threshold, reject_from), wanted)


def _too_few(rate: str, kind: str, promise: Promise, count: int) -> str:
    key = f"operating_point.max_{rate}_rate"
    least = 1 - (1 - promise.confidence) ** (1 / count) if count else 1.0
    way_out = f" or give {key}={math.ceil(1000 * least) / 1000:g}" if least < 0.5 else ""
    return (
        f"{key}={promise.rate:g} with a confidence of {promise.confidence:g} cannot be promised: it takes "
        f"{promise.needed()} {kind} validation images, and there are {count}: add images{way_out}"
    )


@dataclass(frozen=True)
class Rates:
    """What an operating point does to images whose truth is known; intervals are exact and two-sided."""

    escape: Interval  # of defective images
    overkill: Interval  # of good images; with a review band, those rejected outright
    review: Interval  # of all images
    escape_by_class: dict[str, Interval]  # of each defect


def rates(
    point: OperatingPoint, scores: Floats, labels: NDArray[np.int64], classes: Sequence[str], good_class: str
) -> Rates:
    """Escape, overkill and review rates.

    Args:
        point: the operating point.
        scores: P(defective), shape (N,).
        labels: class indices, shape (N,).
        classes: class names in index order.
        good_class: the class of tyres without a defect.
    """
    confidence = point.promised.confidence
    good = labels == classes.index(good_class)
    accepted, rejected = scores < point.threshold, scores >= point.reject_from

    def share(hit: NDArray[np.bool_], of: NDArray[np.bool_]) -> Interval:
        return interval(int((hit & of).sum()), int(of.sum()), confidence)

    by_class = {
        name: share(accepted, labels == index)
        for index, name in enumerate(classes)
        if name != good_class and (labels == index).any()
    }
    everything = np.ones_like(good)
    return Rates(share(accepted, ~good), share(rejected, good), share(~accepted & ~rejected, everything), by_class)
