"""Where the line decides: from a promised escape rate to a threshold on P(defective).

The threshold is chosen on calibration images (the validation split). A defective tyre escapes where its P(defective)
is below the threshold. Of n defective images let k lie below a threshold: the true escape rate is then at most the
Clopper-Pearson upper bound of k in n with the wanted confidence (Clopper and Pearson, Biometrika 26, 1934). Escapes
only grow with the threshold, so that thresholds may be tested from the lowest up and the last that passes be taken
without a correction for trying many (fixed-sequence testing, as in Angelopoulos et al., Learn then Test,
arXiv:2110.01052). The bound needs tyres at the line that are like the calibration images, drawn independently.

Several pictures of one tyre are not independent: they count for fewer, see :func:`worth`, and so do those among them
that escape (Korn and Graubard, Survey Methodology 24, 1998).
"""

from __future__ import annotations

import math
from bisect import bisect
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
Ints = NDArray[np.int64]


def worth(tyres: Ints) -> float:
    """How many independent images as many count for, given the tyre that each shows, shape (N,).

    N divided by Kish's design effect (Survey Sampling, 1965), with pictures of one tyre as alike as they can be:
    (sum m)^2 / (sum m^2), where m is how many pictures there are of each tyre. N itself where no two show the same.
    """
    pictures = np.unique(tyres, return_counts=True)[1]
    return float(len(tyres) ** 2 / (pictures**2).sum()) if len(tyres) else 0.0


@dataclass(frozen=True)
class Promise:
    """A share of tyres is at most ``rate``, with this ``confidence``."""

    rate: float
    confidence: float

    def needed(self) -> int:
        """Independent calibration images without which nothing can promise it: (1 - rate)^n <= 1 - confidence."""
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.rate) - 1e-9)

    def allowed(self, total: int, worth: float) -> int:
        """How many of ``total`` calibration images may lie below the threshold; -1: it cannot be promised.

        Args:
            total: the images.
            worth: how many independent ones they count for.
        """
        from scipy.stats import beta

        def broken(count: int) -> bool:
            """Whether the Clopper-Pearson bound of a count is above the rate."""
            below = count * worth / total
            return bool(beta.cdf(self.rate, below + 1, worth - below) < self.confidence)

        return bisect(range(total), False, key=broken) - 1


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


def interval(hit: NDArray[np.bool_], tyres: Ints, confidence: float) -> Interval:
    """The interval of the share of images that are hit, shape (N,), given the tyre that each shows, shape (N,)."""
    count = int(hit.sum())
    low, high = interval_ends(np.array([count]), len(hit), worth(tyres), confidence)
    return Interval(count, len(hit), float(low[0]), float(high[0]))


def interval_ends(counts: Ints, total: Ints | int, worth: Floats | float, confidence: float) -> tuple[Floats, Floats]:
    """The low and the high ends, each shape (N,), of the exact binomial interval (Clopper and Pearson, 1934).

    Args:
        counts: shape (N,).
        total: the images that each is a count of; one number, or shape (N,).
        worth: how many independent ones these count for; the same.
        confidence: of the interval, two-sided.
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    hit = counts * (worth / np.maximum(total, 1))
    # Without a count, or with all, one end is known, and the other parameter would be 0.
    low = np.where(counts > 0, beta.ppf(tail, np.where(counts > 0, hit, 1), worth - hit + 1), 0.0)
    high = np.where(counts < total, beta.ppf(1 - tail, hit + 1, np.where(counts < total, worth - hit, 1)), 1.0)
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
        defective_worth: how many independent ones they count for.
        good: the highest P(defective) of good images, descending, at most ``KEPT``.
        good_total: how many good images there were.
        good_worth: how many independent ones they count for.
    """

    temperature: float
    defective: list[float]
    defective_total: int
    defective_worth: float
    good: list[float]
    good_total: int
    good_worth: float

    @classmethod
    def of(cls, scores: Floats, defective: NDArray[np.bool_], tyres: Ints, temperature: float) -> Calibration:
        """From calibration images' P(defective), whether each is defective, and its tyre; each shape (N,)."""
        bad, good = np.sort(scores[defective]), np.sort(scores[~defective])[::-1]
        return cls(
            temperature,
            bad[:KEPT].tolist(), len(bad), worth(tyres[defective]),
            good[:KEPT].tolist(), len(good), worth(tyres[~defective]),
        )  # fmt: skip

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
        escapes = promise.allowed(self.defective_total, self.defective_worth)
        if escapes < 0:
            raise UserError(_too_few("escape", "defective", promise, self.defective_total, self.defective_worth))
        threshold = self.defective[min(escapes, len(self.defective) - 1)] * (1 - _HAIR)
        if wanted.max_overkill_rate is None:
            return OperatingPoint(threshold, threshold, wanted)
        other = Promise(wanted.max_overkill_rate, wanted.confidence)
        overkills = other.allowed(self.good_total, self.good_worth)
        if overkills < 0:
            raise UserError(_too_few("overkill", "good", other, self.good_total, self.good_worth))
        reject_from = self.good[min(overkills, len(self.good) - 1)] * (1 + _HAIR)
        return OperatingPoint(threshold, max(threshold, reject_from), wanted)


def _too_few(rate: str, kind: str, promise: Promise, count: int, worth: float) -> str:
    key = f"operating_point.max_{rate}_rate"
    least = 1 - (1 - promise.confidence) ** (1 / worth) if count else 1.0
    alike = f", which count for {math.floor(worth)} because some show the same tyre" if worth < count else ""
    way_out = f" or give {key}={math.ceil(1000 * least) / 1000:g}" if least < 0.5 else ""
    return (
        f"{key}={promise.rate:g} with a confidence of {promise.confidence:g} cannot be promised: it takes "
        f"{promise.needed()} {kind} validation images, and there are {count}{alike}: add images{way_out}"
    )


@dataclass(frozen=True)
class Rates:
    """What an operating point does to images whose truth is known; intervals are two-sided, see ``interval_ends``."""

    escape: Interval  # of defective images
    overkill: Interval  # of good images; with a review band, those rejected outright
    review: Interval  # of all images
    escape_by_class: dict[str, Interval]  # of each defect


def rates(
    point: OperatingPoint, scores: Floats, labels: Ints, tyres: Ints, classes: Sequence[str], good_class: str
) -> Rates:
    """Escape, overkill and review rates.

    Args:
        point: the operating point.
        scores: P(defective), shape (N,).
        labels: class indices, shape (N,).
        tyres: the tyre that each image shows, shape (N,).
        classes: class names in index order.
        good_class: the class of tyres without a defect.
    """
    confidence = point.promised.confidence
    good = labels == classes.index(good_class)
    accepted, rejected = scores < point.threshold, scores >= point.reject_from

    def share(hit: NDArray[np.bool_], of: NDArray[np.bool_]) -> Interval:
        return interval(hit[of], tyres[of], confidence)

    by_class = {
        name: share(accepted, labels == index)
        for index, name in enumerate(classes)
        if name != good_class and (labels == index).any()
    }
    everything = np.ones_like(good)
    return Rates(share(accepted, ~good), share(rejected, good), share(~accepted & ~rejected, everything), by_class)
