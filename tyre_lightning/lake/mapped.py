"""A large table for other processes: they map one file, where each would have a copy of its own."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pyarrow as pa

LARGE = 64 << 20  # bytes; smaller tables are sent as they are
_files: dict[int, Path] = {}  # of tables that live, by their id
_in_full = ContextVar("in_full", default=False)


@contextmanager
def in_full() -> Iterator[None]:
    """Inside, tables are sent as they are, however large: to a process on another machine, which sees no file here."""
    token = _in_full.set(True)
    try:
        yield
    finally:
        _in_full.reset(token)


def share(owner: Any, table: pa.Table) -> pa.Table | Path:
    """What another process is sent of a table: itself, or where to map it, while its owner lives."""
    if table.nbytes < LARGE or _in_full.get():
        return table
    if (path := _files.get(id(owner))) is None:
        handle, name = tempfile.mkstemp(prefix="tyre-lightning-", suffix=".arrow")
        path = _files[id(owner)] = Path(name)
        weakref.finalize(owner, _forget, id(owner), os.getpid())
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return path


def _forget(owner: int, process: int) -> None:
    path = _files.pop(owner, None)
    if path is not None and os.getpid() == process:  # a forked process has it too, and ends sooner
        path.unlink(missing_ok=True)


def forget_all() -> None:
    """Delete the files, in a process that ends without Python's own end."""
    while _files:
        _files.popitem()[1].unlink(missing_ok=True)


def receive(sent: pa.Table | Path) -> pa.Table:
    """The table that another process has shared."""
    if isinstance(sent, Path):
        with pa.memory_map(str(sent)) as file, pa.ipc.open_file(file) as reader:
            return reader.read_all()
    return sent
