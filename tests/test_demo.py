"""``make demo`` and ``make notebooks``, as they are."""

import csv
import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

import tyre_lightning.demo.__main__ as demo
from tests import warm
from tests.browser import browser_tests, chromium, open_page, resize
from tests.conftest import PROJECT, TINY, untracked_environment
from tests.mlflow_server import lay_database
from tests.test_notebooks import NOTEBOOKS, pictures, shown
from tyre_lightning.demo import week
from tyre_lightning.demo.drawing import NEW
from tyre_lightning.demo.shell import Shell
from tyre_lightning.errors import UserError


@pytest.mark.long
def test_a_small_demo_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = (*TINY, "operating_point.max_escape_rate=0.25", "operating_point.confidence=0.8")

    def call(environment: dict[str, str], verb: str, *arguments: str) -> int:
        command = ["-m", "tyre_lightning", verb, *arguments, *(small if verb == "train" else ())]
        return warm.run(command, tmp_path, environment, timeout=300).returncode

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    lay_database(tmp_path / "mlflow.db")
    monkeypatch.setattr(sys, "argv", ["tyre demo"])
    monkeypatch.setattr(demo, "COUNTS", {"train": 3, "val": 4, "test": 2, "new": 2})
    monkeypatch.setattr(demo, "call", call)
    assert demo.main() == 0
    said = capsys.readouterr().out.partition("verdicts on new pictures")[2]
    check_verdicts(said, tmp_path, 8)
    report = re.search(r"  report +(.+)", said)
    assert report and "flat_spot" in (tmp_path / report[1]).read_text(encoding="utf-8")
    assert 0 <= percent(said, "accuracy") <= 100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_learns_and_cleans_up_and_its_notebooks_run(tmp_path: Path) -> None:
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"  # by name, for the notebooks work in the project's folder
    environment = {**untracked_environment(), "AWS_PROFILE": "of-the-user", "MLFLOW_TRACKING_URI": tracking}
    command = [sys.executable, "-m", "tyre_lightning.demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    check_last_screen(done.stdout.partition("verdicts on new pictures")[2], tmp_path)
    committed = [path.read_bytes() for path in NOTEBOOKS]
    environment["TYRE_DATA_ROOT"] = str(tmp_path / "demo" / "lake" / "tyres" / "v1")  # its S3 server has stopped
    command = [sys.executable, str(PROJECT / "notebooks" / "execute.py"), *map(str, NOTEBOOKS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [path.read_bytes() for path in NOTEBOOKS] == committed
    assert len(re.findall(r"\.ipynb took \d+ s", done.stdout)) == 2
    check_notebooks(tmp_path / "outputs" / "notebooks")
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], check=False, capture_output=True).stdout == b""


def check_last_screen(said: str, folder: Path) -> None:
    """It has verdicts as they were predicted, a promise that is cheap, and files and commands that are there."""
    check_verdicts(said, folder, 24)
    assert percent(said, "accuracy") >= 90  # guessing reaches 25
    assert "at most 5% of defective tyres pass as good, with a confidence of 95%" in said
    assert percent(said, "overkill") <= 20  # of 25 good tyres
    report = re.search(r"  report +(.+)", said)
    assert report and "flat_spot" in (folder / report[1]).read_text(encoding="utf-8")
    command = re.search(r"tyre (predict model=models:/tyre-demo/1 input=\S+)", said)
    assert command and (folder / command[1].partition("input=")[2]).is_dir()


def check_verdicts(said: str, folder: Path, count: int) -> None:
    """They are those of the predictions file."""
    rows = list(csv.DictReader((folder / "demo" / "predictions.csv").open()))
    assert len(rows) == count
    told = [tuple(line.split()) for line in said.splitlines() if " new/" in line]
    found = {(row["key"], row["class"], row["decision"], f"{1 - float(row['p_good']):.3f}") for row in rows}
    assert len(told) == 8 and {*told} <= found


def percent(said: str, name: str) -> float:
    """The share that a line begins with."""
    found = re.search(rf"  {name} +([\d.]+)%", said)
    assert found, said
    return float(found[1])


def test_the_last_screen_counts_all_verdicts_and_fits_a_terminal() -> None:
    rows = [
        {"key": f"new/{label}/{number:016x}.jpg", "class": label, "decision": decision, "p_good": "0.25"}
        for label, decision in {"good": "accept", "crack": "accept", "bulge": "reject", "flat_spot": "reject"}.items()
        for number in range(3)
    ]
    table = demo.verdicts(rows)
    assert "3 of 3 good tyres are accepted, 6 of 9 defective ones rejected" in table
    assert "new/flat_spot/0000000000000001.jpg" in table and "0000000000000002" not in table
    assert max(map(len, table.splitlines())) <= 80


def check_notebooks(folder: Path) -> None:
    """They tell of the demo's lake and runs, in pictures too."""
    explored, compared = folder / "01_explore_data.ipynb", folder / "02_compare_runs.ipynb"
    assert "628 images in 4 classes, 0 unreadable" in shown(explored)
    assert "0 pairs lie in different usages" in shown(explored)  # test_notebooks has a lake with copies
    assert pictures(explored) >= 6  # counts, sizes and brightness, and a contact sheet of each class
    assert "models:/tyre-demo/1" in shown(compared)
    assert pictures(compared) == 4  # curves, test metrics, the confusion matrix, errors


def test_makefile_lists_its_targets() -> None:
    done = subprocess.run(["make", "-C", str(PROJECT), "help"], capture_output=True, text=True, check=True)
    for target in ("demo", "ui", "test", "lint", "notebooks"):
        assert f"make {target} " in done.stdout


class Few(Shell):
    """Gives commands that ask for less, since they have so few tyres."""

    _MORE: ClassVar[Mapping[str, Sequence[str]]] = {
        "train": (*TINY, "data.image_size=64", "trainer.max_epochs=3", "callbacks.ema.decay=null",
                  "operating_point.max_escape_rate=0.3", "operating_point.confidence=0.8"),
        "promote": ("gate.margin=0.5", "gate.max_escape_rate=0.999", "gate.max_overkill_rate=0.999",
                    "gate.min_f1=0.01"),
    }  # fmt: skip

    def give(self, verb: str, *arguments: str, allowed: Sequence[int] = (0,)) -> int:
        return super().give(verb, *arguments, *self._MORE.get(verb, ()), allowed=allowed)


long_tests = [*browser_tests, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def own_fork_server() -> Iterator[None]:
    """One for what a test starts: others would get its environment and its folder too."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined] # which Python's own tests do likewise
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    multiprocessing.set_forkserver_preload(["__main__"])


class TestWeek:
    pytestmark = long_tests

    @pytest.mark.usefixtures("own_fork_server")
    def test_a_small_week_goes_the_whole_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["week"])
        monkeypatch.setattr(week, "COUNTS", {"train": 6, "val": 6, "test": 4})
        monkeypatch.setattr(week, "Shell", Few)
        few = {"good": 30, "crack": 8, "bulge": 8, "flat_spot": 8}
        days = [replace(day, budget=14, counts=few | ({NEW: 6} if NEW in day.counts else {})) for day in week.DAYS]
        monkeypatch.setattr(week, "DAYS", days)
        code = week.main()
        said = capfd.readouterr()
        assert code == 0, said.err[-2000:]
        assert said.out.count("a person has answered 14 tyres in the page") == 4
        place = tmp_path / "demo" / "week"
        shown = (place / "week.html").read_text(encoding="utf-8")
        for day in days:
            truth = json.loads((place / "truth" / f"{day.name}.json").read_text())
            rows = pd.read_parquet(place / day.name / "predictions.parquet")
            defective = rows["key"].map(lambda key, truth=truth: truth[key.rpartition("/")[2]] != "good")
            escaped = int((defective & (rows["decision"] == "accept")).sum())
            assert f"{escaped} of {sum(defective)} defective tyres" in shown
        assert {path.name for path in (place / "lake" / "tyres" / "v2" / "train").iterdir()} >= {"good", "crack"}
        assert subprocess.run(["pgrep", "-f", str(tmp_path)], check=False, capture_output=True).stdout == b""
        with chromium(tmp_path / "profile") as driver:
            for width in (1280, 390):
                resize(driver, width)
                open_page(driver, (place / "week.html").as_uri())
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width
                assert len(driver.find_elements("css selector", "section")) == 4


def test_a_week_without_a_browser_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["week"])
    monkeypatch.setattr("shutil.which", lambda name, **_: None)
    with pytest.raises(UserError, match=r"a person needs a browser: apt-get install .* chromium chromium-driver"):
        week.main()
    assert not [*tmp_path.iterdir()]
