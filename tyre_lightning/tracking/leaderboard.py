"""The table that ends a sweep: its runs side by side."""

from __future__ import annotations

import statistics
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from tyre_lightning.command_line import failed_runs
from tyre_lightning.errors import UserError
from tyre_lightning.tracking.secrecy import hide_passwords

if TYPE_CHECKING:
    from mlflow.entities import Run

_NOTE = "failed.txt"  # in the folder of a run of a sweep
_REPEATS = ("data.fold", "seed")
_METRICS = ("test/f1", "test/accuracy", "test/auroc_defective", "val/f1", "val/loss")


class Leaderboard(Callback):
    """Hydra calls this when a run, or all runs of a sweep, have ended; it asks MLflow, so that any launcher will do."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """A run that has failed leaves a note, and the sweep goes on: Hydra would end it without a table."""
        hydra = config.hydra
        if hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        error: Any = job_return._return_value
        text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        Path(hydra.runtime.output_dir, _NOTE).write_text(hide_passwords(text), encoding="utf-8")
        print(f"error: run {hydra.job.num} of the sweep: {hide_passwords(text)}", file=sys.stderr)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the runs of the sweep, the best first, and those that failed."""
        failed = sorted(Path(config.hydra.sweep.dir).rglob(_NOTE))
        failed_runs.extend(str(path.parent) for path in failed)
        self._show(config)
        for path in failed:
            last = path.read_text(encoding="utf-8").strip().splitlines()[-1]
            print(f"failed: {path.parent}: {last}", file=sys.stderr)

    def _show(self, config: DictConfig) -> None:
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
