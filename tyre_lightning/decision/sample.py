"""Tyres of the line or of validation, a row each: what later windows of the line are compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tyre_lightning.errors import UserError
from tyre_lightning.files import whole

SAMPLE = "validation.parquet"  # in a model's folder: good tyres of validation
_TEXTS = ("tyre", "key", "class", "decision")
_ABOUT = b"tyre_lightning"  # the key of the file's metadata that has what is known of the whole
_FORMAT = 1


class Sample:
    """T tyres and what was seen of each.

    Args:
        table: columns tyre, key (of the picture with the highest P(defective)), class and decision (null where not
            known), ``picture`` (a small JPEG of a few typical tyres, else null), and numbers (float64, NaN where not
            known): p_defective, novelty, distance, pictures, unreadable, and what
            :mod:`tyre_lightning.data.traits` measures, the mean of a tyre's pictures.
        about: of the whole of which they were drawn: plain values by name.
    """

    def __init__(self, table: pa.Table, about: Mapping[str, Any]) -> None:
        self.table = table
        self.about = dict(about)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], numbers: Sequence[str], about: Mapping[str, Any]) -> Sample:
        """Of rows with a value for each text, and for each of ``numbers``."""
        columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in _TEXTS}
        columns["picture"] = pa.nulls(len(rows), pa.binary())
        for name in numbers:
            columns[name] = pa.array(np.array([row[name] for row in rows], np.float64))
        return cls(pa.table(columns), about)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column of numbers, shape (T,)."""
        return np.asarray(self.table[name].to_numpy(), np.float64)

    def texts(self, name: str) -> NDArray[np.object_]:
        """A column of texts, shape (T,), None where there is none."""
        return np.array(self.table[name].to_pylist(), dtype=object)

    def knows(self, name: str) -> bool:
        """Whether a column of numbers says something of any tyre."""
        return name in self.table.column_names and not bool(np.isnan(self.numbers(name)).all())

    def take(self, kept: NDArray[Any]) -> Sample:
        """Some of them: a mask of shape (T,)."""
        return Sample(self.table.filter(pa.array(kept)), self.about)

    def pictures(self) -> dict[str, bytes]:
        """The small JPEGs by key."""
        held = self.table.filter(pc.is_valid(self.table["picture"]))
        return dict(zip(held["key"].to_pylist(), held["picture"].to_pylist(), strict=True))

    def with_pictures(self, pictures: Mapping[str, bytes]) -> Sample:
        """The same with small JPEGs, by key."""
        held = pa.array([pictures.get(key) for key in self.table["key"].to_pylist()], pa.binary())
        place = self.table.column_names.index("picture")
        return Sample(self.table.set_column(place, "picture", held), self.about)

    def save(self, path: Path) -> None:
        """Write it as a file.

        Raises:
            Unwritable: the disk is full, and the like.
        """
        about = {_ABOUT: json.dumps({**self.about, "format": _FORMAT}).encode()}
        with whole(path) as unfinished:
            pq.write_table(self.table.replace_schema_metadata(about), unfinished)

    @classmethod
    def load(cls, path: Path) -> Sample:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is no sample, or of a newer version.
        """
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[_ABOUT])
            known = about.get("format") == _FORMAT and {*_TEXTS, "picture"} <= {*table.column_names}
        except (OSError, ValueError, KeyError, pa.ArrowException):
            known = False
        if not known:
            raise UserError(f"{path} is no baseline that this version wrote: `watch accept=true` makes one")
        return cls(table, about)
