"""What counts of tyres say of a share: exact intervals, and how many escapes a promise allows."""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Promise:
    """A share of tyres is at most ``rate``, with this ``confidence``."""

    rate: float
    confidence: float

    def needed(self) -> int:
        """Calibration tyres without which nothing can promise it: (1 - rate)^n <= 1 - confidence."""
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.rate) - 1e-9)

    def allowed(self, total: int) -> int:
        """How many of ``total`` calibration tyres may lie below the threshold; -1: it cannot be promised.

        The most whose upper bound (Clopper and Pearson, Biometrika 26, 1934) is not above the rate.
        """
        return _allowed(self.rate, self.confidence, total)


def least_rate(confidence: float, total: int) -> float:
    """The lowest rate that ``total`` calibration tyres can promise, rounded up to tenths of a percent."""
    return math.ceil(1000 * (1 - (1 - confidence) ** (1 / total))) / 1000 if total else 1.0


@cache
def _allowed(rate: float, confidence: float, total: int) -> int:
    from scipy.stats import beta

    def broken(count: int) -> bool:
        """Whether the bound of a count is above the rate."""
        return bool(beta.cdf(rate, count + 1, total - count) < confidence)

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


def interval(hit: NDArray[np.bool_], confidence: float) -> Interval:
    """The interval of the share of tyres that are hit, shape (T,)."""
    count = int(hit.sum())
    low, high = interval_ends(np.array([count]), len(hit), confidence)
    return Interval(count, len(hit), float(low[0]), float(high[0]))


def interval_ends(counts: Ints, total: Ints | int, confidence: float) -> tuple[Floats, Floats]:
    """The low and the high ends, each shape (N,), of the exact binomial interval (Clopper and Pearson, 1934).

    Args:
        counts: shape (N,).
        total: the tyres that each is a count of; one number, or shape (N,).
        confidence: of the interval, two-sided.
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    # Without a count, or with all, one end is known, and the other parameter would be 0.
    low = np.where(counts > 0, beta.ppf(tail, np.where(counts > 0, counts, 1), total - counts + 1), 0.0)
    high = np.where(counts < total, beta.ppf(1 - tail, counts + 1, np.where(counts < total, total - counts, 1)), 1.0)
    return low, high
