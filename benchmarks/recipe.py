"""How good the default recipe is on a lake of real images, served from S3.

``python benchmarks/recipe.py LAKE [override ...] [--seeds 0 1 2]``, where LAKE is a folder ``.../<bucket>/<version>``.
Trains with train.py as a user would, once for each seed, and prints test metrics and minutes, then mean and spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient

from tyre_lightning.demo.server import S3Server
from tyre_lightning.tracking.tables import METRICS_TABLE

TRAIN = Path(__file__).parents[1] / "train.py"
ENDS = {"": "value", "_low": "low", "_high": "high"}
RATES = tuple(f"{name}_rate{end}" for name in ("escape", "overkill") for end in ENDS)
METRICS = ("f1", "accuracy", "auroc_defective", "ece_uncalibrated", "ece", *RATES)


def train(root: str, seed: int, overrides: list[str], environment: dict[str, str]) -> tuple[dict[str, float], float]:
    """Test metrics and minutes of one training."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAIN), f"data.root={root}", f"seed={seed}", *overrides]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        minutes = (time.monotonic() - started) / 60
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        run = client.search_runs([e.experiment_id for e in client.search_experiments()])[0]
        path = client.download_artifacts(run.info.run_id, METRICS_TABLE, folder)
        table = pd.DataFrame(**json.loads(Path(path).read_text(encoding="utf-8")))
        rows = table[(table["usage"] == "test") & (table["class"] == "")].set_index("metric")
        found = {
            f"{metric}{end}": float(value)
            for end, column in ENDS.items()
            for metric, value in rows[column].dropna().items()
        }
        return {name: found[name] for name in METRICS if name in found}, minutes


def main() -> None:
    """Print a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, overrides = parser.parse_known_args()
    lake = options.lake.resolve()
    rows = []
    with S3Server(lake.parents[1], static=True) as server:
        environment = server.client_environment()
        for seed in options.seeds:
            metrics, minutes = train(f"s3://{lake.parent.name}/{lake.name}", seed, overrides, environment)
            rows.append(metrics)
            values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            print(f"seed {seed}: {values}  {minutes:.1f} min", flush=True)
    for name in rows[0]:
        scores = [row[name] for row in rows]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        print(f"{name}: mean {statistics.mean(scores):.4f}, standard deviation {spread:.4f}")


if __name__ == "__main__":
    main()
