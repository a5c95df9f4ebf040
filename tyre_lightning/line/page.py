"""What a person sees of a window: one self-contained HTML page. Keys, classes and groups are only ever text to it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyre_lightning.config import WatchConfig
from tyre_lightning.errors import UserError, hide_passwords
from tyre_lightning.evaluation.gallery import jpeg_bytes, thumbnails
from tyre_lightning.line.baseline import Baseline
from tyre_lightning.line.pictures import SHOWN, typical
from tyre_lightning.line.signals import Reading
from tyre_lightning.line.window import Window
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.templates import template

if TYPE_CHECKING:
    from tyre_lightning.line.watch import Row

_WIDTH, _HEIGHT = 140, 30  # of a trend, in pixels
_MOST = 3  # shifted signals of which pictures are shown


def render(
    config: WatchConfig, inspector: Inspector, baseline: Baseline, window: Window, rows: Sequence[Row], time: str
) -> str:
    """The page.

    Args:
        config: names the model and the input.
        inspector: the model.
        baseline: what was compared with.
        window: may have pictures.
        rows: a row for each group.
        time: of the window.
    """
    return template(Path(__file__).parent, "watch.html").render(
        time=time,
        model=hide_passwords(str(config.model)),
        input=hide_passwords(str(config.input)),
        baseline=hide_passwords(baseline.about),
        accepted=baseline.accepted,
        good=inspector.good_class,
        read=window.store is not None,
        groups=[_group(baseline, window, row) for row in rows],
    )


def _group(baseline: Baseline, window: Window, row: Row) -> dict[str, Any]:
    shifted = row.shifted
    return {
        "name": row.group,
        "verdict": row.verdict,
        "counts": row.counts,
        "checks": [(one.signal, one.check) for one in shifted],
        "signals": [_signal(one, row.trend.get(one.signal, [])) for one in [*shifted, *_others(row.readings)]],
        "pictures": _pictures(baseline, window, row, shifted[:_MOST]) if shifted else [],
    }


def _others(readings: Sequence[Reading]) -> list[Reading]:
    return [one for one in readings if not one.shifted]


def _signal(one: Reading, trend: Sequence[float]) -> dict[str, Any]:
    def shown(value: float) -> str:
        return f"{100 * value:.1f} %" if one.share else f"{value:.4g}"

    return {
        "name": one.signal,
        "kind": one.kind,
        "column": "" if one.column == one.signal else one.column,
        "before": shown(one.before),
        "after": shown(one.after),
        "effect": f"{100 * one.effect:+.1f} points" if one.share else f"{one.effect:+.2f} SD",
        "threshold": f"{100 * one.threshold:.1f}" if one.share else f"{one.threshold:.2f}",
        "chance": f"{one.chance:.3f}",
        "shifted": one.shifted,
        "trend": _line([*trend, one.effect], one.threshold),
    }


def _line(values: Sequence[float], threshold: float) -> dict[str, Any]:
    """Points of a line, the present window last, in a band between the thresholds."""
    most = max(1.25 * threshold, *(abs(value) for value in values))
    middle, step = _HEIGHT / 2, (_WIDTH - 8) / max(1, len(values) - 1)
    places = [(4 + step * place if len(values) > 1 else _WIDTH / 2) for place in range(len(values))]
    heights = [middle - value / most * (middle - 3) for value in values]
    return {
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True)),
        "last": (round(places[-1], 1), round(heights[-1], 1)),
        "band": round(threshold / most * (middle - 3), 1),
        "count": len(values),
    }


def _pictures(baseline: Baseline, window: Window, row: Row, shifted: Sequence[Reading]) -> list[dict[str, Any]]:
    """Rows of pictures: typical ones, and the most shifted by each signal."""
    if window.store is None:
        return []
    keys = row.sample.texts("key")
    groups = {one.signal: keys[one.towards[:SHOWN]].tolist() for one in shifted}
    held = baseline.sample.pictures()
    own = [] if held else typical(row.sample)[:SHOWN]
    wanted = sorted({key for group in [own, *groups.values()] for key in group})
    try:
        tiles = dict(zip(wanted, map(jpeg_bytes, thumbnails(window.store, wanted)), strict=True))
    except UserError:  # the line has cleared them away meanwhile
        return []
    first = ("typical of the baseline", held) if held else ("typical of this window", {key: tiles[key] for key in own})
    return [
        {"title": title, "pictures": _urls(pictures)}
        for title, pictures in [first, *((f"most shifted: {name}", {key: tiles[key] for key in group})
                                         for name, group in groups.items())]
    ]  # fmt: skip


def _urls(pictures: Mapping[str, bytes]) -> list[tuple[str, str]]:
    return [(key, f"data:image/jpeg;base64,{b64encode(data).decode()}") for key, data in pictures.items()]
