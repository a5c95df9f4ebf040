"""``python -m tyre_lightning.demo.week``: a plant's week on drawn tyres, in minutes.

The line runs a champion, the lamp fades, a defect comes that nobody has photographed. Each evening the day is watched,
a person answers in the page, and from the answers come the next data version, a better model and the gate. Each step is
the ordinary command, on a real S3 server, with MLflow and a browser. Since the tyres are drawn, their truth is known:
the last page shows it beside what the commands told.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from tyre_lightning.commands import ALARM, NOT_PROMOTED
from tyre_lightning.cores import cores
from tyre_lightning.demo.days import Day, write_day
from tyre_lightning.demo.drawing import CLASSES, NEW, write_lake
from tyre_lightning.demo.person import Person
from tyre_lightning.demo.server import S3Server
from tyre_lightning.demo.shell import Shell
from tyre_lightning.demo.story import Chapter, tell
from tyre_lightning.surroundings import run_plainly

FOLDER = Path("demo", "week")  # in which the week is lived; the other places lie in it
LAKE, TRUTH = Path("lake"), Path("truth")
QUEUES, ANSWERS = "queue='day-*/queue.parquet'", "answers=answers"
MODEL = "tyre-week"
CHAMPION = f"model=models:/{MODEL}@champion"
COUNTS = {"train": 80, "val": 32, "test": 50}  # images of each class: 150 defective test tyres, or no gate can pass
_MIX = {"good": 60, **dict.fromkeys(CLASSES[1:], 15)}
_LATE = {"light": 0.6, "blur": 1.5}
DAYS = (
    Day("day-1", "the champion's first day", _MIX, 40),
    Day("day-2", "the lamp is dimmer and the camera loses focus", _MIX, 60, **_LATE),
    Day("day-3", f"a defect that nobody has photographed: {NEW}", _MIX | {NEW: 60}, 165, **_LATE),
    Day("day-4", "the same lamp and defects, and a model that has learnt of them", _MIX | {NEW: 60}, 60, **_LATE),
)
_LEFT = ("mlflow.db", "mlruns", "answers", "outputs", "left-out.jsonl", *(day.name for day in DAYS))


@dataclass
class Week:
    """What has happened so far.

    Args:
        shell: gives commands.
        chapters: of the days that are over.
    """

    shell: Shell
    chapters: list[Chapter] = field(default_factory=list)

    def begin(self) -> None:
        """The first model, which becomes the champion."""
        self._train("v1")

    def live(self, day: Day) -> None:
        """A day and its evening."""
        place, window = Path(day.name), f"input=s3://line/{day.name}"
        place.mkdir()
        predictions, queue = place / "predictions.parquet", place / "queue.parquet"
        self.shell.give("predict", CHAMPION, window, f"output={predictions}")
        watched = self.shell.give("watch", CHAMPION, window, f"output={place / 'watch.html'}", allowed=(0, ALARM))
        if not self.chapters:
            self.shell.give(
                "watch", "accept", CHAMPION, window, f"name={day.name}", f"output={place / 'accepted.html'}"
            )
        self.shell.give("select", f"predictions={predictions}", f"output={queue}", f"budget={day.budget}")
        with self.shell.serve("review", f"queue={queue}", ANSWERS) as address, Person(TRUTH) as person:
            answered = person.answer(address)
        print(f"  a person has answered {answered} tyres in the page", flush=True)
        broken = self.shell.give("rates", QUEUES, ANSWERS, allowed=(0, ALARM))
        self.chapters.append(Chapter(day, place, watched == ALARM, broken == ALARM))

    def learn(self) -> None:
        """From all answers comes the next data version, and from it a challenger."""
        shares = "val=0.1", "test=0.4"  # the lake has few pictures of what the line sees now
        self.shell.give("accept", ANSWERS, QUEUES, "from=s3://tyres/v1", "to=s3://tyres/v2", *shares)
        self._train("v2", allowed=(0, NOT_PROMOTED))

    def _train(self, version: str, allowed: Sequence[int] = (0,)) -> None:
        names = f"logger.experiment={MODEL}", f"logger.registered_model={MODEL}"
        self.shell.give("train", "experiment=demo", f"data.root=s3://tyres/{version}", *names)
        self.shell.give("promote", f"model={MODEL}", allowed=allowed)


def main() -> int:
    """Live the week; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tyre_lightning.demo.week", description=__doc__)
    parser.parse_args()
    Person.check()
    FOLDER.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        with contextlib.chdir(FOLDER):
            draw_all()
            page = live_week()
    except KeyboardInterrupt:
        print("\ninterrupted; the S3 server is stopped", file=sys.stderr)
        return 130
    print(f"\nthe week, with the drawing, took {time.monotonic() - started:.0f} s: {FOLDER / page}")
    return 0


def draw_all() -> None:
    """Draw the lake and the days, unless an earlier week has."""
    done = LAKE / "drawn"
    if done.is_file():
        return
    shutil.rmtree(LAKE, ignore_errors=True)  # half a lake, of a week that was interrupted
    TRUTH.mkdir(exist_ok=True)
    total = len(CLASSES) * sum(COUNTS.values()) + sum(sum(day.counts.values()) for day in DAYS)
    with Progress() as progress:
        task = progress.add_task("drawing tyres", total=total)
        write_lake(LAKE / "tyres" / "v1", COUNTS, clear=True, progress=lambda: progress.advance(task))
        for day in DAYS:
            write_day(LAKE / "line" / day.name, TRUTH / f"{day.name}.json", day, cores())
            progress.advance(task, sum(day.counts.values()))
    done.touch()


def live_week() -> Path:
    """The whole story, top to bottom; gives the last page.

    Raises:
        UserError: a command fails.
    """
    for left in (*map(Path, _LEFT), LAKE / "tyres" / "v2"):  # of an earlier week
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    with S3Server(LAKE, static=True) as server:  # all is drawn by now, and what comes is put through it
        environment = server.client_environment() | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
        week = Week(Shell(environment))
        week.begin()
        for day in DAYS[:3]:
            week.live(day)
        week.learn()
        week.live(DAYS[3])
        return tell(week.chapters, LAKE, TRUTH, environment["MLFLOW_TRACKING_URI"], MODEL)


if __name__ == "__main__":
    sys.exit(run_plainly(main))
