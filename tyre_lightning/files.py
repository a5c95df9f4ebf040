"""Files that others read are written whole or not at all: beside their place, synced to the disk, then moved there."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import ZipFile

from tyre_lightning.errors import Unwritable

# What a disk says that is full, read-only, not ours, or gone; not what a network says.
_REFUSALS = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE"),
        *("ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP"),
    )
    if hasattr(errno, name)
}


@contextmanager
def disk_errors() -> Iterator[None]:
    """Inside, what the disk refuses is one sentence; also for a whole function, as its decorator.

    Raises:
        Unwritable: names the file, where the system does.
    """
    try:
        yield
    except shutil.Error as error:  # of a folder that was copied: (from, to, why) of each file
        _, place, why = error.args[0][0]
        raise Unwritable(f"cannot write {place}: {why}") from error
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "to the disk"
        raise Unwritable(f"cannot write {place}: {error.strerror}") from error


@contextmanager
def whole(target: str | Path) -> Iterator[Path]:
    """A path beside ``target`` to write to; what lies there takes the target's place when the block ends well.

    Whoever reads the target finds what was there before or what is there now, after a kill or a power cut too. Missing
    folders are made.

    Raises:
        Unwritable: the disk is full, the folder cannot be written, and the like; the target is as it was.
    """
    place = Path(os.path.realpath(target))  # a link stays one
    unfinished = place.with_name(f".{uuid.uuid4().hex}{place.suffix}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        put_in_place(unfinished, place)
    except OSError as error:
        raise Unwritable(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def put_in_place(written: Path, place: Path) -> None:
    """Have a file take another's place, or an empty one, on the same disk: what others read is whole at any time.

    Raises:
        OSError: the disk refuses it.
    """
    sync(written)
    os.replace(written, place)
    with suppress(OSError):  # not every file system lets a folder be synced
        sync(place.parent)


def write_whole(target: str | Path, content: str | bytes) -> None:
    """Write a text, as UTF-8, or bytes.

    Raises:
        Unwritable: as :func:`whole`.
    """
    with whole(target) as path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def is_whole(archive: str | Path) -> bool:
    """Whether a zip archive, such as a checkpoint, holds what was written into it, by its own checksums."""
    try:
        with ZipFile(archive) as file:
            return file.testzip() is None
    except Exception:  # zipfile and zlib raise many kinds on damage
        return False


def sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, outlast a power cut.

    Raises:
        OSError: the disk refuses it.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
