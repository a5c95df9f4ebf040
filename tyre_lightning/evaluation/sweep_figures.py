"""Pictures of a sweep: what quality costs, and which settings lead to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tyre_lightning.names import figure_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE = 0.035  # of an axis: the height of a line of text


def cost_figure(table: pd.DataFrame, quality: str, costs: Mapping[str, str]) -> Figure:
    """Quality against each cost; runs on the Pareto front are named, and a line joins the best for this cost alone.

    Args:
        table: a row for each run, with ``run``, ``pareto``, and columns of quality and costs.
        quality: the column on the vertical axis.
        costs: the columns on the horizontal axes, and what they are called.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(costs), 4.5), layout="constrained")
    for axes, (column, title) in zip(np.atleast_1d(figure.subplots(1, len(costs))), costs.items(), strict=True):
        front = table[table["pareto"]].sort_values([column, quality], ascending=[True, False])
        best = front[front[quality].expanding().max().diff().fillna(1) > 0]
        axes.scatter(table[column], table[quality], color="silver", label="all runs")
        axes.plot(best[column], best[quality], color="tab:blue")
        axes.scatter(front[column], front[quality], color="tab:blue", zorder=3, label="Pareto front")
        for place, (_, row) in enumerate(front.drop_duplicates("run").iterrows()):
            offset = 5, (-12, 5)[place % 2]  # neighbours would lie on each other
            name, point = figure_text(row["run"]), (row[column], row[quality])
            axes.annotate(name, point, xytext=offset, textcoords="offset points")
        axes.set(xlabel=title, ylabel=quality)
        axes.grid(alpha=0.3)
        axes.margins(x=0.2, y=0.15)
        axes.legend()
    return figure


def parallel_figure(table: pd.DataFrame, columns: Sequence[str], quality: str) -> Figure:
    """Parallel coordinates: a line for each run through its settings to its quality, which colours it.

    Args:
        table: a row for each run.
        columns: settings, an axis each: numbers in their order, logarithmic where they differ more than tenfold,
            anything else in the order of its text.
        quality: the last axis.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = [*columns, quality]
    figure = Figure(figsize=(2 + 2.2 * len(names), 4.5), layout="constrained")
    axes = figure.add_subplot()
    heights = np.stack([*(_scale(table[name], logarithmic=True) for name in columns), _scale(table[quality])], axis=1)
    for line, height in zip(heights, heights[:, -1], strict=True):
        axes.plot(
            range(len(names)), line, color=colormaps["viridis"](height if np.isfinite(height) else 0.0), alpha=0.8
        )
    for place, name in enumerate(names):
        axes.axvline(place, color="grey", linewidth=0.8)
        for text, height in _apart(_texts(table[name]), heights[:, place]):
            axes.text(place + 0.02, height, figure_text(text), fontsize=8, va="center")
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n") for name in names])
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(names) - 0.6)
    return figure


def _apart(texts: Sequence[str], heights: np.ndarray) -> Iterator[tuple[str, float]]:
    """Texts and their heights from the top down, without those that would lie on another."""
    last = np.inf
    found = {(height, text) for height, text in zip(heights.tolist(), texts, strict=True) if np.isfinite(height)}
    for height, text in sorted(found, reverse=True):
        if last - height >= _LINE:
            yield text, height
            last = height


def _numbers(column: pd.Series) -> pd.Series | None:
    found = pd.to_numeric(column, errors="coerce")
    return found if found.notna().any() and found.notna().sum() == column.notna().sum() else None


def _scale(column: pd.Series, *, logarithmic: bool = False) -> np.ndarray:
    """Heights from 0 to 1; ``logarithmic`` where that is of use."""
    numbers = _numbers(column)
    values = numbers.to_numpy(float) if numbers is not None else pd.factorize(column.astype(str), sort=True)[0] * 1.0
    if logarithmic and numbers is not None and 0 < 10 * np.nanmin(values) < np.nanmax(values):
        values = np.log(values)
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.5, np.nan)


def _texts(column: pd.Series) -> list[str]:
    numbers = _numbers(column)
    return [str(value) for value in column] if numbers is None else [f"{value:.4g}" for value in numbers]
