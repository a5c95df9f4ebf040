"""The inbox, top to bottom: find what is new, look at it, write its verdict beside it, and decide on tyres."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from omegaconf import DictConfig
from xxhash import xxh3_128_hexdigest

from tyre_lightning.config import InboxConfig, S3Config, to_inbox_config
from tyre_lightning.cores import cores
from tyre_lightning.errors import MissingObject, StoreUnavailable, UnreadableImage, UserError
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.s3 import S3Store
from tyre_lightning.lake.store import FolderStore
from tyre_lightning.lake.tyres import find_tyre, tyre_of
from tyre_lightning.lake.writing import open_target
from tyre_lightning.memory import memory_errors
from tyre_lightning.model.inspector import decide_on_tyres, nothing_seen
from tyre_lightning.progress import say
from tyre_lightning.serving.arrivals import CONTENT, VERDICT, Arrivals
from tyre_lightning.serving.bucket_arrivals import BucketArrivals
from tyre_lightning.serving.folder_arrivals import FolderArrivals
from tyre_lightning.serving.models import Held, Models
from tyre_lightning.serving.tyres import Tyres, Waiting
from tyre_lightning.surroundings import terminated_as_interrupted
from tyre_lightning.tracking.asked import Row, look, open_workers, shown

_RETRY_SECONDS = 1.0  # after which what a disk or a store did not take is tried again
_READERS = 8  # threads that ask for what a run before has left

log = logging.getLogger(__name__)


@memory_errors("number of pictures at a time, by OMP_NUM_THREADS")
def inbox(cfg: DictConfig) -> None:
    """Give each picture of a place its verdict, once, until Ctrl-C or SIGTERM.

    Raises:
        UserError: the model or the place cannot be used.
    """
    config = to_inbox_config(cfg)
    arrivals = open_arrivals(str(config.input), config.output, config.s3)
    models = Models(str(config.model), config.tracking_uri)
    held = models.load()
    models.follow()
    there, here = arrivals.store.root, arrivals.target.root
    with open_workers() as workers:
        work = Inbox(config, arrivals, models, workers)
        try:
            with terminated_as_interrupted(), suppress(KeyboardInterrupt):
                say(f"{held.name} looks at what comes to {there}; verdicts go to {here}  (Ctrl-C ends it)")
                while True:
                    work.step()
        finally:
            models.end()
            work.end()
            workers.shutdown(cancel_futures=True)
    say(f"\n{work.judged} pictures got their verdicts")


@dataclass(frozen=True)
class Judged:
    """A picture that has its verdict, by which model."""

    row: Row
    held: Held


class Inbox:
    """What is to be done, and what is being done.

    Args:
        config: of the verb.
        arrivals: the pictures.
        models: the model in use.
        workers: threads that look at pictures.
    """

    def __init__(self, config: InboxConfig, arrivals: Arrivals, models: Models, workers: Executor) -> None:
        self._arrivals, self._models, self._workers = arrivals, models, workers
        self._tyres = Tyres(arrivals, config.pictures, config.wait)
        self._queue = deque[str]()
        self._busy: dict[Future[Judged | None], str] = {}
        self._readers = ThreadPoolExecutor(_READERS, "read")
        self._opened: dict[Future[Waiting], tuple[str, list[str]]] = {}  # tyres of a run before, and their pictures
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._most = 2 * cores()  # pictures that are read, written or looked at at a time
        self._told = ""
        self.judged = 0

    def step(self) -> None:
        """Look once for what is new, and work until it is time to look again."""
        with self._patient():
            self._queue.extend(self._arrivals.ready())
        self._recall()
        until = time.monotonic() + self._arrivals.pause
        while (left := until - time.monotonic()) > 0:
            self._begin()
            done, _ = wait(self._busy, min(left, 0.1), FIRST_COMPLETED) if self._busy else (set(), None)
            for future in done:
                self._end(self._busy.pop(future), future)
            self._repeat()
            with self._patient():
                for said in self._tyres.decide(self._held):
                    log.info("%s: %s", said["tyre"], said["decision"])
            if not self._busy and not self._queue:
                time.sleep(min(max(until - time.monotonic(), 0), 0.05))

    def end(self) -> None:
        """Ask for nothing any more."""
        self._readers.shutdown(cancel_futures=True)

    def _recall(self) -> None:
        """Ask for the verdicts on the tyres of a run before, and go on with those that lack one."""
        pattern, tyres = self._held.inspector.group_pattern, defaultdict[str, list[str]](list)
        for path in self._arrivals.take_done():
            if (name := find_tyre(path, pattern)) is not None:
                tyres[name].append(path)
        for name, paths in tyres.items():
            self._opened[self._readers.submit(self._tyres.open, name)] = name, paths
        for future in [one for one in self._opened if one.done()]:
            name, paths = self._opened.pop(future)
            self._do(partial(self._resume, name, paths, future))

    def _resume(self, name: str, paths: list[str], future: Future[Waiting]) -> None:
        known = self._tyres.open(name) if future.exception() else future.result()
        self._tyres.restore(name, known, paths, self._held)

    @property
    def _held(self) -> Held:
        assert self._models.held is not None
        return self._models.held

    def _begin(self) -> None:
        while self._queue and len(self._busy) < self._most:
            path = self._queue.popleft()
            self._busy[self._workers.submit(judge, self._arrivals, path, self._held)] = path

    def _end(self, path: str, future: Future[Judged | None]) -> None:
        """Take note of a verdict; what could not be read or written is tried again."""
        try:
            found = future.result()
        except UserError as error:
            self._tell(error)
            self._later.append((time.monotonic() + _RETRY_SECONDS, partial(self._queue.append, path)))
            return
        if found is not None:
            self.judged += 1
            self._do(partial(self._tyres.add, path, found.row, found.held))

    def _do(self, work: Callable[[], object]) -> None:
        """Do something with the store; where it does not answer, or a disk refuses it, later."""
        try:
            work()
        except UserError as error:
            self._tell(error)
            self._later.append((time.monotonic() + _RETRY_SECONDS, work))

    def _repeat(self) -> None:
        now, later = time.monotonic(), self._later
        self._later = [one for one in later if one[0] > now]
        for moment, work in later:
            if moment <= now:
                self._do(work)

    @contextmanager
    def _patient(self) -> Iterator[None]:
        """Inside, a place that does not answer, or a disk that is full, is told of once, and asked again."""
        try:
            yield
        except UserError as error:
            self._tell(error)

    def _tell(self, error: UserError) -> None:
        if str(error) != self._told:
            self._told = str(error)
            log.warning("%s; trying again", error)


def open_arrivals(root: str, output: str | None, s3: S3Config) -> FolderArrivals | BucketArrivals:
    """What arrives at a place, and where its verdicts go.

    Raises:
        UserError: it is not there, or cannot be asked.
    """
    store = open_store(root, s3)
    target = open_target(output or store.root, s3)
    if isinstance(store, S3Store):
        return BucketArrivals(store, target)
    assert isinstance(store, FolderStore)
    return FolderArrivals(store, target)


def judge(arrivals: Arrivals, path: str, held: Held) -> Judged | None:
    """Write the verdict on a picture; None where it is not whole yet, gone, or has it already.

    Raises:
        UserError: it cannot be read or written now.
    """
    key = arrivals.store.key(path)
    try:
        file = _read(arrivals, path)
    except MissingObject:
        arrivals.missed(path)
        return None
    content = xxh3_128_hexdigest(file) if isinstance(file, bytes) else None
    if content is not None and arrivals.knows(path, content):
        arrivals.counts(path, readable=True)  # what has changed meanwhile is given once more
        return None
    row = look(held.inspector, {"image": file}, key) if isinstance(file, bytes) else file
    if not arrivals.counts(path, readable=row["error"] is None):
        return None
    pattern = held.inspector.group_pattern
    row["tyre"] = tyre_of(key, pattern)
    if pattern is None:
        row["decision"] = row["picture_decision"]
    elif find_tyre(key, pattern) is None:
        decide_on_tyres(held.inspector, [row])  # it is a tyre of its own; else more pictures of it may come
    row = {"key": key, **shown(held.inspector, row), "model": held.name, CONTENT: content}
    arrivals.put(f"{path}{VERDICT}", json.dumps(row, ensure_ascii=False).encode())
    return Judged(row, held)


def _read(arrivals: Arrivals, path: str) -> bytes | Row:
    """A picture's file, or what is said of one that cannot be read.

    Raises:
        StoreUnavailable: it may be read later.
        MissingObject: it is not there.
    """
    try:
        return arrivals.read(path)
    except (StoreUnavailable, MissingObject):
        raise
    except UnreadableImage as error:
        return nothing_seen(error.reason)
    except UserError as error:  # it is not ours to read
        return nothing_seen(str(error))
