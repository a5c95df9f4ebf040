"""Where the labels of a data version came from: ``provenance.parquet`` beside its usages.

It has a row for each object that the version does not have as the version before had it: new pictures, and those with
another label. All others say themselves, by the same path in the version before, where they came from; so a training
reads a small file, however large the lake is. Rows are kept by all later versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.lake.store import Store

FILE = "provenance.parquet"
FORMAT = 1
_ABOUT = b"tyre_lightning"
_COLUMNS = pa.schema(
    {
        "path": pa.string(),  # below the version's root, so that it is the same in all later versions
        "version": pa.string(),  # the first that has it
        "copied_from": pa.string(),  # an address
        "class": pa.string(),
        "class_before": pa.string(),  # null: the picture is new
        "usage": pa.string(),
        "tyre": pa.string(),
        "who": pa.list_(pa.string()),
        "time": pa.string(),  # of the last answer
        "window": pa.string(),  # its root
        "predictions": pa.string(),  # the file that its queue was drawn from
        "why": pa.string(),
        "probability": pa.float64(),  # null: it was not drawn by chance
        "selected": pa.bool_(),
    }
)


@dataclass(frozen=True)
class Step:
    """How one version differs from the one before.

    Args:
        version: its name.
        before: that of the version before.
        new: pictures.
        corrected: pictures with another label.
    """

    version: str
    before: str
    new: int
    corrected: int

    def __str__(self) -> str:
        return f"{self.new:,} new, {self.corrected:,} corrected since {self.before}"


@dataclass(frozen=True)
class Provenance:
    """What a version's file says.

    Args:
        rows: as ``_COLUMNS`` has them, by path.
        source: the address of the version before.
        to: the version's own.
        steps: of all versions, the newest first.
        settings: by which it was made.
        complete: whether all objects are there.
    """

    rows: Sequence[Mapping[str, Any]]
    source: str
    to: str
    steps: Sequence[Step]
    settings: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = False

    def __str__(self) -> str:
        newest, *older = self.steps
        return str(newest) + (f" ({'; '.join(map(str, older))})" if older else "")

    def selected(self) -> set[str]:
        """The paths of pictures that were chosen, and not drawn: by them nothing may be validated or tested."""
        return {row["path"] for row in self.rows if row["selected"]}

    def to_bytes(self) -> bytes:
        """The file."""
        about = {name: value for name, value in vars(self).items() if name not in ("rows", "steps")}
        about |= {"format": FORMAT, "steps": [asdict(step) for step in self.steps]}
        metadata = {_ABOUT: json.dumps(about, ensure_ascii=False).encode()}
        table = pa.Table.from_pylist([*self.rows], schema=_COLUMNS.with_metadata(metadata))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content: bytes = sink.getvalue().to_pybytes()
        return content

    @classmethod
    def from_bytes(cls, content: bytes, place: str) -> Provenance:
        """The inverse of :meth:`to_bytes`.

        Raises:
            UserError: it is none, or one of a newer version.
        """
        try:
            table = pq.read_table(pa.BufferReader(content))
            about: dict[str, Any] = json.loads((table.schema.metadata or {})[_ABOUT])
            if (made := about.pop("format")) > FORMAT:
                raise UserError(f"{place} has format {made}, and this version knows up to {FORMAT}: update")
            steps = [Step(**step) for step in about.pop("steps")]
            return cls(table.select(_COLUMNS.names).to_pylist(), steps=steps, **about)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(f"{place} is not what tyre accept wrote: {first_line(error)}") from error


def read_provenance(store: Store) -> Provenance | None:
    """What a version says of its labels; None where no ``tyre accept`` made it.

    Raises:
        UserError: the file cannot be used.
    """
    content = store.find(store.key(FILE))
    return None if content is None else Provenance.from_bytes(content, f"{store.root}/{FILE}")


def finished(store: Store) -> Provenance | None:
    """The same of a version that is to be used.

    Raises:
        UserError: the version is not finished, too.
    """
    found = read_provenance(store)
    if found is not None and not found.complete:
        raise UserError(
            f"'{store.root}' is an unfinished version of '{found.source}': let `tyre accept` go on with to={store.root}"
        )
    return found
