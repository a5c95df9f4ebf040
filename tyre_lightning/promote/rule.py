"""When a challenger becomes the champion."""

from __future__ import annotations

from tyre_lightning.config import GateConfig
from tyre_lightning.promote.comparison import Performance

RATES = ("escape_rate", "overkill_rate", "review_rate")


def not_better(challenger: Performance, champion: Performance, bound: float, gate: GateConfig) -> list[str]:
    """Why a challenger does not replace a champion; nothing where it does."""
    reasons = _too_slow(challenger, gate)
    if bound > gate.margin:
        reasons.append(
            f"its escape rate is {challenger.escape_rate:.4f} against {champion.escape_rate:.4f}: with a confidence of "
            f"{gate.confidence:g} that is no more than {bound:.4f} worse, and gate.margin={gate.margin:g} is allowed"
        )
    for rate in ("overkill_rate", "review_rate"):
        ours, theirs = getattr(challenger, rate), getattr(champion, rate)
        if ours > theirs:
            reasons.append(f"its {rate.replace('_', ' ')} is {ours:.4f} against {theirs:.4f}")
    if not any(getattr(challenger, rate) < getattr(champion, rate) for rate in RATES):
        reasons.append("none of its escape, overkill and review rates is lower than the champion's")
    return reasons


def below_floors(challenger: Performance, gate: GateConfig) -> list[str]:
    """Why a challenger does not become the first champion; nothing where it does."""
    reasons = _too_slow(challenger, gate)
    for name, most in (("escape_rate", gate.max_escape_rate), ("overkill_rate", gate.max_overkill_rate)):
        if (value := getattr(challenger, name)) > most:
            reasons.append(f"its {name.replace('_', ' ')} is {value:.4f}, and gate.max_{name}={most:g}")
    if challenger.f1 < gate.min_f1:
        reasons.append(f"its macro F1 is {challenger.f1:.4f}, and gate.min_f1={gate.min_f1:g}")
    return reasons


def _too_slow(challenger: Performance, gate: GateConfig) -> list[str]:
    if gate.max_latency_ms is None or challenger.latency_ms <= gate.max_latency_ms:
        return []
    return [f"an image takes {challenger.latency_ms:.1f} ms, and gate.max_latency_ms={gate.max_latency_ms:g}"]
