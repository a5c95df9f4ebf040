"""The forms of a request: MLflow's in JSON, and image files as they are, one or several; each becomes rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import HTTP
from typing import Any

from tyre_lightning.errors import UserError
from tyre_lightning.lake.tyres import find_tyre
from tyre_lightning.tracking.asked import NO_COLUMN, NO_TEXT

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_TAKEN = ("image", "uri", "tyre")
_MOST_PARTS = 10_000


@dataclass(frozen=True)
class Asked:
    """What a request asks.

    Args:
        rows: as :mod:`tyre_lightning.tracking.asked` has them.
        named: whether it names tyres.
    """

    rows: list[dict[str, Any]]
    named: bool


def read_json(body: bytes) -> Asked:
    """One of MLflow's forms: ``dataframe_split``, ``dataframe_records``, ``instances`` or ``inputs``.

    Raises:
        UserError: it is none of them.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is no JSON: {type(error).__name__}; {NO_COLUMN}") from error
    forms = [name for name in _FORMS if isinstance(found, dict) and name in found]
    if len(forms) != 1:
        raise UserError(NO_COLUMN if not forms else f"the request has {' and '.join(forms)}: give one of them")
    rows = _records(forms[0], found[forms[0]])
    columns = {name for row in rows for name in row} if rows else {*_columns(found[forms[0]])}
    if not {"image", "uri"} & columns:
        raise UserError(NO_COLUMN)
    kept = [{name: row[name] for name in _TAKEN if name in row and not _is_null(row[name])} for row in rows]
    return Asked(kept, "tyre" in columns)


def read_file(body: bytes, query: Mapping[str, str], pattern: str | None) -> Asked:
    """A body that is an image file.

    Args:
        body: the file.
        query: of the request: ``tyre``, or ``name`` of the file.
        pattern: what in a file name tells the tyre.
    """
    return Asked([_row(body, query, query.get("name", ""), pattern)], True)


def read_parts(body: bytes, kind: str, query: Mapping[str, str], pattern: str | None) -> Asked:
    """A body of several image files (``multipart/form-data``, RFC 7578), whose names tell the tyre.

    Args:
        body: the whole body.
        kind: the request's Content-Type, which names the boundary.
        query: of the request: ``tyre``, where all show the same.
        pattern: what in a file name tells the tyre.

    Raises:
        UserError: it is not so made, or has no file.
    """
    boundary = _header(f"Content-Type: {kind}".encode()).get_param("boundary")
    if not isinstance(boundary, str) or not re.fullmatch(r"[ -~]{1,70}", boundary):
        raise UserError("the Content-Type multipart/form-data names no boundary")
    mark = b"\r\n--" + boundary.encode()
    parts = (b"\r\n" + body).split(mark, _MOST_PARTS + 1)
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise UserError(f"the body is no whole multipart/form-data of at most {_MOST_PARTS} parts")
    rows = []
    for part in parts[1:-1]:
        head, empty, data = part.partition(b"\r\n\r\n")
        if not empty:
            raise UserError("a part of the body has no head")
        if (name := _header(head.lstrip()).get_filename()) is None:
            continue  # a field, which says nothing here
        rows.append(_row(data, query, name, pattern))
    if not rows:
        raise UserError("the body has no file: send each as a part with a filename")
    return Asked(rows, True)


def _row(data: bytes, query: Mapping[str, str], name: str, pattern: str | None) -> dict[str, Any]:
    tyre = query.get("tyre") or find_tyre(name.replace("\\", "/"), pattern)
    return {"image": data} | ({"tyre": tyre} if tyre else {})


def _header(lines: bytes) -> Message:
    return BytesHeaderParser(policy=HTTP).parsebytes(lines)


def _records(form: str, given: Any) -> list[dict[Any, Any]]:
    """The rows of a form, with all that they have."""
    match form, given:
        case "dataframe_split", {"columns": list() as names, "data": list() as data}:
            texts = [name if isinstance(name, str) else "" for name in names]
            if all(isinstance(row, list) and len(row) == len(names) for row in data):
                return [dict(zip(texts, row, strict=True)) for row in data]
            raise UserError("each row of dataframe_split.data must have a value for each of its columns")
        case "dataframe_records" | "instances" | "inputs", list() as rows if all(isinstance(r, dict) for r in rows):
            return rows
        case "inputs", dict() as columns if all(isinstance(values, list) for values in columns.values()):
            if len({len(values) for values in columns.values()}) > 1:
                raise UserError("the columns of inputs must be equally long")
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    raise UserError(NO_COLUMN)


def _columns(given: Any) -> Sequence[Any]:
    """The columns of a form that has no rows."""
    names = given.get("columns", given) if isinstance(given, dict) else ()
    return [name for name in names if isinstance(name, str)]


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value in NO_TEXT) or value != value
