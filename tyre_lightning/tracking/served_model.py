"""The registered model: MLflow runs this file to load it (models from code; nothing is pickled).

In, by any of MLflow's request forms: a column ``image`` with image files (base64 text; within Python their bytes), or a
column ``uri`` with their ``s3://`` addresses, below those that the environment variable ``TYRE_SERVE_S3`` of the server
lists, with spaces between them; and, if you like, a column ``tyre`` that names the tyre on each: all its rows of a
request get one verdict. A null is a tyre of its own; without the column, addresses tell the tyre as file names do in
predict.py.
Out: for each image its ``tyre``, ``class`` (of a model of several defects also ``defects``, a list), the ``decision``
on the tyre (accept, review or reject) and on the picture by itself (``picture_decision``), the ``reason`` of a review
that no score explains, its ``novelty``, a probability for every class, and ``error`` where there is no answer.
"""

from __future__ import annotations

import binascii
import os
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UnreadableImage, UserError, hide_passwords
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import check_size
from tyre_lightning.lake.tyres import find_tyre
from tyre_lightning.model.inspector import Inspector, answer_columns, decide_on_tyres, nothing_seen
from tyre_lightning.names import one_form

ALLOWED = "TYRE_SERVE_S3"
_LARGEST = 64 << 20  # bytes of a file; Pillow refuses images of more than 179 million pixels
_TOGETHER = 8  # images that are in memory at a time
_SEND = "send an image file's bytes as base64 text in the column image, or its s3:// address in the column uri"
_NO_COLUMN = (
    f"the request has neither a column 'image' nor a column 'uri': {_SEND}, such as "
    '{"dataframe_records": [{"image": "/9j/4AAQ..."}]}, and the column tyre too where one tyre has several pictures'
)


class ServedModel(PythonModel):
    """MLflow's face of an :class:`Inspector`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the inspector from the model's artifacts."""
        self.inspector = Inspector.load(context.artifacts["inspector"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each image.

        Raises:
            MlflowException: the request has no column of images; MLflow answers with its sentence.
        """
        if not {"image", "uri"} & {*model_input.columns}:
            raise MlflowException.invalid_parameter_value(_NO_COLUMN)
        given: list[dict[str, Any]] = [_without_nulls(row) for row in model_input.to_dict("records")]
        rows = [self._row(data, f"row {index}") for index, data in enumerate(_files(given))]
        for row, asked in zip(rows, given, strict=True):
            row["tyre"] = self._tyre(asked, named="tyre" in model_input)
        decide_on_tyres(self.inspector, rows)
        columns = answer_columns(self.inspector.columns(), multi_label=self.inspector.multi_label)
        table = pd.DataFrame(rows, columns=columns)
        return table.astype(object).where(table.notna(), None)  # JSON has null but no NaN

    def _tyre(self, asked: Mapping[str, Any], *, named: bool) -> str | None:
        if named:
            name = asked.get("tyre")
            whole = isinstance(name, float) and name.is_integer()  # pandas makes 7.0 of a 7 beside a null
            return None if name is None else one_form(str(int(name) if whole else name))
        return find_tyre(str(asked["uri"]), self.inspector.group_pattern) if "uri" in asked else None

    def _row(self, data: bytes | UserError, key: str) -> dict[str, Any]:
        try:
            if isinstance(data, UserError):
                raise data
            check_size(key, len(data), _LARGEST)
            image = self.inspector.read(data, key)
        except UnreadableImage as error:
            return nothing_seen(error.reason)
        except UserError as error:
            return nothing_seen(str(error))
        return {**self.inspector.answers([image])[0], "error": None}


def _without_nulls(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not _is_null(value)}


def _is_null(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("", "None", "nan")  # which MLflow makes of nulls in ``instances`` and ``inputs``
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _files(asked: Sequence[Mapping[str, Any]]) -> Iterator[bytes | UserError]:
    """The files that rows have or name, or why there is none, a few at a time."""
    with ThreadPoolExecutor(_TOGETHER) as pool:
        for start in range(0, len(asked), _TOGETHER):
            yield from pool.map(_file, asked[start : start + _TOGETHER])


def _file(asked: Mapping[str, Any]) -> bytes | UserError:
    match asked:
        case {"image": _, "uri": _}:
            return UserError("the row has both an image and a uri: give one, and null for the other")
        case {"image": bytes() | bytearray() as data}:
            return bytes(data)
        case {"image": str() as text}:
            return _decoded(text)
        case {"uri": str() as uri}:
            return _read(uri)
        case {"image": _} | {"uri": _}:
            return UserError(f"the row's {'image' if 'image' in asked else 'uri'} is no text: {_SEND}")
    return UserError(f"the row has no image and no uri: {_SEND}")


def _decoded(text: str) -> bytes | UserError:
    try:
        return b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return UserError(f"the row's image is not base64 ({error}): {_SEND}")


def _read(uri: str) -> bytes | UserError:
    folders = [folder.rstrip("/") + "/" for folder in os.environ.get(ALLOWED, "").split()]
    if not any(uri.startswith(folder) for folder in folders):
        shown = hide_passwords(uri)
        return UserError(f"{shown} is below none of the addresses that {ALLOWED} lists where the model is served")
    root, _, name = uri.rpartition("/")
    try:
        store = open_store(root, S3Config())
        return store.get(store.key(name), _LARGEST).data
    except UserError as error:
        return error


set_model(ServedModel())
