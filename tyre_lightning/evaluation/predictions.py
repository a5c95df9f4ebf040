"""The predictions file: parquet, csv or jsonl, written a batch at a time; and how it is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.evaluation.overlays import NEAREST
from tyre_lightning.files import whole
from tyre_lightning.model.inspector import DEFECTS, NOVELTY, Inspector
from tyre_lightning.names import csv_cell, plain_cell

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]


class Writer(Protocol):
    """Takes rows until it is closed."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the file's content."""


_KINDS = {DEFECTS: pa.list_(pa.string()), NEAREST: pa.list_(pa.string()), NOVELTY: pa.float64()}
_TEXTS = dict.fromkeys(("key", "tyre", "class", "decision", "picture_decision", "reason", "error"), "object")


class _Parquet:
    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        numbers = {"p_": pa.float64(), "n_": pa.int64()}
        kinds = [pa.field(name, numbers.get(name[:2], _KINDS.get(name, pa.string()))) for name in columns]
        self._schema = pa.schema(kinds)
        self._writer = pq.ParquetWriter(file, self._schema)

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _Text:
    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._columns = columns

    def close(self) -> None:
        self._text.flush()
        self._text.detach()


class _Csv(_Text):
    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        super().__init__(file, columns)
        self._writer = csv.DictWriter(self._text, columns)
        self._writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.writerows({name: csv_cell(_joined(value)) for name, value in row.items()} for row in rows)


def _joined(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


class _Jsonl(_Text):
    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._text.write(json.dumps({name: row.get(name) for name in self._columns}, ensure_ascii=False) + "\n")


_WRITERS: dict[str, Callable[[BinaryIO, Sequence[str]], Writer]] = {
    ".parquet": _Parquet,
    ".csv": _Csv,
    ".jsonl": _Jsonl,
}


def tyre_columns(inspector: Inspector) -> list[str]:
    """What is said of a tyre; ``defects`` are those of all its pictures."""
    several = [DEFECTS] if inspector.multi_label else []
    counts = ["n_pictures", "n_unreadable"]
    return ["tyre", "class", *several, "decision", "reason", "p_defective", NOVELTY, *counts, "key"]


@contextmanager
def open_writer(output: str, columns: Sequence[str]) -> Iterator[Writer]:
    """A writer of rows with these columns: numbers where they begin with ``p_``, counts with ``n_``, else text.

    ``defects`` and ``nearest`` are lists of texts; in csv one text, with commas.

    The file appears under its name only when it is complete, so that a broken run leaves none that looks whole.

    Raises:
        UserError: the name's ending is not known, or the file cannot be written.
    """
    kind = _WRITERS.get(Path(output).suffix.lower())
    if kind is None:
        raise UserError(f"output={output} must end in one of {', '.join(_WRITERS)}")
    with whole(output) as unfinished, open(unfinished, "wb") as file:
        writer = kind(file, columns)
        yield writer
        writer.close()


def read_predictions(path: str) -> DataFrame:
    """A predictions file as a table, a row a picture; texts of a csv as they were before they were made safe there.

    Raises:
        UserError: the file is not there, cannot be read, or has no ``key``, ``decision`` or probabilities.
    """
    import pandas as pd

    readers = {
        ".parquet": pd.read_parquet,
        ".csv": partial(pd.read_csv, keep_default_na=False, na_values=[""], dtype=_TEXTS),
        ".jsonl": _read_jsonl,
    }
    kind = Path(path).suffix.lower()
    if kind not in readers:
        raise UserError(f"{path} must end in one of {', '.join(readers)}, as predict.py writes them")
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}: give what predict.py wrote")
    try:
        table = readers[kind](path)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:  # pandas' parsers raise ValueErrors
        raise UserError(f"{path} cannot be read as predictions: {first_line(error)}") from error
    missing = {"key", "tyre", "decision", "error", NOVELTY} - {*table.columns}
    if missing or not any(name.startswith("p_") for name in table.columns):
        lacks = ", ".join(sorted(missing)) or "p_CLASS"
        raise UserError(f"{path} has no column {lacks}: give what predict.py writes, with a row for each picture")
    if kind == ".csv":
        table = table.map(plain_cell)
    texts = [name for name in table.columns if name != NOVELTY and name[:2] not in ("p_", "n_")]
    return table.assign(**{name: table[name].astype(object).where(table[name].notna(), None) for name in texts})


def _read_jsonl(path: str) -> DataFrame:
    """By Python's reader, which gives back the numbers that were written, to the last digit."""
    import pandas as pd

    with open(path, encoding="utf-8") as file:
        return pd.DataFrame([json.loads(line) for line in file])
