"""The table that ends a sweep: its runs side by side."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

if TYPE_CHECKING:
    from mlflow.entities import Run

_REPEATS = ("data.fold", "seed")
_METRICS = ("test/f1", "test/accuracy", "test/auroc_defective", "val/f1", "val/loss")


class Leaderboard(Callback):
    """Hydra calls this when all runs of a sweep have ended; it asks MLflow, so that any launcher will do."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the runs of the sweep, the best first."""
        import mlflow
        from rich.console import Console

        from tyre_lightning.tracking.runs import SWEEP_TAG, connect

        client = connect(config.logger.tracking_uri)
        experiment = client.get_experiment_by_name(config.logger.experiment)
        if experiment is None:
            return  # no run got as far as MLflow; each has said why
        sweep = str(config.hydra.sweep.dir).replace("'", "''")
        runs = mlflow.search_runs([experiment.experiment_id], f"tags.{SWEEP_TAG} = '{sweep}'", output_format="list")
        # As wide as the table needs where nobody's window limits it: a log file, a pipe.
        console = Console()
        (console if console.is_terminal else Console(width=200)).print(table(runs))


def table(runs: list[Run]) -> Any:
    """A table of runs with the parameters in which they differ."""
    from rich.table import Table

    metrics = [name for name in _METRICS if any(name in run.data.metrics for run in runs)]
    parameters = differing(runs)
    view = Table(title="runs of this sweep")
    for name in ("run", "status", *parameters):
        view.add_column(name)
    for name in (*metrics, "minutes"):
        view.add_column(name, justify="right")
    for run in sorted(runs, key=lambda run: -run.data.metrics.get(metrics[0], -1.0) if metrics else 0.0):
        cells = [f"{run.data.metrics[name]:.4f}" if name in run.data.metrics else "" for name in metrics]
        minutes = ((run.info.end_time or run.info.start_time) - run.info.start_time) / 60_000
        chosen = [run.data.params.get(name, "") for name in parameters]
        view.add_row(run.info.run_name, run.info.status, *chosen, *cells, f"{minutes:.1f}")
    for common, repeated in repetitions(runs, parameters).items():
        cells = [_mean([run.data.metrics[name] for run in repeated if name in run.data.metrics]) for name in metrics]
        view.add_row(f"mean of {len(repeated)}", "", *common, *cells, "", style="bold")
    return view


def repetitions(runs: list[Run], parameters: list[str]) -> dict[tuple[str, ...], list[Run]]:
    """The runs that differ only in fold or seed, and in what these make of the data, by their other parameters."""
    repeated = [name for name in parameters if name in _REPEATS or name.startswith("found.")]
    if not {*repeated} & {*_REPEATS}:
        return {}
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        chosen = tuple("" if name in repeated else run.data.params.get(name, "") for name in parameters)
        groups.setdefault(chosen, []).append(run)
    return groups


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}" if values else ""


def differing(runs: list[Run]) -> list[str]:
    """Names of the parameters that are not the same in all runs."""
    names = sorted({name for run in runs for name in run.data.params})
    return [name for name in names if len({run.data.params.get(name) for run in runs}) > 1]
