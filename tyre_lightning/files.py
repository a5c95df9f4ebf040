"""Files that others read are written whole or not at all: beside their place, synced to the disk, then moved there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tyre_lightning.errors import UserError


@contextmanager
def whole(target: str | Path) -> Iterator[Path]:
    """A path beside ``target`` to write to; what lies there takes the target's place when the block ends well.

    Whoever reads the target finds what was there before or what is there now, after a kill or a power cut too. Missing
    folders are made.

    Raises:
        UserError: the disk is full, the folder cannot be written, and the like; the target is as it was.
    """
    place = Path(os.path.realpath(target))  # a link stays one
    unfinished = place.with_name(f".{uuid.uuid4().hex}{place.suffix}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, place)
        with suppress(OSError):  # not every file system lets a folder be synced
            _sync(place.parent)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def write_whole(target: str | Path, content: str | bytes) -> None:
    """Write a text, as UTF-8, or bytes.

    Raises:
        UserError: as :func:`whole`.
    """
    with whole(target) as path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
