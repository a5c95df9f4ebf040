"""A real MLflow server as a process, which tests may kill and start again, and a database for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests import warm
from tests.once import once

_START_SECONDS = 120


def _make_database(place: Path) -> None:
    from mlflow import MlflowClient

    # By its whole path: MLflow keeps a store for each address, and would give this one for ``mlflow.db`` too.
    with contextlib.chdir(place):
        MlflowClient(f"sqlite:///{place}/mlflow.db").search_experiments(max_results=1)


def lay_database(path: Path) -> None:
    """Put an empty database of MLflow's where there is none: it takes MLflow seconds to make one, and all are alike."""
    if not path.exists():
        shutil.copy(once("database", _make_database) / "mlflow.db", path)


class MlflowServer:
    """``mlflow server`` over a database and a store of artifacts, which outlive it; use it as a context manager.

    Args:
        folder: for its log, and for the two if they are not given.
        database: its address.
        artifacts: the store's address.
        environment: what it needs to reach both.
        options: more of the command line.
    """

    def __init__(
        self,
        folder: Path,
        database: str | None = None,
        artifacts: str | None = None,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self._database = database or f"sqlite:///{folder}/server.db"
        self._artifacts = artifacts or str(folder / "artifacts")
        self._options = options
        # Without it, the server starts eight processes more, for jobs that only language models need.
        self._environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: warm.Process | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"localhost:{self.port}"

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return f"http://{self.address}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        lay_database(self.folder / "server.db")
        command = [
            str(Path(__file__).with_name("mlflow_here.py")),
            "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", self._database, "--artifacts-destination", self._artifacts,
            *self._options,
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self._process = warm.start(command, self.folder, self._environment, log, log)
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-2000:])
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL, with all of its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
