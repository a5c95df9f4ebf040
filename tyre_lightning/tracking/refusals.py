"""What MLflow will never take, apart from what it may take later."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tyre_lightning.errors import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAY_CHANGE = {401, 403, 408, 409, 429}  # credentials, rights, time, another's request, the rate of requests


def refusal(error: Exception) -> str | None:
    """Why a request would fail again, whenever it is made; None where it may succeed later."""
    status = _status(error)
    return first_line(error) if 400 <= status < 500 and status not in _MAY_CHANGE else None


def why_gone(client: MlflowClient, run_id: str) -> str | None:
    """Why MLflow takes nothing of a run any more; None where it is there."""
    try:
        stage = client.get_run(run_id).info.lifecycle_stage
    except Exception as error:  # MLflow, its stores and their clients each raise their own
        missing = getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"  # and not: no such page
        return f"MLflow has no run {run_id}" if missing else None
    return None if stage == "active" else f"run {run_id} is deleted in MLflow"


def _status(error: Exception) -> int:
    """The HTTP status of an answer, or what a database's error would be over HTTP; 500 where none is known."""
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    answer: Any = error
    if isinstance(error, HTTPError):
        return error.response.status_code if error.response is not None else 500
    if isinstance(error, ClientError):
        return int(answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    if not isinstance(error, MlflowException):
        return 500
    found = re.search(r"failed with error code (\d{3})", str(error))  # a proxy's, of which MLflow knows no code
    return int(found[1]) if found else int(answer.get_http_status_code())
