"""What a data version holds: its objects as columns, so that ten million fit, and where its pictures lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tyre_lightning.config import UsageConfig
from tyre_lightning.lake.listing import is_image
from tyre_lightning.lake.store import Entry, Store
from tyre_lightning.names import one_form

_CHUNK = 10_000  # entries that are Python objects at one time
_SCHEMA = pa.schema({"path": pa.string(), "size": pa.int64(), "etag": pa.string()})


class Place(NamedTuple):
    """Where a picture lies below a version's root: ``usage`` as it is called here, ``class`` in one form."""

    usage: str
    label: str
    rest: str

    @property
    def path(self) -> str:
        """Below the root."""
        return "/".join(self)


def to_table(entries: Iterable[Entry]) -> pa.Table:
    """Entries, whose keys are paths, as columns."""
    waiting, parts = iter(entries), [_SCHEMA.empty_table()]
    while chunk := [*islice(waiting, _CHUNK)]:
        columns = zip(*chunk, strict=True)
        parts.append(pa.table([pa.array(column) for column in columns], schema=_SCHEMA))
    return pa.concat_tables(parts).combine_chunks()


@dataclass(frozen=True)
class Contents:
    """The objects of a version.

    Args:
        store: where they lie.
        table: columns path (below the root), size and etag.
        usage: what the usages are called.
    """

    store: Store
    table: pa.Table
    usage: UsageConfig

    @classmethod
    def of(cls, store: Store, usage: UsageConfig, without: str) -> Contents:
        """List a version.

        Args:
            store: where it lies.
            usage: what the usages are called.
            without: the path of an object that is none of its own.
        """
        return cls(store, to_table(entry for entry in store.everything() if entry.key != without), usage)

    def place(self, path: str) -> Place | None:
        """Where a picture of a class lies; None for what is no such picture."""
        usage, _, below = path.partition("/")
        label, _, rest = below.partition("/")
        known = {one_form(name) for name in vars(self.usage).values()}
        return Place(usage, one_form(label), rest) if rest and one_form(usage) in known and is_image(path) else None

    def pictures(self) -> Iterator[tuple[str, Place]]:
        """The paths of all pictures of classes, and where they lie."""
        for batch in self.table.select(["path"]).to_batches(_CHUNK):
            for path in batch["path"].to_pylist():
                if (place := self.place(path)) is not None:
                    yield path, place

    def at(self, paths: Collection[str]) -> dict[str, Entry]:
        """The objects at some paths, by path."""
        return self._where("path", pa.array([*paths], pa.string()))

    def of_sizes(self, sizes: Collection[int]) -> dict[str, Entry]:
        """The objects of some sizes in bytes, by path."""
        return self._where("size", pa.array([*sizes], pa.int64()))

    def _where(self, column: str, values: pa.Array) -> dict[str, Entry]:
        found = self.table.filter(pc.is_in(self.table[column], value_set=values)).to_pylist()
        return {row["path"]: Entry(self.store.key(row["path"]), row["size"], row["etag"]) for row in found}
