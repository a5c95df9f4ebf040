"""What a prediction found, and how it is told."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tyre_lightning.decision.operating_point import OperatingPoint
from tyre_lightning.evaluation.answer import novelty_terms
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.progress import say

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a prediction run found, and where the rows are.

    Args:
        output: a row for each picture.
        tyres_output: a row for each tyre, where the model tells tyres by their file names.
        classes: pictures by class.
        decisions: tyres by decision; without a pattern each picture is one.
        unreadable: pictures.
        tyres: those in ``tyres_output``.
    """

    output: str
    tyres_output: str | None = None
    classes: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str | None] = field(default_factory=Counter)
    unreadable: int = 0
    tyres: int = 0

    @property
    def images(self) -> int:
        """All images, readable or not."""
        return self.classes.total() + self.unreadable

    def count(self, rows: Sequence[Mapping[str, Any]], *, decisions: bool) -> None:
        """Count pictures, and, where each is a tyre, the decisions on them."""
        readable = [row for row in rows if row["error"] is None]
        self.unreadable += len(rows) - len(readable)
        self.classes.update(row["class"] for row in readable)
        if decisions:
            self.decisions.update(row["decision"] for row in readable)

    def counts(self) -> dict[str, Any]:
        """The numbers, as JSON can have them."""
        return {
            "classes": dict(self.classes),
            "decisions": [[name, count] for name, count in self.decisions.items()],
            "unreadable": self.unreadable,
            "tyres": self.tyres,
        }

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add the numbers of another, as :meth:`counts` gave them."""
        self.classes.update(counts["classes"])
        self.decisions.update(dict(counts["decisions"]))
        self.unreadable += counts["unreadable"]
        self.tyres += counts["tyres"]


def warn_of_few_pictures(inspector: Inspector, summary: Summary) -> None:
    """Say so where tyres have fewer pictures than those that the promise was made by."""
    calibration = inspector.calibration
    if inspector.point is None or calibration is None or not summary.tyres:
        return
    mean = summary.images / summary.tyres
    if mean < calibration.mean_pictures * (1 - 1e-9):
        log.warning(
            "there are %.3g pictures of a tyre on average, and there were %.3g of the validation tyres: fewer pictures "
            "show fewer defects, so that more may escape than promised", mean, calibration.mean_pictures,
        )  # fmt: skip


def show(summary: Summary, inspector: Inspector) -> None:
    """Print how many images fell into each class."""
    show_classes({name: summary.classes[name] for name in inspector.classes}, summary.unreadable)
    say("\n".join(told(summary, inspector)))


def show_classes(classes: Mapping[str, int], unreadable: int) -> None:
    """Print numbers of images by class, in this order, and how many could not be read."""
    images = sum(classes.values()) + unreadable
    table = Table(title=f"{images} images")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("share", justify="right")
    for name, count in [*classes.items(), ("unreadable", unreadable)]:
        table.add_row(Text(name), str(count), f"{count / max(1, images):.1%}")
    Console().print(table)


def told(summary: Summary, inspector: Inspector) -> Sequence[str]:
    """What else is said of it: decisions, the promise behind them, and where the rows are."""
    point = inspector.point
    if point is None:
        lines = [f"decisions: none, because {inspector.undecided()}"]
    else:
        lines = [_decisions(summary, point), _what_decides(inspector, point)]
        if inspector.calibration is not None and inspector.reference is not None:
            lines.append("  novelty: " + "\n    ".join(novelty_terms(point, inspector.calibration)))
    lines.append(f"a row for each image is in {summary.output}")
    if summary.tyres_output is not None:
        lines.append(f"a row for each tyre is in {summary.tyres_output}")
    return lines


def _decisions(summary: Summary, point: OperatingPoint) -> str:
    counts = ", ".join(f"{name} {summary.decisions[name]}" for name in ("accept", "review", "reject"))
    return f"decisions: {counts}\n  {point.sentence()}"


def _what_decides(inspector: Inspector, point: OperatingPoint) -> str:
    """Why class and decision need not agree."""
    return (
        "  the class is the most probable one; the decision is by the promise: even what\n"
        f"  looks most like {inspector.good_class} is not accepted from a P(defective) of {point.threshold:.4g} on"
    )
