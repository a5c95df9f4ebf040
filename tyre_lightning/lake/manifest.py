"""What a prediction in shards is of: one listing, divided by tyre, and the terms that all its processes must share.

Whoever comes first lists. The others wait as long as that one goes on, and one of them takes its place where it does
not. A manifest is called by a digest of what it says, and each shard's part of the listing is a file of its own.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest, xxh3_128

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.lake.place import Place, has_died
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.tyres import find_tyre

FOLDER = "_shards"  # what begins so is no part of a data set for pyarrow and Spark
_FILE, _CLAIM = f"{FOLDER}/manifest.json", f"{FOLDER}/listing"
_FORMAT = 1
_SCHEMA = pa.schema({"key": pa.string(), "size": pa.int64(), "etag": pa.string(), "tyre": pa.string()})
_IN_MEMORY = 65_536  # entries while they are listed, of all shards together
_READ = 4096
_PAGE = 1000  # entries that a store lists at a time
_BEAT = 5.0  # seconds between two signs of life of who lists
_SILENT = 60.0  # seconds without one after which another lists
_LOOK = 0.5  # seconds between two looks of who waits


@dataclass(frozen=True)
class Manifest:
    """One listing, and what is to be done with it.

    Args:
        id: a digest of the listing and the terms.
        terms: what all processes must share, by what they call it.
        asked: the model as the first process was given it, which may be an alias.
        chunk: images after which what was found is kept.
        counts: images of each shard.
        listed: when, ISO 8601.
    """

    id: str
    terms: Mapping[str, Any]
    asked: str
    chunk: int
    counts: list[int]
    listed: str
    format: int = _FORMAT

    def folder(self, shard: int) -> str:
        """Where a shard's files are kept."""
        return f"{FOLDER}/{self.id}/{shard:05d}"

    def entries(self, place: Place, shard: int, scratch: Path) -> Iterator[Entry]:
        """What was listed for a shard, in the order of the listing.

        Raises:
            UserError: it cannot be read.
        """
        name = f"{self.folder(shard)}/listed.parquet"
        try:
            with pq.ParquetFile(place.bring(name, scratch)) as file:
                for batch in file.iter_batches(_READ, columns=["key", "size", "etag"]):
                    yield from map(Entry, *(column.to_pylist() for column in batch.columns))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"{place.root}/{name}, which lists the images, cannot be read ({first_line(error)}): give another "
                "output if it is lost"
            ) from error


def shard_of(tyre: str, shards: int) -> int:
    """The shard that a tyre's pictures are in: the same whichever process and version asks."""
    return int(xxh3_64_intdigest(tyre.encode("utf-8", "surrogatepass")) % shards)


def find_manifest(place: Place) -> Manifest | None:
    """What was agreed on; None where nothing is yet.

    Raises:
        UserError: it cannot be read, or is of a newer version.
    """
    data = place.read(_FILE)
    try:
        values = json.loads(data) if data else None
    except ValueError:  # it is being written
        return None
    if values is None:
        return None
    if isinstance(values, dict) and values.get("format", 0) > _FORMAT:
        raise UserError(f"{place.root} was begun by a newer version: update, or give another output")
    try:
        return Manifest(**values)
    except TypeError as error:
        raise UserError(f"{place.root}/{_FILE} is none that was written here: give another output") from error


class Listing:
    """Makes a manifest.

    Args:
        entries: of images; gone through once.
        pattern: what names their tyres, see :func:`tyre_lightning.lake.tyres.find_tyre`.
        shards: their number.
        folder: an empty one on this machine, for the listing's files.
        beat: called every now and then, as long as it goes on.
    """

    def __init__(
        self, entries: Iterable[Entry], pattern: str | None, shards: int, folder: Path, beat: Callable[[], None]
    ) -> None:
        self._folder, self._beat = folder, beat
        self.counts, self.total, self.named, self.first = [0] * shards, 0, 0, ""
        self._digest = xxh3_128()
        self._waiting: list[list[tuple[str, int, str, str]]] = [[] for _ in range(shards)]
        self._most = max(1, _IN_MEMORY // shards)
        self._writers = [pq.ParquetWriter(self.file(shard), _SCHEMA) for shard in range(shards)]
        try:
            for entry in entries:
                self._add(entry, find_tyre(entry.key, pattern))
            for shard in range(shards):
                self._write(shard)
        finally:
            for writer in self._writers:
                writer.close()

    def file(self, shard: int) -> Path:
        """Where on this machine a shard's part is."""
        return self._folder / f"{shard:05d}.parquet"

    def manifest(self, terms: Mapping[str, Any], asked: str, chunk: int) -> Manifest:
        """It, which is agreed on once :func:`publish` has it there."""
        self._digest.update(json.dumps([_FORMAT, terms], sort_keys=True).encode())
        listed = datetime.now(UTC).isoformat(timespec="seconds")
        return Manifest(self._digest.hexdigest()[:16], terms, asked, chunk, self.counts, listed)

    def publish(self, place: Place, manifest: Manifest) -> Manifest:
        """Have it in its place; gives the one that is agreed on, which may be another's.

        Raises:
            UserError: it cannot be written.
        """
        for shard in range(len(self.counts)):
            place.take(self.file(shard), f"{manifest.folder(shard)}/listed.parquet")
            self._beat()
        data = json.dumps(asdict(manifest), ensure_ascii=False, indent=1).encode()
        place.put_new(_FILE, data)
        if (found := find_manifest(place)) is None:  # who began to write it was killed, on a file system without links
            place.put(_FILE, data)
        return found or manifest

    def _add(self, entry: Entry, tyre: str | None) -> None:
        self.first = self.first or entry.key
        if not self.total % _PAGE:
            self._beat()
        self.total += 1
        self.named += tyre is not None
        name = entry.key if tyre is None else tyre
        shard = shard_of(name, len(self.counts))
        self.counts[shard] += 1
        self._digest.update("\0".join((entry.key, str(entry.size), entry.etag, "")).encode("utf-8", "surrogatepass"))
        waiting = self._waiting[shard]
        waiting.append((entry.key, entry.size, entry.etag, name))
        if len(waiting) >= self._most:
            self._write(shard)

    def _write(self, shard: int) -> None:
        if waiting := self._waiting[shard]:
            columns = [
                pa.array(values, kind) for values, kind in zip(zip(*waiting, strict=True), _SCHEMA.types, strict=True)
            ]
            self._writers[shard].write_table(pa.table(columns, schema=_SCHEMA))
            self._waiting[shard] = []


class Claim:
    """The right to list, of one process at a time. Where two have it, for a moment, both lists are good.

    Args:
        place: of the manifest.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._host, self._name = socket.gethostname(), uuid.uuid4().hex
        self._seen: bytes | None = None
        self._since = self._beaten = time.monotonic()
        self._beats = 0

    def get(self) -> bool:
        """Whether it is this process's now.

        Raises:
            UserError: the place cannot be read or written.
        """
        found = self._place.read(_CLAIM)
        if found is None:
            return self._place.put_new(_CLAIM, self._said())
        if found != self._seen:
            self._seen, self._since = found, time.monotonic()
        if has_died(*_who(found)) or time.monotonic() - self._since > _SILENT:
            self._place.put(_CLAIM, self._said())
            return True
        return False

    def beat(self) -> None:
        """Tell those that wait that this process goes on, if it has not just done so."""
        if time.monotonic() - self._beaten > _BEAT:
            self._beaten, self._beats = time.monotonic(), self._beats + 1
            self._place.put(_CLAIM, self._said())

    def drop(self) -> None:
        """Have it no more."""
        self._place.remove([_CLAIM])

    def _said(self) -> bytes:
        return json.dumps([self._host, os.getpid(), self._name, self._beats]).encode()


def _who(claim: bytes) -> tuple[str, str]:
    """The machine and the process that a claim is of."""
    try:
        host, process, *_ = json.loads(claim)
        return str(host), str(process)
    except ValueError:
        return "", ""


def agree(place: Place, make: Callable[[Callable[[], None]], Manifest], say: Callable[[str], object]) -> Manifest:
    """The one manifest of a place.

    Args:
        place: where it is, or will be.
        make: lists and publishes, if nobody has; takes what to call every now and then meanwhile.
        say: told if this process waits for another.

    Raises:
        UserError: of ``make``.
    """
    claim, told = Claim(place), False
    while (found := find_manifest(place)) is None:
        if claim.get():
            try:
                return find_manifest(place) or make(claim.beat)  # it may have come between the two looks
            finally:
                with suppress(UserError):
                    claim.drop()
        if not told:
            say(f"another process lists the images: waiting for what it writes to {place.root}/{_FILE}")
            told = True
        time.sleep(_LOOK)
    return found
