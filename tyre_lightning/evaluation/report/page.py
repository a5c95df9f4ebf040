"""One HTML page on a finished training: what it saw and learnt, how it decides, and what it gets wrong.

The page asks the network for nothing: style, script, data and pictures are in it, and its content security policy
forbids everything else. Keys and class names are only ever text to it.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.decision.calibration import expected_calibration_error, softmax
from tyre_lightning.evaluation.answer import novelty_sentence
from tyre_lightning.evaluation.judgement import auroc_ends, class_metrics, confusion
from tyre_lightning.evaluation.report.charts import (
    Chart,
    Pairs,
    calibration_chart,
    epoch_chart,
    histogram,
    rate_curves,
    trade_limit,
)
from tyre_lightning.evaluation.report.decisions import LISTED, decision_data, most_unlike, sides
from tyre_lightning.evaluation.report.pictures import PICTURES, Picture, Read, columns, gallery
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.inspector import Inspector

_FOLDER = Path(__file__).parent
_UNPROMISED = 0.5  # where the slider stands if the model has no operating point


@dataclass(frozen=True)
class Facts:
    """What the page tells of a run besides its scores."""

    name: str
    id: str
    started: str
    reported: str
    root: str
    counts: Mapping[str, Mapping[str, int]]  # images by usage and class
    labels: str = ""  # how many are new or corrected, and since when
    further: Mapping[str, int] = field(default_factory=dict)  # of these, second and third defects of an image, by usage
    ignored: Mapping[str, int] = field(default_factory=dict)  # other files, by usage
    unreadable: Mapping[str, int] = field(default_factory=dict)  # images, by usage
    shared: int = 0  # test images of tyres that training saw too
    curves: Mapping[str, Mapping[str, Pairs]] = field(default_factory=dict)  # (epoch, value) by chart and line


def build_page(
    inspector: Inspector,
    scores: Scores,
    usage: str,
    wanted: OperatingPointConfig,
    facts: Facts,
    read: Read,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """The page as HTML.

    Args:
        inspector: the finished model.
        scores: of the images to judge by.
        usage: theirs, val or test.
        wanted: the promise that was asked for.
        facts: what else to tell.
        read: gives the files of some keys, in order.
        advance: told how many of how many pictures are done.

    Raises:
        UserError: the store cannot be read.
    """
    content = {
        "facts": facts,
        "usage": {"val": "validation", "test": "test"}[usage],
        "inspector": inspector,
        "wanted": wanted,
        "metrics": _metrics(inspector, scores, wanted.confidence),
        "confusion": _confusion(scores),
        "several": _several(inspector, scores),
        "epochs": _epochs(facts),
        "decisions": None if inspector.good_class is None else _decisions(inspector, scores, wanted, read, advance),
    }
    return _render(content)


def _decisions(
    inspector: Inspector, scores: Scores, wanted: OperatingPointConfig, read: Read, advance: Callable[[int, int], None]
) -> dict[str, Any]:
    assert inspector.good_class is not None
    index = inspector.classes.index(inspector.good_class)
    rate = None if inspector.point is None else inspector.point.novel_rate
    defective, good = sides(scores, index, inspector.calibration, rate)
    start = _UNPROMISED if inspector.point is None else inspector.point.threshold
    data = decision_data(inspector, defective, good, wanted.confidence)
    unlike: list[str] = []
    calibration = inspector.calibration
    if calibration is not None:
        unlike, data["unlike"] = most_unlike(scores, index, calibration)
    shown = {"defective": defective.keys, "good": good.keys} | ({"unlike": unlike} if unlike else {})
    total, done = sum(min(PICTURES, len(keys)) for keys in shown.values()), 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        advance(done, total)

    drawn: dict[str, Picture] = {}
    for name, keys in shown.items():
        pictures = gallery(inspector, keys, read, add, drawn)
        drawn |= {key: picture for key, picture in zip(keys, pictures, strict=False) if picture.overlay}
        data[name] |= columns(pictures)
    limit = trade_limit(defective.scores, good.scores, start)
    charts = [
        *rate_curves(defective, good, limit, wanted.confidence),
        calibration_chart(scores, index, inspector.temperature),
    ]
    bars = {"defective": histogram(defective.scores), "good": histogram(good.scores)}
    point, undecided = inspector.point, any(len(side.reviewed) or side.novel.any() for side in (defective, good))
    band = undecided or (point is not None and point.reject_from > point.threshold)
    novelty = novelty_sentence(point, calibration) if unlike and point is not None and calibration is not None else ""
    page = {"start": start, "charts": charts, "bars": bars, "band": band, "unlike": bool(unlike), "novelty": novelty}
    counted = {"listed": LISTED, "step": max(defective.step, good.step)}
    return page | counted | {"data": {**data, "start": start}}


def _metrics(inspector: Inspector, scores: Scores, confidence: float) -> dict[str, float]:
    found = class_metrics(scores, inspector.classes, inspector.good_class)
    logits, labels = scores.outputs.outcomes(scores.logits, scores.labels)
    before, after = (
        expected_calibration_error(softmax(logits, temperature), labels) for temperature in (1.0, inspector.temperature)
    )
    values = {**found, "ece_before": before, "ece": after, "temperature": inspector.temperature}
    if inspector.good_class is None:
        return values
    return values | auroc_ends(scores, inspector.classes.index(inspector.good_class), confidence)


def _confusion(scores: Scores) -> list[list[tuple[int, float]]]:
    """Rows of the confusion matrix by the true class: counts, and their shares of the row."""
    matrix = confusion(scores)
    return [[(int(count), count / max(1, row.sum())) for count in row] for row in matrix]


def _several(inspector: Inspector, scores: Scores) -> list[tuple[str, int, dict[str, float]]]:
    """Where images may show several defects: each defect, how many images show it, and how well they are told."""
    if scores.shows is None:
        return []
    values = class_metrics(scores, inspector.classes, inspector.good_class)
    kinds = ("average_precision", "recall", "precision")
    rows = zip(inspector.classes, scores.shows.sum(axis=0).tolist(), strict=True)
    return [
        (name, count, {kind: values.get(f"{kind}/{name}", float("nan")) for kind in kinds})
        for name, count in rows
        if name != inspector.good_class
    ]


def _epochs(facts: Facts) -> list[Chart]:
    return [epoch_chart(title, lines) for title, lines in facts.curves.items() if any(lines.values())]


def _render(content: dict[str, Any]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script, style = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(**content, script=script, style=style, digest=digest)
