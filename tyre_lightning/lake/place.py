"""A folder, on this machine or on S3, in which several processes work at once: its files are whole or not there."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.files import disk_errors, put_in_place, write_whole
from tyre_lightning.lake.patience import Patience

T = TypeVar("T")

_PATIENCE_SECONDS = 60  # with a store that stops answering
_SCRATCH = ".scratch-"
_OLD = 24 * 3600  # seconds
_SETTLED = 2.0  # seconds after which all that began at once have written, where a server cannot refuse the second


class Place(ABC):
    """Files by their paths below a root, which is made when something is written."""

    root: str

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """What a file holds; None where there is none.

        Raises:
            UserError: it cannot be read.
        """

    @abstractmethod
    def names(self, folder: str) -> set[str]:
        """The names of the files in a folder; none where there is no folder.

        Raises:
            UserError: it cannot be listed.
        """

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """The bytes of the files in a folder, by their names.

        Raises:
            UserError: it cannot be listed.
        """

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write a file.

        Raises:
            UserError: it cannot be written.
        """

    @abstractmethod
    def put_new(self, path: str, data: bytes) -> bool:
        """Write a file that nobody else has written; gives whether it is this one that is there now.

        Of several processes that do it at once one is told so.

        Raises:
            UserError: it cannot be written.
        """

    @abstractmethod
    def take(self, file: Path, path: str) -> None:
        """Have a file of :meth:`scratch` there, and not here any more.

        Raises:
            UserError: it cannot be written.
        """

    @abstractmethod
    def bring(self, path: str, scratch: Path) -> Path:
        """Where on this machine a file can be read: where it is, or a copy in a folder of :meth:`scratch`.

        Raises:
            UserError: it cannot be read, or is not there.
        """

    @abstractmethod
    def remove(self, paths: Iterable[str]) -> None:
        """Delete files; what is not there need not be deleted.

        Raises:
            UserError: one cannot be deleted.
        """

    @abstractmethod
    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A new folder on this machine, as a context, for files on their way."""


class FolderPlace(Place):
    """A folder of this machine, or one that several share."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))

    def read(self, path: str) -> bytes | None:
        """See :meth:`Place.read`."""
        try:
            return self._at(path).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> set[str]:
        """See :meth:`Place.names`."""
        try:
            return {name for name in os.listdir(self._at(folder)) if name[0] != "."}  # those are being written
        except FileNotFoundError:
            return set()

    def sizes(self, folder: str) -> dict[str, int]:
        """See :meth:`Place.sizes`."""
        found = {}
        for name in self.names(folder):
            with suppress(FileNotFoundError):  # another process has deleted it
                found[name] = Path(self._at(folder), name).stat().st_size
        return found

    def put(self, path: str, data: bytes) -> None:
        """See :meth:`Place.put`."""
        write_whole(self._at(path), data)

    @disk_errors()
    def put_new(self, path: str, data: bytes) -> bool:
        """See :meth:`Place.put_new`. A second name of a file is given only if nothing has it."""
        place = self._at(path)
        mine = place.with_name(f".{uuid.uuid4().hex}")
        write_whole(mine, data)
        try:
            os.link(mine, place)
        except FileExistsError:
            return False
        except OSError:  # a file system without second names: the file is there a moment before its content
            return _create(place, data)
        finally:
            mine.unlink()
        return True

    @disk_errors()
    def take(self, file: Path, path: str) -> None:
        """See :meth:`Place.take`."""
        place = self._at(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        put_in_place(file, place)

    def bring(self, path: str, scratch: Path) -> Path:
        """See :meth:`Place.bring`."""
        return self._at(path)

    @disk_errors()
    def remove(self, paths: Iterable[str]) -> None:
        """See :meth:`Place.remove`."""
        for path in paths:
            self._at(path).unlink(missing_ok=True)

    @disk_errors()
    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """See :meth:`Place.scratch`. It lies within, so that files need not be copied; what a kill has left goes."""
        root, host = Path(self.root), socket.gethostname()
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f"{_SCRATCH}{host}-*"):
            _drop_old(left, left.name.removeprefix(f"{_SCRATCH}{host}-").partition("-")[0])
        prefix = f"{_SCRATCH}{host}-{os.getpid()}-"
        return tempfile.TemporaryDirectory(dir=root, prefix=prefix, ignore_cleanup_errors=True)

    def _at(self, path: str) -> Path:
        return Path(self.root, path)


def _create(place: Path, data: bytes) -> bool:
    try:
        number = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with open(number, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(number)
    return True


class S3Place(Place):
    """A prefix of a bucket. A service that does not answer is asked again for a minute."""

    def __init__(self, root: str, config: S3Config) -> None:
        from tyre_lightning.lake.s3 import S3Store

        self._store = S3Store(root, config)
        self.root = self._store.root

    def read(self, path: str) -> bytes | None:
        """See :meth:`Place.read`."""
        return _patiently(partial(self._store.find, self._store.key(path)))

    def names(self, folder: str) -> set[str]:
        """See :meth:`Place.names`."""
        return {*self.sizes(folder)}

    def sizes(self, folder: str) -> dict[str, int]:
        """See :meth:`Place.sizes`: the listing has them."""
        listed = _patiently(lambda: [*self._store.list(folder, deep=False)])
        return {entry.key.rpartition("/")[2]: entry.size for entry in listed}

    def put(self, path: str, data: bytes) -> None:
        """See :meth:`Place.put`."""
        _patiently(partial(self._store.put, self._store.key(path), data))

    def put_new(self, path: str, data: bytes) -> bool:
        """See :meth:`Place.put_new`.

        Some servers know no conditional writing and let a second writer replace the first: so after a moment all look
        whose it is that lies there.
        """
        from tyre_lightning.lake.s3_errors import is_there_already, is_unknown

        if self.read(path) is not None:
            return False
        key = self._store.key(path)

        def write() -> None:
            try:
                self._store.ask("write", key, lambda client, at: client.put_object(**at, Body=data, IfNoneMatch="*"))
            except UserError as error:
                if is_unknown(error.__cause__):
                    self._store.put(key, data)
                elif not is_there_already(error.__cause__):
                    raise

        _patiently(write)
        time.sleep(_SETTLED)
        return self.read(path) == data

    def take(self, file: Path, path: str) -> None:
        """See :meth:`Place.take`."""
        key = self._store.key(path)

        def send() -> None:
            with file.open("rb") as body:
                self._store.ask("write", key, lambda client, at: client.put_object(**at, Body=body))

        _patiently(send)
        file.unlink()

    def bring(self, path: str, scratch: Path) -> Path:
        """See :meth:`Place.bring`."""
        key, copy = self._store.key(path), scratch / f"{uuid.uuid4().hex}"

        def receive() -> None:
            self._store.ask("read", key, lambda client, at: client.download_file(at["Bucket"], at["Key"], str(copy)))

        _patiently(receive)
        return copy

    def remove(self, paths: Iterable[str]) -> None:
        """See :meth:`Place.remove`."""
        for path in paths:
            key = self._store.key(path)
            _patiently(partial(self._store.ask, "delete", key, lambda client, at: client.delete_object(**at)))

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """See :meth:`Place.scratch`."""
        return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def _drop_old(scratch: Path, process: str) -> None:
    """Delete what a process has left a day ago; containers of one name may not see each other's processes."""
    with suppress(OSError):
        if has_died(socket.gethostname(), process) and time.time() - scratch.stat().st_mtime > _OLD:
            shutil.rmtree(scratch, ignore_errors=True)


def has_died(host: str, process: str) -> bool:
    """Whether a process, by its number, was one of this machine and is none any more."""
    return host == socket.gethostname() and process.isdecimal() and not psutil.pid_exists(int(process))


def open_place(root: str, s3: S3Config) -> Place:
    """The place at ``s3://bucket/prefix``, or a folder. Nothing is asked or made yet.

    Raises:
        UserError: the address is malformed.
    """
    return S3Place(root, s3) if "://" in root else FolderPlace(root)


def _patiently(request: Callable[[], T]) -> T:
    return Patience(_PATIENCE_SECONDS).call(request)
