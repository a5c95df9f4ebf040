"""The notebooks: committed without outputs, and executed as a user would; test_demo executes them on the demo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tyre_lightning.demo.server import FOREIGN_VARIABLES
from tyre_lightning.tracking.runs import connect, open_experiment
from tyre_lightning.tracking.sweeps import PARENT_TAG, SWEEP_TAG

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, output: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run notebooks/execute.py as a user would."""
    command = [sys.executable, str(FOLDER / "execute.py"), "--output", str(output), str(path)]
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, timeout=500)


def cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def shown(path: Path) -> str:
    """Everything that an executed notebook says: prints, and what its cells end in."""
    outputs = [item for cell in cells(path) for item in cell["outputs"]]
    texts = [item.get("text") or item.get("data", {}).get("text/html") or [] for item in outputs]
    return "".join("".join(text) for text in texts)


def pictures(path: Path) -> int:
    """How many pictures an executed notebook shows."""
    return sum("image/png" in item.get("data", {}) for cell in cells(path) for item in cell["outputs"])


def write_notebook(path: Path, *sources: str) -> Path:
    """A notebook of some code cells."""
    made: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for n, source in enumerate(sources)
    ]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path: Path) -> None:
    for cell in cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert cell["metadata"] == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_names_no_absolute_path(path: Path) -> None:
    for cell in cells(path):
        assert not re.search(r"[\"']/\w", "".join(cell["source"]))


@pytest.mark.slow
@pytest.mark.long
def test_explores_a_bucket(trained: Any, tmp_path: Path) -> None:
    before = (FOLDER / "01_explore_data.ipynb").read_bytes()
    done = execute(
        FOLDER / "01_explore_data.ipynb", tmp_path, **{**trained.environment, "TYRE_DATA_ROOT": trained.root}
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"01_explore_data\.ipynb took \d+ s", done.stdout)
    copy = tmp_path / "01_explore_data.ipynb"
    assert "images in 4 classes, 0 unreadable" in shown(copy)
    assert re.search(r"\d+ pairs lie in different usages", shown(copy))
    assert pictures(copy) >= 7  # counts, sizes and brightness, a contact sheet of each class, doubted labels
    assert (FOLDER / "01_explore_data.ipynb").read_bytes() == before


@pytest.mark.slow
@pytest.mark.long
def test_compares_runs_a_sweep_among_them(trained: Any, tmp_path: Path) -> None:
    client = connect(trained.tracking_uri)
    experiment = open_experiment(client, trained.experiment)
    sweep = client.create_run(experiment, run_name="a sweep", tags={PARENT_TAG: "true", SWEEP_TAG: "somewhere"})
    failed = client.create_run(experiment, run_name="broken off", tags={SWEEP_TAG: "somewhere"})
    try:
        where = {"MLFLOW_EXPERIMENT_NAME": trained.experiment, "TYRE_DATA_ROOT": str(trained.local)}
        done = execute(FOLDER / "02_compare_runs.ipynb", tmp_path, **{**trained.environment, **where})
    finally:
        for run in (sweep, failed):
            client.delete_run(run.info.run_id)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "02_compare_runs.ipynb"
    assert "broken off" in shown(copy) and "a sweep" not in shown(copy)
    assert "macro F1" in shown(copy) and "models:/tyre-demo/1" in shown(copy)
    assert pictures(copy) == 4  # curves, test metrics, the confusion matrix, errors


@pytest.mark.long
def test_says_what_to_do_where_there_are_no_runs(trained: Any, tmp_path: Path) -> None:
    tracking = {"MLFLOW_TRACKING_URI": trained.tracking_uri, "MLFLOW_EXPERIMENT_NAME": "none-yet"}
    done = execute(FOLDER / "02_compare_runs.ipynb", tmp_path, **tracking)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: 02_compare_runs.ipynb, cell 3: the experiment 'none-yet' has no runs yet: train")


def test_names_the_failing_cell(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "broken.ipynb", "print('fine')", "def half(x):\n    return x / 0\n\nhalf(1)", "2")
    done = execute(path, tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "error: broken.ipynb, cell 2: ZeroDivisionError: division by zero\n")
    assert "fine" in shown(tmp_path / "out" / "broken.ipynb")


def test_says_that_python_has_ended(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "dies.ipynb", "1", "import os\nos._exit(3)")
    done = execute(path, tmp_path / "out")
    assert done.returncode == 1
    assert "error: dies.ipynb, cell 2: Python itself has ended" in done.stderr


def test_says_that_a_notebook_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.ipynb").write_text("no notebook")
    done = execute(tmp_path / "text.ipynb", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: text.ipynb, it cannot be read: ")
