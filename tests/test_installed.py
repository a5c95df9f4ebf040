"""The wheel is the whole product: built, installed elsewhere, and used from another folder."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from tests.conftest import PROJECT, TINY, untracked_environment, write_images
from tests.mlflow_server import lay_database
from tests.once import once
from tyre_lightning.commands import COMMANDS

BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "tyre_lightning", "conf")
OFFLINE = ("--no-index", "--no-deps", "--quiet", "--disable-pip-version-check")
MISTAKES = {
    "train": ("model=efficientnet_b22", "there is no model=efficientnet_b22: did you mean efficientnet_b2?"),
    "predict": ("model=x", "input is not set: give model=... and input=..."),
    "audit": ("outptu=x", "unknown config key 'outptu': did you mean 'output'?"),
    "promote": ("gate.margin=0", "gate.margin=0.0 must be between 0 and 1"),
    "export": ("output=x.onnx", "model is not set: give model=models:/NAME/VERSION"),
    "resend": ("folder=none", "there is no folder none: give folder=... of a run"),
    "select": ("budget=0", "predictions is not set: give predictions=... of the file that predict.py wrote"),
    "review": ("overlap=2", "overlap=2.0 must be from 0 to 1"),
    "recalibrate": ("model=x", "model=x is no registered version: give model=models:/NAME/VERSION"),
    "rates": ("confidence=1", "confidence=1.0 must be between 0 and 1"),
    "accept": ("val=2", "from is not set: give from=... of the version before"),
    "watch": ("tyres=1", "model is not set: give model=... and input=..."),
    "serve": ("queue=0", "model is not set: give model=models:/NAME@ALIAS"),
    "inbox": ("model=x", "input is not set: give model=... and input=..."),
}


# In one process, since each takes seconds to begin.
TWO_COMMANDS = """
import ast, sys
from tyre_lightning.__main__ import main
for arguments in ast.literal_eval(sys.argv[1]):
    sys.argv = ["tyre", *arguments]
    if code := main():
        sys.exit(code)
"""


@dataclass(frozen=True)
class Installed:
    """The product in a place of its own."""

    wheel: Path
    site: Path

    def tyre(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Give its command in a folder."""
        return self.python(folder, str(self.site / "bin" / "tyre"), *arguments)

    def python(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Python that finds the product there."""
        environment = {**untracked_environment(), "PYTHONPATH": str(self.site)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed() -> Installed:
    place = once("installed", build)
    (wheel,) = place.glob("*.whl")
    return Installed(wheel, place / "site")


def build(place: Path) -> None:
    """From a copy: setuptools writes beside what it builds from, and keeps what it finds there."""
    for name in BUILT_FROM:
        source, copy = PROJECT / name, place / "source" / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
    pip(["wheel", "--no-build-isolation", "--wheel-dir", str(place), str(place / "source")])
    (wheel,) = place.glob("*.whl")
    pip(["install", "--target", str(place / "site"), str(wheel)])


def pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments, *OFFLINE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_every_module_page_and_config(installed: Installed) -> None:
    inside = {name for name in ZipFile(installed.wheel).namelist() if ".dist-info/" not in name}
    package = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tyre_lightning").rglob("*.*")}
    configs = {f"tyre_lightning/{path.relative_to(PROJECT).as_posix()}" for path in (PROJECT / "conf").rglob("*.yaml")}
    assert inside == {name for name in package if "__pycache__" not in name} | configs
    assert len(configs) > 20


def test_the_wheel_says_what_it_is(installed: Installed) -> None:
    with ZipFile(installed.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        about = archive.read(name).decode()
        (licence,) = (name for name in archive.namelist() if name.endswith("LICENSE"))
        assert archive.read(licence) == (PROJECT / "LICENSE").read_bytes()
    assert "License-Expression: Apache-2.0" in about
    assert "\nRequires-Python: <3.14,>=3.11\n" in about


OFTEN = ("train", "predict")  # the others' modules and configs are in the wheel too, which the first test looks at


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=[] if verb in OFTEN else pytest.mark.slow) for verb in COMMANDS]
)
def test_every_verb_works_from_another_folder(verb: str, installed: Installed, tmp_path: Path) -> None:
    shown = installed.tyre(tmp_path, verb, "--cfg", "job")
    assert shown.returncode == 0 and "tracking_uri: " in shown.stdout + "tracking_uri: " * (
        verb in ("audit", "select", "accept")
    )
    override, message = MISTAKES[verb]
    failed = installed.tyre(tmp_path, verb, override)
    assert failed.returncode == COMMANDS[verb].failure
    assert failed.stderr.startswith(f"error: {message}") and failed.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_its_help_lists_the_verbs(installed: Installed, tmp_path: Path) -> None:
    shown = installed.tyre(tmp_path, "--help").stdout
    assert all(f"  {verb} " in shown for verb in (*COMMANDS, "demo"))


@pytest.mark.slow
@pytest.mark.long
def test_it_trains_and_predicts_in_a_folder_of_the_user(installed: Installed, tmp_path: Path) -> None:
    write_images(tmp_path / "lake" / "v1", {"train": 8, "test": 2}, ("crack", "good"))
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "ours.yaml").write_text("# @package _global_\nlogger:\n  experiment: ours\n")
    lay_database(tmp_path / "mlflow.db")
    options = ("--config-dir=mine", "experiment=ours", "logger.system_metrics=false", "model.weights=none", *TINY)
    train = ["train", "data.root=lake/v1", "data.near_copies=false", *options]
    predict = ["predict", "model=models:/tyre-defects/1", "input=lake/v1/test", "output=found.csv"]
    done = installed.python(tmp_path, "-c", TWO_COMMANDS, repr([train, predict]))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "found.csv").open() as file:
        keys = [row["key"] for row in csv.DictReader(file)]
    assert keys == [f"test/{name}/{number}.jpg" for name in ("crack", "good") for number in (0, 1)]


def test_python_finds_its_configs(installed: Installed, tmp_path: Path) -> None:
    code = (
        "import tyre_lightning as tl; print(tl.__file__, tl.compose('data.root=x', 'model=efficientnet_b2').model.name)"
    )
    done = installed.python(tmp_path, "-c", code)
    assert done.stdout.split() == [f"{installed.site}/tyre_lightning/__init__.py", "efficientnet_b2"], done.stderr


def test_the_top_of_the_repository_is_small() -> None:
    """What somebody sees first who opens it."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    top = {path.partition("/")[0] for path in listed.splitlines()}
    visible = {name for name in top if not name.startswith(".")}
    assert {"README.md", "LICENSE", "conf", "train.py", "predict.py"} <= visible and len(visible) <= 16, visible


def test_a_commit_is_checked_as_make_lint_checks() -> None:
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    entries = [hook["entry"].removeprefix(".venv/bin/").split(" --")[0] for hook in hooks[0]["hooks"]]
    done = subprocess.run(["make", "--dry-run", "lint"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert entries and all(f".venv/bin/{entry}" in done for entry in entries)
