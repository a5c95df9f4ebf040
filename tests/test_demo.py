"""``make demo`` and ``make notebooks``, as they are."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, untracked_environment
from tests.test_notebooks import NOTEBOOKS, pictures, shown


@pytest.mark.timeout(900)
def test_the_demo_learns_and_cleans_up_and_its_notebooks_run(tmp_path: Path) -> None:
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"  # by name, for the notebooks work in the project's folder
    environment = {**untracked_environment(), "AWS_PROFILE": "of-the-user", "MLFLOW_TRACKING_URI": tracking}
    command = [sys.executable, "-m", "tyre_lightning.demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    accuracy = re.search(r"test accuracy\s+([\d.]+)%", done.stdout)
    assert accuracy
    assert float(accuracy[1]) > 50  # guessing reaches 25
    assert "models:/tyre-demo/1" in done.stdout
    rows = list(csv.DictReader((tmp_path / "demo" / "predictions.csv").open()))
    assert len(rows) == 24
    committed = [path.read_bytes() for path in NOTEBOOKS]
    environment["TYRE_DATA_ROOT"] = str(tmp_path / "demo" / "lake" / "tyres" / "v1")  # its S3 server has stopped
    command = [sys.executable, str(PROJECT / "notebooks" / "execute.py"), *map(str, NOTEBOOKS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [path.read_bytes() for path in NOTEBOOKS] == committed
    assert len(re.findall(r"\.ipynb took \d+ s", done.stdout)) == 2
    check_notebooks(tmp_path / "outputs" / "notebooks")
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], check=False, capture_output=True).stdout == b""


def check_notebooks(folder: Path) -> None:
    """They tell of the demo's lake and runs, in pictures too."""
    explored, compared = folder / "01_explore_data.ipynb", folder / "02_compare_runs.ipynb"
    assert "500 images in 4 classes, 0 unreadable" in shown(explored)
    assert "0 pairs lie in different usages" in shown(explored)  # test_notebooks has a lake with copies
    assert pictures(explored) >= 6  # counts, sizes and brightness, and a contact sheet of each class
    assert "models:/tyre-demo/1" in shown(compared)
    assert pictures(compared) == 4  # curves, test metrics, the confusion matrix, errors


def test_makefile_lists_its_targets() -> None:
    done = subprocess.run(["make", "-C", str(PROJECT), "help"], capture_output=True, text=True, check=True)
    for target in ("demo", "ui", "test", "lint", "notebooks"):
        assert f"make {target} " in done.stdout
