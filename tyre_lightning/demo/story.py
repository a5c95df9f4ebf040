"""The week's last page: what was true of each day, what the commands told of it, and what came of that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tyre_lightning.config import RatesConfig
from tyre_lightning.decision.operating_point import ACCEPT, REJECT, REVIEW
from tyre_lightning.demo.days import Day
from tyre_lightning.evaluation.gallery import jpeg
from tyre_lightning.evaluation.predictions import read_about, read_predictions
from tyre_lightning.templates import template
from tyre_lightning.tracking.runs import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

PAGE = "week.html"
_GOOD = "good"
_SHOWN = 4  # pictures of a day
_SIDE = 160  # pixels of theirs


@dataclass(frozen=True)
class Chapter:
    """A day that is over.

    Args:
        day: what the line brought.
        place: the folder of what was made of it.
        alarmed: whether `watch` said that it has shifted.
        broken: whether `rates` said that the promise probably is.
    """

    day: Day
    place: Path
    alarmed: bool
    broken: bool


@dataclass(frozen=True)
class Truth:
    """What became of a day's tyres, whose truth is known: counts by class and decision."""

    counts: Mapping[tuple[str, str], int]

    @classmethod
    def of(cls, chapter: Chapter, truth: Path) -> Truth:
        """From its predictions and the file of what was drawn."""
        shows = json.loads((truth / f"{chapter.day.name}.json").read_text(encoding="utf-8"))
        counts: dict[tuple[str, str], int] = {}
        rows = read_predictions(str(chapter.place / "predictions.parquet"))
        for key, decision in zip(rows["key"], rows["decision"], strict=True):
            pair = shows[key.rpartition("/")[2]], decision or REVIEW
            counts[pair] = counts.get(pair, 0) + 1
        return cls(counts)

    def share(self, decision: str, *, good: bool) -> tuple[int, int]:
        """How many of the good, or of the defective, tyres were decided so, and how many there are."""
        mine = {pair: count for pair, count in self.counts.items() if (pair[0] == _GOOD) == good}
        return sum(count for pair, count in mine.items() if pair[1] == decision), sum(mine.values())

    def escapes(self) -> dict[str, int]:
        """Escapes by class."""
        return {name: count for (name, decision), count in self.counts.items() if decision == ACCEPT and name != _GOOD}


def tell(chapters: Sequence[Chapter], lake: Path, truth: Path, tracking_uri: str, model: str) -> Path:
    """Write the page; gives its path.

    Args:
        chapters: the days.
        lake: the folder that is served.
        truth: the folder of what was drawn.
        tracking_uri: of MLflow.
        model: the registered one.
    """
    client = connect(tracking_uri)
    rates = _windows(client, "line.kind", "rates")
    days = [_day(chapter, lake, truth, client, run) for chapter, run in zip(chapters, rates, strict=True)]
    versions = sorted(client.search_model_versions(f"name = '{model}'"), key=lambda version: int(version.version))
    models = [_model(client, version) for version in versions]
    page = Path(PAGE)
    page.write_text(template(Path(__file__).parent, PAGE).render(days=days, models=models), encoding="utf-8")
    return page


def _day(chapter: Chapter, lake: Path, truth: Path, client: MlflowClient, rates: Run) -> dict[str, Any]:
    found = Truth.of(chapter, truth)
    path = chapter.place / "predictions.parquet"
    measured, watched = rates.data.metrics, _windows(client, "watch.input", f"s3://line/{chapter.day.name}")[-1]
    return {
        "name": chapter.day.name.replace("-", " "),
        "about": chapter.day.about,
        "model": read_about(str(path))["model"].removeprefix("models:/"),
        "escape": found.share(ACCEPT, good=False),
        "overkill": found.share(REJECT, good=True),
        "review": found.share(REVIEW, good=True)[0] + found.share(REVIEW, good=False)[0],
        "escapes": found.escapes(),
        "estimate": {end: measured.get(f"line/window_escape_rate{end}") for end in ("", "_low", "_high")},
        "alarmed": chapter.alarmed,
        "shifted": watched.data.tags.get("watch.shifted", ""),
        "broken": chapter.broken,
        "pictures": _pictures(lake / "line" / chapter.day.name),
    }


def _model(client: MlflowClient, version: ModelVersion) -> dict[str, str]:
    """What a version was trained on, and what the gate said of it."""
    return {
        "version": str(version.version),
        "data": client.get_run(str(version.run_id)).data.params["data.root"],
        "gate": version.tags["promotion"],
        "reasons": version.tags["promotion.reasons"],
        **{who: version.tags.get(f"promotion.{who}.escape_rate", "") for who in ("challenger", "champion")},
    }


def _windows(client: MlflowClient, tag: str, value: str) -> list[Run]:
    """What commands have recorded of windows, the oldest first."""
    experiment = client.get_experiment_by_name(RatesConfig.mlflow_experiment)
    assert experiment is not None
    place, query = [experiment.experiment_id], f"tags.`{tag}` = '{value}'"
    return [*client.search_runs(place, query, order_by=["attributes.start_time ASC"])]


def _pictures(folder: Path) -> list[str]:
    """Some of a day's pictures, as addresses that need no file."""
    return [_url(path) for path in sorted(folder.glob("*.jpg"))[:_SHOWN]]


def _url(path: Path) -> str:
    with Image.open(path) as picture:
        return f"data:image/jpeg;base64,{jpeg(picture.resize((_SIDE, _SIDE)))}"
