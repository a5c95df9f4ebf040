"""Commands where there is no home, no user name, no place to write, no terminal for every character."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.conftest import PROJECT, untracked_environment
from tyre_lightning.errors import Unwritable, UserError
from tyre_lightning.files import disk_errors
from tyre_lightning.tracking import runs
from tyre_lightning.tracking.runs import check_database, connect

CLASS = "裂纹"
ESCAPED = r"\u88c2\u7eb9"


def call(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of the project's, as a user gives it in a folder."""
    environment = {"PYTHONPATH": str(PROJECT), **untracked_environment(), **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
    )


COMMANDS: dict[str, tuple[str, ...]] = {
    "train": (f"{PROJECT}/train.py", f"data.root='{CLASS}'", "--cfg", "job"),
    "predict": (f"{PROJECT}/predict.py", f"input='{CLASS}'", "--cfg", "job"),
    "audit": ("-m", "tyre_lightning.audit", f"data.root='{CLASS}'", "--cfg", "job"),
    "promote": ("-m", "tyre_lightning.promote", f"model='{CLASS}'", "--cfg", "job"),
    "resend": ("-m", "tyre_lightning.resend", f"folder='{CLASS}'"),
    "watch": ("-m", "tyre_lightning.watch", f"input='{CLASS}'", "--cfg", "job"),
}
ASCII, CP1252, LOCALE = (
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252"},
    {"LC_ALL": "C", "PYTHONUTF8": "0"},
)


@pytest.mark.parametrize(
    ("name", "terminal"), first_of([("train", CP1252), ("train", LOCALE), *((name, ASCII) for name in COMMANDS)], 3)
)
def test_what_a_terminal_cannot_show_ends_no_command(tmp_path: Path, name: str, terminal: dict[str, str]) -> None:
    (tmp_path / CLASS).mkdir()
    done = call(tmp_path, *COMMANDS[name], **terminal)
    assert done.returncode == 0, done.stderr
    assert ESCAPED in done.stdout


NOBODY = """
import pwd
def gone(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")
pwd.getpwuid = gone
"""
USE_HOME = """
import sys
import tyre_lightning
from pathlib import Path
from tyre_lightning.lake.cache import cache_folder
from tyre_lightning.tracking.runs import _user
import mlflow
print(Path.home(), cache_folder(None).is_relative_to(Path.home()), _user())
"""


def test_a_user_without_name_and_home_can_work(tmp_path: Path) -> None:
    """As in a container that is run under a number; ``pwd`` knows nobody there."""
    (tmp_path / "sitecustomize.py").write_text(NOBODY)
    environment = {name: value for name, value in untracked_environment().items() if not name.startswith("XDG_")}
    for name in ("HOME", "USER", "LOGNAME", "USERNAME", "LNAME"):
        environment.pop(name, None)
    paths = {"PYTHONPATH": f"{tmp_path}:{PROJECT}", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", USE_HOME]
    done = subprocess.run(command, env={**environment, **paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home, in_home, user = done.stdout.split()
    assert Path(home).parent == tmp_path and not Path(home).exists()  # any more
    assert (in_home, user) == ("True", "unknown")


@pytest.mark.parametrize("name", ["train", "audit", "predict"])
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, name: str) -> None:
    """A file where a folder is to be made stops the superuser too."""
    (tmp_path / "outputs").write_text("")
    done = call(tmp_path, *COMMANDS[name][:-2], "model=x" if name == "predict" else "s3.profile=x")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: cannot write outputs/{name}")
    assert "Traceback" not in done.stderr


def test_a_database_that_cannot_be_written_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_database(f"sqlite:///{tmp_path}/new/mlflow.db")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(UserError, match=f"mlflow.db cannot be used: {tmp_path} may not be written here"):
        check_database(f"sqlite:///{tmp_path}/new/mlflow.db")


def test_a_variable_that_is_empty_is_not_set(tmp_path: Path) -> None:
    shown = call(tmp_path, *COMMANDS["train"], "--resolve", MLFLOW_TRACKING_URI="")
    assert "tracking_uri: sqlite:///mlflow.db" in shown.stdout, shown.stderr


@pytest.mark.parametrize(
    "uri",
    [
        *("./mlruns", "file:///mlruns", "C:\\mlruns", "foo://x", "s3://bucket/runs", "databricks-uc", "http://[::1"),
        *("mysql+nodriver://user:hidden@host/db", "sqlite:////proc/mlflow.db", "sqlite:///{tmp}/text.db"),
        *("foo://user:hidden@x", "http:///x", "http://host:99999", "postgresql+nodriver://user:hidden@host/db"),
    ],
)
def test_a_tracking_uri_of_no_use_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setattr(runs, "_DATABASE_TRIES", 1)
    (tmp_path / "text.db").write_text("this is no database, but a text that is long enough for its header")
    with pytest.raises(UserError) as caught:
        connect(uri.format(tmp=tmp_path))
    message = str(caught.value)
    assert message.startswith("the tracking URI ") and message.endswith("start it, or use sqlite:///mlflow.db")
    assert "\n" not in message and "hidden" not in message


@pytest.mark.parametrize("uri", ["", "  "])
def test_an_empty_tracking_uri_is_one_sentence(uri: str) -> None:
    with pytest.raises(UserError, match="the tracking URI is empty"):
        connect(uri)


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "full": (full, "cannot write to the disk: No space left on device"),
    "a file in the way": (lambda path: (path / "file" / "new").mkdir(parents=True), "file/new: Not a directory"),
    "gone": (lambda path: (path / "gone" / "new").write_text(""), "gone/new: No such file or directory"),
    "a copy": (lambda path: shutil.copytree(path / "from", path / "to", copy_function=refuse), "to/x: no room"),
    "a folder in the way": (lambda path: (path / "from").write_text(""), "from: Is a directory"),
}


def refuse(source: str, target: str) -> None:
    raise OSError("no room")


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_disk_refuses_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "x").write_text("")
    write, sentence = REFUSALS[name]
    with pytest.raises(Unwritable) as caught, disk_errors():
        write(tmp_path)
    assert str(caught.value).startswith("cannot write ") and str(caught.value).endswith(sentence)


def test_what_no_disk_says_stays_what_it_is() -> None:
    with pytest.raises(ConnectionRefusedError), disk_errors():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
