"""The commands of ``tyre``, given from here, each in a process of its own that begins with everything loaded."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.process import BaseProcess
from typing import Any
from urllib.error import URLError

from tyre_lightning.errors import UserError

# What takes seconds to import; the fork server does so once.
_LOADED = ["tyre_lightning.training", "tyre_lightning.prediction", "mlflow.pyfunc", "onnxruntime", "torch.onnx"]
_START_SECONDS = 60


class Shell:
    """Gives commands, and shows them as a user would write them.

    Args:
        environment: of the commands.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
        self._context.set_forkserver_preload(_LOADED)

    def give(self, verb: str, *arguments: str, allowed: Sequence[int] = (0,)) -> int:
        """Give a command and wait for it; gives its exit code.

        Raises:
            UserError: it is none of those allowed.
        """
        process = self._start(verb, arguments)
        process.join()
        code = process.exitcode or 0
        if code not in allowed:
            raise UserError(f"`tyre {verb}` ended with exit code {code}: see above")
        return code

    @contextmanager
    def serve(self, verb: str, *arguments: str) -> Iterator[str]:
        """Inside, a command that serves a page runs; gives the page's address.

        Raises:
            UserError: it does not answer.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process, address = self._start(verb, [*arguments, f"port={port}"]), f"http://127.0.0.1:{port}/"
        try:
            _wait(address, process, verb)
            yield address
        finally:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGINT)  # as Ctrl-C does
            process.join()

    def _start(self, verb: str, arguments: Sequence[str]) -> BaseProcess:
        print(f"\n$ tyre {verb} {' '.join(arguments)}", flush=True)
        process: BaseProcess = self._context.Process(target=_run, args=(verb, arguments, self._environment))
        process.start()
        return process


def _run(verb: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the fork server ignores
    sys.argv = ["tyre", verb, *arguments]
    from tyre_lightning.__main__ import main

    sys.exit(main())


def _wait(address: str, process: BaseProcess, verb: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.is_alive():
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise UserError(f"`tyre {verb}` serves no page: see above")
