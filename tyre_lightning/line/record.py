"""Windows as runs of an experiment of their own in MLflow, one each, and what the former ones came to."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from tyre_lightning.config import WatchConfig
from tyre_lightning.errors import without_passwords
from tyre_lightning.line.signals import Reading
from tyre_lightning.names import mlflow_name
from tyre_lightning.tracking.line import open_experiment, refusals
from tyre_lightning.tracking.versions import version_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PAGE = "watch.html"  # the artifact that shows a window
TREND = 30  # former windows that a page shows


class Records:
    """The experiment of windows.

    Args:
        client: of MLflow.
        config: names the experiment, the model and the input.
        version: of the model, where it is registered.
        time: of the window.

    Raises:
        UserError: the experiment has been deleted.
    """

    def __init__(self, client: MlflowClient, config: WatchConfig, version: ModelVersion | None, time: datetime) -> None:
        self._client, self._config, self._time = client, config, time
        self._model = str(config.model) if version is None else version_uri(version)
        self._line = str(config.model) if version is None else version.name  # the trend goes on with a new version
        self._experiment = open_experiment(client, config.mlflow_experiment)

    @refusals()
    def trend(self, group: str, readings: Sequence[Reading]) -> dict[str, list[float]]:
        """The effects of the last windows of a group, by signal, the oldest first, without the present one."""
        found = self._client.search_runs(
            [self._experiment],
            f"tags.`watch.series` = '{self._series(group)}'",
            order_by=["attributes.start_time DESC"],
            max_results=TREND,
        )
        former = sorted(found, key=lambda run: run.info.start_time)
        names = {one.signal: _metric(one.signal) for one in readings}
        return {
            signal: [run.data.metrics[name] for run in former if name in run.data.metrics]
            for signal, name in names.items()
        }

    @refusals()
    def add(self, group: str, readings: Sequence[Reading], verdict: str, counts: Mapping[str, int], about: str) -> str:
        """Record a window of a group; gives the id of its run."""
        from mlflow.entities import Metric

        tags = {
            "watch.verdict": verdict,
            "watch.shifted": ", ".join(one.signal for one in readings if one.shifted),
            "watch.model": self._model,
            "watch.input": str(self._config.input),
            "watch.baseline": about,
            "watch.group": group,
            "watch.series": self._series(group),
        }
        stamp = int(self._time.timestamp() * 1000)
        name = f"{self._time:%Y-%m-%d %H:%M} {group}".strip()
        run = self._client.create_run(
            self._experiment, start_time=stamp, run_name=name, tags=without_passwords(tags)
        ).info
        values = {_metric(one.signal): one.effect for one in readings}
        values |= {"shifted": float(sum(one.shifted for one in readings)), **counts}
        metrics = [Metric(key, float(value), stamp, stamp // 1000) for key, value in values.items()]
        self._client.log_batch(run.run_id, metrics=metrics)
        self._client.set_terminated(run.run_id)
        return str(run.run_id)

    @refusals()
    def add_page(self, run_ids: Sequence[str], html: str) -> None:
        """Let runs have the page too."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, PAGE)
            path.write_text(html, encoding="utf-8")
            for run_id in run_ids:
                self._client.log_artifact(run_id, str(path))

    def _series(self, group: str) -> str:
        """A name for the windows of a model and a group that any filter takes."""
        return blake2b(f"{self._line}\n{group}".encode(), digest_size=8).hexdigest()


def _metric(signal: str) -> str:
    return mlflow_name(f"effect/{signal}")
