"""The report's charts: geometry of inline SVG, which the page's template draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.decision.bounds import interval_ends
from tyre_lightning.evaluation.curves import Floats, Ints, evenly, reliability, sweep
from tyre_lightning.evaluation.report.decisions import Side
from tyre_lightning.evaluation.scores import Scores

WIDTH, HEIGHT = 320, 240  # of an SVG's own units
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 38  # margins round the plot
_STYLES = ("first", "ends", "ends")  # of a curve and of both ends of its intervals
_POINTS = 300  # of a curve, beyond which no eye sees a difference
_STEPS = 3000  # thresholds that curves are drawn from, and as many more where escape and overkill are low

Pairs = Sequence[tuple[float, float]]
Rate = tuple[Floats, Floats, Floats]


@dataclass(frozen=True)
class Line:
    """A curve through points (x, y); ``style`` is its CSS class, and ``dots`` marks the points."""

    name: str
    points: Pairs
    style: str = "first"
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Axes from 0 to ``x_max`` and from ``y_min`` to ``y_max``, with lines.

    ``marker`` names the rates that the page's threshold marks on it: roc, recall or trade.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_max: float = 1.0
    y_max: float = 1.0
    x_min: float = 0.0
    y_min: float = 0.0
    marker: str = ""
    x_ticks: Sequence[float] = field(default_factory=tuple)

    def x(self, value: float) -> float:
        """Where a value lies, in units of the SVG."""
        share = (value - self.x_min) / ((self.x_max - self.x_min) or 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        """Where a value lies, in units of the SVG."""
        share = (value - self.y_min) / ((self.y_max - self.y_min) or 1)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    def path(self, line: Line) -> str:
        """A line as the ``d`` of an SVG path."""
        steps = [f"{self.x(x)} {self.y(y)}" for x, y in line.points]
        return "M" + "L".join(steps) if steps else ""

    def ticks_x(self) -> list[tuple[float, str]]:
        """Places and texts below the plot."""
        values = self.x_ticks or np.linspace(self.x_min, self.x_max, 6)
        return [(self.x(value), _text(value)) for value in values]

    def ticks_y(self) -> list[tuple[float, str]]:
        """Places and texts beside the plot."""
        return [(self.y(value), _text(value)) for value in np.linspace(self.y_min, self.y_max, 6)]


def rate_curves(defective: Side, good: Side, limit: float, confidence: float) -> list[Chart]:
    """Escape against overkill (up to ``limit``), ROC, and precision against recall of defective tyres.

    Each has the ends of the two rates' intervals at each threshold beside it. Of many thresholds some are looked at,
    evenly by how many tyres lie between them.

    Args:
        defective: the defective tyres.
        good: the good tyres.
        limit: a rate.
        confidence: of the intervals.
    """
    steps, escaped, rejected = sweep(defective.scores, good.scores)
    escaped = escaped - _below(defective.scores[defective.novel], steps)
    found = defective.total - escaped
    false = rejected + len(good.reviewed) + _below(good.scores[good.novel], steps)
    low = np.flatnonzero((escaped <= 2 * limit * defective.total) & (false <= 2 * limit * good.total))
    places = np.unique(np.r_[evenly(len(steps), _STEPS), low[evenly(len(low), _STEPS)]])
    escaped, found, false = escaped[places], found[places], false[places]
    escape = _with_ends(escaped, defective.total, confidence)
    overkill = _with_ends(false, good.total, confidence)
    precision = _with_ends(found, found + false, confidence)
    caught = [1 - rate for rate in escape]
    trade = [_line(x[inside], y[inside], style) for x, y, style in zip(escape, overkill, _STYLES, strict=True)
             if (inside := (x <= limit) & (y <= limit)).any()]  # fmt: skip
    roc = [_line(x, y, style) for x, y, style in zip(overkill, caught, _STYLES, strict=True)]
    # Where nothing is rejected there is no precision; what is worse for the model goes together.
    recall = [_line(x[:-1], y[:-1], style)
              for x, y, style in zip((caught[0], caught[2], caught[1]), precision, _STYLES, strict=True)]  # fmt: skip
    kept, hit = "good tyres not accepted", "defective tyres caught"
    return [
        Chart("Escape against overkill", "escape rate", kept, trade, limit, limit, marker="trade"),
        Chart("ROC", kept, hit, [_diagonal(), *roc], marker="roc"),
        Chart("Precision and recall", hit, "precision", recall, marker="recall"),
    ]


def _below(scores: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many scores lie below each threshold."""
    return np.asarray(np.searchsorted(np.sort(scores), steps, side="left"))


def calibration_chart(scores: Scores, good: int, temperature: float) -> Chart:
    """Whether P(defective) means what it says, with the temperature and without."""
    lines = [_diagonal()]
    for name, divisor, style in (("as trained", 1.0, "second"), ("calibrated", temperature, "first")):
        said, true = reliability(scores.defective(good, divisor), scores.labels != good)
        lines.append(Line(name, [*zip(said.tolist(), true.tolist(), strict=True)], style, dots=True))
    return Chart("Calibration", "mean P(defective)", "share that is defective", lines)


def epoch_chart(title: str, curves: Mapping[str, Pairs]) -> Chart:
    """Metrics by epoch, counted from 1."""
    styles = ("first", "second", "third")
    lines = [
        Line(name, points, style, dots=True) for (name, points), style in zip(curves.items(), styles, strict=False)
    ]
    last = max((x for points in curves.values() for x, _ in points), default=1.0)
    highest = max((y for points in curves.values() for _, y in points), default=1.0)
    step = max(1, -(-int(last) // 8))
    ticks = [1, *range(step if step > 1 else 2, int(last) + 1, step)]
    return Chart(title, "epoch", title.lower(), lines, last, _nice(highest), x_min=1.0, x_ticks=ticks)


def trade_limit(defective: Floats, good: Floats, threshold: float) -> float:
    """A round rate that leaves room for the rates at a threshold."""
    escape = (defective < threshold).sum() / max(1, len(defective))
    overkill = (good >= threshold).sum() / max(1, len(good))
    return min(1.0, max(0.05, _nice(1.5 * float(max(escape, overkill)))))


def histogram(scores: Floats, bins: int = 60) -> list[float]:
    """Heights from 0 to 1 of bars over P(defective) from 0 to 1; square roots of the counts, so that few are seen."""
    counts, _ = np.histogram(scores, bins, (0, 1))
    return [*np.sqrt(counts / max(1, counts.max())).round(4).tolist()]


def _with_ends(counts: Ints, totals: Ints | int, confidence: float) -> Rate:
    """Shares of tyres, and the low and the high ends of their intervals, each shape (N,)."""
    return counts / np.maximum(totals, 1), *interval_ends(counts, totals, confidence)


def _line(x: Floats, y: Floats, style: str) -> Line:
    return Line("", _thinned(x, y), style)


def _thinned(x: Floats, y: Floats) -> Pairs:
    if not len(x):
        return []
    kept = evenly(len(x), _POINTS)
    return list(zip(x[kept].tolist(), y[kept].tolist(), strict=True))


def _diagonal() -> Line:
    return Line("", [(0, 0), (1, 1)], "faint")


def _nice(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten that is not below a value."""
    power = 10 ** np.floor(np.log10(max(value, 1e-9)))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9)))


def _text(value: float) -> str:
    return f"{value:.3g}"
