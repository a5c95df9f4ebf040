"""Bytes on the local disk by name, shared by all processes that open the same folder, within a bound.

Each value is one file, a checksum before its bytes, written beside its place and renamed into it. So whoever reads sees
a whole value, the right one, or none: after a kill, a crash or a full disk too. What was not used for longest goes
first. Nothing here ever raises because of the disk: a cache that does not work is a cache that holds nothing. So is
one that others may write to: its checksums tell of damage, not of who wrote.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

import platformdirs
import xxhash
from filelock import FileLock, Timeout

from tyre_lightning.lake.trust import distrust, is_own

_CHECKSUM = 8  # bytes
_LOCK_SECONDS = 0.2  # then a value is not kept this time
_SPARE = 0.9  # of the bound is left full when room is made
_DISK_FREE = 0.05  # of the disk is never used
_STALE_SECONDS = 3600  # an unfinished file of this age has no writer any more
_COUNTER = "bytes"  # the file that holds how much the cache holds


def cache_folder(configured: str | None) -> Path:
    """Where things are kept between runs: as configured, or in the user's own cache folder."""
    return Path(os.path.expanduser(configured)) if configured else platformdirs.user_cache_path("tyre-lightning")


class DiskCache:
    """A cache in a folder.

    Args:
        folder: where; made if it does not exist.
        limit: bytes that all values together may take.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._usable = True
        self.problems: list[str] = []  # what the user should hear of, once each
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if why := distrust(folder):
                raise OSError(why)
            (folder / "new").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            self._give_up(error)

    def __contains__(self, name: str) -> bool:
        return self._usable and os.path.exists(self._path(name))

    def get(self, name: str) -> memoryview | None:
        """A value (writable memory of the caller's own), or None where it is not held."""
        if not self._usable:
            return None
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                about = os.fstat(file.fileno())
                if not is_own(about.st_uid):
                    raise OSError(f"'{path}' belongs to user {about.st_uid}: remove the folder")
                data = bytearray(about.st_size)
                whole = file.readinto(data) == len(data)
            value = memoryview(data)[_CHECKSUM:]
            if not whole or xxhash.xxh3_64_digest(value) != data[:_CHECKSUM]:
                self.problems.append(f"'{path}' in the cache was damaged; it is fetched again")
                Path(path).unlink(missing_ok=True)
                return None
            os.utime(path)
            return value
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up(error)
            return None

    def put(self, values: Mapping[str, bytes | bytearray | memoryview]) -> None:
        """Keep some values, where there is room for them."""
        if not self._usable:
            return
        try:
            new = {path: value for name, value in values.items() if not os.path.exists(path := self._path(name))}
            if new and self._reserve(sum(map(len, new.values())) + _CHECKSUM * len(new)):
                for path, value in new.items():
                    self._write(path, value)
        except OSError as error:
            self._give_up(error)

    def _path(self, name: str) -> str:  # no Path: making one costs as much as reading a small file
        digest = blake2b(name.encode(), digest_size=16).hexdigest()
        return f"{self._folder}/{digest[:2]}/{digest[2:]}"

    def _write(self, path: str, value: bytes | bytearray | memoryview) -> None:
        unfinished = self._folder / "new" / secrets.token_hex(12)
        try:
            with open(unfinished, "xb") as file:
                file.write(xxhash.xxh3_64_digest(value))
                file.write(value)
            try:
                os.replace(unfinished, path)
            except FileNotFoundError:
                Path(path).parent.mkdir(mode=0o700, exist_ok=True)
                os.replace(unfinished, path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _reserve(self, size: int) -> bool:
        """Whether there is room for ``size`` bytes, which are then counted; makes room if need be."""
        disk = shutil.disk_usage(self._folder)
        if disk.free - size < _DISK_FREE * disk.total:
            raise OSError(f"the disk is more than {1 - _DISK_FREE:.0%} full")
        if size > self._limit:
            return False
        try:
            with FileLock(self._folder / "lock", timeout=_LOCK_SECONDS, poll_interval=0.005):
                held = self._counted()
                if held is None or held + size > self._limit:
                    held = self._make_room(int(_SPARE * self._limit) - size)
                (self._folder / _COUNTER).write_text(str(held + size))
            return True
        except Timeout:
            return False

    def _counted(self) -> int | None:
        try:
            return int((self._folder / _COUNTER).read_text())
        except (FileNotFoundError, ValueError):  # a writer was killed, or there was none yet
            return None

    def _make_room(self, wanted: int) -> int:
        """Remove what was not used for longest until ``wanted`` bytes are held or fewer; gives what is held."""
        files = sorted(self._files())
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held <= wanted:
                break
            Path(path).unlink(missing_ok=True)
            held -= size
        return held

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Time of last use, size and path of every value; removes what killed writers left."""
        now = time.time()
        for folder in self._folder.iterdir():
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        stat = entry.stat()
                        if folder.name != "new":
                            yield stat.st_mtime, stat.st_size, entry.path
                        elif now - stat.st_mtime > _STALE_SECONDS:
                            os.unlink(entry.path)
                    except FileNotFoundError:
                        pass  # another process was quicker

    def _give_up(self, error: OSError) -> None:
        self._usable = False
        what = error.strerror or str(error)
        self.problems.append(f"the cache in '{self._folder}' cannot be used ({what}); going on without it")
