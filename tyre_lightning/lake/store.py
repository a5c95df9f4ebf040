"""Where images lie: an S3 bucket or a local folder, behind one small interface.

Every image has one **key**. It begins with the last component of the store's root (the data version) and is the same
for a lake on S3 and for its local copy: the roots ``s3://bucket/a/v1`` and ``/lakes/v1`` both give
``v1/train/cracks/0001.jpg``; the root ``s3://bucket`` gives ``train/cracks/0001.jpg``. Folders are named without the
root, as in ``list("train/cracks")``.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from stat import S_ISREG
from typing import NamedTuple

from tyre_lightning.errors import ForbiddenObject, MissingObject, StoreUnavailable, UnreadableImage, UserError

THREADS = 16
# What is said of a file while the machine that it lies on does not answer, or this one has no room to open it.
_PASSING = {
    getattr(errno, name)
    for name in (
        *("ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOTCONN"),
        *("ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EBUSY"),
    )
    if hasattr(errno, name)
}


class Entry(NamedTuple):
    """One stored object: its key, its size in bytes, and a tag that changes with its content."""

    key: str
    size: int
    etag: str


class Content(NamedTuple):
    """What an object held when it was read, and the tag that it had then."""

    data: bytes
    etag: str


class Store(ABC):
    """Read access to the objects below ``root``. Stores pickle, and work in forked and spawned processes."""

    root: str
    address: str  # tells this store from every other, also from one of the same name at another service
    remote: bool  # whether reading goes over a network

    @abstractmethod
    def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
        """The objects in the folder ``prefix``, with all folders below it if ``deep``; sorted by key.

        A folder that does not exist holds nothing, since S3 has no folders.

        Raises:
            UserError: the bucket, the credentials or the endpoint are wrong.
        """

    @abstractmethod
    def prefixes(self, prefix: str = "") -> tuple[str, ...]:
        """The names of the folders directly in the folder ``prefix``, sorted.

        Raises:
            UserError: as for :meth:`list`.
        """

    @abstractmethod
    def key(self, path: str) -> str:
        """The key of the object at ``path`` below the root, whether or not it exists."""

    def path_below(self, key: str) -> str:
        """The path below the root of a key: :meth:`key` undone."""
        return key[len(self.key("")) :]

    def uri(self, key: str) -> str:
        """The address of an object, whichever root it was found below."""
        return f"{self.root}/{self.path_below(key)}"

    def everything(self) -> Iterator[Entry]:
        """What lies below the root, with paths there in the place of keys."""
        base = len(self.key(""))
        return (entry._replace(key=entry.key[base:]) for entry in self.list())

    @abstractmethod
    def get(self, key: str, largest: int | None = None) -> Content:
        """One object.

        Args:
            key: as it was listed.
            largest: bytes that it may have.

        Raises:
            UnreadableImage: it is larger; no more of it was read.
            MissingObject: it is not there.
            ForbiddenObject: it may not be read.
            UserError: it cannot be read; names the object and the status.
        """

    def entry(self, key: str) -> Entry:
        """An object that is named rather than listed; of one on S3 neither size nor tag is known."""
        return Entry(key, 0, "")

    @abstractmethod
    def find(self, key: str) -> bytes | None:
        """What an object holds that may not be there; None where it is not.

        Raises:
            UserError: the store cannot be asked.
        """

    def get_many(self, keys: Sequence[str], threads: int = THREADS) -> Sequence[Content]:
        """Many objects, fetched concurrently, in the order of ``keys``.

        Raises:
            UserError: for the first of ``keys`` that :meth:`get` fails for.
        """
        return in_threads(self.get, keys, threads)

    def prefetch(self, keys: Sequence[str], *, fresh: bool = False) -> None:  # noqa: B027 (a store need not do it)
        """Say which keys later calls of :meth:`get_many` will want; they may be fetched meanwhile. Never fails.

        Args:
            keys: the keys, those wanted first at the beginning.
            fresh: what was named before is not wanted any more.
        """

    def forget(self, keys: Sequence[str]) -> None:  # noqa: B027
        """Say which keys that :meth:`prefetch` was told of are not wanted any more. Never fails."""


def in_threads(read: Callable[[str], Content], keys: Sequence[str], threads: int = THREADS) -> Sequence[Content]:
    """``read`` every key, some at a time; the results in the order of ``keys``."""
    if not keys:
        return []
    with ThreadPoolExecutor(max_workers=min(threads, len(keys))) as pool:
        return [*pool.map(read, keys)]


class FolderStore(Store):
    """A local folder; symbolic links are followed."""

    remote = False

    def __init__(self, root: str) -> None:
        if not os.path.isdir(root):
            raise UserError(f"there is no folder '{root}'")
        self.root = self.address = os.path.abspath(root)
        self._parent, version = os.path.split(self.root)
        self._base = as_folder(version)

    def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
        """See :meth:`Store.list`. The tag is made of the file's time and size."""
        folder = os.path.join(self.root, *as_folder(prefix).split("/"))
        if os.path.isdir(folder):
            yield from _walk(folder, self._base + as_folder(prefix), deep, ())

    def prefixes(self, prefix: str = "") -> tuple[str, ...]:
        """See :meth:`Store.prefixes`."""
        folder = os.path.join(self.root, *as_folder(prefix).split("/"))
        if not os.path.isdir(folder):
            return ()
        return tuple(entry.name for entry in _scan(folder) if entry.is_dir())

    def key(self, path: str) -> str:
        """See :meth:`Store.key`."""
        return self._base + path

    def path(self, key: str) -> str:
        """Where the file of a key lies."""
        return os.path.join(self._parent, *key.split("/"))

    def find(self, key: str) -> bytes | None:
        """See :meth:`Store.find`."""
        return self.get(key).data if os.path.exists(self.path(key)) else None

    def get(self, key: str, largest: int | None = None) -> Content:
        """See :meth:`Store.get`."""
        path = self.path(key)
        try:
            with open(path, "rb", opener=_at_once) as file:
                stat = os.fstat(file.fileno())
                if not S_ISREG(stat.st_mode):
                    raise UserError(f"cannot read '{path}': it is no file")
                check_size(key, stat.st_size, largest)
                return Content(file.read(), _tag(stat))
        except OSError as error:
            kinds = {FileNotFoundError: MissingObject, PermissionError: ForbiddenObject}
            kind = StoreUnavailable if error.errno in _PASSING else kinds.get(type(error), UserError)
            raise kind(f"cannot read '{path}': {error.strerror}") from error

    def entry(self, key: str) -> Entry:
        """What a listing would say of a file that is named rather than found; of one that is gone, nothing but that."""
        try:
            stat = os.stat(self.path(key))
        except OSError:
            return Entry(key, 0, "")
        return Entry(key, stat.st_size, _tag(stat))


def _at_once(path: str, flags: int) -> int:
    """Open a file; a pipe too, which otherwise waits for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_size(key: str, size: int, largest: int | None) -> None:
    """Refuse a file that is too large.

    Raises:
        UnreadableImage: it has more bytes than it may have.
    """
    if largest is not None and size > largest:
        raise UnreadableImage(key, f"{size} bytes are more than the {largest} that a file may have")


def as_folder(path: str) -> str:
    """A folder's path with exactly one slash at its end, so that ``good`` never means ``good_old`` too."""
    path = path.strip("/")
    return path + "/" if path else ""


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder in the order in which S3 would list their keys."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name + "/" if entry.is_dir() else entry.name)
    except OSError as error:
        raise UserError(f"cannot list '{folder}': {error.strerror}") from error


def _walk(folder: str, key: str, deep: bool, above: tuple[str, ...]) -> Iterator[Entry]:
    real = os.path.realpath(folder)
    if real in above:
        raise UserError(f"the link '{folder}' leads back to a folder above it: remove it")
    for entry in _scan(folder):
        if entry.is_dir():
            if deep:
                yield from _walk(entry.path, f"{key}{entry.name}/", deep, (*above, real))
        elif (found := _file_entry(entry, key + entry.name)) is not None:
            yield found


def _file_entry(entry: os.DirEntry[str], key: str) -> Entry | None:
    """A file, or None where it has gone since its folder was listed."""
    try:
        key.encode()
        stat = entry.stat()
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {entry.path!a} is not UTF-8: rename it") from error
    except OSError as error:
        if not os.path.lexists(entry.path):
            return None
        raise UserError(f"cannot read '{entry.path}': {error.strerror}") from error
    return Entry(key, stat.st_size, _tag(stat))


def _tag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
