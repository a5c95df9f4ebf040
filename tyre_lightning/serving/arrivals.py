"""Where a camera puts its pictures: what is new there and whole, found again and again without much work.

A picture whose verdict is there is done: the verdicts themselves are the record, also after a kill.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from tyre_lightning.errors import MissingObject, StoreUnavailable, Unwritable, UserError
from tyre_lightning.lake.store import Store
from tyre_lightning.lake.writing import FolderTarget, Target
from tyre_lightning.tracking.asked import LARGEST

VERDICT = ".json"  # follows a picture's whole name
CONTENT = "content"  # in a verdict, a digest of the picture's file


class Arrivals(ABC):
    """Finds pictures. Paths are those below the root.

    Args:
        store: where they lie.
        target: where verdicts go; it may be the same place.
    """

    def __init__(self, store: Store, target: Target) -> None:
        self.store, self.target = store, target
        self.apart = target.root != store.root
        self._mount = _mount_of(target.root) if isinstance(target, FolderTarget) else None
        self._done: list[str] = []

    def take_done(self) -> list[str]:
        """The pictures that were found with their verdicts since this was asked last: those of a run before."""
        found, self._done = self._done, []
        return found

    @property
    @abstractmethod
    def pause(self) -> float:
        """Seconds until the next look."""

    @abstractmethod
    def ready(self) -> Iterator[str]:
        """Pictures that may be looked at now, each once, unless :meth:`counts` denies it."""

    @abstractmethod
    def counts(self, path: str, *, readable: bool) -> bool:
        """Whether what was seen of a picture counts; if not, it is given once more, when there is more to see.

        Args:
            path: of one that was ready.
            readable: whether it was a picture at all.
        """

    @abstractmethod
    def missed(self, path: str) -> None:
        """Say that a picture that was ready is not there: it is given again if it is after all."""

    def knows(self, path: str, content: str) -> bool:
        """Whether a picture of this name and content has its verdict, though it was given as a new one.

        Raises:
            UserError: that cannot be asked now.
        """
        return (self.find(f"{path}{VERDICT}") or {}).get(CONTENT) == content

    def read(self, path: str) -> bytes:
        """A picture's file.

        Raises:
            UnreadableImage: it is too large.
            UserError: it cannot be had.
        """
        return self.store.get(self.store.key(path), LARGEST).data

    def is_gone(self, path: str) -> bool:
        """Whether there is no picture of that name any more.

        Raises:
            StoreUnavailable: that cannot be asked now.
        """
        try:
            self.read(path)
        except MissingObject:
            return True
        except StoreUnavailable:
            raise
        except UserError:  # it is there, and cannot be read
            return False
        return False

    def find(self, path: str) -> dict[str, Any] | None:
        """The verdict that lies at a path; None where there is none that can be read.

        Raises:
            UserError: that cannot be asked now.
        """
        self._check_mounted()
        store = self.target.store()
        data = None if store is None else store.find(store.key(path))
        try:
            found = None if data is None else json.loads(data)
        except ValueError:
            found = None
        return found if isinstance(found, dict) else None  # else it is none that was written here

    def put(self, path: str, verdict: bytes) -> None:
        """Write a verdict.

        Raises:
            UserError: it cannot be written now.
        """
        self._check_mounted()
        self.target.put(path, verdict)

    def _check_mounted(self) -> None:
        """Refuse to take the folder below for the disk of the verdicts, which would hide what is written there.

        Raises:
            Unwritable: the disk is not mounted any more.
        """
        if self._mount is not None and not os.path.ismount(self._mount):
            raise Unwritable(f"cannot write to {self.target.root}: no disk is mounted at '{self._mount}' any more")

    def verdicts(self) -> Iterator[str]:
        """The paths of what lies where verdicts go."""
        return (entry.key for entry in self.target.entries())


def _mount_of(place: str) -> str:
    """Where the disk is mounted that a folder lies on, or will."""
    place = os.path.realpath(place)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place
