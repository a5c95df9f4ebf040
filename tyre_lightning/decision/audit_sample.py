"""What a random sample of the line's tyres, looked at by a person, says of its escape rate and its overkill rate.

The tyres of a window lie in strata, each of one decision. Of the N tyres of a stratum n were drawn at random, without
replacement, and a person said of each whether it is defective. A tyre found stands for N / n tyres of its stratum.

**Interval.** Escapes are rare, so that intervals by a standard error are of no use: with none found they are empty. Fay
and Feuer (Statistics in Medicine 16, 1997) bound a weighted sum of rare counts by a gamma distribution, as Clopper and
Pearson do one count. A stratum's weight is here -1 / log(1 - n / N): the bound for nothing found is then that of the
sample without replacement (nothing is uncertain in a stratum that was seen whole), and the bound for many finds has
their standard error. Where more than half of a stratum is hit, those not hit are counted. Numerator and denominator of
a rate lie in different strata, and MOVER (Donner and Zou, Statistical Methods in Medical Research 21, 2012) joins their
limits. That such intervals cover is no theorem: benchmarks/auditing.py measures it.

**Alarm.** It is asked every week, so that its level must hold over all looks together. It bets against the promise:
before the answers are known, a stake is put on each tyre that may be found defective. An accepted one raises the
capital and another lowers it, by 1 + stake (accepted - rate) N / n. While no more than ``rate`` of defective tyres
escape, the capital does not grow on average, and so exceeds 1 / level in at most a share ``level`` of all lines,
however often one looks (Ville, 1939; Waudby-Smith and Ramdas, arXiv:2010.09686). That the sample is without replacement
only helps: a sum so drawn is less spread than one of independent draws (Hoeffding, Journal of the American Statistical
Association 58, 1963).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = Ints | Floats

# Shares of the largest stake that leaves some capital. The capital is spread over them: the best depends on the truth.
STAKES: Floats = 0.1 * np.power(0.5, np.arange(7.0))


@dataclass(frozen=True)
class Audit:
    """What was drawn from H strata, and what people said; the counts may be of many samples, shape [..., H].

    What was drawn and is in none of the counts, nobody could tell or has told yet.

    Args:
        accepted: whether the line accepted the tyres of a stratum, shape (H,).
        rejected: whether it rejected them, shape (H,).
        total: tyres of the window, shape (H,).
        drawn: of these, shown to a person, shape (H,).
        defective: found to be, [..., H].
        good: found to be, [..., H].
        neither: found to be no tyre at all, [..., H].
    """

    accepted: Bools
    rejected: Bools
    total: Ints
    drawn: Ints
    defective: Numbers
    good: Numbers
    neither: Numbers

    @classmethod
    def together(cls, windows: Sequence[Audit]) -> Audit:
        """Several windows of one model, of whose strata each stays one of its own."""
        return cls(*(np.concatenate([getattr(one, item.name) for one in windows], -1) for item in fields(cls)))

    @property
    def untold(self) -> Numbers:
        """Drawn, and known to be nothing, [..., H]."""
        return self.drawn - self.defective - self.good - self.neither


class Rate(NamedTuple):
    """A share with its two-sided interval, each shape [...]; ``share`` is NaN where there is nothing to divide by."""

    share: Floats
    low: Floats
    high: Floats


def escape_rate(audit: Audit, confidence: float) -> Rate:
    """Defective tyres that were accepted, of all defective ones.

    The interval takes what nobody could tell for the worse: its upper end as if accepted ones were defective and the
    others good, its lower end the other way round.
    """
    return _rate(audit, audit.defective, audit.accepted, confidence)


def overkill_rate(audit: Audit, confidence: float) -> Rate:
    """Good tyres that were rejected, of all good ones; as :func:`escape_rate`."""
    return _rate(audit, audit.good, audit.rejected, confidence)


def alarm_level(windows: Sequence[Audit], rate: float) -> Floats:
    """The least level at which the promise is found broken at each of W looks, after each window; shape [..., W].

    An alarm that goes off where this is at most 0.05 does so, ever, in at most 5 % of lines that keep their promise.
    What nobody could tell counts for the promise.

    Args:
        windows: in their order.
        rate: the promised escape rate.
    """
    growth = np.stack([log_growth(window, rate) for window in windows], -2)  # [..., W, stakes]
    log_capital = np.logaddexp.reduce(growth.cumsum(-2), -1) - np.log(growth.shape[-1])
    return np.asarray(np.exp(-np.maximum(0, np.maximum.accumulate(log_capital, -1))))


def log_growth(audit: Audit, rate: float, stakes: Floats = STAKES) -> Floats:
    """The logarithm of what a window multiplies the capital by, for each of some stakes; shape [..., stakes]."""
    asked = audit.drawn > 0
    share = np.where(asked, audit.drawn / np.maximum(audit.total, 1), 1.0)
    most = np.min(share[~audit.accepted], initial=1.0) / rate
    factors = np.log1p(most * stakes[:, None] * (audit.accepted - rate) / share)  # [stakes, H]
    refused = np.where(asked, audit.defective + audit.untold, audit.total)  # what nobody has seen may be defective
    return np.asarray(np.where(audit.accepted, audit.defective, refused) @ factors.T)


def _rate(audit: Audit, hit: Numbers, ours: Bools, confidence: float) -> Rate:
    """The share that some strata have of all tyres that are hit.

    Args:
        audit: what was drawn.
        hit: surely so, [..., H].
        ours: those strata, shape (H,).
        confidence: two-sided.
    """
    told = np.maximum(audit.drawn - audit.untold, 1)
    numbers = audit.total * np.minimum(hit / told, 1)
    share = _share((numbers * ours).sum(-1), (numbers * ~ours).sum(-1), np.nan)
    most, tail = hit + audit.untold, (1 - confidence) / 2
    low = 1 - _upper_share(audit, np.where(ours, hit, most), ~ours, tail)
    high = _upper_share(audit, np.where(ours, most, hit), ours, tail)
    return Rate(np.clip(share, low, high), low, high)


def _upper_share(audit: Audit, hit: Numbers, ours: Bools, tail: float) -> Floats:
    """The upper limit of a share, by MOVER for the ratio of two independent numbers; arguments as of :func:`_rate`."""
    part, _, above = _number(audit, hit, ours, tail)
    other, below, _ = _number(audit, hit, ~ours, tail)
    floor = np.maximum((other - below) * (other + below), 0)
    root = np.sqrt(np.maximum((part * other) ** 2 - floor * (part - above) * (part + above), 0))
    odds = np.divide(part * other + root, floor, out=np.full_like(root, np.inf), where=floor > 0)
    unseen = audit.total - audit.drawn
    most = _share(((hit + unseen) * ours).sum(-1), (hit * ~ours).sum(-1), 1.0)
    return np.minimum(1 - 1 / (1 + odds), most)


def _share(part: Numbers, other: Numbers, nothing: float) -> Floats:
    """``part`` of both together; ``nothing`` where neither is."""
    both = np.asarray(part + other, dtype=float)
    return np.asarray(np.divide(part, both, out=np.full_like(both, nothing), where=both > 0))


def _number(audit: Audit, hit: Numbers, ours: Bools, tail: float) -> tuple[Floats, Floats, Floats]:
    """How many tyres of some strata are hit, and how far below and above that their limits lie; each shape [...]."""
    drawn = audit.drawn * ours
    total, hit = audit.total * (drawn > 0), hit * ours
    nobody_saw = (audit.total * (ours & (drawn == 0))).sum()
    below, above = (_limit(hit, drawn, total, tail, side) for side in (-1, 1))
    return (total / np.maximum(drawn, 1) * hit).sum(-1), below, above + nobody_saw


def _limit(hit: Numbers, drawn: Ints, total: Ints, tail: float, side: int) -> Floats:
    """How far the number of tyres may lie above (``side`` 1) or below (-1) what the counts say, shape [...]."""
    share = drawn / np.maximum(total, 1)
    partly = (share > 0) & (share < 1)
    weights = np.where(partly, -1 / np.log1p(-np.where(partly, share, 0.5)), 0.0)
    many = 2 * hit > drawn
    rare = _gamma(np.where(many, 0, hit), np.where(many, 0, weights), tail, side)
    common = _gamma(np.where(many, drawn - hit, 0), np.where(many, weights, 0), tail, -side)
    return np.hypot(rare, common)


def _gamma(counts: Numbers, weights: Floats, tail: float, side: int) -> Floats:
    """The distance of a limit of a weighted sum of Poisson counts from the sum (Fay and Feuer, 1997), shape [...].

    Args:
        counts: [..., H].
        weights: [..., H].
        tail: the probability beyond the limit.
        side: 1: the upper limit; -1: the lower.
    """
    from scipy.special import gammaincinv

    heaviest = weights.max(-1) if side > 0 else 0.0
    known = (weights * counts).sum(-1)
    mean, variance = known + heaviest, (weights**2 * counts).sum(-1) + heaviest**2
    scale = np.divide(variance, mean, out=np.zeros_like(mean), where=mean > 0)
    shape = np.divide(mean, scale, out=np.ones_like(mean), where=scale > 0)
    return np.asarray(np.abs(scale * gammaincinv(shape, 1 - tail if side > 0 else tail) - known))
