"""What a sample that people look at says of the line: do intervals cover, how wide are they, does the alarm hold?

A week of the line is made up for each setting: how many of its tyres are defective, how many of these escape, and where
among the accepted ones these lie: where the scores tell they do ("well"), anywhere ("not"), or where the scores tell
they do not ("wrongly"). Its sample is drawn many times, as select draws it. Compared are the interval of this project,
exact limits of every stratum whose confidence is split (hypergeometric), betting (Waudby-Smith and Ramdas,
arXiv:2010.09686, with the alarm's capital), prediction-powered inference (arXiv:2301.09633, by strata), and a simple
random sample of as many accepted tyres with this project's interval. Prints, over the settings, the least coverage and
the widths; then what strata save, the interval of several weeks, and how many lines ever alarm.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import hypergeom, norm

from tyre_lightning.decision.audit_plan import allocate
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

SIZES, DEFECTIVE, ESCAPING, BUDGETS = (2000, 20_000), (0.002, 0.01, 0.05), (0, 0.01, 0.05, 0.2), (100, 500, 2000)
SHARES = np.array([0.05, 0.05, 0.15, 0.75])  # of the accepted tyres, from the nearest to the threshold on
SCORES = np.array([0.05, 0.01, 0.002, 0.0005])  # what the model says of them, P(defective) on average
PLACES = {"well": np.array([0.65, 0.2, 0.1, 0.05]), "not": SHARES, "wrongly": np.array([0, 0, 0.1, 0.9])}
CONFIDENCE, WEEKS = 0.95, 26
BETS: Floats = 0.9 * np.power(0.5, np.arange(8.0))  # larger than the alarm's: they make the interval shorter


@dataclass(frozen=True)
class Week:
    """The truth: tyres and defective ones in the four strata of accepted ones, those to review, those rejected."""

    total: Ints
    defective: Ints

    @property
    def rate(self) -> float:
        """The true escape rate."""
        return float(self.defective[:4].sum() / self.defective.sum())

    @property
    def overkill(self) -> float:
        """The true overkill rate."""
        good = self.total - self.defective
        return float(good[5] / good.sum())


def week(size: int, defective: float, escaping: float, place: str) -> Week:
    """1 % of the good tyres are rejected and 2 % reviewed, and a tenth of the defective ones that do not escape."""
    bad = round(size * defective)
    escapes = _divide(round(bad * escaping), PLACES[place])
    reviewed = round(0.1 * (bad - escapes.sum()))
    good = size - bad
    rejected, refused = round(0.01 * good), round(0.03 * good)
    goods = np.array([*_divide(good - refused, SHARES), refused - rejected, rejected])
    bads = np.array([*escapes, reviewed, bad - escapes.sum() - reviewed])
    return Week(goods + bads, bads)


def _divide(number: int, shares: Floats) -> Ints:
    """A whole number in parts, the largest remainders rounded up."""
    ends = np.rint(np.cumsum(shares) * number).astype(int)
    return np.diff(ends, prepend=0)


def design(one: Week, budget: int) -> Ints:
    """How many of each stratum are drawn: all to review, and of the budget besides a fifth from the rejected tyres.

    Another fifth is for learning: it tells nothing of the line, and is not drawn here.
    """
    rejected = min(int(one.total[5]), budget // 5)
    accepted = allocate(one.total[:4], SCORES, budget - budget // 5 - rejected)
    return np.array([*accepted, one.total[4], rejected])


def draw(one: Week, drawn: Ints, times: int, rng: np.random.Generator) -> Audit:
    """Samples of a week, [times, strata]."""
    found = rng.hypergeometric(one.defective, one.total - one.defective, drawn, (times, 6))
    kinds = np.arange(6)
    return Audit(kinds < 4, kinds == 5, one.total, drawn, found, drawn - found, 0 * found)


def exact(audit: Audit, confidence: float) -> Rate:
    """Hypergeometric limits of each stratum that is not seen whole, each with its part of the error."""
    parts = max(1, int((audit.drawn < audit.total).sum()))
    low, high = (_hypergeometric(audit, (1 - confidence) / 2 / parts, side) for side in (-1, 1))
    mine = audit.accepted
    share = escape_rate(audit, confidence).share
    escapes, others = (low[:, mine].sum(1), high[:, mine].sum(1)), (low[:, ~mine].sum(1), high[:, ~mine].sum(1))
    return Rate(share, _share(escapes[0], others[1]), _share(escapes[1], others[0], 1.0))


def _share(part: Floats, other: Floats, nothing: float = 0.0) -> Floats:
    return np.asarray(np.divide(part, part + other, out=np.full(len(part), nothing), where=part + other > 0))


def _hypergeometric(audit: Audit, tail: float, side: int) -> Floats:
    """The least or the most defective tyres of a stratum that what was found does not refute, [times, strata]."""
    limits = np.zeros(audit.defective.shape)
    for place, (total, drawn) in enumerate(zip(audit.total.tolist(), audit.drawn.tolist(), strict=True)):
        counts, back = np.unique(audit.defective[:, place], return_inverse=True)
        low, high = counts.astype(np.int64), counts + total - drawn
        while (low < high).any():
            middle = (low + high + (side > 0)) // 2
            if side > 0:
                held = hypergeom.cdf(counts, total, middle, drawn) > tail
                low, high = np.where(held, middle, low), np.where(held, high, middle - 1)
            else:
                held = hypergeom.sf(counts - 1, total, middle, drawn) > tail
                low, high = np.where(held, low, middle + 1), np.where(held, middle, high)
        limits[:, place] = low[back]
    return limits


def betting(audit: Audit, confidence: float) -> Rate:
    """The rates that no bet refutes, up or down: the same capital, and its mirror image."""
    mirrored = replace(audit, accepted=~audit.accepted)
    low, high = _refuted(audit, confidence), 1 - _refuted(mirrored, confidence)
    return Rate(escape_rate(audit, confidence).share, low, np.maximum(high, low))


def _refuted(audit: Audit, confidence: float) -> Floats:
    """The largest rate of which a bet says that more escape."""
    grid = np.linspace(0, 1, 401)[1:-1]
    capital = np.stack([np.exp(np.minimum(log_growth(audit, rate, BETS), 600)).mean(-1) for rate in grid])
    refuted = capital >= 2 / (1 - confidence)
    largest = np.where(refuted.any(0), len(grid) - 1 - refuted[::-1].argmax(0), -1)
    return np.where(largest >= 0, grid[largest], 0.0)


def powered(audit: Audit, confidence: float) -> Rate:
    """The prediction-powered estimate by strata: the spread of what corrects it gives the interval, a ratio's."""
    scale, seen = audit.total / audit.drawn, np.maximum(audit.drawn, 2)
    number, mean = audit.defective * scale, audit.defective / audit.drawn
    spread = audit.total**2 * (1 - audit.drawn / audit.total) * mean * (1 - mean) / (seen - 1)
    everything = np.maximum(number.sum(1), 1e-9)
    share = number[:, audit.accepted].sum(1) / everything
    slope = audit.accepted - share[:, None]
    half = norm.ppf((1 + confidence) / 2) * np.sqrt((slope**2 * spread).sum(1)) / everything
    return Rate(share, np.maximum(share - half, 0), np.minimum(share + half, 1))


METHODS: dict[str, Callable[[Audit, float], Rate]] = {
    "gamma and MOVER": escape_rate,
    "exact, split": exact,
    "betting": betting,
    "prediction-powered": powered,
}


def grid(sizes: tuple[int, ...]) -> Iterator[tuple[int, float, float, int, str]]:
    """All settings."""
    yield from itertools.product(sizes, DEFECTIVE, ESCAPING, BUDGETS, PLACES)


def coverage(times: int, sizes: tuple[int, ...], seed: int) -> Iterator[str]:
    """A row of the table for each method."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in (*METHODS, "one stratum", "overkill")}
    settings = []
    for number, (size, bad, escaping, budget, place) in enumerate(grid(sizes)):
        rng = np.random.default_rng([seed, number])
        one = week(size, bad, escaping, place)
        drawn = design(one, budget)
        audit = draw(one, drawn, times, rng)
        for name, method in METHODS.items():
            found[name].append(_score(method(audit, CONFIDENCE), one.rate))
        alike = _merged(draw(one, simple(one, drawn), times, rng))
        found["one stratum"].append(_score(escape_rate(alike, CONFIDENCE), one.rate))
        found["overkill"].append(_score(overkill_rate(audit, CONFIDENCE), one.overkill))
        settings.append((size, bad, escaping, budget, place))
    yield "| method | least coverage | where | settings below 94 % | mean width | mean upper limit |"
    yield "| --- " * 6 + "|"
    for name, rows in found.items():
        table = np.array(rows)
        worst = int(table[:, 0].argmin())
        yield (
            f"| {name} | {table[worst, 0]:.3f} | {settings[worst]} | {(table[:, 0] < 0.94).sum()} of {len(table)} "
            f"| {table[:, 1].mean():.3f} | {table[:, 2].mean():.3f} |"
        )
    yield ""
    yield "| defective | escaping | budget | scores order | " + " | ".join([*METHODS, "one stratum"]) + " |"
    yield "| --- " * (5 + len(METHODS)) + "|"
    for number, (size, bad, escaping, budget, place) in enumerate(settings):
        if size == max(sizes) and place != "wrongly" and escaping in (0, 0.05):
            cells = [
                f"{found[name][number][0]:.3f}, {found[name][number][1]:.3f}" for name in (*METHODS, "one stratum")
            ]
            yield f"| {bad} | {escaping} | {budget} | {place} | {' | '.join(cells)} |"


def _merged(audit: Audit) -> Audit:
    """The strata of accepted tyres as one."""
    parts = [np.concatenate([value[..., :4].sum(-1, keepdims=True), value[..., 4:]], -1)
             for value in (audit.total, audit.drawn, audit.defective, audit.good, audit.neither)]  # fmt: skip
    return Audit(audit.accepted[3:], audit.rejected[3:], *parts)


def _score(rate: Rate, truth: float) -> tuple[float, float, float]:
    """Coverage, mean width and mean upper limit."""
    covered = (rate.low <= truth + 1e-9) & (truth - 1e-9 <= rate.high)
    return float(covered.mean()), float((rate.high - rate.low).mean()), float(rate.high.mean())


def savings(times: int, seed: int) -> Iterator[str]:
    """How many draws of a simple random sample of the accepted tyres give the width of a sample in strata."""
    yield "| defective | escaping | scores order | mean width | draws in one stratum for each in strata |"
    yield "| --- " * 5 + "|"
    for number, (bad, escaping, place) in enumerate(itertools.product(DEFECTIVE[1:], ESCAPING, PLACES)):
        rng = np.random.default_rng([seed, 2, number])
        one = week(20_000, bad, escaping, place)
        drawn = design(one, 500)
        wide = _score(escape_rate(draw(one, drawn, times, rng), CONFIDENCE), one.rate)[1]
        factors = np.geomspace(0.4, 2.5, 13)
        widths = [_score(escape_rate(_merged(draw(one, simple(one, drawn, factor), times, rng)), CONFIDENCE), 0)[1]
                  for factor in factors]  # fmt: skip
        same = np.interp(-wide, -np.array(widths), factors)
        yield f"| {bad} | {escaping} | {place} | {wide:.3f} | {same:.2f} |"


def simple(one: Week, drawn: Ints, factor: float = 1.0) -> Ints:
    """The strata of a simple random sample of the accepted tyres with so many draws for each of a design."""
    share = min(1.0, factor * drawn[:4].sum() / one.total[:4].sum())
    return np.array([*_divide(round(one.total[:4].sum() * share), one.total[:4] / one.total[:4].sum()), *drawn[4:]])


def gathered(times: int, seed: int) -> Iterator[str]:
    """The interval of several weeks together."""
    yield "| weeks | defective | escaping | scores order | coverage | mean width |"
    yield "| --- " * 6 + "|"
    for weeks, bad, escaping, place in itertools.product((1, 4, 13, 26), DEFECTIVE[:2], (0, 0.05), ("well", "not")):
        rng = np.random.default_rng([seed, 3, weeks])
        one = week(20_000, bad, escaping, place)
        audit = Audit.together([draw(one, design(one, 500), times, rng) for _ in range(weeks)])
        covered, width, _ = _score(escape_rate(audit, CONFIDENCE), one.rate)
        yield f"| {weeks} | {bad} | {escaping} | {place} | {covered:.3f} | {width:.3f} |"


def alarms(times: int, seed: int) -> Iterator[str]:
    """How many of many lines ever alarm in 26 weeks of 20,000 tyres, with a budget of 500 and a promise of 5 %."""
    yield "| defective | scores order | escaping: 5 % (the promise) | 10 % | 20 % | one stratum: 5 % | 10 % | 20 % |"
    yield "| --- " * 8 + "|"
    for number, (bad, place) in enumerate(itertools.product(DEFECTIVE, PLACES)):
        rng = np.random.default_rng([seed, 1, number])
        cells = [
            f"{_ever(bad, place, escaping, times, rng, merged=merged):.3f}"
            for merged in (False, True)
            for escaping in (0.05, 0.1, 0.2)
        ]
        yield f"| {bad} | {place} | {' | '.join(cells)} |"


def _ever(bad: float, place: str, escaping: float, times: int, rng: np.random.Generator, *, merged: bool) -> float:
    """The share of lines that ever alarm; each defective tyre escapes or not by itself, so that weeks differ."""
    usual = week(20_000, bad, escaping, place)
    drawn = design(usual, 500)
    if merged:
        drawn = simple(usual, drawn)
    places = np.array([*PLACES[place] * escaping, 0.1 * (1 - escaping), 0.9 * (1 - escaping)])
    windows = []
    for _ in range(WEEKS):
        defective = rng.multinomial(rng.poisson(20_000 * bad, times), places)
        found = rng.hypergeometric(np.minimum(defective, usual.total), np.maximum(usual.total - defective, 0), drawn)
        audit = Audit(np.arange(6) < 4, np.arange(6) == 5, usual.total, drawn, found, drawn - found, 0 * found)
        windows.append(_merged(audit) if merged else audit)
    return float((alarm_level(windows, 0.05)[:, -1] <= 0.05).mean())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=2000, help="weeks of each setting")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="tyres of a week")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    for row in coverage(options.times, tuple(options.sizes), options.seed):
        print(row, flush=True)
    for table in (savings, gathered, alarms):
        print()
        for row in table(options.times, options.seed):
            print(row, flush=True)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
