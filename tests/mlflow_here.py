"""The command ``mlflow`` whose server runs in its own process: another would import all of MLflow once more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow.server
import uvicorn
from mlflow.cli import cli


def _serve(command: Sequence[str], extra_env: Mapping[str, str], **_: Any) -> None:
    os.environ.update(extra_env)
    uvicorn.main([*command[command.index("uvicorn") + 1 :]])


if __name__ == "__main__":
    mlflow.server._exec_cmd = _serve  # type: ignore[attr-defined, assignment]
    cli()
