"""``python -m tyre_lightning.demo``: the whole path on drawn tyre images.

An embedded S3 server is filled with pictures; the ordinary commands do the rest with experiment=demo.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from tyre_lightning.config import DEFAULT_TRACKING_URI
from tyre_lightning.demo.drawing import CLASSES, write_lake
from tyre_lightning.demo.server import S3Server
from tyre_lightning.surroundings import run_plainly
from tyre_lightning.telling import near
from tyre_lightning.tracking.pages import run_list
from tyre_lightning.tracking.runs import REPORT, connect, find_artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PROJECT = Path(__file__).parents[2]
LAKE = Path("demo", "lake")
BUCKET = "tyres"
PREDICTIONS = Path("demo", "predictions.csv")
# Images of each class. "val" has 96 defective tyres, by which a promise of 5 % survives one that is hard to see; "new"
# are for prediction.
COUNTS = {"train": 100, "val": 32, "test": 25, "new": 6}
MODEL = "tyre-demo"
_SHOWN = 2  # verdicts on each class


def main() -> int:
    """Run the demo; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tyre_lightning.demo", description=__doc__)
    parser.parse_args()
    started = time.monotonic()
    draw_lake()
    try:
        with S3Server(LAKE, static=True) as server:
            return run_demo(server.client_environment(), started)
    except KeyboardInterrupt:
        print("\ninterrupted; the S3 server is stopped", file=sys.stderr)
        return 130


def run_demo(environment: dict[str, str], started: float) -> int:
    """Train on the bucket, then predict on pictures that the model has not seen."""
    root = f"s3://{BUCKET}/v1"
    code = call(environment, "train", "experiment=demo", f"data.root={root}")
    if code:
        return code
    model = newest_model()
    arguments = [f"model=models:/{MODEL}/{model.version}", f"input={root}/new", f"output={PREDICTIONS}"]
    code = call(environment, "predict", *arguments)
    if code:
        return code
    print(last_screen(model, time.monotonic() - started))
    return 0


def draw_lake() -> None:
    """Draw the pictures, unless an earlier demo has."""
    folder = LAKE / BUCKET / "v1"
    if folder.is_dir():
        return
    partial = LAKE / BUCKET / ".v1"  # so that an interrupt leaves no half a lake behind
    shutil.rmtree(partial, ignore_errors=True)
    with Progress() as progress:
        task = progress.add_task("drawing tyres", total=len(CLASSES) * sum(COUNTS.values()))
        write_lake(partial, COUNTS, clear=True, progress=lambda: progress.advance(task))
    partial.rename(folder)


def call(environment: dict[str, str], verb: str, *arguments: str) -> int:
    """Give a command as a user would, and show it."""
    print(f"\n$ tyre {verb} {' '.join(arguments)}", flush=True)
    return wait(subprocess.Popen([sys.executable, "-m", "tyre_lightning", verb, *arguments], env=environment))


def wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, which has the user's Ctrl-C too and ends by itself, after saving."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def newest_model() -> ModelVersion:
    """The version that the demo's training has just registered."""
    found = client().search_model_versions(f"name='{MODEL}'")
    return max(found, key=lambda version: int(version.version))


def client() -> MlflowClient:
    """A client of where train.py has just recorded."""
    return connect(os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_TRACKING_URI))


def last_screen(model: ModelVersion, seconds: float) -> str:
    """What the product is, by what it has just done: verdicts, promise and cost, the report, what to do next."""
    with PREDICTIONS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    mlflow, uri = client(), f"models:/{MODEL}/{model.version}"
    run = mlflow.get_run(str(model.run_id))
    return f"""
verdicts on new pictures, which the model had not seen; all {len(rows)} are in {PREDICTIONS}
{verdicts(rows)}

what the model is worth
{worth(run.data.metrics, run.data.params)}
  report     {near(find_artifact(mlflow, run.info.run_id, REPORT))}
  model      {uri}
  time       {seconds:.0f} s, the drawing included

what to do next{on_the_path()}
  make ui
             shows the runs: http://localhost:5000/{run_list(run.info.experiment_id)}
  tyre predict model={uri} input={LAKE / BUCKET}/v1/new explain=true
             shows where the model saw each defect
  tyre train data.root=FOLDER
             learns from pictures of yours: FOLDER/train/CLASS/... and FOLDER/test/CLASS/..."""


def verdicts(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of the first pictures of each class, and how many of all are decided rightly.

    Args:
        rows: of the predictions file; the folder of a picture is the class of which it was drawn.
    """
    drawn = {label: [row for row in rows if row["key"].split("/")[-2] == label] for label in CLASSES}
    lines = [f"  {'picture':<36}{'class':<11}{'decision':<10}P(defective)"]
    for row in (row for label in CLASSES for row in drawn[label][:_SHOWN]):
        lines.append(f"  {row['key']:<36}{row['class']:<11}{row['decision']:<10}{1 - float(row['p_good']):>12.3f}")
    good = [row["decision"] for row in drawn["good"]]
    bad = [row["decision"] for label in CLASSES if label != "good" for row in drawn[label]]
    right = f"{good.count('accept')} of {len(good)} good tyres are accepted, {bad.count('reject')} of {len(bad)}"
    return "\n".join([*lines, f"  {right} defective ones rejected"])


def worth(metrics: Mapping[str, float], params: Mapping[str, str]) -> str:
    """How good the model is on the test images, what is promised of new tyres, and what that costs."""
    rate, confidence = (float(params[f"operating_point.{name}"]) for name in ("max_escape_rate", "confidence"))
    guess = 1 / len(CLASSES)
    return f"""  accuracy   {metrics["test/accuracy"]:.1%} of the test images; guessing gets {guess:.1%}
  promise    at most {rate:.0%} of defective tyres pass as good, with a confidence of {confidence:.0%}
  escape     {metrics["test/escape_rate"]:.1%} of the defective test tyres pass
  overkill   {metrics["test/overkill_rate"]:.1%} of the good test tyres are rejected: what the promise costs"""


def on_the_path() -> str:
    """How to have ``tyre`` on the path, where it is not."""
    script = Path(sys.prefix, "bin", "activate")
    return f"\n  source {near(script)}" if shutil.which("tyre") is None and script.is_file() else ""


def start() -> int:
    """The command line; gives the exit code."""
    return run_plainly(main)


if __name__ == "__main__":
    sys.exit(start())
