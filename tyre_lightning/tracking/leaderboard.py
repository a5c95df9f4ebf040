"""The table that ends a sweep: its runs side by side."""

from __future__ import annotations

import atexit
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from tyre_lightning.command_line import failed_runs
from tyre_lightning.errors import Pruned, UserError, first_line, hide_passwords
from tyre_lightning.names import csv_text
from tyre_lightning.tracking.studies import PRUNED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_NOTE = "failed.txt"  # in the folder of a run of a sweep
_COLUMNS = {  # of the table: metric, its title, and how it is written
    "val/f1": ("val F1", ".3f"),
    "test/f1": ("test F1", ".3f"),
    "test/auroc_defective": ("AUROC", ".3f"),
    "test/escape_rate": ("escape", ".1%"),
    "test/overkill_rate": ("overkill", ".1%"),
    "model/latency_ms": ("ms", ".1f"),
}


class Leaderboard(Callback):
    """Hydra calls this when a run, or all runs of a sweep, have ended; it asks MLflow, so that any launcher will do."""

    _interrupted: Callable[[], None] | None = None  # what ends the parent run if this process ends too early

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """A run that has failed leaves a note, and the sweep goes on: Hydra would end it without a table."""
        hydra = config.hydra
        if hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        error: Any = job_return._return_value
        if isinstance(error, Pruned):
            job_return.status, job_return.return_value = JobStatus.COMPLETED, {PRUNED: True}
            return
        text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        Path(hydra.runtime.output_dir, _NOTE).write_text(hide_passwords(text), encoding="utf-8")
        print(f"error: run {hydra.job.num} of the sweep: {hide_passwords(text)}", file=sys.stderr)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start the run that the runs of the sweep are nested in, or take up that of a sweep that is continued."""
        from tyre_lightning.tracking.runs import connect, open_experiment
        from tyre_lightning.tracking.sweeps import PARENT_TAG, SWEEP_TAG, parent_of

        try:
            client = connect(config.logger.tracking_uri)
        except UserError:
            return  # each run says so
        sweep = str(config.hydra.sweep.dir)
        experiment = open_experiment(client, config.logger.experiment)
        parent = parent_of(client, experiment, sweep)
        if parent is None:
            tags = {SWEEP_TAG: sweep, PARENT_TAG: "true"}
            parent = client.create_run(experiment, run_name=f"sweep {Path(sweep).name}", tags=tags)
        else:
            client.update_run(parent.info.run_id, status="RUNNING")
        self._interrupted = partial(client.set_terminated, parent.info.run_id, "KILLED")
        atexit.register(self._interrupted)  # unless it ends in good order

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the runs of the sweep, the best first, and those that failed; the parent run gets the same."""
        failed = sorted(Path(config.hydra.sweep.dir).rglob(_NOTE))
        failed_runs.extend(str(path.parent) for path in failed)
        self._end(config, "FAILED" if failed else "FINISHED")
        for path in failed:
            last = path.read_text(encoding="utf-8").strip().splitlines()[-1]
            print(f"failed: {path.parent}: {last}", file=sys.stderr)

    def _end(self, config: DictConfig, status: str) -> None:
        from rich.console import Console

        from tyre_lightning.tracking.runs import connect
        from tyre_lightning.tracking.sweeps import parent_of, runs_of

        client = connect(config.logger.tracking_uri)
        experiment = client.get_experiment_by_name(config.logger.experiment)
        if experiment is None:
            return  # no run got as far as MLflow; each has said why
        sweep = str(config.hydra.sweep.dir)
        runs = runs_of(client, experiment.experiment_id, sweep)
        Console().print(table(runs))
        parent = parent_of(client, experiment.experiment_id, sweep)
        if parent is not None:
            record(client, parent.info.run_id, runs)
            challenge(client, runs)
            client.set_terminated(parent.info.run_id, status)
            print(f"run {parent.info.run_id} in MLflow has all of it")
        if (best := advice(client, runs)) is not None:
            print(best)
        if self._interrupted is not None:
            atexit.unregister(self._interrupted)


def record(client: MlflowClient, parent: str, runs: list[Run]) -> None:
    """Give the parent run of a sweep its leaderboard, the config of the best, and the figures."""
    from mlflow.exceptions import MlflowException

    from tyre_lightning.evaluation.sweep_figures import cost_figure, parallel_figure
    from tyre_lightning.tracking.runs import CONFIG
    from tyre_lightning.tracking.sweeps import COSTS, METRICS, QUALITY, best_of, leaderboard

    runs = [run for run in runs if QUALITY in run.data.metrics]
    if not runs:
        return
    found = leaderboard(runs)
    client.log_text(parent, csv_text(found), "leaderboard.csv")
    chosen = [name for name in found.columns[3:] if name not in METRICS and name != "pareto"]
    client.log_figure(parent, parallel_figure(found, chosen, QUALITY), "parallel_coordinates.png")
    client.log_figure(parent, cost_figure(found, QUALITY, COSTS), "quality_and_cost.png")
    best = best_of(runs)
    if best is None:
        return
    client.set_tag(parent, "best_run", best.info.run_id)
    for name in METRICS:
        if name in best.data.metrics:
            client.log_metric(parent, name, best.data.metrics[name])
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(best.info.run_id, CONFIG, folder)
            client.log_text(parent, Path(path).read_text(encoding="utf-8"), "best_config.yaml")
    except (MlflowException, OSError) as error:
        print(f"the config of the best run cannot be had: {first_line(error)}", file=sys.stderr)


def challenge(client: MlflowClient, runs: list[Run]) -> None:
    """Let the model of a sweep's best run, and of no other, ask to become the champion."""
    from tyre_lightning.tracking.sweeps import best_of, is_fold
    from tyre_lightning.tracking.versions import make_challenger

    best = best_of([run for run in runs if not is_fold(run)])
    if best is not None:
        for uri in make_challenger(client, best.info.run_id):
            print(f"the best of this sweep, {uri}, is the challenger now")


def table(runs: Sequence[Run]) -> Any:
    """A table of runs, the best first, with what differs between them; it fits a terminal of 80 columns."""
    from rich.table import Table
    from rich.text import Text

    from tyre_lightning.tracking.sweeps import differing, repetitions

    metrics = [name for name in _COLUMNS if any(name in run.data.metrics for run in runs)]
    chosen = short_names([name for name in differing(runs) if not name.startswith("found.")])
    view = Table(title="runs of this sweep", title_justify="left", box=None, pad_edge=False)
    view.add_column("", justify="right", no_wrap=True)
    for name in metrics:
        view.add_column(_COLUMNS[name][0], justify="right", no_wrap=True)
    view.add_column("min", justify="right", no_wrap=True)
    view.add_column("what differs", overflow="fold")
    for number, run in enumerate(runs, 1):
        values = run.data.metrics
        cells = [format(values[name], _COLUMNS[name][1]) if name in values else "" for name in metrics]
        minutes = ((run.info.end_time or run.info.start_time) - run.info.start_time) / 60_000
        about = [f"{short}={run.data.params.get(name, '')}" for name, short in chosen.items()]
        ended = [] if run.info.status == "FINISHED" else [run.info.status]
        view.add_row(*map(Text, (str(number), *cells, f"{minutes:.1f}", " ".join([*ended, *about]))))
    for group in repetitions(runs):
        cells = [group.mean(name, _COLUMNS[name][1]).replace(" ", "\n", 1).replace(" ", "") for name in metrics]
        about = [f"{chosen[name]}={value}" for name, value in group.common.items()]
        view.add_row(*map(Text, ("", *cells, "", " ".join([f"mean of {len(group.runs)}", *about]))), style="bold")
    return view


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Dotted names by what tells them apart: their last parts, and no more of them than that takes."""
    short = dict.fromkeys(names, "")
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[place:]) for place in reversed(range(len(parts)))]
        alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1)
        short[name] = next(alone, name)
    return short


def advice(client: MlflowClient, runs: Sequence[Run]) -> str | None:
    """Which model is the best, and how to use it; None where none is for use."""
    from tyre_lightning.tracking.sweeps import best_of, is_fold

    best = best_of([run for run in runs if not is_fold(run)])
    if best is None:
        return None
    made = client.search_model_versions(f"run_id = '{best.info.run_id}'")
    uri = f"models:/{made[0].name}/{made[0].version}" if made else f"runs:/{best.info.run_id}/model"
    place = [run.info.run_id for run in runs].index(best.info.run_id) + 1
    return f"the best of them is {place}, run {best.info.run_id}\n  python predict.py model={uri} input=FOLDER"
