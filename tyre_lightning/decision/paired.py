"""Whether one model lets no more defective tyres escape than another, up to a margin, on tyres that both have judged.

Of n tyres, each judged by both, let b escape only the first and c only the second. An exact unconditional test of
non-inferiority (Hsueh, Liu and Chen, Biometrics 57, 2001; Shan and Wang, The R Journal 5/2, 2013) orders the tables
(b, c) by Tango's score statistic (Statistics in Medicine 17, 1998). Its p-value is the probability of a table at least
as extreme as the one seen, where the first is exactly the margin worse, for the most favourable share of tyres that
escape only the second, which nobody knows. So the level is kept whatever that share is, with any number of tyres; the
score bound itself only keeps it with many.

That maximum is proven, not searched for: as a function of the share the probability is a polynomial of degree n. Its
values in n + 1 Chebyshev points are all of it, those between follow by a cosine transform, and from the largest on a
grid R times as fine the true maximum is at most 1 / cos(pi / 2R) times as high (M. Riesz 1914; Ehlich and Zeller,
Mathematische Zeitschrift 86, 1964).

That takes time that grows with the square of n, hours for 100,000 tyres. Beyond :data:`EXACT` two Clopper-Pearson
bounds are put together: of the share of tyres that escape only one of the two, and, of these, of the share that escapes
the first. What may be wrong is divided between them, most for the second, so that the level is kept too. The bound is
up to twice as far from what was seen, which with so many tyres is little beside any margin that matters.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.decision.bounds import interval_ends

_FINER = 64  # times as many points as determine the polynomial: its maximum is then known to 0.03 % of itself
_TIE = 1e-9  # statistics that differ by rounding are equal
_PRECISE = 1e-4  # of a bound
_BLOCK = 64  # shares at a time
EXACT = 5000  # tyres, up to which the test takes less than a minute
_APART = 0.1  # of what may be wrong with a bound for more tyres: the part of the share that escapes only one
_MANY = 2000  # tyres; the test itself takes more, in more time

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def passes(more: int, less: int, total: int, margin: float, confidence: float) -> bool:
    """Whether the first is less than ``margin`` worse than the second, with this confidence; see :func:`p_value`."""
    if total > EXACT:
        return _bound_of_many(more, less, total, confidence) <= margin
    return p_value(more, less, total, margin) <= 1 - confidence


@lru_cache(maxsize=4096)
def p_value(more: int, less: int, total: int, margin: float) -> float:
    """Of the hypothesis that the first lets at least ``margin`` more escape than the second.

    Args:
        more: tyres that escape only the first.
        less: tyres that escape only the second.
        total: all tyres.
        margin: a difference of shares, above -1 and below 1.
    """
    if not total:
        return 1.0
    return largest(total, margin, tables(more, less, total, margin))


def largest(total: int, margin: float, most: Ints) -> float:
    """An upper bound of the probability of a set of tables, where the first is exactly ``margin`` worse.

    Args:
        total: tyres.
        margin: as for :func:`p_value`.
        most: for every c the largest b in the set, -1 where there is none, shape (total + 1,).
    """
    from scipy.fft import dct

    places = np.cos(np.pi * np.arange(total + 1) / total)
    low, high = max(0.0, -margin), (1 - margin) / 2
    values = probability(low + (high - low) * (1 + places) / 2, total, margin, most)
    # DCT-I, halved at both ends, gives the coefficients; with zeros behind them it gives values on the finer grid.
    weights = dct(values, type=1) / (2 * total)
    weights[-1] /= 2
    padded = np.zeros(_FINER * total + 1)
    padded[: total + 1] = weights
    finer = float(dct(padded, type=1).max())
    return min(1.0, finer / math.cos(math.pi / (2 * _FINER)))


def probability(shares: Floats, total: int, margin: float, most: Ints) -> Floats:
    """The probability of a set of tables, shape (Q,), where the first is exactly ``margin`` worse.

    Args:
        shares: of tyres that escape only the second, shape (Q,).
        total: tyres.
        margin: as for :func:`p_value`.
        most: as for :func:`largest`.
    """
    blocks = [shares[start : start + _BLOCK] for start in range(0, len(shares), _BLOCK)]
    return np.concatenate([_probability(block, total, margin, most) for block in blocks])


def _probability(shares: Floats, total: int, margin: float, most: Ints) -> Floats:
    """For shares that lie together: a c that is far from all of them adds nothing (Hoeffding 1963: below 1e-19)."""
    from scipy.special import bdtr
    from scipy.stats import binom

    reach = math.sqrt(23 * total)
    near = slice(max(0, math.floor(total * shares.min() - reach)), math.ceil(total * shares.max() + reach) + 1)
    less = np.arange(total + 1)[near][most[near] >= 0]
    left, seconds = total - less, shares[:, None]
    first = np.clip((seconds + margin) / np.maximum(1 - seconds, _TIE), 0.0, 1.0)  # of what escapes not only the second
    below = bdtr(np.minimum(most[less], left).astype(float), left, first)
    return np.asarray((binom.pmf(less, total, seconds) * below).sum(axis=1), dtype=np.float64)


def statistic(more: Floats | Ints, less: Floats | Ints, total: int, margin: float) -> Floats:
    """Tango's score statistic of tables, of their shape: the lower, the less the first looks ``margin`` worse."""
    linear = (2 * total - more + less) * margin - more - less
    constant = -less * margin * (1 - margin)
    second = (np.sqrt(np.maximum(linear**2 - 8 * total * constant, 0.0)) - linear) / (4 * total)
    variance = total * (2 * second + margin * (1 - margin))
    away = more - less - total * margin
    return np.asarray(away / np.sqrt(np.maximum(variance, _TIE)), dtype=np.float64)


def tables(more: int, less: int, total: int, margin: float) -> Ints:
    """The tables at least as extreme as the one seen: for every c the largest b, -1: none; shape (total + 1,).

    With a table, those with fewer b or more c are in the set too. Then it becomes no likelier where the first is worse
    by more than the margin, so that the p-value holds there as well.
    """
    seen = statistic(np.array(more), np.array(less), total, margin) + _TIE
    each = np.arange(total + 1)
    inside, outside = np.full(total + 1, -1), total - each + 1
    while (outside - inside > 1).any():
        middle = (inside + outside) // 2
        extreme = (middle < 0) | (statistic(np.maximum(middle, 0), each, total, margin) <= seen)
        inside, outside = np.where(extreme, middle, inside), np.where(extreme, outside, middle)
    return np.maximum.accumulate(inside)


def upper_bound(more: int, less: int, total: int, margin: float, confidence: float) -> float:
    """The smallest margin that the test proves: at most by so much is the first worse, with this confidence.

    It is at most ``margin`` where :func:`passes` says so for that margin, and above it elsewhere.

    Args:
        more: as for :func:`p_value`.
        less: as for :func:`p_value`.
        total: as for :func:`p_value`.
        margin: that matters, from 0 up.
        confidence: of the bound, more than a half.
    """
    if not total:
        return 1.0
    if total > EXACT:
        return _bound_of_many(more, less, total, confidence)
    seen = (more - less) / total
    fits = passes(more, less, total, margin, confidence)
    low, high = (min(seen, margin), margin) if fits else (max(seen, margin), 1.0)
    while high - low > _PRECISE:
        middle = (low + high) / 2
        fits = passes(more, less, total, middle, confidence)
        low, high = (low, middle) if fits else (middle, high)
    return high


def _bound_of_many(more: int, less: int, total: int, confidence: float) -> float:
    """As :func:`upper_bound`: what escapes only one, as a share of all, times how far that leans to the first."""
    wrong = 1 - confidence
    apart = interval_ends(np.array([more + less]), total, 1 - _APART * wrong)
    first = interval_ends(np.array([more]), more + less, 1 - 2 * (1 - _APART) * wrong)[1]  # of one side
    lean = 2 * float(first[0]) - 1
    return lean * float(apart[lean > 0][0])


def smallest_margin(total: int, confidence: float) -> float:
    """The smallest margin that so many tyres prove where both models let the same ones escape."""
    return upper_bound(0, 0, total, 0.0, confidence)


def smallest_total(margin: float, confidence: float) -> int:
    """The fewest tyres that prove a margin where both models let the same ones escape.

    With a margin so small that there must be more than ``_MANY``, a number that is somewhat too low.
    """
    least = math.ceil(math.log(1 - confidence) / math.log(1 - margin))  # were no other table as extreme
    if least > _MANY:
        return least
    most = 2 * least
    while not passes(0, 0, most, margin, confidence):
        most *= 2
    return least + bisect_left(range(least, most), True, key=lambda total: passes(0, 0, total, margin, confidence))
