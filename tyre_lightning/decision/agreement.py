"""How far two persons agree, beyond what chance alone would make them agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Agreement:
    """What persons said of things that more than one of them has seen.

    Args:
        kappa: 1 where all agree, 0 where no more do than by chance; NaN where nothing can be told.
        shared: pairs of answers that were compared.
    """

    kappa: float
    shared: int


def kappa(pairs: Mapping[tuple[Hashable, Hashable], int]) -> float:
    """Cohen's kappa of two persons (Cohen, Educational and Psychological Measurement 20, 1960).

    Args:
        pairs: how often the first said one thing where the second said another.

    Returns:
        (observed - expected) / (1 - expected) agreement; NaN where both always said the same one thing, or nothing.
    """
    total = sum(pairs.values())
    if not total:
        return math.nan
    first, second = Counter[Hashable](), Counter[Hashable]()
    for (one, other), count in pairs.items():
        first[one] += count
        second[other] += count
    observed = sum(count for (one, other), count in pairs.items() if one == other) / total
    expected = sum(first[said] * second[said] for said in first) / total**2
    return math.nan if math.isclose(expected, 1) else (observed - expected) / (1 - expected)


def agreement(said: Mapping[str, Mapping[str, Hashable]]) -> Agreement:
    """How far all persons agree: the mean of each pair's kappa, weighted by what the two have both seen.

    The plain mean is Light's (Psychological Bulletin 76, 1971); here pairs share very different numbers of tyres. A
    pair whose kappa is not defined is left out.

    Args:
        said: by person, what he or she said of each thing.
    """
    found: list[tuple[float, int]] = []
    for one, other in combinations(sorted(said), 2):
        pairs = Counter((said[one][thing], said[other][thing]) for thing in said[one].keys() & said[other].keys())
        if not math.isnan(value := kappa(pairs)):
            found.append((value, pairs.total()))
    shared = sum(count for _, count in found)
    return Agreement(sum(value * count for value, count in found) / shared if shared else math.nan, shared)
