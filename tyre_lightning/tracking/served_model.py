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

from collections.abc import Mapping
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tyre_lightning.model.inspector import Inspector, answer_columns
from tyre_lightning.tracking.asked import NO_COLUMN, NO_TEXT, answer, open_workers, warmed


class ServedModel(PythonModel):
    """MLflow's face of an :class:`Inspector`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the inspector from the model's artifacts."""
        self.inspector = warmed(Inspector.load(context.artifacts["inspector"]))
        self.workers = open_workers()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each image.

        Raises:
            MlflowException: the request has no column of images; MLflow answers with its sentence.
        """
        if not {"image", "uri"} & {*model_input.columns}:
            raise MlflowException.invalid_parameter_value(NO_COLUMN)
        given: list[dict[str, Any]] = [_without_nulls(row) for row in model_input.to_dict("records")]
        rows = answer(self.inspector, given, self.workers, named="tyre" in model_input)
        columns = answer_columns(self.inspector.columns(), multi_label=self.inspector.multi_label)
        table = pd.DataFrame(rows, columns=columns)
        return table.astype(object).where(table.notna(), None)  # JSON has null but no NaN


def _without_nulls(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not _is_null(value)}


def _is_null(value: Any) -> bool:
    if isinstance(value, str):
        return value in NO_TEXT
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


set_model(ServedModel())
