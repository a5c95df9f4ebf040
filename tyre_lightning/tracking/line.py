"""What is known of the line, in an MLflow experiment of its own: a run for each window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.names import mlflow_quoted
from tyre_lightning.tracking.pages import NOTE
from tyre_lightning.tracking.runs import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ABOUT = "Windows of the line: what watch compares with a baseline, and what rates measures by people's answers."
_KIND, _WINDOW = "line.kind", "line.window"


@contextmanager
def refusals() -> Iterator[None]:
    """Inside, what MLflow refuses is one sentence.

    Raises:
        UserError: it refuses something.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(f"MLflow does not take the window: {first_line(error)}") from error


@refusals()
def open_experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment of windows, which is made if there is none.

    Raises:
        UserError: it has been deleted, or MLflow refuses it.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        tags = {"mlflow.experimentKind": "custom_model_development", NOTE: _ABOUT}
        try:
            client.create_experiment(name, tags=tags)
        except MlflowException:  # another has just made it
            if client.get_experiment_by_name(name) is None:
                raise
        found = client.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage == "deleted":
        raise UserError(f"mlflow_experiment={name} is deleted in MLflow: restore it or choose another name")
    return str(found.experiment_id)


def log_window(
    tracking_uri: str,
    experiment: str,
    kind: str,
    time: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str | None],
) -> str:
    """Record a window; what was recorded of it before is replaced, since later answers say more. Gives the run's id.

    Args:
        tracking_uri: a server's address, or a database's.
        experiment: it is made where there is none.
        kind: of what is measured; the runs of a kind are one series.
        time: of the window, ISO 8601; the metrics have it.
        metrics: by name.
        tags: more about the window; None: not known.

    Raises:
        UserError: MLflow does not answer, or refuses.
    """
    from mlflow.entities import Metric, RunTag

    client = connect(tracking_uri)
    place = open_experiment(client, experiment)
    moment = int(1000 * datetime.fromisoformat(time).timestamp())
    wanted = {_KIND: kind, _WINDOW: time, **{f"line.{name}": value for name, value in tags.items() if value}}
    query = " and ".join(f"tags.`{name}` = {mlflow_quoted(value)}" for name, value in wanted.items())
    with refusals():
        for run in client.search_runs([place], query):
            client.delete_run(run.info.run_id)
        run_id: str = client.create_run(place, start_time=moment, run_name=f"{kind} {time[:10]}").info.run_id
        points = [Metric(name, value, moment, 0) for name, value in metrics.items()]
        client.log_batch(run_id, points, tags=[RunTag(name, value) for name, value in wanted.items()])
        client.set_terminated(run_id)
    return run_id
