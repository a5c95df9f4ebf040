"""The paired test behind the gate: its level holds with every share of tyres on which the models differ."""

from __future__ import annotations

import time
from bisect import bisect_left
from functools import cache, partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, multinomial, norm

from tests.cases import first_of
from tyre_lightning.decision import paired
from tyre_lightning.decision.paired import (
    EXACT,
    largest,
    p_value,
    passes,
    probability,
    smallest_margin,
    smallest_total,
    statistic,
    tables,
    upper_bound,
)

MARGIN, CONFIDENCE = 0.03, 0.9
TOTALS = (50, 54, 60, 75, 76, 77, 90, 110, 120, 121, 150, 200, 251, 300, 333, 400)

Ints = NDArray[np.int64]


def tangos_bound(more: int, less: int, total: int, confidence: float) -> float:
    """The score bound that the exact test takes the place of (Tango, Statistics in Medicine 17, 1998)."""
    z = norm.ppf(confidence)

    def distance(margin: float) -> float:
        return float(statistic(np.array(more), np.array(less), total, margin) + z)

    return 1.0 if more == total else float(brentq(distance, (more - less) / total + 1e-9, 1 - 1e-9))


@cache
def passing(total: int, margin: float = MARGIN, confidence: float = CONFIDENCE) -> bytes:
    """For every c the largest b with which a challenger passes; -1: none."""
    more, less = np.nonzero(np.add.outer(np.arange(total + 1), np.arange(total + 1)) <= total)
    order = np.argsort(statistic(more, less, total, margin), kind="stable")
    low, high = -1, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        fits = passes(int(more[order[middle]]), int(less[order[middle]]), total, margin, confidence)
        low, high = (middle, high) if fits else (low, middle)
    most = np.full(total + 1, -1)
    np.maximum.at(most, less[order[: low + 1]], more[order[: low + 1]])
    return most.tobytes()


def passing_tango(total: int) -> Ints:
    """The same by the score bound."""
    each, most = np.arange(total + 1), np.full(total + 1, -1)
    for b in range(total + 1):
        fits = (statistic(np.full(total + 1, b), each, total, MARGIN) <= -norm.ppf(CONFIDENCE)) & (b + each <= total)
        most[fits] = b
    return most


def exact(total: int) -> Ints:
    return np.frombuffer(passing(total), np.int64)


@pytest.mark.parametrize("total", TOTALS)
def test_a_challenger_that_is_the_margin_worse_passes_no_oftener_than_promised(total: int) -> None:
    shares = np.concatenate([np.linspace(0, 0.1, 1001), np.linspace(0.1, (1 - MARGIN) / 2, 500)])
    assert probability(shares, total, MARGIN, exact(total)).max() <= 1 - CONFIDENCE + 1e-9


@pytest.mark.parametrize(("margin", "confidence"), [(0.01, 0.9), (0.05, 0.95), (0.1, 0.8), (0.3, 0.99)])
def test_the_level_is_kept_with_other_margins_too(margin: float, confidence: float) -> None:
    most = np.frombuffer(passing(100, margin, confidence), np.int64)
    shares = np.linspace(0, (1 - margin) / 2, 2000)
    assert probability(shares, 100, margin, most).max() <= 1 - confidence + 1e-9
    for worse in (margin + 0.01, margin + 0.1):
        shares = np.linspace(0, (1 - worse) / 2, 500)
        assert probability(shares, 100, worse, most).max() <= 1 - confidence


def test_the_score_bound_did_not_keep_it() -> None:
    shares = np.linspace(0, 0.2, 1001)
    found = [probability(shares, total, MARGIN, passing_tango(total)).max() for total in (54, 60, 110, 120, 300)]
    assert found == pytest.approx([0.193, 0.161, 0.154, 0.122, 0.112], abs=0.001)


def test_power() -> None:
    """With as many as 2 % of the tyres escaping each model alone, no more is lost than the level is worth."""
    share = np.array([0.02])
    power = [float(probability(share, total, 0.0, exact(total))[0]) for total in (120, 400)]
    before = [float(probability(share, total, 0.0, passing_tango(total))[0]) for total in (120, 400)]
    assert power == pytest.approx([0.53, 0.94], abs=0.01)
    assert before == pytest.approx([0.59, 0.94], abs=0.01)


@pytest.mark.parametrize(("more", "less", "total"), [(0, 0, 76), (2, 2, 120), (1, 9, 150), (8, 8, 400), (0, 50, 200)])
def test_the_maximum_is_not_missed_between_two_points(more: int, less: int, total: int) -> None:
    most = tables(more, less, total, MARGIN)
    found = largest(total, MARGIN, most)
    step = np.linspace(0, np.pi / 2, 20 * total)
    finer = probability((1 - MARGIN) / 2 * np.sin(step) ** 2, total, MARGIN, most).max()
    evenly = probability(np.linspace(0, (1 - MARGIN) / 2, 5000), total, MARGIN, most).max()
    assert max(finer, evenly) <= found <= 1.0005 * max(finer, evenly)


@pytest.mark.parametrize("margin", [-0.05, 0.0, 0.03])
def test_a_probability_is_the_sum_over_its_tables(margin: float) -> None:
    most = tables(3, 4, 40, margin)
    b, c = np.nonzero(np.arange(41)[:, None] <= most)
    kept = b + c <= 40
    counts = np.stack([b, c, 40 - b - c], axis=1)[kept]
    for share in (0.06, 0.2, 0.4):
        chances = [share + margin, share, 1 - 2 * share - margin]
        assert probability(np.array([share]), 40, margin, most)[0] == pytest.approx(
            multinomial.pmf(counts, 40, chances).sum(), rel=1e-9
        )


@pytest.mark.parametrize(("total", "margin"), [(30, 0.03), (77, 0.1), (120, -0.02), (120, 0.0)])
def test_worse_tables_are_no_more_extreme(total: int, margin: float) -> None:
    each = np.arange(total + 1)
    found = statistic(each[:, None], each[None, :], total, margin)
    valid = each[:, None] + each[None, :] <= total
    assert (np.diff(found, axis=0)[valid[1:]] >= -1e-12).all()
    assert (np.diff(found, axis=1)[valid[:, 1:]] <= 1e-12).all()


@pytest.mark.parametrize("total", [20, 75, 76, 200])
def test_a_bound_is_below_the_margin_just_where_the_test_passes(total: int) -> None:
    for more in range(4):
        for less in range(4):
            bound = upper_bound(more, less, total, MARGIN, CONFIDENCE)
            assert (bound <= MARGIN) == passes(more, less, total, MARGIN, CONFIDENCE)
            assert bound > (more - less) / total
            assert upper_bound(more + 1, less, total, MARGIN, CONFIDENCE) >= bound
    assert upper_bound(2, 20, total, MARGIN, CONFIDENCE) < 0 or total == 20


def test_the_bound_of_what_has_no_doubt() -> None:
    assert upper_bound(0, 0, 0, MARGIN, CONFIDENCE) == 1
    assert upper_bound(10, 0, 10, MARGIN, CONFIDENCE) == pytest.approx(1, abs=1e-3)
    assert upper_bound(8, 8, 400, MARGIN, CONFIDENCE) == pytest.approx(tangos_bound(8, 8, 400, CONFIDENCE), abs=0.001)


def test_the_fewest_tyres_and_the_smallest_margin() -> None:
    assert smallest_total(MARGIN, CONFIDENCE) == 76
    for margin, confidence in [(0.3, 0.6), (0.1, 0.95), (0.03, 0.99)]:
        total = smallest_total(margin, confidence)
        assert passes(0, 0, total, margin, confidence) and not passes(0, 0, total - 1, margin, confidence)
    assert smallest_total(1e-6, CONFIDENCE) == 2302584
    assert smallest_margin(76, CONFIDENCE) <= MARGIN < smallest_margin(75, CONFIDENCE)
    assert smallest_margin(15, CONFIDENCE) == pytest.approx(1 - 0.1 ** (1 / 15), abs=2e-4)
    assert smallest_margin(0, CONFIDENCE) == 1


@pytest.mark.parametrize("share", first_of([0.005, 0.0, 0.0005, 0.03, 0.3]))
def test_of_many_tyres_the_level_is_kept_too(share: float) -> None:
    """Of tables (b, c) by how many tyres b + c there are that escape only one; beyond 8 deviations nothing is."""
    total, margin = EXACT + 1000, 0.01
    apart = 2 * share + margin
    reach = 8 * np.sqrt(total * apart)
    counts = np.arange(max(0, int(total * apart - reach)), int(total * apart + reach))
    most = [
        bisect_left(range(count + 1), True, key=partial(fails, count, total, margin)) - 1 for count in counts.tolist()
    ]
    passed = binom.pmf(counts, total, apart) @ binom.cdf(most, counts, (share + margin) / apart)
    assert 0 < passed <= 1 - CONFIDENCE


def fails(apart: int, total: int, margin: float, more: int) -> bool:
    return not passes(more, apart - more, total, margin, CONFIDENCE)


@pytest.mark.parametrize(("more", "less"), first_of([(20, 20), (60, 30), (10, 60)]))
def test_of_many_tyres_the_bound_is_at_most_twice_as_wide(
    more: int, less: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, seen = upper_bound(more, less, 2000, MARGIN, CONFIDENCE), (more - less) / 2000
    monkeypatch.setattr(paired, "EXACT", 1000)
    assert 1 < (upper_bound(more, less, 2000, MARGIN, CONFIDENCE) - seen) / (exact - seen) < 2.1
    assert upper_bound(0, 0, 400_000, MARGIN, CONFIDENCE) < 2e-5


def test_it_takes_less_than_a_second() -> None:
    p_value.cache_clear()
    begun = time.process_time()
    upper_bound(8, 8, 400, MARGIN, CONFIDENCE)
    assert time.process_time() - begun < 1  # some 0.2
