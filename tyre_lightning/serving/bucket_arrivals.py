"""What arrives in a bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

from tyre_lightning.errors import UserError
from tyre_lightning.lake.listing import is_image
from tyre_lightning.lake.s3 import S3Store
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.writing import Target
from tyre_lightning.serving.arrivals import VERDICT, Arrivals

_PAUSE = 0.3  # seconds between two looks
_TAILS = 8  # folders of a bucket whose ends are looked at each time
_ALL_SHARE = 0.2  # of the time, at most, goes into listing all of a bucket


class BucketArrivals(Arrivals):
    """A prefix of a bucket, whose objects are always whole.

    Listing a full day takes seconds. So each look asks only for what follows the last key of the folders in which
    something was new lately; all is listed again in a thread, for names that do not ascend, and for those that are used
    again: their tags are others.
    """

    def __init__(self, store: S3Store, target: Target) -> None:
        super().__init__(store, target)
        self._store = store
        self._known: dict[str, str] = {}  # the tags of pictures that are taken or done, by path
        self._again: set[str] = set()  # paths of those that were another's
        self._last: dict[str, str] = {"": store.key("")}  # by folder, the greatest key; the newest folder last
        self._lock = threading.Lock()
        self._found: list[str] = []  # and not given yet
        self._trouble: UserError | None = None
        old = {*self.verdicts()} if self.apart else None
        self._all()
        pictures, self._found = self._found, []
        for path in pictures:
            done = f"{path}{VERDICT}" in (self._beside if old is None else old)
            (self._done if done else self._found).append(path)
        self._over = threading.Event()
        threading.Thread(target=self._go_on, name="list", daemon=True).start()

    @property
    def pause(self) -> float:
        """See :meth:`Arrivals.pause`."""
        return _PAUSE

    def ready(self) -> Iterator[str]:
        """See :meth:`Arrivals.ready`."""
        for folder in [*self._last][-_TAILS:] + ([""] if len(self._last) > _TAILS else []):
            self._find(self._store.list_after(folder, self._last[folder]))
        with self._lock:
            found, self._found = self._found, []
            if self._trouble is not None and not found:
                raise self._trouble
        return iter(found)

    def counts(self, path: str, *, readable: bool) -> bool:
        """See :meth:`Arrivals.counts`."""
        return True

    def knows(self, path: str, content: str) -> bool:
        """See :meth:`Arrivals.knows`: the tag of one that was written again may be another."""
        return path in self._again and super().knows(path, content)

    def missed(self, path: str) -> None:
        """See :meth:`Arrivals.missed`: if it is listed again."""
        with self._lock:
            self._known.pop(path, None)

    def _find(self, entries: Iterable[Entry]) -> None:
        """Take note of the pictures among entries that were not known, each at once: a listing may end in the midst."""
        base = len(self._store.key(""))
        for entry in entries:
            path = entry.key[base:]
            folder = path.rpartition("/")[0]
            with self._lock:
                for place in ("", folder):
                    if entry.key > self._last.get(place, ""):
                        self._last[place] = entry.key
                if is_image(path) and self._known.get(path) != entry.etag:
                    if path in self._known:
                        self._again.add(path)
                    self._known[path] = entry.etag
                    self._found.append(path)
                    self._last[folder] = self._last.pop(folder)  # the newest last

    def _all(self) -> None:
        self._beside = set[str]()

        def entries() -> Iterator[Entry]:
            base = len(self._store.key(""))
            for entry in self._store.list():
                if entry.key.endswith(VERDICT):
                    self._beside.add(entry.key[base:])
                yield entry

        self._find(entries())

    def _go_on(self) -> None:
        took = 0.0
        while not self._over.wait(max(1.0, took / _ALL_SHARE)):
            begun = time.monotonic()
            try:
                self._all()
            except UserError as error:
                with self._lock:
                    self._trouble = error
                continue
            with self._lock:
                self._trouble = None
            took = time.monotonic() - begun
