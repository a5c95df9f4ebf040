"""``python -m tyre_lightning.demo.week``: a plant's week on drawn tyres, in minutes.

The line runs a champion, the lamp fades, a defect comes that nobody has photographed. Each evening the day is watched,
a person answers in the page, and from the answers come the next data version, a better model and the gate. Each step is
the ordinary command, on a real S3 server, with MLflow and a browser. Since the tyres are drawn, their truth is known:
the last page shows it beside what the commands told.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from tyre_lightning.commands import ALARM
from tyre_lightning.demo.days import Day, write_day
from tyre_lightning.demo.drawing import CLASSES, NEW, write_lake
from tyre_lightning.demo.person import Person
from tyre_lightning.demo.server import S3Server
from tyre_lightning.demo.shell import Shell
from tyre_lightning.demo.story import Chapter, tell
from tyre_lightning.surroundings import run_plainly

FOLDER = Path("demo", "week")
MODEL = "tyre-week"
CHAMPION = f"models:/{MODEL}@champion"
COUNTS = {"train": 80, "val": 32, "test": 50}  # images of each class: 150 defective test tyres, or no gate can pass
_MIX = {"good": 60, **dict.fromkeys(CLASSES[1:], 15)}
_LATE = {"light": 0.6, "blur": 1.5}
DAYS = (
    Day("day-1", "the champion's first day", _MIX),
    Day("day-2", "the lamp is dimmer and the camera loses focus", _MIX, **_LATE),
    Day("day-3", f"a defect that nobody has photographed: {NEW}", _MIX | {NEW: 30}, **_LATE),
    Day("day-4", "the same lamp and defects, and a model that has learnt of them", _MIX | {NEW: 30}, **_LATE),
)
_BUDGET = 60  # tyres that a person sees in an evening


@dataclass
class Week:
    """What has happened so far.

    Args:
        folder: of all that the week leaves.
        shell: gives commands.
        chapters: of the days that are over.
    """

    folder: Path
    shell: Shell
    chapters: list[Chapter] = field(default_factory=list)

    def begin(self) -> None:
        """The first model, which becomes the champion."""
        self._learn("v1")

    def live(self, day: Day) -> None:
        """A day and its evening."""
        place = self.folder / day.name
        place.mkdir()
        model, window = f"model={CHAMPION}", f"input=s3://line/{day.name}"
        predictions, queue = place / "predictions.parquet", place / "queue.parquet"
        self.shell.give("predict", model, window, f"output={predictions}")
        watched = self.shell.give("watch", model, window, f"output={place / 'watch.html'}", allowed=(0, ALARM))
        if day is DAYS[0]:
            words = "accept", model, window, f"name={day.name}", f"output={place / 'accepted.html'}"
            self.shell.give("watch", *words)
        self.shell.give("select", f"predictions={predictions}", f"output={queue}", f"budget={_BUDGET}")
        self._answer(queue)
        queues, answers = f"queue='{self.folder}/day-*/queue.parquet'", f"answers={self.folder / 'answers'}"
        broken = self.shell.give("rates", queues, answers, allowed=(0, ALARM))
        self.chapters.append(Chapter(day, place, watched == ALARM, broken == ALARM))

    def learn(self) -> None:
        """From all answers comes the next data version, and from it a challenger."""
        queues, answers = f"queue='{self.folder}/day-*/queue.parquet'", f"answers={self.folder / 'answers'}"
        self.shell.give("accept", answers, queues, "from=s3://tyres/v1", "to=s3://tyres/v2")
        self._learn("v2")

    def _learn(self, version: str) -> None:
        names = f"logger.experiment={MODEL}", f"logger.registered_model={MODEL}"
        place = f"paths.output_dir={self.folder}/outputs"
        self.shell.give("train", "experiment=demo", f"data.root=s3://tyres/{version}", *names, place)
        self.shell.give("promote", f"model={MODEL}")

    def _answer(self, queue: Path) -> None:
        words = f"queue={queue}", f"answers={self.folder / 'answers'}"
        with self.shell.serve("review", *words) as address, Person(self.folder / "truth") as person:
            answered = person.answer(address)
        print(f"  a person has answered {answered} tyres in the page", flush=True)


def main() -> int:
    """Live the week; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tyre_lightning.demo.week", description=__doc__)
    parser.parse_args()
    try:
        live_week()
    except KeyboardInterrupt:
        print("\ninterrupted; the S3 server is stopped", file=sys.stderr)
        return 130
    return 0


def live_week() -> None:
    """The whole story, top to bottom.

    Raises:
        UserError: a command fails, or there is no browser.
    """
    started = time.monotonic()
    Person.check()
    draw_all(FOLDER)
    for name in ("mlflow.db", "mlruns", "answers", "outputs", *(day.name for day in DAYS), "lake/tyres/v2"):
        left = FOLDER / name  # of an earlier week
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    with S3Server(FOLDER / "lake", static=True) as server:  # all is drawn by now, and what comes is put through it
        environment = server.client_environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{FOLDER / 'mlflow.db'}"}
        week = Week(FOLDER, Shell(environment))
        week.begin()
        for day in DAYS[:3]:
            week.live(day)
        week.learn()
        week.live(DAYS[3])
        page = tell(week.chapters, FOLDER, environment["MLFLOW_TRACKING_URI"])
    print(f"\nthe week in {time.monotonic() - started:.0f} s: {page}")


def draw_all(folder: Path) -> None:
    """Draw the lake and the days, unless an earlier week has."""
    done = folder / "drawn"
    if done.is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)  # half a lake, of one that was interrupted
    cores = os.cpu_count() or 1
    total = len(CLASSES) * sum(COUNTS.values()) + sum(sum(day.counts.values()) for day in DAYS)
    with Progress() as progress:
        task = progress.add_task("drawing tyres", total=total)
        write_lake(folder / "lake" / "tyres" / "v1", COUNTS, clear=True, progress=lambda: progress.advance(task))
        for day in DAYS:
            truth = folder / "truth" / f"{day.name}.json"
            truth.parent.mkdir(parents=True, exist_ok=True)
            write_day(folder / "lake" / "line" / day.name, truth, day, cores)
            progress.advance(task, sum(day.counts.values()))
    done.touch()


if __name__ == "__main__":
    sys.exit(run_plainly(main))
