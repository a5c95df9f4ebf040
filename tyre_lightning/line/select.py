"""Which tyres of a window a person should see: all that wait for review, a random audit, and what is useful to learn.

The audit's tyres are drawn by chance, with probabilities that are known beforehand, so that what people say of them
stands for the line (see :mod:`tyre_lightning.decision.audit_sample`). What is picked to learn from stands for nothing
but itself. No rule of picking is better than chance everywhere (arXiv:2403.14800), so that it gets a small part only.
"""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from tyre_lightning.config import SelectConfig, to_select_config
from tyre_lightning.decision.audit_plan import allocate, expected, labels_needed
from tyre_lightning.decision.audit_sample import Audit
from tyre_lightning.decision.operating_point import ACCEPT, REJECT, REVIEW
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.predictions import read_about, read_predictions
from tyre_lightning.line.queue import AUDITED, COLUMNS, LEARN, REJECTS, REVIEWED, Queue, Stratum
from tyre_lightning.line.strata import ORDER, REJECTED, Floats, Ints, Names, Window
from tyre_lightning.model.inspector import DEFECTS

if TYPE_CHECKING:
    from pandas import DataFrame

_REVIEW_AT_MOST = 0.75  # of the budget, where there is more to review: the audit must not starve
_LEARN, _REJECTED = 0.2, 0.2  # of what review leaves of it
_MORE = 5  # candidates for each tyre to learn from
_WHY = {REVIEW: REVIEWED, REJECTED: REJECTS}


@dataclass(frozen=True)
class Plan:
    """How many tyres of H strata are drawn, and how many more are picked to learn from."""

    names: list[str]
    total: Ints
    drawn: Ints
    risk: Floats
    learn: int

    @property
    def audited(self) -> np.ndarray:
        """Which strata are of accepted tyres, shape (H,)."""
        return np.array([name not in _WHY for name in self.names])

    def design(self) -> Audit:
        """The same for the arithmetic of rates."""
        rejected = np.array([name == REJECTED for name in self.names])
        nothing = np.zeros(len(self.names), dtype=np.int64)
        return Audit(self.audited, rejected, self.total, self.drawn, nothing, nothing, nothing)


def select(cfg: DictConfig) -> tuple[Queue, list[str]]:
    """Draw a window's queue and write it; gives it, and for people what is in it and what it will tell.

    Raises:
        UserError: the predictions cannot be used, the budget is too small, or the queue cannot be written.
    """
    config = to_select_config(cfg)
    source = str(config.predictions)
    table = read_predictions(source)
    window = Window.of(table, config.good_class, source)
    strata = window.strata()
    plan = make_plan(window, strata, config.budget)
    why, probability = draw(window, strata, plan, config.seed)
    pictures = _pictures(table, window, strata, why, probability, config.seed)
    counts = {
        name: Stratum(_WHY.get(name, AUDITED), int(total), int(drawn))
        for name, total, drawn in zip(plan.names, plan.total, plan.drawn, strict=True)
    }
    written = datetime.datetime.fromtimestamp(os.path.getmtime(source), datetime.UTC).isoformat(timespec="seconds")
    said = read_about(source)
    model, root = config.model or said.get("model"), config.root or said.get("root")
    queue = Queue(pictures, model, root, source, written, config.seed, window.good, config.max_escape_rate, counts,
                  DEFECTS in table.columns)  # fmt: skip
    queue.write(config.output)
    return queue, [*_told(config, window, plan, why), *_promised(config, plan)]


def make_plan(window: Window, strata: Names, budget: int) -> Plan:
    """Divide a budget of tyres: at most three quarters to what waits, the rest to an audit, and some to learn from.

    Raises:
        UserError: the budget does not give each stratum a tyre.
    """
    names = sorted({*strata}, key=ORDER.index)
    total = np.array([(strata == name).sum() for name in names])
    risk = window.risks(strata, names)
    sizes = dict(zip(names, total.tolist(), strict=True))
    least = len(names)
    if budget < least:
        raise UserError(f"budget={budget} must be at least {least}, a tyre of each stratum: {'; '.join(names)}")
    waiting, refused = sizes.get(REVIEW, 0), sizes.get(REJECTED, 0)
    everything = budget >= len(window)
    audited = np.array([name not in _WHY for name in names])
    kinds = int(audited.sum())
    most = max(1, min(int(_REVIEW_AT_MOST * budget), budget - kinds - (refused > 0)))
    reviewed = waiting if everything else min(waiting, most)
    left = budget - reviewed
    rejected = refused if everything else min(refused, max(int(_REJECTED * left), 1), left - kinds)
    room = left - rejected if everything else max(left - rejected - int(_LEARN * left), kinds)
    drawn = np.array([{REVIEW: reviewed, REJECTED: rejected}.get(name, 0) for name in names])
    drawn[audited] = allocate(total[audited], risk[audited], room)
    learn = min(budget, len(window)) - int(drawn.sum())
    return Plan(names, total, drawn, risk, learn)


def draw(window: Window, strata: Names, plan: Plan, seed: int) -> tuple[Names, Floats]:
    """Why each tyre is in the queue, empty where it is not, and its stratum's probability; each shape (T,).

    Args:
        window: the tyres.
        strata: shape (T,).
        plan: how many of each.
        seed: with the names of the tyres it makes the draws, so that weeks differ and a window's queue does not.
    """
    rng = _chance(window, seed, 0)
    why, probability = np.full(len(window), "", dtype=object), np.full(len(window), np.nan)
    for name, total, drawn in zip(plan.names, plan.total, plan.drawn, strict=True):
        members = np.flatnonzero(strata == name)
        chosen = rng.choice(members, drawn, replace=False)
        why[chosen], probability[chosen] = _WHY.get(name, AUDITED), drawn / total
    why[pick(window, np.flatnonzero(why == ""), plan.learn)] = LEARN
    return why, probability


def pick(window: Window, candidates: Ints, number: int) -> Ints:
    """The most useful tyres to learn from: of those about which the model is least sure, as different as can be.

    A tyre is in doubt by how near it is to the other side of the accepted ones' and the rejected ones' scores, or by
    how unlike good tyres it is, whichever puts it higher. The doubtful are gathered into as many groups (k-means on
    class probabilities and novelty) as tyres are wanted, and of each the one nearest to its middle is taken.
    """
    from scipy.cluster.vq import kmeans2
    from scipy.stats import rankdata

    number = min(number, len(candidates))
    if number == 0:
        return np.array([], dtype=np.int64)
    near = rankdata(-np.abs(_odds(window.scores[candidates]) - _edge(window)))
    novel = rankdata(-window.novelty[candidates])
    doubtful = candidates[np.argsort(-np.maximum(near, novel), kind="stable")[: _MORE * number]]
    looks = np.column_stack([np.sqrt(window.looks[doubtful]), window.novelty[doubtful]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a group that comes out empty
        _, group = kmeans2(looks, looks[:: max(1, len(looks) // number)][:number], minit="matrix")
    first = []
    for one in np.unique(group):
        members = np.flatnonzero(group == one)
        away = np.linalg.norm(looks[members] - looks[members].mean(0), axis=1)
        first.append(members[away.argmin()])
    others = np.setdiff1d(np.arange(len(doubtful)), first)  # the most doubtful, where groups came out empty
    return np.asarray(doubtful[np.append(first, others)[:number]])


def _odds(scores: Floats) -> Floats:
    """Logarithms of the odds; what could not be read is as doubtful as can be."""
    clipped = np.clip(np.nan_to_num(scores, nan=0.5), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _edge(window: Window) -> float:
    """Where the line stops accepting, as far as the window tells: between the accepted and the other tyres."""
    odds, accepted = _odds(window.scores), window.decisions == ACCEPT
    rejected = window.decisions == REJECT
    ends = [*([odds[accepted].max()] if accepted.any() else []), *([odds[rejected].min()] if rejected.any() else [])]
    return float(np.mean(ends)) if ends else 0.0


def _chance(window: Window, seed: int, use: int) -> np.random.Generator:
    digest = blake2b("\0".join(window.names).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.random.default_rng([seed, use, int.from_bytes(digest)])


def _pictures(table: DataFrame, window: Window, strata: Names, why: Names, probability: Floats, seed: int) -> DataFrame:
    """The queue's rows: what waits for review first, then the others mixed, so that none shows why it is there."""
    chosen = _chance(window, seed, 1).permutation(np.flatnonzero(why != ""))
    chosen = chosen[np.argsort(why[chosen] != REVIEWED, kind="stable")]
    counts = [len(window.places[tyre]) for tyre in chosen]
    tyre = np.repeat(chosen, counts)
    rows = table.iloc[np.concatenate([np.sort(window.places[one]) for one in chosen])].reset_index(drop=True)
    new = {
        "tyre": window.names[tyre],
        "why": why[tyre],
        "stratum": strata[tyre],
        "probability": probability[tyre],
        "decision": window.decisions[tyre],
    }
    return rows.assign(**new)[[*COLUMNS, *(name for name in table.columns if name.startswith("p_"))]]


def _told(config: SelectConfig, window: Window, plan: Plan, why: Names) -> Iterator[str]:
    """What is in the queue."""
    yield f"{config.output}: {int((why != '').sum())} of {len(window)} tyres"
    for kind in (REVIEWED, AUDITED, REJECTS):
        mine = np.array([_WHY.get(name, AUDITED) == kind for name in plan.names])
        if not mine.any():
            continue
        drawn, total = int(plan.drawn[mine].sum()), int(plan.total[mine].sum())
        what = {REVIEWED: "that the line sent to a person", AUDITED: "accepted", REJECTS: "rejected"}[kind]
        chance = "all" if drawn == total else "drawn by chance"
        yield f"  {kind:8} {drawn:6} of {total} {what}, {chance}"
        if kind == AUDITED and mine.sum() > 1:
            for name, one, every in zip(np.array(plan.names)[mine], plan.drawn[mine], plan.total[mine], strict=True):
                yield f"           {one:6} of {every} {name.partition(', ')[2]}"
    if plan.learn:
        yield f"  {LEARN:8} {plan.learn:6} to learn from, of which no rate is made"
    waiting = why[window.decisions == REVIEW]
    if left := int((waiting == "").sum()):
        yield f"  the budget is too small for {left} tyres that wait for review: raise budget={config.budget}"


def _promised(config: SelectConfig, plan: Plan) -> Iterator[str]:
    """What the queue's answers will tell, and what more would take."""
    design, rate, confidence = plan.design(), config.max_escape_rate, config.confidence
    mine = design.accepted
    if not mine.any():
        return
    none, kept = (expected(design, plan.risk, escaping, confidence) for escaping in (0.0, rate))
    yield (
        f"escape rate to expect, with a confidence of {confidence:g}: at most {float(none.high):.1%} if no audited "
        f"tyre is defective; {float(kept.low):.1%} to {float(kept.high):.1%} if {rate:.1%} escape"
    )
    outside = round(float((design.total * plan.risk)[~mine].sum()))
    if not outside:
        yield "  the model takes no other tyre for defective, so that no number of draws would bound the rate"
        return
    of = design.total[mine], plan.risk[mine], outside, config.width, confidence
    needed = [labels_needed(*of, escaping) for escaping in (0.0, rate)]
    yield (
        f"  an interval of {config.width:.1%} takes {needed[0]} accepted tyres drawn, or {needed[1]} if {rate:.1%} "
        f"escape, of one window or of several together"
    )
