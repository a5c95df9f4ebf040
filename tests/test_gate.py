"""The gate's rule, without models: tyres that count once, and many challengers in a row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tyre_lightning.config import GateConfig
from tyre_lightning.errors import UserError
from tyre_lightning.lake.texts import column
from tyre_lightning.promote.comparison import Performance, Verdicts, escape_bound, performance
from tyre_lightning.promote.rule import judge


def model(escaping: int, rejected: int, defective: int = 400, good: int = 400) -> Performance:
    """One that lets the first of the defective tyres escape, and rejects the first of the good ones."""
    decisions = np.full(defective + good, "reject", dtype=object)
    decisions[:escaping] = "accept"
    decisions[defective + rejected :] = "accept"
    names = column([str(number) for number in range(defective + good)])
    verdicts = Verdicts(names, decisions, np.arange(defective + good) < defective, np.zeros(len(names), bool))
    return performance(verdicts, f1=0.9, latency_ms=10.0)


def nights(gate: GateConfig, *, anchored: bool) -> list[float]:
    """The escape rates of the champions of ten nights, each challenger 1.75 points worse than the champion."""
    champion = anchor = model(8, 40)
    rates = [champion.escape_rate]
    for night in range(1, 11):
        challenger = model(round(400 * rates[-1]) + 7, 40 - night)
        others = {"champion": champion} | ({"anchor": anchor} if anchored and champion is not anchor else {})
        if not judge(challenger, others, gate)[0]:
            champion = challenger
            rates.append(champion.escape_rate)
    return rates


def test_small_losses_do_not_add_up() -> None:
    floorless = GateConfig(max_escape_rate=0.99)
    alone = nights(floorless, anchored=False)
    assert len(alone) == 11 and alone[-1] == pytest.approx(0.02 + 10 * 0.0175)
    assert nights(floorless, anchored=True) == [0.02, 0.0375]
    floored = nights(GateConfig(max_escape_rate=0.1), anchored=False)
    assert max(floored) <= 0.1 and len(floored) == 5


def test_floors_hold_for_every_challenger() -> None:
    champion, better = model(80, 100), model(60, 90)
    reasons, bounds = judge(better, {"champion": champion}, GateConfig())
    assert reasons == ["its escape rate is 0.1500, and gate.max_escape_rate=0.1"] and bounds["champion"] < 0
    slow = replace(better, latency_ms=100.0, f1=0.5)
    reasons, _ = judge(slow, {"champion": champion}, GateConfig(max_escape_rate=0.2, max_latency_ms=50))
    assert reasons == [
        "an image takes 100.0 ms, and gate.max_latency_ms=50",
        "its macro F1 is 0.5000, and gate.min_f1=0.8",
    ]
    assert judge(better, {}, GateConfig(max_escape_rate=0.2)) == ([], {})


@pytest.mark.parametrize("others", [set(), {"champion"}, {"champion", "anchor"}])
@pytest.mark.parametrize(("defective", "good", "kind"), [(0, 9, "defective"), (99, 0, "good"), (0, 0, "defective")])
def test_no_floor_holds_for_tyres_that_are_not_there(others: set[str], defective: int, good: int, kind: str) -> None:
    some = model(0, 0, defective, good)
    with pytest.raises(UserError, match=f"show no {kind} tyre, so that they tell nothing of it: add test images"):
        judge(some, dict.fromkeys(others, some), GateConfig())


def test_too_few_defective_tyres_prove_nothing() -> None:
    with pytest.raises(UserError, match=r"the 75 defective tyres .* which takes 76: .* or give gate\.margin=0\.031"):
        escape_bound(model(0, 0, 75), model(0, 0, 75), GateConfig())
    assert escape_bound(model(0, 0, 76), model(0, 0, 76), GateConfig()) <= 0.03
    with pytest.raises(UserError, match=r"the 0 defective tyres .* takes 76: add test images$"):
        escape_bound(model(0, 0, 0), model(0, 0, 0), GateConfig())
