"""The predictions file: parquet, csv or jsonl, written and read a batch at a time."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tyre_lightning.config import ROW_FILES
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.evaluation.overlays import NEAREST
from tyre_lightning.files import whole
from tyre_lightning.lake.manifest import FOLDER
from tyre_lightning.model.inspector import DEFECTS, NOVELTY, Inspector, Sighting
from tyre_lightning.names import csv_cell, plain_cell

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]

_TOGETHER = 4096  # rows in memory at one time
_UNPLAIN = re.compile(r'[",\r\n]|^\s')  # in a list's item, for CSV
SHOWS = "shows"  # the column of all true classes, where they are known and images may show several defects
SUMMARY = "_summary.json"  # in a folder of parts, once all are there
ABOUT = b"tyre_lightning"  # under which a parquet file's metadata has what its rows are about


class Writer(Protocol):
    """Takes rows until it is closed."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the file's content."""


_KINDS = {**dict.fromkeys((DEFECTS, NEAREST, SHOWS), pa.list_(pa.string())), NOVELTY: pa.float64()}
_NUMBERS = {"p_": pa.float64(), "n_": pa.int64()}  # by how a name begins
_ALWAYS = {"key", "tyre", "class", "decision", "error", NOVELTY}  # whatever the model


def row_schema(columns: Sequence[str]) -> pa.Schema:
    """What parquet keeps columns of these names as: see :func:`open_writer`."""
    return pa.schema([(name, _NUMBERS.get(name[:2], _KINDS.get(name, pa.string()))) for name in columns])


class _Parquet:
    def __init__(self, file: BinaryIO, columns: Sequence[str], about: Mapping[str, str]) -> None:
        self._schema = row_schema(columns).with_metadata({ABOUT: json.dumps(about, ensure_ascii=False)})
        self._writer = pq.ParquetWriter(file, self._schema)

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _Text:
    def __init__(self, file: BinaryIO, columns: Sequence[str], about: Mapping[str, str]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._columns = columns

    def close(self) -> None:
        self._text.flush()
        self._text.detach()


class _Csv(_Text):
    def __init__(self, file: BinaryIO, columns: Sequence[str], about: Mapping[str, str]) -> None:
        super().__init__(file, columns, about)
        self._writer = csv.DictWriter(self._text, columns)
        self._writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.writerows({name: csv_cell(_joined(value)) for name, value in row.items()} for row in rows)


def _joined(value: Any) -> Any:
    """A list as one text: its items with commas between them; what has one itself stands in marks, as CSV has it."""
    return ", ".join(map(_marked, value)) if isinstance(value, list) else value


def _marked(item: str) -> str:
    return '"{}"'.format(item.replace('"', '""')) if _UNPLAIN.search(item) else item


def _parted(text: str) -> list[str]:
    """The inverse of :func:`_joined`."""
    return next(csv.reader([text], skipinitialspace=True))


class _Jsonl(_Text):
    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._text.write(json.dumps({name: row.get(name) for name in self._columns}, ensure_ascii=False) + "\n")


_WRITERS: dict[str, Callable[[BinaryIO, Sequence[str], Mapping[str, str]], Writer]] = {
    ".parquet": _Parquet,
    ".csv": _Csv,
    ".jsonl": _Jsonl,
}


def tyre_columns(inspector: Inspector) -> list[str]:
    """What is said of a tyre; ``defects`` are those of all its pictures."""
    several = [DEFECTS] if inspector.multi_label else []
    counts = ["n_pictures", "n_unreadable"]
    return ["tyre", "class", *several, "decision", "reason", "p_defective", NOVELTY, *counts, "key"]


def tyre_row(inspector: Inspector, name: str, sighting: Sighting) -> dict[str, Any]:
    """What is said of a tyre."""
    known = sighting.pictures > 0 and inspector.good_class is not None
    return {
        "tyre": name,
        "class": sighting.class_name,
        **({DEFECTS: sorted(sighting.defects)} if inspector.multi_label else {}),
        **inspector.verdict(sighting)._asdict(),
        "p_defective": sighting.score if known else None,
        NOVELTY: sighting.novelty,
        "n_pictures": sighting.pictures,
        "n_unreadable": sighting.unreadable,
        "key": sighting.key,
    }


@contextmanager
def open_writer(output: str, columns: Sequence[str], about: Mapping[str, str] | None = None) -> Iterator[Writer]:
    """A writer of rows with these columns: numbers where they begin with ``p_``, counts with ``n_``, else text.

    What the rows are about as a whole stays with a parquet file; the other kinds have no place for it.

    ``defects``, ``nearest`` and ``shows`` are lists of texts; in csv one text, with commas, and as a row of CSV itself
    where a name has a comma.

    The file appears under its name only when it is complete, so that a broken run leaves none that looks whole.

    Raises:
        UserError: the name's ending is not known, or the file cannot be written.
    """
    kind = _WRITERS.get(Path(output).suffix.lower())
    if kind is None:
        raise UserError(f"output={output} must end in one of {', '.join(ROW_FILES)}")
    with whole(output) as unfinished, open(unfinished, "wb") as file:
        writer = kind(file, columns, about or {})
        try:
            yield writer
        finally:
            writer.close()


def to_bytes(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    """Some rows as a parquet file."""
    file = io.BytesIO()
    writer = _Parquet(file, columns, {})
    writer.write(rows)
    writer.close()
    return file.getvalue()


def from_bytes(data: bytes) -> list[dict[str, Any]]:
    """The inverse of :func:`to_bytes`."""
    return list(pq.read_table(pa.BufferReader(data)).to_pylist())


def is_predictions(address: str) -> bool:
    """Whether an input is a predictions file, by its ending, or a folder of parts, rather than pictures."""
    return "://" not in address and (Path(address).suffix.lower() in _WRITERS or Path(address, FOLDER).is_dir())


def read_rows(path: str, wanted: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a predictions file, one at a time, as its writer was given them.

    Args:
        path: of a .parquet, .csv or .jsonl file of predict.py, or of a folder of its parts.
        wanted: columns that it must have beside those that every model's has.

    Raises:
        UserError: the file is not there, cannot be read, or lacks one of them; or parts are missing.
    """
    needed = _ALWAYS | {*wanted}
    for file in _files(path):
        yield from _rows_of(file, needed)


def _files(path: str) -> list[str]:
    """A predictions file, or those of a folder of parts, in order.

    Raises:
        UserError: there is none, or parts are missing.
    """
    place = Path(path)
    if place.is_dir():
        if not (place / SUMMARY).is_file():
            raise UserError(f"{path} has no {SUMMARY}: give a folder of predict.py in which all shards are done")
        parts = sorted(str(part) for part in place.glob("part-*.parquet"))
        if len(parts) != (shards := _shards_of(place / SUMMARY)):
            raise UserError(f"{path} has {len(parts)} of {shards} parts: give the same to predict.py again")
        return parts
    if place.suffix.lower() not in _READERS:
        raise UserError(f"{path} must end in one of {', '.join(_READERS)}, as predict.py writes them")
    if not place.is_file():
        raise UserError(f"there is no file {path}: give what predict.py wrote")
    return [path]


def _shards_of(summary: Path) -> int:
    try:
        return int(json.loads(summary.read_bytes())["shards"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{summary} cannot be read: give the same to predict.py again") from error


def _rows_of(path: str, needed: set[str]) -> Iterator[dict[str, Any]]:
    try:
        for row in _READERS[Path(path).suffix.lower()](path):
            if missing := sorted(needed - {*row}):
                names = ", ".join(missing)
                raise UserError(f"{path} has no column {names}: give what predict.py writes, a row for each picture")
            yield row
    except (OSError, ValueError, TypeError, pa.ArrowException, csv.Error) as error:
        raise UserError(f"{path} cannot be read as predictions: {first_line(error)}") from error


def read_about(path: str) -> dict[str, str]:
    """What a predictions file says of itself: ``model`` and ``root``, if it is in parquet of this version.

    Raises:
        UserError: it cannot be read.
    """
    first = path if not Path(path).is_dir() else _files(path)[0]
    if Path(first).suffix.lower() != ".parquet":
        return {}
    try:
        return dict(json.loads((pq.read_schema(first).metadata or {}).get(ABOUT, "{}")))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as predictions: {first_line(error)}") from error


def read_predictions(path: str) -> DataFrame:
    """:func:`read_rows` as a table, of any model; there is at least one.

    Raises:
        UserError: as there; or it has no row, or no probabilities.
    """
    import pandas as pd

    table = pd.DataFrame([*read_rows(path, ())])
    numbers = [name for name in table.columns if name.startswith("p_") or name == NOVELTY]
    if not set(numbers) - {NOVELTY}:
        raise UserError(f"{path} has no {'row' if table.empty else 'column p_CLASS'}: give what predict.py writes")
    texts = {name: table[name].astype(object).where(table[name].notna(), None) for name in table if name not in numbers}
    return table.assign(**texts, **{name: table[name].astype(float) for name in numbers})


def _parquet_rows(path: str) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for part in file.iter_batches(_TOGETHER):
            yield from part.to_pylist()


def _csv_rows(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield {name: _csv_value(name, value) for name, value in row.items()}


def _csv_value(name: str, value: str | None) -> Any:
    if not value:
        return None
    if name.startswith("p_") or name == NOVELTY:
        return float(value)
    plain = plain_cell(value)
    return _parted(str(plain)) if name in (DEFECTS, NEAREST) else plain


def _json_rows(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield dict(json.loads(line))


_READERS: dict[str, Callable[[str], Iterator[dict[str, Any]]]] = {
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
}
