"""Watching the line, top to bottom: find the baseline, look at the window, compare, show, record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from tyre_lightning.config import WatchConfig, to_watch_config
from tyre_lightning.decision.sample import Sample
from tyre_lightning.files import disk_errors, write_whole
from tyre_lightning.line.baseline import Baseline, accept, check_place, find_baseline, keep
from tyre_lightning.line.page import render
from tyre_lightning.line.record import Records
from tyre_lightning.line.signals import Reading, read_signals
from tyre_lightning.line.window import ALL, OTHER, Window, group_of, look_through
from tyre_lightning.memory import memory_errors
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.progress import say
from tyre_lightning.tracking.registry import load_inspector
from tyre_lightning.tracking.runs import connect
from tyre_lightning.tracking.versions import find_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CLEAN, SHIFTED, ACCEPTED, UNJUDGED = "clean", "shifted", "accepted", "not judged"
FEWEST = 20  # tyres of a group in the baseline by which it can be judged


@dataclass(frozen=True)
class Row:
    """A window, or one group of it.

    Args:
        group: its name.
        sample: its tyres.
        readings: of all signals; none where it is not judged.
        trend: the effects of former windows, by signal.
        verdict: one of four words.
    """

    group: str
    sample: Sample
    readings: list[Reading]
    verdict: str
    trend: dict[str, list[float]] = field(default_factory=dict)

    @property
    def shifted(self) -> list[Reading]:
        """The signals that have shifted, those of which it is most certain first."""
        return sorted((one for one in self.readings if one.shifted), key=lambda one: -abs(one.score))

    @property
    def counts(self) -> dict[str, int]:
        """Of the window, tyres (about, where they are drawn) and pictures; and tyres that were looked at."""
        return {**{name: int(self.sample.about[name]) for name in ("tyres", "pictures")}, "drawn": len(self.sample)}

    def lines(self) -> list[str]:
        """For a terminal."""
        named = f"{self.group}: " if self.group != ALL else ""
        counts = self.counts
        about = f"{counts['tyres']} tyres in {counts['pictures']} pictures"
        about += f", {counts['drawn']} of them looked at" if counts["drawn"] < counts["tyres"] else ""
        return [f"{named}{self.verdict}: {about}", *(f"  {named}{one.sentence()}" for one in self.shifted)]


@dataclass(frozen=True)
class Outcome:
    """What became of a window: a row for each group."""

    rows: list[Row]

    @property
    def shifted(self) -> bool:
        """Whether anything has."""
        return any(row.shifted for row in self.rows)


@disk_errors()
@memory_errors("batch_size or tyres")
def watch(cfg: DictConfig) -> Outcome:
    """Compare a window of the line with a baseline, or accept it as one; writes a page, and a run in MLflow.

    Raises:
        UserError: the model, the window or the baseline cannot be used.
    """
    config = to_watch_config(cfg)
    client = connect(config.tracking_uri)
    version = find_version(client, str(config.model))
    check_place(config, version)
    time = datetime.now().astimezone() if config.time is None else datetime.fromisoformat(config.time).astimezone()
    inspector = load_inspector(str(config.model), config.tracking_uri)
    records = Records(client, config, version, time)
    if config.accept:
        return _accept(config, inspector, client, version, records, time)
    baseline = find_baseline(config, inspector, client, version)
    window = look_through(config, inspector, config.group_by)
    rows = compare_groups(baseline, window, inspector, config.group_by)
    for row in rows:
        row.trend.update(records.trend(row.group, row.readings))
    html = render(config, inspector, baseline, window, rows, f"{time:%Y-%m-%d %H:%M}")
    output = os.path.expanduser(config.output)
    write_whole(output, html)
    _tell(rows, f"compared with {baseline.about}", f"the page is {config.output}")  # also if MLflow now fails
    runs = [records.add(row.group, row.readings, row.verdict, row.counts, baseline.about) for row in rows]
    records.add_page(runs, html)
    return Outcome(rows)


def _accept(
    config: WatchConfig, inspector: Inspector, client: MlflowClient, version: ModelVersion | None, records: Records,
    time: datetime,
) -> Outcome:  # fmt: skip
    """Groups are told by keys when a window is compared, so that a baseline is not divided."""
    window = look_through(config, inspector, None)
    sample = accept(config, inspector, window, f"{time:%Y-%m-%d %H:%M}")
    row = Row(ALL, sample, [], ACCEPTED)
    run_id = records.add(ALL, [], ACCEPTED, row.counts, "")
    place = keep(sample, config, client, version, run_id)
    _tell([row], f"windows to come are compared with it: it is kept in {place}")
    return Outcome([row])


def compare_groups(baseline: Baseline, window: Window, inspector: Inspector, pattern: str | None) -> list[Row]:
    """A row for each group: compared with the same group of the baseline, or, where that has no groups, with all of it.

    A group that the baseline has too few tyres of is not judged: another line's camera is no measure for it.
    """
    sides = {name: _same_group(baseline.sample, name, pattern) for name in window.samples}
    judged = [name for name, side in sides.items() if len(side) >= FEWEST]
    rows = []
    for name, sample in window.samples.items():
        readings = []
        if name in judged:
            readings = read_signals(sides[name], sample, inspector, accepted=baseline.accepted, among=len(judged))
        shifted = any(one.shifted for one in readings)
        rows.append(Row(name, sample, readings, (SHIFTED if shifted else CLEAN) if readings else UNJUDGED))
    return rows


def _same_group(baseline: Sample, name: str, pattern: str | None) -> Sample:
    groups = np.array([group_of(key, pattern) for key in baseline.texts("key")], dtype=object)
    return baseline.take(groups == name) if {*groups} - {ALL, OTHER} else baseline


def _tell(rows: Sequence[Row], *about: str) -> None:
    for row in rows:
        for line in row.lines():
            say(line)
    for line in about:
        say(line)
