"""What a request asks of a model, and what it is answered: the one path of MLflow's server and of ``tyre serve``.

A row asks of one picture: ``image`` is an image file, its bytes or base64 text; or ``uri`` its ``s3://`` address, below
those that the environment variable ``TYRE_SERVE_S3`` of the server lists, with spaces between them. ``tyre``, if it is
given, names the tyre on it.
"""

from __future__ import annotations

import binascii
import math
import os
from base64 import b64decode
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from tyre_lightning.config import S3Config
from tyre_lightning.cores import cores
from tyre_lightning.errors import UnreadableImage, UserError, hide_passwords
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import check_size
from tyre_lightning.lake.tyres import find_tyre
from tyre_lightning.model.inspector import Inspector, answer_columns, decide_on_tyres, nothing_seen
from tyre_lightning.names import one_form

ALLOWED = "TYRE_SERVE_S3"
LARGEST = 64 << 20  # bytes of a file; Pillow refuses images of more than 179 million pixels
NO_TEXT = ("", "None", "nan")  # which MLflow makes of nulls in ``instances`` and ``inputs``
_SEND = "send an image file's bytes as base64 text in the column image, or its s3:// address in the column uri"
NO_COLUMN = (
    f"the request has neither a column 'image' nor a column 'uri': {_SEND}, such as "
    '{"dataframe_records": [{"image": "/9j/4AAQ..."}]}, and the column tyre too where one tyre has several pictures'
)

Row = dict[str, Any]


def open_workers() -> ThreadPoolExecutor:
    """Threads in which pictures are decoded and looked at: one a core, whoever asks, so that none waits for two."""
    return ThreadPoolExecutor(cores(), "look", _decode_alone)


def _decode_alone() -> None:
    """A picture has one thread to be made small in: the other cores have other pictures."""
    torch.set_num_threads(1)


def warmed(inspector: Inspector) -> Inspector:
    """The same, which has made what it makes when it is first asked: several threads would do so at once."""
    size = inspector.preprocessing.size
    inspector.look([torch.zeros(3, size, size, dtype=torch.uint8)])
    return inspector


def answer(inspector: Inspector, asked: Sequence[Mapping[str, Any]], workers: Executor, *, named: bool) -> list[Row]:
    """A row for each picture that is asked of, in order, with the columns of :func:`finished`.

    Args:
        inspector: the model.
        asked: without nulls.
        workers: what :func:`open_workers` gave.
        named: whether the request names tyres; otherwise addresses tell them as file names do in predict.py.
    """
    rows = [*workers.map(partial(look, inspector), asked, (f"row {index}" for index in range(len(asked))))]
    return finished(inspector, rows, asked, named=named)


def finished(
    inspector: Inspector, rows: Sequence[Row], asked: Sequence[Mapping[str, Any]], *, named: bool
) -> list[Row]:
    """What :func:`look` said of each picture, with its ``tyre``, and the ``decision`` on that.

    Args:
        inspector: the model.
        rows: of the pictures.
        asked: what was asked of each.
        named: as for :func:`answer`.
    """
    for row, one in zip(rows, asked, strict=True):
        row["tyre"] = _tyre(inspector, one, named=named)
    decide_on_tyres(inspector, rows)
    return [*rows]


def shown(inspector: Inspector, row: Mapping[str, Any]) -> Row:
    """A row as JSON has it: the columns that every answer has, with null for what is not known, or no number."""
    columns = answer_columns(inspector.columns(), multi_label=inspector.multi_label)
    values = ((name, row.get(name)) for name in columns)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values}


def look(inspector: Inspector, asked: Mapping[str, Any], key: str) -> Row:
    """What is said of one picture by itself, or in ``error`` why nothing is.

    Args:
        inspector: the model.
        asked: where the picture is.
        key: names it in errors.
    """
    try:
        data = _file(asked)
        check_size(key, len(data), LARGEST)
        image = inspector.read(data, key)
    except UnreadableImage as error:
        return nothing_seen(error.reason)
    except UserError as error:
        return nothing_seen(str(error))
    return {**inspector.answers([image])[0], "error": None}


def _tyre(inspector: Inspector, asked: Mapping[str, Any], *, named: bool) -> str | None:
    if named:
        name = asked.get("tyre")
        whole = isinstance(name, float) and name.is_integer()  # pandas makes 7.0 of a 7 beside a null
        return None if name is None else one_form(str(int(name) if whole else name))
    return find_tyre(str(asked["uri"]), inspector.group_pattern) if "uri" in asked else None


def _file(asked: Mapping[str, Any]) -> bytes:
    """The file that a row has or names.

    Raises:
        UserError: there is none; says why.
    """
    match asked:
        case {"image": _, "uri": _}:
            raise UserError("the row has both an image and a uri: give one, and null for the other")
        case {"image": bytes() | bytearray() as data}:
            return bytes(data)
        case {"image": str() as text}:
            return _decoded(text)
        case {"uri": str() as uri}:
            return _read(uri)
        case {"image": _} | {"uri": _}:
            raise UserError(f"the row's {'image' if 'image' in asked else 'uri'} is no text: {_SEND}")
    raise UserError(f"the row has no image and no uri: {_SEND}")


def _decoded(text: str) -> bytes:
    try:
        # White space is dropped in place: a list of what lies between could have many times the size of the request.
        return b64decode(text.encode().translate(None, b" \t\n\r\v\f"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the row's image is not base64 ({error}): {_SEND}") from error


def _read(uri: str) -> bytes:
    folders = [folder.rstrip("/") + "/" for folder in os.environ.get(ALLOWED, "").split()]
    steps = {".", ".."} & {*uri.partition("://")[2].split("/")}  # by which some servers leave a folder
    if steps or not any(uri.startswith(folder) for folder in folders):
        shown = hide_passwords(uri)
        raise UserError(f"{shown} is below none of the addresses that {ALLOWED} lists where the model is served")
    root, _, name = uri.rpartition("/")
    store = open_store(root, S3Config())
    return store.get(store.key(name), LARGEST).data
