"""One training as a run in MLflow: what is recorded, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tyre_lightning.config import LoggerConfig
from tyre_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

CATALOG = "catalog.parquet"  # the artifact that lists a run's images
SWEEP_TAG = "sweep"
_PARAMS_PER_CALL = 100  # MLflow's own limit


def connect(tracking_uri: str) -> MlflowClient:
    """A client of the tracking server (or database file), which is made the default for this process.

    Raises:
        UserError: nothing answers there.
    """
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # MLflow's own waits (7 tries, minutes in all) would keep a mistyped address looking alive.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it draws over ours
    import mlflow

    uri = hand_over_password(tracking_uri)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    try:
        client.search_experiments(max_results=1)
    except Exception as error:
        raise UserError(
            f"the tracking URI {without_password(tracking_uri)} does not answer as an MLflow server or database "
            f"({type(error).__name__}): start it, or use sqlite:///mlflow.db"
        ) from error
    return client


@dataclass
class Run:
    """A run that has been started.

    Args:
        id: MLflow's run id.
        client: connected to the server that has the run.
        config: what the run was asked to log to.
    """

    id: str
    client: MlflowClient
    config: LoggerConfig

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record nested values as parameters with dotted names."""
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in flatten(values)]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self.client.log_batch(self.id, params=params[start : start + _PARAMS_PER_CALL])

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Record final metrics by name."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, 0) for name, value in values.items()])

    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as an artifact."""
        self.client.log_figure(self.id, figure, name)

    def log_text(self, text: str, name: str) -> None:
        """Record a text as an artifact."""
        self.client.log_text(self.id, text, name)

    def by_epoch(self, name: str) -> list[tuple[float, float]]:
        """A metric that was recorded once an epoch, as pairs of epoch, counted from 1, and value."""
        epochs = {point.step: point.value + 1 for point in self.client.get_metric_history(self.id, "epoch")}
        found = {
            epochs.get(point.step, point.step): point.value for point in self.client.get_metric_history(self.id, name)
        }
        return sorted(found.items())

    def log_dataset(self, usage: str, digest: str, root: str, counts: Mapping[str, int]) -> None:
        """Record a set of images as an input of the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = "s3" if root.startswith("s3:") else "local"
        profile = json.dumps({"images": sum(counts.values()), **counts})
        name = f"{root.rstrip('/').rpartition('/')[2]}/{usage}"
        dataset = Dataset(name, digest, kind, json.dumps({"uri": root}), profile=profile)
        self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", usage)])])

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file as an artifact, if it exists."""
        if os.path.isfile(path):
            self.client.log_artifact(self.id, str(path), folder)


def fetch_catalog(run_id: str, tracking_uri: str, folder: Path) -> str:
    """Copy the catalog that a run recorded into a folder; gives its path.

    Raises:
        UserError: there is no such run, or it recorded none.
    """
    from mlflow.exceptions import MlflowException

    client = connect(tracking_uri)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        client.get_run(run_id)
        return str(client.download_artifacts(run_id, CATALOG, str(folder)))
    except (MlflowException, OSError) as error:
        where = without_password(tracking_uri)
        raise UserError(f"{where} has no run {run_id}, or it recorded no {CATALOG}") from error


@contextmanager
def tracked_run(config: LoggerConfig, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Start a run, and end it as FINISHED, as KILLED after Ctrl-C or SIGTERM, and as FAILED after any other error.

    Raises:
        UserError: the tracking server does not answer.
    """
    client = connect(config.tracking_uri)
    config = replace(config, tracking_uri=hand_over_password(config.tracking_uri))
    run = Run(_create(client, config, name, tags), client, config)
    monitor = _system_monitor(run) if config.system_metrics else None
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"  # Lightning turns Ctrl-C into SystemExit, after the checkpoint is written
        raise
    finally:
        if monitor:
            monitor.finish()
        client.set_terminated(run.id, status)


def _create(client: MlflowClient, config: LoggerConfig, name: str, tags: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        try:
            experiment_id = client.create_experiment(config.experiment)
        except MlflowException:  # another run has just made it
            experiment = client.get_experiment_by_name(config.experiment)
            if experiment is None:
                raise
            experiment_id = experiment.experiment_id
    elif experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"logger.experiment='{config.experiment}' is deleted in MLflow: restore it or choose another name"
        )
    else:
        experiment_id = experiment.experiment_id
    source = {"mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL", "mlflow.user": _user(), **_commit()}
    run_id: str = client.create_run(experiment_id, run_name=name, tags={**source, **tags}).info.run_id
    return run_id


def _system_monitor(run: Run) -> Any:
    from mlflow.system_metrics import system_metrics_monitor

    logging.getLogger(system_metrics_monitor.__name__).setLevel(logging.WARNING)
    kind: Any = system_metrics_monitor.SystemMetricsMonitor
    monitor = kind(run.id, resume_logging=True, tracking_uri=run.config.tracking_uri)
    monitor.start()
    return monitor


def _commit() -> dict[str, str]:
    """The git commit of the code, where it lies in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": found.stdout.strip()}


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def hand_over_password(uri: str) -> str:
    """A server's URI without user and password, which MLflow finds in its environment instead: it prints the URI."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.username:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return without_password(uri)


def without_password(uri: str) -> str:
    """A URI that may be shown: without user and password."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of dotted name and value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
