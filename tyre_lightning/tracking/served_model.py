"""The registered model: MLflow runs this file to load it (models from code; nothing is pickled).

In: a column ``image`` with the bytes of image files (base64 over HTTP), or a column ``uri`` with their ``s3://``
addresses, below those that the environment variable ``TYRE_SERVE_S3`` of the server lists, with spaces between them;
and, if you like, a column ``tyre`` that names the tyre on each: all its rows of a request get one verdict. A null is a
tyre of its own; without the column, addresses tell the tyre as file names do in predict.py.
Out: for each image its ``tyre``, ``class``, the ``decision`` on the tyre (accept, review or reject) and on the picture
by itself (``picture_decision``), the ``reason`` of a review that no score explains, a probability for every class, and
``error`` where there is no answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UnreadableImage, UserError
from tyre_lightning.lake.store import check_size, open_store
from tyre_lightning.lake.tyres import find_tyre
from tyre_lightning.model.inspector import Inspector, Sighting, answer_columns
from tyre_lightning.names import one_form

ALLOWED = "TYRE_SERVE_S3"
_LARGEST = 64 << 20  # bytes of a file; Pillow refuses images of more than 179 million pixels
_TOGETHER = 8  # images that are in memory at a time


class ServedModel(PythonModel):
    """MLflow's face of an :class:`Inspector`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the inspector from the model's artifacts."""
        self.inspector = Inspector.load(context.artifacts["inspector"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each image."""
        files = model_input["image"] if "image" in model_input else _fetch(list(model_input["uri"]))
        rows = [self._row(data, f"row {index}") for index, data in enumerate(files)]
        for row, tyre in zip(rows, self._tyres(model_input), strict=True):
            row["tyre"] = tyre
        self._decide(rows)
        table = pd.DataFrame(rows, columns=answer_columns(self.inspector.columns()))
        return table.astype(object).where(table.notna(), None)  # JSON has null but no NaN

    def _tyres(self, model_input: pd.DataFrame) -> list[str | None]:
        if "tyre" in model_input:
            return [None if pd.isna(name) else one_form(str(name)) for name in model_input["tyre"]]
        if "uri" in model_input and "image" not in model_input:
            return [find_tyre(uri, self.inspector.group_pattern) for uri in model_input["uri"]]
        return [None] * len(model_input)

    def _decide(self, rows: list[dict[str, Any]]) -> None:
        """Give all rows of a tyre its verdict."""
        tyres: dict[Any, Sighting] = {}
        for index, row in enumerate(rows):
            tyres.setdefault(row["tyre"] or index, Sighting()).add(self.inspector, row)
        for index, row in enumerate(rows):
            verdict = self.inspector.verdict(tyres[row["tyre"] or index])
            alone = row["tyre"] is None and row["error"] is not None
            row |= {"decision": None, "reason": None} if alone else verdict._asdict()

    def _row(self, data: bytes | UserError, key: str) -> dict[str, Any]:
        try:
            if isinstance(data, UserError):
                raise data
            check_size(key, len(data), _LARGEST)
            image = self.inspector.read(data, key)
        except UnreadableImage as error:
            return {"class": None, "error": error.reason}
        except UserError as error:
            return {"class": None, "error": str(error)}
        return {**self.inspector.answers([image])[0], "error": None}


def _fetch(uris: Sequence[str]) -> Iterator[bytes | UserError]:
    """The files at some addresses, or why they are not read, a few at a time."""
    with ThreadPoolExecutor(_TOGETHER) as pool:
        for start in range(0, len(uris), _TOGETHER):
            yield from pool.map(_read, uris[start : start + _TOGETHER])


def _read(uri: str) -> bytes | UserError:
    folders = [folder.rstrip("/") + "/" for folder in os.environ.get(ALLOWED, "").split()]
    if not any(uri.startswith(folder) for folder in folders):
        return UserError(f"{uri} is below none of the addresses that {ALLOWED} lists where the model is served")
    root, _, name = uri.rpartition("/")
    try:
        store = open_store(root, S3Config())
        return store.get(store.key(name), _LARGEST).data
    except UserError as error:
        return error


set_model(ServedModel())
