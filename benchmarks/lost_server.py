"""What a tracking server costs a training that loses it for a minute: ``python benchmarks/lost_server.py LAKE``.

LAKE has ``train/<class>/<file>``. A real ``mlflow server`` is killed in mid-training and started again; the times of
the steps come from the run's own journal, and what the server has in the end is compared with it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.mlflow_server import MlflowServer
from tyre_lightning.tracking.journal import Journal

TRAIN = Path(__file__).parents[1] / "train.py"
STEP = "train/loss_step"
_BEFORE = 20  # steps that the server sees


def steps(journal: Journal) -> list[tuple[int, int]]:
    """Number and time, in milliseconds, of the steps so far."""
    return [(one["step"], one["timestamp"]) for one in journal.of_kind("metrics") if STEP in one["values"]]


def wait_for(folder: Path, training: subprocess.Popen[str], count: int) -> Journal:
    """Wait until a training has done so many steps; gives its journal."""
    while training.poll() is None:
        found = [Journal(path.parent) for path in folder.glob("outputs/train/*/tracking/run.json")]
        if found and len(steps(found[0])) >= count:
            return found[0]
        time.sleep(0.2)
    raise SystemExit("the training ended early")


def median(times: Sequence[tuple[int, int]], begin: float, end: float) -> str:
    """The median time of the steps between two moments, in milliseconds; the pause between epochs is not in it."""
    found = [after - before for (_, before), (_, after) in pairwise(times) if begin < after < end]
    return f"{statistics.median(found):.0f} ms ({len(found)} steps)" if found else "no step"


def main() -> None:
    """Train, lose the server, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--away", type=float, default=60.0, help="seconds")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch, MlflowServer(Path(scratch)) as server:
        (folder := Path(scratch, "work")).mkdir()
        command = [
            sys.executable, str(TRAIN), f"data.root={options.lake.resolve()}", "trainer.log_every_n_steps=1",
            f"logger.tracking_uri={server.uri}", "trainer.enable_progress_bar=false", *overrides,
        ]  # fmt: skip
        training = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        journal = wait_for(folder, training, _BEFORE)
        killed = 1000 * time.time()
        server.kill()
        time.sleep(options.away)
        away = 1000 * time.time()
        server.start()
        output, _ = training.communicate()
        if training.returncode:
            sys.exit(output[-3000:])
        print("\n".join(line for line in output.splitlines() if "tracking server" in line))
        times = steps(journal)
        print(f"a step before: {median(times, 0, killed)}; without the server: {median(times, killed, away)}; "
              f"after: {median(times, away, 1e18)}")  # fmt: skip
        client, run_id = MlflowClient(server.uri), journal.run()["run_id"]
        had = [(point.step, point.timestamp) for point in client.get_metric_history(run_id, STEP)]
        print(f"{len(times)} steps, of which the server has {len(had)}: the same, {sorted(had) == sorted(times)}")
        versions = client.search_model_versions(f"run_id='{run_id}'")
        print(f"{client.get_run(run_id).info.status}, {len(versions)} version of the model")


if __name__ == "__main__":
    main()
