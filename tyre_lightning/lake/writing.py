"""How a lake gets its objects: copied from another place, on the server where that can be, or put there."""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import md5
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.files import whole, write_whole
from tyre_lightning.lake.patience import Patience
from tyre_lightning.lake.store import THREADS, Entry, FolderStore, Store

T = TypeVar("T")

_AT_ONCE = 2 * THREADS
_BATCH = 4096  # jobs that wait for a thread at one time
_PATIENCE_SECONDS = 60  # with a store that stops answering
_LEFT = re.compile(r"(^|/)\.[0-9a-f]{32}(\.[^/]*)?$")  # what a killed writer of :func:`whole` leaves


class Job(NamedTuple):
    """An object to copy: from where, what it is there, and to which path below the target's root."""

    store: Store
    entry: Entry
    path: str


class Target(ABC):
    """A place that takes objects. Nothing in it is ever moved or deleted."""

    root: str

    @abstractmethod
    def store(self) -> Store | None:
        """It, to be read; None where it does not exist yet, which can only be said of a folder."""

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write an object whole.

        Raises:
            UserError: it cannot be written.
        """

    @abstractmethod
    def copy(self, job: Job) -> None:
        """Copy an object, without reading it where the service can.

        Raises:
            UserError: it cannot be read or written.
        """

    def entries(self) -> Iterator[Entry]:
        """What lies there, with paths below the root in the place of keys."""
        if (store := self.store()) is not None:
            yield from store.everything()


class FolderTarget(Target):
    """A local folder, which is made when something is written."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))

    def store(self) -> Store | None:
        """See :meth:`Target.store`."""
        return FolderStore(self.root) if os.path.isdir(self.root) else None

    def entries(self) -> Iterator[Entry]:
        """See :meth:`Target.entries`."""
        return (entry for entry in super().entries() if not _LEFT.search(entry.key))

    def put(self, path: str, data: bytes) -> None:
        """See :meth:`Target.put`."""
        write_whole(self._place(path), data)

    def copy(self, job: Job) -> None:
        """See :meth:`Target.copy`. A file's copy has its time too, so that both have one tag."""
        if isinstance(job.store, FolderStore):
            with whole(self._place(job.path)) as unfinished:
                shutil.copy2(job.store.path(job.entry.key), unfinished)
        else:
            self.put(job.path, _read(job))

    def _place(self, path: str) -> Path:
        if {"", ".", ".."} & {*path.split("/")}:
            raise UserError(
                f"no file in the folder {self.root} can be called '{path}': rename the object, or accept to S3"
            )
        return Path(self.root, path)


class S3Target(Target):
    """A prefix of a bucket."""

    def __init__(self, root: str, config: S3Config) -> None:
        from tyre_lightning.lake.s3 import S3Store

        self._store = S3Store(root, config)
        self.root = self._store.root

    def store(self) -> Store:
        """See :meth:`Target.store`."""
        return self._store

    def put(self, path: str, data: bytes) -> None:
        """See :meth:`Target.put`."""
        self._store.put(self._store.key(path), data)

    def copy(self, job: Job) -> None:
        """See :meth:`Target.copy`. From another kind of store an object is read, and put."""
        from tyre_lightning.lake.s3 import S3Store

        if isinstance(job.store, S3Store):
            self._store.copy_from(job.store, job.entry, self._store.key(job.path))
        else:
            self.put(job.path, _read(job))


def open_target(root: str, s3: S3Config) -> Target:
    """The place at ``s3://bucket/prefix``, or a folder. Nothing is asked or made yet.

    Raises:
        UserError: the address is malformed.
    """
    return S3Target(root, s3) if "://" in root else FolderTarget(root)


def content_tag(store: Store, entry: Entry) -> str:
    """What tells an object's content from others: the store's own tag, or the MD5 of a file, which is read for it.

    Raises:
        UserError: the file cannot be read.
    """
    return entry.etag if store.remote else md5(store.get(entry.key).data, usedforsecurity=False).hexdigest()


def same_content(job: Job, target: Store, there: Entry) -> bool:
    """Whether what lies at a job's path, by its key ``there``, is what the job would copy, as far as can be known."""
    if there.size != job.entry.size:
        return False
    if not (target.remote or job.store.remote) and there.etag == job.entry.etag:
        return True
    return content_tag(target, there) == content_tag(job.store, job.entry)


def _read(job: Job) -> bytes:
    """What a job copies, as it was listed.

    Raises:
        UserError: it cannot be read, or has changed since.
    """
    data, etag = job.store.get(job.entry.key)
    if etag != job.entry.etag:
        raise UserError(f"'{job.entry.key}' has changed since it was listed: run the same again")
    return data


def in_turn(work: Callable[[T], object], jobs: Iterable[T], advance: Callable[[], object]) -> None:
    """Do many jobs, some at a time; a store that stops answering is asked again for a minute.

    Args:
        work: does a job.
        jobs: taken as they are needed.
        advance: called when a job is done.

    Raises:
        UserError: the first that a job fails with; those that are under way are done first, and no more.
    """
    waiting = iter(jobs)
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        while batch := [*islice(waiting, _BATCH)]:
            patience = Patience(_PATIENCE_SECONDS)
            try:
                for _ in pool.map(lambda job, patience=patience: patience.call(partial(work, job)), batch):
                    advance()
            finally:
                patience.end()
    finally:
        pool.shutdown(cancel_futures=True)
