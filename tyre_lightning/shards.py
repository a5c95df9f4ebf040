"""The work on a shard: look at its pictures, keep what was found every some thousand, and join it to a part.

A shard has all pictures of its tyres, so that its verdicts are whole. What is kept is called by its place in the
shard's listing: whoever does a shard again, or at the same time, writes the same files. So nothing is locked, and any
process, on any machine, goes on where another has died.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any

import pyarrow as pa

from tyre_lightning.data.stream import batched
from tyre_lightning.destination import Output, sizes_of
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.ledger import Ledger
from tyre_lightning.evaluation.predictions import (
    SUMMARY,
    Writer,
    from_bytes,
    open_writer,
    to_bytes,
    tyre_columns,
    tyre_row,
)
from tyre_lightning.lake.manifest import FOLDER, Manifest, find_manifest
from tyre_lightning.lake.place import Place
from tyre_lightning.lake.store import Entry
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.summary import Summary

Rows = list[dict[str, Any]]
Look = Callable[[Iterable[Entry]], Iterator[Rows]]

_AGAIN = "give the same again"
_TOGETHER = 4096  # rows in memory at one time

log = logging.getLogger(__name__)


class _GoneError(Exception):
    """What was kept is not there any more: another process has done the same shard, or it was damaged."""


class Work:
    """What there is to do, and what is done.

    Args:
        place: where is kept what was found.
        manifest: says what is to be done.
        output: where it goes.
        inspector: the model.
        columns: of the rows.
        about: what the rows are about as a whole.
    """

    def __init__(
        self, place: Place, manifest: Manifest, output: Output, inspector: Inspector, columns: Sequence[str],
        about: dict[str, str],
    ) -> None:  # fmt: skip
        self._place, self._manifest, self._output = place, manifest, output
        self._inspector, self._columns, self._about = inspector, columns, about
        self._tyres = inspector.group_pattern is not None
        self._notes = f"{FOLDER}/{manifest.id}/done"
        self._told = set[int]()  # shards of which was said that they are not done any more

    def done(self) -> set[int]:
        """The shards that are done."""
        return {*self._noted()}

    def summary(self, shards: Iterable[int], output: str, tyres: str | None) -> Summary:
        """What was found in some shards that are done; the rows are in ``output`` and, where there are, ``tyres``.

        Raises:
            UserError: what was noted of one cannot be read any more; that is done again next time.
        """
        found, noted = Summary(output, tyres), self._noted()
        for shard in sorted(shards):
            path = noted.get(shard, "")
            if not path or (note := self._place.read(path)) is None:
                raise UserError(f"shard {shard} in {self._place.root} was deleted or changed meanwhile: {_AGAIN}")
            try:
                found.add(json.loads(note))
            except (ValueError, TypeError, KeyError) as error:
                self._place.remove([path])
                raise UserError(f"{self._place.root}/{path} was damaged: {_AGAIN}") from error
        return found

    def do(self, shard: int, look: Look, advance: Callable[[int], object]) -> None:
        """Do a shard, or what is left of it.

        Args:
            shard: its number.
            look: gives the rows of entries, in order, without verdicts on tyres.
            advance: told how many more pictures are done.

        Raises:
            UserError: a picture cannot be fetched, or what was found cannot be written.
        """
        while shard not in self.done():
            self._place.remove([SUMMARY, self._note(shard, ())])  # of a time when this shard was done
            self._look_at(shard, look, advance)
            self._check()
            try:
                sizes, counts = self._join(shard)
            except _GoneError:  # what another process has deleted is done by now; what somebody else has, is done again
                continue
            self._place.put(self._note(shard, sizes), json.dumps(counts, ensure_ascii=False).encode())
            break  # what changes its size from now on is done again by another run, and not for ever by this one
        try:
            self._place.remove([self._kept(shard, number) for number in range(self._chunks(shard))])
        except UserError as error:  # the part is there
            log.warning("what was kept of shard %d stays: %s", shard, error)

    def kept(self) -> int:
        """How many pictures need not be looked at again."""
        done = self.done()
        found = 0
        for shard, count in enumerate(self._manifest.counts):
            names = self._place.names(self._manifest.folder(shard)) if shard not in done else set()
            sizes = [self._size(shard, n) for n in range(self._chunks(shard)) if f"{n:06d}.parquet" in names]
            found += count if shard in done else sum(sizes)
        return found

    def _check(self) -> None:
        """See that the manifest still holds: a server that cannot refuse a second writer may have replaced it."""
        found = find_manifest(self._place)
        if found is None or found.id != self._manifest.id:
            raise UserError(f"another process has listed the images of {self._place.root} anew: give the same again")

    def _noted(self) -> dict[int, str]:
        """The notes of the shards that are done: their parts are there, and as large as they were written."""
        names, found = self._place.names(self._notes), {}
        for shard, sizes in self._output.there(tyres=self._tyres).items():
            notes = [self._note(shard, sizes), self._note(shard, ())]
            if holds := [note for note in notes if Path(note).name in names]:
                found[shard] = holds[0]
            elif shard not in self._told and any(name.startswith(f"{shard:05d}-") for name in names):
                self._told.add(shard)
                log.warning(
                    "shard %d in %s is not as large as it was written, so that it is not done", shard, self._place.root
                )
        return found

    def _note(self, shard: int, sizes: Sequence[int]) -> str:
        """Where is noted what is in a shard; its name has the bytes of its parts, or none of an older version's."""
        return f"{self._notes}/{'-'.join([f'{shard:05d}', *map(str, sizes)])}.json"

    def _kept(self, shard: int, number: int) -> str:
        return f"{self._manifest.folder(shard)}/{number:06d}.parquet"

    def _chunks(self, shard: int) -> int:
        return -(-self._manifest.counts[shard] // self._manifest.chunk)

    def _size(self, shard: int, number: int) -> int:
        return min(self._manifest.chunk, self._manifest.counts[shard] - number * self._manifest.chunk)

    def _look_at(self, shard: int, look: Look, advance: Callable[[int], object]) -> None:
        """Look at the pictures of which nothing is kept yet."""
        there = self._place.names(self._manifest.folder(shard))
        numbers = range(self._chunks(shard))
        missing = [number for number in numbers if Path(self._kept(shard, number)).name not in there]
        advance(sum(self._size(shard, number) for number in {*numbers} - {*missing}))
        if not missing:
            return
        with self._place.scratch() as folder:
            entries = self._manifest.entries(self._place, shard, Path(folder))
            rows = chain.from_iterable(_told(look(_only(entries, self._manifest.chunk, {*missing})), advance))
            for number in missing:
                part = [*islice(rows, self._size(shard, number))]
                self._place.put(self._kept(shard, number), to_bytes(part, self._columns))

    def _rows(self, shard: int) -> Iterator[Rows]:
        """What is kept of a shard, in order."""
        for number in range(self._chunks(shard)):
            if (data := self._place.read(path := self._kept(shard, number))) is None:
                raise _GoneError
            try:
                rows = from_bytes(data)
            except (OSError, ValueError, pa.ArrowException) as error:
                log.warning("%s/%s is damaged: its pictures are looked at again", self._place.root, path)
                self._place.remove([path])
                raise _GoneError from error
            yield rows

    def _join(self, shard: int) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Write a shard's parts; gives their bytes, and what is in them."""
        summary = Summary("")
        with self._output.writing(shard, tyres=self._tyres) as files:
            with open_writer(files.pictures, self._columns, self._about) as writer:
                if self._tyres:
                    self._by_tyre(shard, writer, files.tyres, summary)
                else:
                    for rows in self._rows(shard):
                        summary.count(rows, decisions=True)
                        writer.write(rows)
            sizes = sizes_of(files.written(tyres=self._tyres))
        return sizes, summary.counts()

    def _by_tyre(self, shard: int, writer: Writer, path: str, summary: Summary) -> None:
        """Write pictures with the verdicts on their tyres, and a table of the tyres.

        Pictures of one tyre may lie far apart in a listing, so that no verdict is known before the last picture. What
        is known of each tyre is in a database on the disk, so that memory stays bounded.
        """
        inspector = self._inspector
        with self._place.scratch() as folder, Ledger(Path(folder, "tyres.db"), inspector) as ledger:
            for rows in self._rows(shard):
                summary.count(rows, decisions=False)
                ledger.add(rows)
            for rows in self._rows(shard):
                sightings = ledger.get([row["tyre"] for row in rows])
                writer.write(
                    [row | inspector.verdict(sighting)._asdict() for row, sighting in zip(rows, sightings, strict=True)]
                )
            with open_writer(path, tyre_columns(inspector)) as tyres:
                for rows in batched(starmap(partial(tyre_row, inspector), ledger.tyres()), _TOGETHER):
                    summary.decisions.update(row["decision"] for row in rows)
                    summary.tyres += len(rows)
                    tyres.write(rows)


def _only(entries: Iterable[Entry], size: int, wanted: set[int]) -> Iterator[Entry]:
    """The entries of some chunks."""
    for number, part in enumerate(batched(entries, size)):
        if number in wanted:
            yield from part


def _told(batches: Iterable[Rows], advance: Callable[[int], object]) -> Iterator[Rows]:
    for rows in batches:
        advance(len(rows))
        yield rows
