"""What is known of the line, in an MLflow experiment of its own: a run for each window."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.names import mlflow_quoted
from tyre_lightning.tracking.runs import connect

_KIND, _WINDOW = "line.kind", "line.window"


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
    from mlflow.exceptions import MlflowException

    client = connect(tracking_uri)
    moment = int(1000 * datetime.fromisoformat(time).timestamp())
    try:
        known = client.get_experiment_by_name(experiment)
        place = client.create_experiment(experiment) if known is None else known.experiment_id
        wanted = {_KIND: kind, _WINDOW: time, **{f"line.{name}": value for name, value in tags.items() if value}}
        query = " and ".join(f"tags.`{name}` = {mlflow_quoted(value)}" for name, value in wanted.items())
        for run in client.search_runs([place], query):
            client.delete_run(run.info.run_id)
        run_id: str = client.create_run(place, start_time=moment, run_name=f"{kind} {time[:10]}").info.run_id
        points = [Metric(name, value, moment, 0) for name, value in metrics.items()]
        client.log_batch(run_id, points, tags=[RunTag(name, value) for name, value in wanted.items()])
        client.set_terminated(run_id)
    except MlflowException as error:
        raise UserError(f"MLflow at {tracking_uri} takes no window of {experiment}: {first_line(error)}") from error
    return run_id
