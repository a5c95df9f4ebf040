"""How many tyres a person should see: divided over strata, and how many a wanted interval takes."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.decision.audit_sample import Audit, Rate, escape_rate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Of the draws, those that go to all tyres alike. The rest goes where defective ones are likely: that finds a broken
# promise sooner, and makes the bound for none found wider (benchmarks/auditing.py), since a stratum with few draws may
# hide the more.
UNIFORM = 0.6
_LEAST_RISK = 1e-6


def allocate(total: Ints, risk: Floats, budget: int) -> Ints:
    """How many tyres to draw from each of H strata, shape (H,): at least one, and not more than there are.

    A share ``UNIFORM`` goes to all tyres alike, the rest by Neyman's rule (Journal of the Royal Statistical Society 97,
    1934): to a stratum as many as it has tyres, times the standard deviation of being defective.

    Args:
        total: tyres of each stratum, shape (H,).
        risk: the share of them that the model takes for defective, shape (H,).
        budget: draws in all; at least one for each stratum that has tyres.
    """
    wanted = min(budget, int(total.sum()))
    if wanted <= 0:
        return np.zeros_like(total)
    spread = total * np.sqrt(np.clip(risk * (1 - risk), _LEAST_RISK, None))
    shares = UNIFORM * total / total.sum() + (1 - UNIFORM) * spread / spread.sum()
    least = np.minimum(1, total)
    low, high = 0.0, float(total.sum() / shares[total > 0].min())
    for _ in range(60):  # the factor of the shares by which, within their limits, all draws are used
        middle = (low + high) / 2
        low, high = (low, middle) if np.clip(middle * shares, least, total).sum() > wanted else (middle, high)
    exact = np.clip(low * shares, least, total)
    drawn: Ints = np.floor(exact).astype(np.int64)
    for place in np.argsort(drawn - exact, kind="stable"):  # the largest remainders are rounded up
        drawn[place] += int(drawn.sum() < wanted and drawn[place] < total[place])
    return drawn


def expected(design: Audit, risk: Floats, escaping: float, confidence: float) -> Rate:
    """The escape rate's interval to expect of a design, before anybody has looked at a tyre.

    Args:
        design: whose ``total`` and ``drawn`` count.
        risk: as in :func:`allocate`, of all strata. The number of defective tyres outside the accepted strata is taken
            from it, within these only how they divide.
        escaping: the escape rate to assume.
        confidence: of the interval, two-sided.
    """
    defective = design.total * risk
    inside = np.where(design.accepted, defective, 0)
    escapes = escaping / (1 - escaping) * defective[~design.accepted].sum()
    divided = np.where(design.accepted, escapes * inside / max(inside.sum(), _LEAST_RISK), defective)
    found = np.minimum(divided, design.total) * design.drawn / np.maximum(design.total, 1)
    audit = Audit(design.accepted, design.rejected, design.total, design.drawn, found, design.drawn - found, 0 * found)
    return escape_rate(audit, confidence)


def labels_needed(
    total: Ints, risk: Floats, defective: int, width: float, confidence: float, escaping: float = 0.0
) -> int:
    """How many accepted tyres must be drawn for an escape rate's interval that is no wider than ``width``.

    Args:
        total: tyres of each stratum of accepted ones, shape (H,).
        risk: as in :func:`allocate`, shape (H,).
        defective: tyres that were not accepted, and are defective.
        width: wanted; 0.05: as from 0 to 5 %.
        confidence: of the interval, two-sided.
        escaping: the escape rate to assume; 0: that none is found.
    """
    strata = np.append(total, defective)
    accepted = np.arange(len(strata)) < len(total)

    def wide_enough(budget: int) -> bool:
        drawn = np.append(allocate(total, risk, budget), defective)
        design = Audit(accepted, ~accepted, strata, drawn, drawn, drawn, drawn)
        found = expected(design, np.append(risk, 1.0), escaping, confidence)
        return bool(found.high - found.low <= width)

    return bisect_left(range(int(total.sum())), True, key=wide_enough)
