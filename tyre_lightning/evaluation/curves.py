"""What figures and the report draw: the counts at every threshold, and whether probabilities mean what they say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 10  # of the calibration curve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Sweep(NamedTuple):
    """Tyres on the wrong side of each of N thresholds, from the lowest on; the last accepts all."""

    thresholds: Floats  # shape (N,)
    escaped: Ints  # defective tyres below, shape (N,)
    rejected: Ints  # good tyres that are not below, shape (N,)


def sweep(defective: Floats, good: Floats) -> Sweep:
    """Count at every threshold that makes a difference.

    Args:
        defective: P(defective) of defective tyres.
        good: of good ones.
    """
    thresholds = np.unique(np.concatenate([defective, good, [np.inf]]))
    escaped, passed = (np.searchsorted(np.sort(scores), thresholds) for scores in (defective, good))
    return Sweep(thresholds, escaped, len(good) - passed)


def evenly(total: int, most: int) -> Ints:
    """Places among ``total``, both ends among them: all, or ``most`` that are evenly apart."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).astype(np.int64))


def reliability(probability: Floats, truth: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The calibration curve (Guo et al., arXiv:1706.04599): in each bin, what was said and what was true.

    Args:
        probability: shape (N,).
        truth: shape (N,).

    Returns:
        The mean probability and the share that is true, each shape (at most :data:`BINS`,).
    """
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    count, true, total = (np.bincount(place, weights, BINS) for weights in (None, truth, probability))
    some = count > 0
    return total[some] / count[some], true[some] / count[some]
