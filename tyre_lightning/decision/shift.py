"""Whether a window of the line differs from a baseline, in any of many columns, at one level for all together.

If nothing has changed, tyres of baseline and window are drawn alike, so that which of them are called the window is a
matter of chance. Every column gets a score, how far its two means lie apart, and the largest score of all columns is
compared with its distribution over random ways to divide the same tyres (a permutation test with the statistic max T of
Westfall and Young, Resampling-based Multiple Testing, 1993). So the sampling error of the baseline counts as that of
the window does, columns that say the same are not corrected for twice, and the level holds whatever the distributions
are and however small the samples: on average over baselines and windows, at most a share ``LEVEL`` of clean windows
alarms.

Scores are in standard deviations: of numbers, by their normal scores (van der Waerden), so that no outlier counts for
more than its rank; of a share, the normal quantile of its exact (hypergeometric) probability, since a single rare tyre
in a small window would else look enormous. Either would make the threshold too high for all other columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtri
from scipy.stats import rankdata

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

LEVEL = 0.01  # of clean windows, or groups of windows that are looked at together, alarm
FEWEST = 5  # tyres of which a column must be known on either side
_TOGETHER = 100  # permutations in memory at one time
_ALARMS = 10  # of 1,000 divisions, the window's own among them, so many are beyond the threshold
_FEWEST_ALARMS = 2  # likewise, of more divisions, where many comparisons share the level
_TINY = 1e-300


@dataclass(frozen=True)
class Comparison:
    """What a comparison in C columns came to.

    Args:
        scores: in standard deviations, signed as window minus baseline, shape (C,).
        chance: in how many of all ways to divide the tyres some column differs at least as much, shape (C,).
        critical: the score beyond which a column alarms.
    """

    scores: Floats
    chance: Floats
    critical: float


def compare(baseline: Floats, window: Floats, shares: Bools, among: int = 1, seed: int = 0) -> Comparison:
    """Compare M tyres with N others.

    Args:
        baseline: [M, C]; NaN where a column says nothing of a tyre.
        window: [N, C].
        shares: which columns hold 0 and 1 only, and no NaN, shape (C,).
        among: how many such comparisons share the level.
        seed: of the permutations.
    """
    both = np.concatenate([baseline, window])
    scorer = _Scorer(both, shares, len(window))
    own = scorer(np.repeat(np.array([[0, 1]], np.float32), [len(baseline), len(window)], axis=1))[0]
    allowed = max(_FEWEST_ALARMS, round(_ALARMS / among))
    total = round(allowed * among / LEVEL)
    divisions = _divisions(len(both), len(window), total - 1, seed)
    maxima = np.sort(np.concatenate([np.abs(scorer(part)).max(axis=1) for part in divisions]))
    as_large = len(maxima) - np.searchsorted(maxima, np.abs(own), side="left")
    return Comparison(own, (1 + as_large) / total, float(maxima[-allowed]))


def _divisions(total: int, size: int, count: int, seed: int) -> Iterator[Floats32]:
    """Random ways to call ``size`` of ``total`` tyres the window, a batch [B, total] at a time: 1 for those, else 0."""
    random, few = np.random.default_rng(seed), min(size, total - size)
    for start in range(0, count, _TOGETHER):
        batch = np.full((min(_TOGETHER, count - start), total), float(few < size), np.float32)
        for row in batch:  # the smaller side is drawn, which is the quicker way
            row[random.choice(total, few, replace=False, shuffle=False)] = float(few == size)
        yield batch


class _Scorer:
    """Scores of all columns for any way to divide the tyres.

    Args:
        values: [M + N, C], of all tyres.
        shares: as for :func:`compare`.
        size: of a window, N.
    """

    def __init__(self, values: Floats, shares: Bools, size: int) -> None:
        self._size, self._shares, numbers = size, shares, values[:, ~shares]
        known = ~np.isnan(numbers)
        self._total = known.sum(axis=0)
        away = np.nan_to_num(_normal_scores(numbers))
        deviation = np.sqrt(np.square(away).sum(axis=0) / np.maximum(self._total, 1))
        self._flat = deviation < 1e-9
        self._away = (away / np.where(self._flat, 1, deviation)).astype(np.float32)
        self._known = None if known.all() else known.astype(np.float32)
        self._events = (values[:, shares] > 0).astype(np.float32)
        self._tables = [_table(round(float(events)), len(values), size) for events in self._events.sum(axis=0)]

    def __call__(self, inside: Floats32) -> Floats:
        """Scores [B, C] of B divisions [B, M + N], 1 for what is called the window and 0 for the rest."""
        found = np.empty((len(inside), len(self._shares)))
        found[:, ~self._shares] = self._of_numbers(inside)
        counts = (inside @ self._events).astype(np.int64)
        for place, column in enumerate(np.flatnonzero(self._shares)):
            found[:, column] = self._tables[place][counts[:, place]]
        return found

    def _of_numbers(self, inside: Floats32) -> Floats:
        """Normal scores sum up to 0 over all tyres, so that the rest's sum is the window's, negative."""
        sums = (inside @ self._away).astype(np.float64)
        window = np.full(sums.shape, float(self._size)) if self._known is None else (inside @ self._known)
        rest = self._total - window
        found = sums * np.sqrt(self._total / np.maximum(1, window * rest))
        found[(np.minimum(window, rest) < FEWEST) | self._flat] = 0.0
        return np.asarray(found)


def _normal_scores(values: Floats) -> Floats:
    """Of each column the normal quantiles of its ranks, mean 0; NaN stays."""
    found = ndtri(rankdata(values, axis=0, nan_policy="omit") / (1 + (~np.isnan(values)).sum(axis=0)))
    return np.asarray(found - np.nan_to_num(found).sum(axis=0) / np.maximum(1, (~np.isnan(values)).sum(axis=0)))


def _table(events: int, total: int, size: int) -> Floats:
    """The signed score of every count of events in a window of ``size`` of ``total`` tyres, shape (size + 1,)."""
    count = np.arange(size + 1)
    possible = (count <= events) & (size - count <= total - events)
    ways = _choose(events, count[possible]) + _choose(total - events, size - count[possible])
    mass = np.exp(ways - _choose(total, np.array([size])))
    fewer, more = np.cumsum(mass), np.cumsum(mass[::-1])[::-1]
    chance = np.clip(2 * np.minimum(fewer, more), _TINY, 1)
    found = np.zeros(size + 1)
    found[possible] = np.where(more <= fewer, -1, 1) * ndtri(chance / 2)
    return found


def _choose(total: int, count: NDArray[np.int64]) -> Floats:
    """The logarithm of the number of ways to choose some of a total."""
    return np.asarray(gammaln(total + 1) - gammaln(count + 1) - gammaln(total - count + 1))
