"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.evaluation.curves import evenly, reliability, sweep
from tyre_lightning.names import figure_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_POINTS = 5000  # of a curve


def confusion_figure(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """A confusion matrix [classes, classes] with counts; colour is the share of the true class (the row)."""
    from matplotlib.figure import Figure

    names = [figure_text(name) for name in classes]
    side = 2.5 + 0.7 * len(names) + 0.08 * max(0, max(map(len, names)) - 15)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, column in np.ndindex(*matrix.shape):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color)
    return figure


def decision_figure(defective: NDArray[np.bool_], scores: NDArray[np.float64], threshold: float | None) -> Figure:
    """Three curves on how defective and good tyres are told apart: calibration, precision-recall, escape-overkill.

    Args:
        defective: whether each tyre is defective, shape (T,).
        scores: P(defective), shape (T,).
        threshold: marked where there is one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2))
    calibration, precision_recall, trade = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.13, top=0.92, wspace=0.2)  # a tenth of what layouts take
    calibration.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    calibration.plot(*reliability(scores, defective), marker="o")
    calibration.set(xlabel="mean P(defective)", ylabel="share that is defective", title="calibration")
    steps, escaped, false = sweep(scores[defective], scores[~defective])
    at = 0 if threshold is None else int(np.searchsorted(steps, threshold))
    kept = np.union1d(evenly(len(steps), _POINTS), at)
    escaped, false, at = escaped[kept], false[kept], int(np.searchsorted(kept, at))
    found = defective.sum() - escaped
    escape, overkill = escaped / max(1, defective.sum()), false / max(1, (~defective).sum())
    precision_recall.plot(1 - escape[:-1], (found / np.maximum(found + false, 1))[:-1])
    precision_recall.set(xlabel="recall", ylabel="precision", title="precision and recall of defective tyres")
    trade.plot(escape, overkill)
    if threshold is not None:
        trade.plot(escape[at], overkill[at], "o", label=f"threshold {threshold:.3g}")
        trade.legend()
    trade.set(xlabel="escape rate", ylabel="overkill rate", title="escape against overkill")
    for axes in (calibration, precision_recall, trade):
        axes.grid(alpha=0.3)
    return figure
