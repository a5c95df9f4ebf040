"""What arrives in a folder."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from stat import S_ISREG

from tyre_lightning.errors import UserError
from tyre_lightning.lake.listing import is_image
from tyre_lightning.lake.store import FolderStore
from tyre_lightning.lake.writing import Target
from tyre_lightning.serving.arrivals import VERDICT, Arrivals

log = logging.getLogger(__name__)

SETTLED_SECONDS = 5.0  # that a file has not changed for, when it is said of it that it cannot be read
_LONGEST = 255 - len(VERDICT)  # bytes of a picture's name
_COARSE_SECONDS = 3.0  # within which a folder's time may not tell that something was added
_PAUSE = 0.15  # seconds between two looks
_SHARE = 0.25  # of a core, at most, works at listing a folder
_WALL_SHARE = 0.5  # of the time, at most, passes meanwhile: a folder may lie on another machine


@dataclass
class _File:
    """What is known of a file that is no picture yet: size and time, and since when it has had them."""

    stat: tuple[int, int]
    since: float
    tried: bool = False


@dataclass
class _Folder:
    """What is known of a folder: the names in it that ask for nothing any more, and the time that it had."""

    known: set[str] = field(default_factory=set)
    time: int = -1  # of the last change, in ns
    since: float = 0.0  # when it was first seen with that
    told: bool = False  # that it cannot be listed
    disk: int | None = None  # that it lies on
    next: float = 0.0  # before which it is not listed again, so that listing takes no more than a share of the time


class FolderArrivals(Arrivals):
    """A folder, with all below it.

    A file is whole when it has had one size and time at two looks. One that was not can at most be unreadable then,
    which is believed after :data:`SETTLED_SECONDS` only. A folder whose time has not changed is not listed.
    """

    def __init__(self, store: FolderStore, target: Target) -> None:
        super().__init__(store, target)
        self._lock = threading.Lock()
        self._folders = {"": _Folder()}
        self._number = self._inode()
        self._files: dict[str, _File] = {}  # of which a verdict is due
        self._given: dict[str, _File] = {}  # that are being looked at
        self._old = {*self.verdicts()} if self.apart else set[str]()  # of a run before

    @property
    def pause(self) -> float:
        """See :meth:`Arrivals.pause`."""
        return _PAUSE

    def ready(self) -> Iterator[str]:
        """See :meth:`Arrivals.ready`."""
        begun = time.monotonic()
        with self._lock:
            self._see_root()
            for path in [*self._folders]:
                self._look(path, begun)
            found = [path for path, file in [*self._files.items()] if self._whole(path, file, begun)]
            found.sort(key=lambda path: self._files[path].stat[1])  # the oldest first
            self._given |= {path: self._files.pop(path) for path in found}
        return iter(found)

    def counts(self, path: str, *, readable: bool) -> bool:
        """See :meth:`Arrivals.counts`: it is still what it was and, if it is no picture, has been so for long."""
        with self._lock:
            if (file := self._given.pop(path, None)) is None:
                return True  # it has been said before
            settled = readable or time.monotonic() - file.since >= SETTLED_SECONDS
            if settled and (stat := self._stat(path)) is not None and _state(stat) == file.stat:
                return True
            self._files[path] = replace(file, tried=not readable)
            return False

    def missed(self, path: str) -> None:
        """See :meth:`Arrivals.missed`: as long as its folder lists it."""
        with self._lock:
            if (file := self._given.pop(path, None)) is not None:
                self._files[path] = file

    def _see_root(self) -> None:
        """Go on with what is known where it is the folder that it was, and wait while a disk is not mounted there.

        Raises:
            UserError: it is not, or another folder has taken its place, in which nothing is yet.
        """
        if (number := self._inode()) == self._number:
            return
        with suppress(OSError):  # which listing it will explain
            if not os.listdir(self.store.root):
                raise UserError(f"'{self.store.root}' is another folder than before, and empty (is its disk mounted?)")
            self._number, self._folders = number, {"": _Folder()}

    def _inode(self) -> int | None:
        """What tells the root from another folder of its name; the same after its disk was mounted again."""
        try:
            return os.stat(self.store.root).st_ino
        except OSError:
            return None

    def _look(self, path: str, now: float) -> None:
        """List a folder, unless nothing can have been added."""
        folder, place = self._folders[path], os.path.join(self.store.root, path)
        try:
            changed, disk = (found := os.stat(place)).st_mtime_ns, found.st_dev
            if now < folder.next or (changed == folder.time and now - folder.since > _COARSE_SECONDS):
                return
            begun = time.monotonic(), time.thread_time()
            names = os.listdir(place)
        except OSError as error:
            if not path:
                raise UserError(f"cannot list '{place}': {error.strerror}") from error
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                self._forget(path)
            elif not folder.told:
                folder.told = True
                log.warning("cannot list '%s': %s; trying again", place, error.strerror)
            return
        if not names and folder.disk not in (None, disk):
            log.warning("'%s' is on another disk than before, and empty (is its disk mounted?)", place)
        folder.disk = disk
        if changed != folder.time:
            folder.time, folder.since = changed, now
        first, new = not folder.known, [name for name in names if name not in folder.known]
        if len(folder.known) > len(names) - len(new):
            folder.known.intersection_update(names)  # a name that comes back is a new picture
        old = {*names} if first else set[str]()
        for name in new:
            self._take(path, folder, name, old)
        wall, worked = time.monotonic() - begun[0], time.thread_time() - begun[1]
        folder.next = now + max(worked / _SHARE, wall / _WALL_SHARE)

    def _forget(self, path: str) -> None:
        """A folder is gone: if one of its name comes, it is a new one."""
        self._folders.pop(path)
        above, _, name = path.rpartition("/")
        if above in self._folders:
            self._folders[above].known.discard(name)

    def _take(self, path: str, folder: _Folder, name: str, old: set[str]) -> None:
        """Take note of a name, and of the verdicts among those that were there before."""
        folder.known.add(name)
        if (fault := _fault(name)) is not None:
            log.warning("the file name %a %s, so that nothing looks at it: rename it", name, fault)
            return
        whole = f"{path}/{name}" if path else name
        if is_image(whole):
            verdict = f"{whole}{VERDICT}"
            if verdict in self._old if self.apart else f"{name}{VERDICT}" in old:
                self._old.discard(verdict)  # a name that comes back is a new picture
                self._done.append(whole)
            else:
                self._files.setdefault(whole, _File((-1, -1), 0.0))
            return
        if not name.startswith("."):
            self._enter(whole)

    def _enter(self, path: str) -> None:
        """Look at what lies below, if it is a folder; a link may lead in circles."""
        below = os.path.join(self.store.root, path)
        if os.path.isdir(below) and not os.path.islink(below):
            self._folders.setdefault(path, _Folder())

    def _whole(self, path: str, file: _File, now: float) -> bool:
        found = self._stat(path)
        if found is None:
            above, _, name = path.rpartition("/")
            if above not in self._folders or name not in self._folders[above].known:  # else it may come back
                self._files.pop(path)
            return False
        if not S_ISREG(found.st_mode):
            self._files.pop(path)
            self._enter(path)
            return False
        stat = _state(found)
        if stat != file.stat:
            self._files[path] = _File(stat, now)
            return False
        return (stat[0] > 0 and not file.tried) or now - file.since >= SETTLED_SECONDS

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(os.path.join(self.store.root, path))
        except OSError:
            return None


def _state(found: os.stat_result) -> tuple[int, int]:
    """What changes when a file is written: its size and time."""
    return found.st_size, found.st_mtime_ns


def _fault(name: str) -> str | None:
    """Why a file of this name has no verdict beside it; None where it can have one."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    return "is too long for that of its verdict" if is_image(name) and size > _LONGEST else None
