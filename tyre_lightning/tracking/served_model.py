"""The registered model: MLflow runs this file to load it (models from code; nothing is pickled).

In: a column ``image`` with the bytes of image files (base64 over HTTP). Out: for each image its ``class``, the
``decision`` on it (accept, review or reject), a probability for every class, and ``error`` where the bytes are no
image.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tyre_lightning.errors import UnreadableImage
from tyre_lightning.model.inspector import Inspector


class ServedModel(PythonModel):
    """MLflow's face of an :class:`Inspector`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the inspector from the model's artifacts."""
        self.inspector = Inspector.load(context.artifacts["inspector"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each image."""
        rows = [self._row(data, f"row {index}") for index, data in enumerate(model_input["image"])]
        table = pd.DataFrame(rows, columns=["class", "decision", *self.inspector.columns(), "error"])
        return table.astype(object).where(table.notna(), None)  # JSON has null but no NaN

    def _row(self, data: bytes, key: str) -> dict[str, Any]:
        try:
            image = self.inspector.read(data, key)
        except UnreadableImage as error:
            return {"class": None, "error": error.reason}
        return {**self.inspector.answers([image])[0], "error": None}


set_model(ServedModel())
