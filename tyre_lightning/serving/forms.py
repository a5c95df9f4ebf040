"""The forms of a request: MLflow's in JSON, and image files as they are, one or several; each becomes rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tyre_lightning.errors import UserError
from tyre_lightning.lake.tyres import find_tyre
from tyre_lightning.tracking.asked import NO_COLUMN, NO_TEXT

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_TAKEN = ("image", "uri", "tyre")
_MOST_PARTS = 10_000
_MOST_VALUES = 1_000_000  # in JSON: each takes some twenty times the memory of its bytes
_LONGEST_HEAD = 4096  # bytes of a part's head
_DISPOSITION = re.compile(r"(?im)^content-disposition:(.*(?:\n[ \t].*)*)")
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;\s"]*)', re.DOTALL)


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
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise UserError(f"the body has more than {_MOST_VALUES} values: ask for fewer pictures at a time")
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
    boundary = _parameters(kind).get("boundary", "")
    if not re.fullmatch(r"[ -~]{1,70}", boundary):
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
        if len(head) > _LONGEST_HEAD:
            raise UserError(f"the head of a part of the body has more than {_LONGEST_HEAD} bytes")
        if (name := _file_name(head.decode(errors="replace"))) is None:
            continue  # a field, which says nothing here
        rows.append(_row(data, query, name, pattern))
    if not rows:
        raise UserError("the body has no file: send each as a part with a filename")
    return Asked(rows, True)


def _row(data: bytes, query: Mapping[str, str], name: str, pattern: str | None) -> dict[str, Any]:
    tyre = query.get("tyre") or find_tyre(name.replace("\\", "/"), pattern)
    return {"image": data} | ({"tyre": tyre} if tyre else {})


def _file_name(head: str) -> str | None:
    """The name of a part's file; None where the part is a field.

    Python's own parsers of headers take quadratic time, or end in a RecursionError, with heads made for that.
    """
    if (found := _DISPOSITION.search(head)) is None:
        return None
    named = _parameters(found[1])
    if "filename*" in named:  # RFC 8187: charset'language'text
        charset, _, rest = named["filename*"].partition("'")
        with suppress(LookupError):
            return unquote(rest.partition("'")[2], charset or "utf-8", "replace")
    return named.get("filename")


def _parameters(header: str) -> dict[str, str]:
    """The parameters of a header's value, by names in lower case."""
    found = ((name.lower(), value) for name, value in _PARAMETER.findall(header))
    return {name: re.sub(r"\\(.)", r"\1", value[1:-1]) if value[:1] == '"' else value for name, value in found}


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
