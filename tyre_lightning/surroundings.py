"""What a process may lack where it is started: a home folder, a terminal that shows every character, a Ctrl-C."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tyre_lightning.errors import UserError
from tyre_lightning.files import disk_errors

# Set but empty, as compose files and CI leave them, these mean nothing; the libraries that read them stumble.
_OPTIONAL = ("MLFLOW_TRACKING_URI", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE",
             "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")  # fmt: skip
_homes: list[str] = []  # that this process has made


def drop_empty_variables() -> None:
    """Take a variable that is set but empty for one that is not set."""
    for name in _OPTIONAL:
        if not os.environ.get(name, "set").strip():
            del os.environ[name]


def set_variable(name: str, value: str | None) -> None:
    """Have a variable of the environment hold a value, or none."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def have_home() -> None:
    """Where the user has no home folder, as a container's may, make one for this process: libraries insist on it."""
    if not os.path.isabs(os.path.expanduser("~")):
        _homes.append(tempfile.mkdtemp(prefix="tyre-lightning-home-"))
        os.environ["HOME"] = _homes[-1]
        atexit.register(_leave_home)


def _leave_home() -> None:
    while _homes:
        os.environ.pop("HOME", None)
        shutil.rmtree(_homes.pop(), ignore_errors=True)


def use_utf8() -> None:
    """Have files named and written in UTF-8, and what a terminal cannot show printed as its code point (``\\u88c2``).

    Where the locale says otherwise (``LC_ALL=C``, Latin-1), Python is started once more: nothing can change it later.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        _leave_home()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Pipe(io.FileIO):
    """A pipe whose reader may leave, as ``| head`` does: what comes after goes nowhere, and the work goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def outlive_readers() -> None:
    """Let nothing end because nobody reads any more what is printed; terminals and files stay as they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or isinstance(getattr(stream.buffer, "raw", None), _Pipe):
            continue
        with suppress(OSError):  # it is no file
            if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
                setattr(sys, name, _over(stream))


def _over(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    raw: Any = _Pipe(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Inside, SIGTERM, by which systemd and Kubernetes end a service, is a Ctrl-C; only the main thread hears it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_plainly(main: Callable[[], int]) -> int:
    """Call a command that is none of Hydra's; gives the exit code, and prints a user's mistake as one sentence."""
    use_utf8()
    outlive_readers()
    try:
        with disk_errors():
            return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
