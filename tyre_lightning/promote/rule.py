"""When a challenger becomes the champion."""

from __future__ import annotations

from collections.abc import Mapping

from tyre_lightning.config import GateConfig
from tyre_lightning.errors import UserError
from tyre_lightning.promote.comparison import Performance, escape_bound
from tyre_lightning.tracking.versions import CHAMPION

_ROUNDING = 1e-9
RATES = ("escape_rate", "overkill_rate", "review_rate")


def judge(
    challenger: Performance, others: Mapping[str, Performance], gate: GateConfig
) -> tuple[list[str], dict[str, float]]:
    """Why a challenger does not become the champion, nothing where it does; and the bounds of its escape rate.

    The floors hold for every challenger. Against the anchor the same margin is proven as against the champion, because
    of many challengers each may be worse by a little less than the margin.

    Args:
        challenger: what it does.
        others: what the champion does, and the anchor if that is another; neither where there is no champion yet.
        gate: the rule's numbers.

    Raises:
        UserError: there are too few defective tyres to prove the margin, or no tyre of a kind that a floor is about.
    """
    for kind, some in (("defective", challenger.verdicts.defective), ("good", ~challenger.verdicts.defective)):
        if not some.any():
            raise UserError(
                f"the test images that no model has learnt from show no {kind} tyre, so that they tell nothing of it: "
                "add test images"
            )
    reasons = _below_floors(challenger, gate)
    bounds = {name: escape_bound(challenger, other, gate) for name, other in others.items()}
    for name, bound in bounds.items():
        if bound > gate.margin:
            reasons.append(_maybe_worse(challenger, others[name], name, bound, gate))
    if CHAMPION in others:
        reasons += _not_better(challenger, others[CHAMPION])
    return reasons, bounds


def _below_floors(challenger: Performance, gate: GateConfig) -> list[str]:
    reasons = []
    if gate.max_latency_ms is not None and challenger.latency_ms > gate.max_latency_ms:
        reasons.append(
            f"an image takes {challenger.latency_ms:.1f} ms, and gate.max_latency_ms={gate.max_latency_ms:g}"
        )
    for name, most in (("escape_rate", gate.max_escape_rate), ("overkill_rate", gate.max_overkill_rate)):
        if (value := getattr(challenger, name)) > most:
            reasons.append(f"its {name.replace('_', ' ')} is {value:.4f}, and gate.max_{name}={most:g}")
    if challenger.f1 < gate.min_f1:
        reasons.append(f"its macro F1 is {challenger.f1:.4f}, and gate.min_f1={gate.min_f1:g}")
    return reasons


def _maybe_worse(challenger: Performance, other: Performance, name: str, bound: float, gate: GateConfig) -> str:
    return (
        f"its escape rate is {challenger.escape_rate:.4f} against the {name}'s {other.escape_rate:.4f}: with a "
        f"confidence of {gate.confidence:g} that is no more than {bound:.4f} worse, and gate.margin={gate.margin:g} is "
        "allowed"
    )


def _counted(model: Performance, rate: str) -> float:
    """A rate as the rule counts it: a model that tells what it does not know must not lose by keeping its promise."""
    value: float = getattr(model, rate)
    return value - model.verdicts.excused() if rate == "review_rate" else value


def _not_better(challenger: Performance, champion: Performance) -> list[str]:
    reasons = []
    rates = {rate: (_counted(challenger, rate), _counted(champion, rate)) for rate in RATES}
    for rate in ("overkill_rate", "review_rate"):
        ours, theirs = rates[rate]
        if ours > theirs + _ROUNDING:
            reasons.append(f"its {rate.replace('_', ' ')} is {ours:.4f} against {theirs:.4f}")
    if not any(ours < theirs - _ROUNDING for ours, theirs in rates.values()):
        reasons.append("none of its escape, overkill and review rates is lower than the champion's")
    return reasons
