"""``python -m tyre_lightning.demo``: the whole path on drawn tyre images.

An embedded S3 server is filled with pictures; the ordinary commands do the rest with experiment=demo.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from tyre_lightning.config import DEFAULT_TRACKING_URI
from tyre_lightning.demo.drawing import CLASSES, write_lake
from tyre_lightning.demo.server import S3Server
from tyre_lightning.surroundings import run_plainly
from tyre_lightning.tracking.runs import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PROJECT = Path(__file__).parents[2]
LAKE = Path("demo", "lake")
BUCKET = "tyres"
COUNTS = {"train": 100, "test": 25, "new": 6}  # images of each class; "new" are for prediction
MODEL = "tyre-demo"


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
    arguments = [f"model=models:/{MODEL}/{model.version}", f"input={root}/new", "output=demo/predictions.csv"]
    code = call(environment, "predict", *arguments)
    if code:
        return code
    print(summary(model, time.monotonic() - started))
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
        write_lake(partial, COUNTS, progress=lambda: progress.advance(task))
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


def summary(model: ModelVersion, seconds: float) -> str:
    """Where everything is, and what it came to."""
    metrics = client().get_run(str(model.run_id)).data.metrics
    return f"""
The demo took {seconds:.0f} s.
  test accuracy  {metrics["test/accuracy"]:.1%} (guessing the largest class: {1 / len(CLASSES):.1%})
  images         {LAKE / BUCKET}
  model          models:/{MODEL}/{model.version}
  predictions    demo/predictions.csv
  runs           make ui, then http://localhost:5000"""


def start() -> int:
    """The command line; gives the exit code."""
    return run_plainly(main)


if __name__ == "__main__":
    sys.exit(start())
