"""What is made once for all processes of a test session, since it takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_folder: Path | None = None


def share(folder: Path) -> None:
    """Keep it in a folder of the session."""
    global _folder
    _folder = folder / "shared"
    _folder.mkdir(exist_ok=True)


def shared() -> Path:
    """The folder of the session."""
    assert _folder is not None
    return _folder


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` has filled, in this process or in another."""
    place = shared() / name
    with FileLock(f"{place}.lock"):
        if not (place / "done").exists():
            place.mkdir()
            make(place)
            (place / "done").touch()
    return place
