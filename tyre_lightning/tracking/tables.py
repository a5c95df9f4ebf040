"""Which numbers of a run are metrics in MLflow, and the tables that have all of them.

A metric is worth its place in MLflow's list where runs are compared by it, or where its curve is looked at. The ends of
intervals, values of single classes and what is of use to few are rows of tables, which MLflow shows with the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.evaluation.scores import UNKNOWN, Scores
from tyre_lightning.lake.texts import numbered
from tyre_lightning.lake.tyres import tyre_names
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.tracking.journal import Journal

Ints = NDArray[np.int64]

METRICS_TABLE = "metrics.json"  # every last value, with its interval: a row for each usage, metric and class
EPOCHS_TABLE = "epochs.json"  # every value that was recorded at the end of an epoch: a row for each
PREDICTIONS_TABLE = "predictions.json"  # what the model said of test images, those first that it got most wrong
_MOST_PREDICTIONS = 1000  # of which MLflow shows a table; ``scores/test.parquet`` has all
_DIGITS = 4  # of a probability in this table
_USAGES = ("val", "test", "test_unshared")
_OF_CLASSES = ("recall", "precision", "average_precision", "caught", "escape_rate")
_WITH_ENDS = ("auroc_defective", "escape_rate", "overkill_rate", "review_rate", "novel_rate")
_LOW, _HIGH = "_low", "_high"  # the ends of an interval
_OF_FEW = ("auroc", "brier", "brier_uncalibrated", "ece_uncalibrated", "tyres")


def is_detail(name: str) -> bool:
    """Whether a number, by its name in the journal, stands in tables alone."""
    usage, measure, of_class, end = _parts(name)
    return usage in _USAGES and (measure in _OF_FEW or bool(end) or (bool(of_class) and measure in _OF_CLASSES))


def metrics_table(values: Mapping[str, float]) -> str:
    """All last values, as MLflow's text of a table with columns usage, metric, class, value, low and high.

    Args:
        values: by name, as ``test/escape_rate/crack`` and ``test/escape_rate_low/crack``.
    """
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, value in values.items():
        usage, measure, of_class, end = _parts(name)
        rows.setdefault((usage, measure, of_class), {})[end] = value
    columns = ["usage", "metric", "class", "value", "low", "high"]
    return table_text(
        columns,
        [
            [usage, measure, of_class, *(found.get(end) for end in ("", _LOW, _HIGH))]
            for (usage, measure, of_class), found in sorted(rows.items())
            if usage != "system"
        ],
    )


def epochs_table(journal: Journal) -> str:
    """The values of each epoch, as MLflow's text of a table: epochs, counted from 1, then a column for each metric."""
    epochs = {step: int(epoch) + 1 for step, epoch in journal.metric("epoch").items()}
    rows: dict[int, dict[str, float]] = {epoch: {} for epoch in sorted(epochs.values())}
    for record in journal.of_kind("metrics"):
        if record["step"] in epochs:
            rows[epochs[record["step"]]] |= record["values"]
    names = sorted({name for row in rows.values() for name in row if name.startswith(("train/", "val/"))})
    return table_text(["epoch", *names], [[epoch, *(row.get(name) for name in names)] for epoch, row in rows.items()])


def predictions_table(scores: Scores, inspector: Inspector) -> str:
    """What a model said of images, as MLflow's text of a table, the surest errors first.

    Args:
        scores: of the images.
        inspector: the model.
    """
    rows = scores.take(_wrongest(scores, inspector)).answers(inspector).to_pylist()
    for row in rows:
        row["p_true"] = round(row.get(f"p_{row['true']}", math.nan), _DIGITS)
        row["p_defective"] = math.nan if row["error"] else round(inspector.defective(row), _DIGITS)
    rows.sort(key=lambda row: (row["error"] is not None, math.isnan(row["p_true"]), row["p_true"]))
    columns = ["key", "true", "class", "decision", "p_true", "p_defective", "tyre", "error"]
    return table_text(columns, [[row[name] for name in columns] for row in rows[:_MOST_PREDICTIONS]])


def _wrongest(scores: Scores, inspector: Inspector) -> Ints:
    """Places of the images that the table shows, and of the others of their tyres, which they are decided with."""
    true, likely = scores.true(), scores.outputs.probabilities(scores.logits, inspector.temperature)
    said = np.where(true == UNKNOWN, np.nan, likely[np.arange(len(true)), true])
    first = np.argsort(said.round(_DIGITS), kind="stable")[:_MOST_PREDICTIONS]
    tyres = numbered(tyre_names(scores.keys, inspector.group_pattern))[1]
    return np.flatnonzero(np.isin(tyres, tyres[first]))


def table_text(columns: list[str], rows: list[list[Any]]) -> str:
    """A table as MLflow writes and shows one; what is no number is null."""
    kept = [[None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row] for row in rows]
    return json.dumps({"columns": columns, "data": kept}, ensure_ascii=False)


def _parts(name: str) -> tuple[str, str, str, str]:
    """Usage, metric, class and end of an interval that a name says; empty where it does not."""
    usage, separator, rest = name.partition("/")
    if not separator:
        return "", name, "", ""
    measure, _, of_class = rest.partition("/")
    for end in (_LOW, _HIGH):
        if usage in _USAGES and (whole := measure.removesuffix(end)) != measure and whole in _WITH_ENDS:
            return usage, whole, of_class, end
    return usage, measure, of_class, ""
