"""What was seen of images: kept on this disk and, where it is shared, in a place that all machines read."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.errors import Unwritable, UserError
from tyre_lightning.files import whole
from tyre_lightning.lake.cache import cache_folder
from tyre_lightning.lake.place import Place, open_place
from tyre_lightning.lake.trust import distrust, trusted
from tyre_lightning.progress import progress_bar

log = logging.getLogger(__name__)


class Memory:
    """Tables, each in parts that are written once.

    Args:
        folder: on this disk; may not exist yet.
        shared: is read too, and written to where that is allowed.
    """

    def __init__(self, folder: Path, shared: Place | None = None) -> None:
        self._folder, self._shared = folder / "looks", shared
        self._refused: UserError | None = None

    def load(self, name: str, schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
        """All parts of a table, those written last first; damaged ones are left out.

        Gives what need not be written again, and what this disk has and others do not.

        Raises:
            UserError: what is shared cannot be read.
        """
        there = _parts(self._folder / name)
        shared = {path.name for path in there} if self._shared is None else self._shared.names(name)
        own = [(path.name in shared, _read(path, schema)) for path in filter(trusted, reversed(there))]
        parts = {kind: [table for known, table in own if known == kind and table is not None] for kind in (True, False)}
        others = self._from_others(name, shared - {path.name for path in there}, schema)
        nothing = schema.empty_table()
        return pa.concat_tables([nothing, *others, *parts[True]]), pa.concat_tables([nothing, *parts[False]])

    def save(self, name: str, table: pa.Table) -> None:
        """Write one more part; a disk or a place that refuses costs the next run the time, nothing else."""
        part, written = _new(table)
        self._keep(name, part, lambda path: path.write_bytes(written))
        self._share(name, part, written)

    def share(self, name: str, table: pa.Table) -> None:
        """Have others find what this disk has already."""
        self._share(name, *_new(table))

    def _share(self, name: str, part: str, written: bytes) -> None:
        if self._shared is None:
            return
        try:
            self._shared.put(f"{name}/{part}", written)
        except UserError as error:
            log.warning("what was seen stays on this machine: %s", error)
            self._shared, self._refused = None, error

    def check(self) -> None:
        """See that everything is shared that was to be.

        Raises:
            UserError: it could not be written.
        """
        if self._refused is not None:
            raise self._refused

    def _from_others(self, name: str, missing: set[str], schema: pa.Schema) -> Iterator[pa.Table]:
        """The parts of others that are not on this disk; from now on they are."""
        if self._shared is None:
            return
        with progress_bar(bool(missing)) as progress:
            task = progress.add_task("fetching what others have seen", total=len(missing))
            for part in sorted(missing, reverse=True):
                with self._shared.scratch() as scratch:
                    path = self._shared.bring(f"{name}/{part}", Path(scratch))
                    if (table := _read(path, schema)) is not None:
                        yield table
                    self._keep(name, part, partial(shutil.copyfile, path))
                progress.advance(task)

    def _keep(self, name: str, part: str, write: Callable[[Path], object]) -> None:
        folder = self._folder / name
        with suppress(OSError, Unwritable):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if distrust(folder):
                return
            with whole(folder / part) as unfinished:
                write(Path(unfinished))


def open_memory(data: DataConfig, s3: S3Config) -> Memory:
    """Where what is seen of a lake's images is kept.

    Raises:
        UserError: ``data.looks`` is malformed.
    """
    return Memory(cache_folder(data.cache_dir), open_place(data.looks, s3) if data.looks else None)


def _new(table: pa.Table) -> tuple[str, bytes]:
    """A name for one more part, and what it holds."""
    pq.write_table(table, data := pa.BufferOutputStream())
    return f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet", data.getvalue().to_pybytes()


def _read(path: Path, schema: pa.Schema) -> pa.Table | None:
    """A part; None where it is damaged, and its images are looked at again."""
    try:
        return pq.read_table(path).cast(schema)
    except (OSError, pa.ArrowException, ValueError):
        return None


def _parts(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.parquet"))
    except OSError:  # below another user's home
        return []
