"""Rates from an audited sample: in tiny windows by every sample that can be drawn, in large ones by many that are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.stats import hypergeom

from tyre_lightning.decision.audit_plan import UNIFORM, allocate, expected, labels_needed
from tyre_lightning.decision.audit_sample import (
    Audit,
    Floats,
    Ints,
    Rate,
    alarm_level,
    escape_rate,
    log_growth,
    overkill_rate,
)

# Tyres and draws of strata, and what the line decided: accepted, reviewed, rejected.
TINY = [
    ((40, 10), (10, 10), "av"),
    ((20, 10), (5, 5), "ar"),
    ((12, 8, 6), (4, 4, 3), "aar"),
    ((30, 10, 5), (6, 5, 5), "aav"),
    ((14, 10, 4), (5, 2, 4), "aar"),
]


def audit(total: Sequence[int], drawn: Sequence[int], kinds: str, defective: Ints, good: Ints | None = None) -> Audit:
    kind, n = np.array([*kinds]), np.array(drawn)
    fine = n - defective if good is None else good
    return Audit(kind == "a", kind == "r", np.array(total), n, defective, fine, 0 * fine)


def samples(total: Sequence[int], drawn: Sequence[int], kinds: str) -> tuple[Audit, Callable[[Ints], Floats]]:
    """All that can be found in strata, [samples, H], and how probable each is for a number of defective tyres."""
    found = np.array([*itertools.product(*(range(n + 1) for n in drawn))])
    tables = [
        hypergeom.pmf(np.arange(n + 1)[None], size, np.arange(size + 1)[:, None], n)
        for size, n in zip(total, drawn, strict=True)
    ]

    def probability(defective: Ints) -> Floats:
        parts = [table[bad, found[:, place]] for place, (table, bad) in enumerate(zip(tables, defective, strict=True))]
        return np.asarray(np.prod(parts, axis=0))

    return audit(total, drawn, kinds, found), probability


def truths(total: Sequence[int]) -> np.ndarray:
    return np.array([*itertools.product(*(range(size + 1) for size in total))])


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("total", "drawn", "kinds"), TINY)
@pytest.mark.parametrize("rate", [escape_rate, overkill_rate])
def test_intervals_cover_whatever_the_truth_is(
    rate: Callable[[Audit, float], Rate], total: Sequence[int], drawn: Sequence[int], kinds: str, confidence: float
) -> None:
    """Exactly: by the probability of every sample of a small window, for every number of defective tyres in it."""
    every, probability = samples(total, drawn, kinds)
    found, sizes = rate(every, confidence), np.array(total)
    ours, lost = (every.accepted, False) if rate is escape_rate else (every.rejected, True)
    for defective in truths(total):
        hit = sizes - defective if lost else defective
        if hit.sum():
            truth = hit[ours].sum() / hit.sum()
            covered = (found.low <= truth + 1e-9) & (truth - 1e-9 <= found.high)
            assert probability(defective)[covered].sum() >= confidence, defective


@pytest.mark.parametrize(("total", "drawn", "kinds"), [((8, 6, 5), (3, 2, 2), "aar"), ((9, 7), (2, 7), "av")])
@pytest.mark.parametrize("promised", [0.05, 0.3])
def test_a_bet_against_a_promise_that_is_kept_wins_nothing_on_average(
    total: Sequence[int], drawn: Sequence[int], kinds: str, promised: float
) -> None:
    every, probability = samples(total, drawn, kinds)
    capital = np.exp(log_growth(every, promised))
    means = []
    for defective in truths(total):
        if defective[every.accepted].sum() <= promised * defective.sum():
            means.append((probability(defective)[:, None] * capital).sum(0).max())
    assert len(means) > 5
    assert max(means) <= 1 + 1e-9


def test_one_stratum_with_nothing_found_has_the_exact_bound() -> None:
    found = audit((1000, 50), (100, 50), "av", np.array([0, 50]))
    escapes = math.log(0.025) / math.log(0.9)  # of as many, none is among 100 of 1,000 with a probability of 2.5 %
    share, low, high = escape_rate(found, 0.95)
    assert float(share) == float(low) == 0
    assert high == pytest.approx(escapes / (escapes + 50))


def test_what_was_seen_whole_is_known() -> None:
    found = audit((200, 30, 40), (200, 30, 40), "avr", np.array([2, 18, 20]))
    assert [float(value) for value in escape_rate(found, 0.95)] == pytest.approx([0.05] * 3)
    assert [float(value) for value in overkill_rate(found, 0.95)] == pytest.approx([20 / 230] * 3)


def test_without_a_defective_tyre_nothing_is_known_of_the_escape_rate() -> None:
    share, low, high = escape_rate(audit((100, 5), (10, 5), "av", np.array([0, 0])), 0.95)
    assert np.isnan(share) and float(low) == 0 and float(high) == 1


def test_a_stratum_that_nobody_has_seen_may_hold_anything() -> None:
    found = audit((100, 30, 20), (100, 0, 20), "aav", np.array([1, 0, 20]))
    assert escape_rate(found, 0.95).high == pytest.approx(31 / 51)
    assert np.all(log_growth(audit((100, 30), (100, 0), "ar", np.array([1, 0])), 0.05) < np.log(5))


def test_what_nobody_could_tell_counts_for_the_worse() -> None:
    n, x = (500, 40, 30), np.array([2, 30, 25])
    total, kinds = (5000, 40, 60), "avr"
    told = escape_rate(audit(total, n, kinds, x), 0.95)
    untold = escape_rate(audit(total, n, kinds, x - [1, 5, 5], np.array(n) - x), 0.95)
    worst = escape_rate(audit(total, n, kinds, x - [0, 5, 5]), 0.95)
    best = escape_rate(audit(total, n, kinds, x - [1, 0, 0]), 0.95)
    assert untold.high >= told.high and untold.low <= told.low
    assert untold.high == pytest.approx(worst.high)
    assert untold.low == pytest.approx(best.low)
    assert np.all(
        log_growth(audit(total, n, kinds, x - [1, 5, 5], np.array(n) - x), 0.05)
        == log_growth(audit(total, n, kinds, x - [1, 0, 0]), 0.05)
    )


def test_what_is_no_tyre_is_neither_defective_nor_good() -> None:
    plain = audit((100, 10), (100, 10), "ar", np.array([1, 4]))
    with_caps = Audit(*(plain.accepted, plain.rejected, plain.total, plain.drawn), plain.defective,
                      np.array([99, 1]), np.array([0, 5]))  # fmt: skip
    assert escape_rate(with_caps, 0.95).share == escape_rate(plain, 0.95).share
    assert overkill_rate(with_caps, 0.95).high == pytest.approx(1 / 100)


WEEK = (np.array([1000, 1000, 3000, 14_000, 400, 300]), np.array([71, 40, 80, 309, 200, 60]), "aaaavr")


def draws(defective: Ints, times: int, seed: int) -> Audit:
    total, drawn, kinds = WEEK
    found = np.random.default_rng(seed).hypergeometric(defective, total - defective, drawn, (times, len(total)))
    return audit(total.tolist(), drawn.tolist(), kinds, found)


@pytest.mark.parametrize(
    "defective", [(0, 0, 0, 0, 20, 180), (6, 2, 1, 1, 20, 170), (0, 0, 1, 9, 20, 170), (2, 2, 6, 30, 10, 150)]
)
def test_intervals_cover_in_a_week_of_20_000_tyres(defective: tuple[int, ...]) -> None:
    found = draws(np.array(defective), 2000, 0)
    truth = sum(defective[:4]) / sum(defective)
    low, high = escape_rate(found, 0.95)[1:]
    assert np.mean((low <= truth) & (truth <= high)) >= 0.95
    assert float(high.mean()) < 1  # it says something


def test_weeks_together_say_more_and_still_cover() -> None:
    defective = np.array([6, 2, 1, 1, 20, 170])
    weeks = [draws(defective, 500, seed) for seed in range(12)]
    one, all_of_them = escape_rate(weeks[0], 0.95), escape_rate(Audit.together(weeks), 0.95)
    truth = 10 / 200
    assert np.mean((all_of_them.low <= truth) & (truth <= all_of_them.high)) >= 0.95
    assert (all_of_them.high - all_of_them.low).mean() < 0.4 * (one.high - one.low).mean()


@pytest.mark.parametrize(("escaping", "least", "most"), [(0.05, 0.0, 0.05), (0.5, 0.9, 1.0)])
def test_the_alarm_holds_its_level_over_26_looks_and_finds_a_broken_promise(
    escaping: float, least: float, most: float
) -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.3, 0.2, 0.25, 0.25]) * escaping
    places = np.array([*shares, 0.1 * (1 - escaping), 0.9 * (1 - escaping)])
    weeks = []
    for seed in range(26):
        weeks.append(draws(rng.multinomial(rng.poisson(100, 1000), places), 1000, seed))
    level = alarm_level(weeks, 0.05)
    assert level.shape == (1000, 26) and np.all(np.diff(level) <= 0)
    assert least <= (level[:, -1] <= 0.05).mean() <= most


def test_draws_go_everywhere_and_more_where_defects_are_likely() -> None:
    total, risk = np.array([1000, 1000, 3000, 15_000]), np.array([0.05, 0.01, 0.002, 0.0005])
    drawn = allocate(total, risk, 500)
    assert drawn.sum() == 500
    shares = drawn / total
    assert np.all(np.diff(shares) < 0) and shares.min() >= UNIFORM * 500 / total.sum() * 0.99
    assert allocate(total, risk, 4).tolist() == [1, 1, 1, 1]
    assert allocate(np.array([3, 0, 5]), risk[:3], 100).tolist() == [3, 0, 5]
    assert allocate(total, risk, 0).tolist() == [0, 0, 0, 0]


def test_how_many_labels_a_width_takes() -> None:
    """Of 20,000 tyres with 1 % defective, 500 audited and none escaped still leave a bound of tens of per cent."""
    total, risk = np.array([19_800]), np.array([0.001])
    sample = audit((19_800, 200), (500, 200), "av", np.array([0, 200]))
    high = float(escape_rate(sample, 0.95).high)
    assert high == pytest.approx(0.42, abs=0.01)
    assert labels_needed(total, risk, 200, high, 0.95) == 500
    needed = [labels_needed(total, risk, 200, width, 0.95) for width in (0.2, 0.1, 0.05, 1e-9)]
    assert needed == sorted(needed) and needed[2] > 5000 and needed[3] == 19_800
    assert labels_needed(total, risk, 200, 0.1, 0.95, escaping=0.05) > needed[1]


def test_what_to_expect_is_what_comes() -> None:
    total, drawn, kinds = WEEK
    risk = np.array([0.01, 0.002, 0.001, 0.0001, 0.05, 0.6])
    design = audit(total.tolist(), drawn.tolist(), kinds, np.zeros(6, int))
    planned = expected(design, risk, 0.05, 0.95)
    outside = (total * risk)[4:].round().astype(int)
    inside = total[:4] * risk[:4]
    escapes = np.round(0.05 / 0.95 * outside.sum() * inside / inside.sum()).astype(int)
    low, high = escape_rate(draws(np.array([*escapes, *outside]), 2000, 1), 0.95)[1:]
    assert float(planned.high - planned.low) == pytest.approx(float((high - low).mean()), rel=0.1)
