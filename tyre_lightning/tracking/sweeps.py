"""A sweep in MLflow: a parent run that its runs are nested in, and what it says of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from tyre_lightning.names import mlflow_quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from pandas import DataFrame

SWEEP_TAG = "sweep"  # of all its runs: the folder
PARENT_TAG = "sweep_parent"
QUALITY = "val/f1"  # what the best is chosen by: the test images are for proof, not for a choice
COSTS = {"model/latency_ms": "ms for an image on this CPU", "model/parameters": "parameters"}
METRICS = (QUALITY, "test/f1", "test/accuracy", "test/auroc_defective", "val/loss", *COSTS)
_REPEATS = ("data.fold", "seed")


def in_sweep() -> bool:
    """Whether this is a run of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def parent_of(client: MlflowClient, experiment_id: str, sweep: str) -> Run | None:
    """The parent run of a sweep, if it has been started."""
    found = _search(client, experiment_id, sweep, f"tags.{PARENT_TAG} = 'true'")
    return found[0] if found else None


def runs_of(client: MlflowClient, experiment_id: str, sweep: str) -> list[Run]:
    """The runs of a sweep, the best first."""
    found = [run for run in _search(client, experiment_id, sweep) if PARENT_TAG not in run.data.tags]
    return sorted(found, key=lambda run: -run.data.metrics.get(QUALITY, -1.0))


def best_of(runs: Sequence[Run]) -> Run | None:
    """The best of those runs that have finished: what others recorded last is of no model that they keep."""
    found = [run for run in runs if run.info.status == "FINISHED" and run.data.metrics.get(QUALITY, math.nan) >= 0]
    return max(found, key=lambda run: run.data.metrics[QUALITY], default=None)


def is_fold(run: Run) -> bool:
    """Whether a run is a part of a cross-validation, which measures a recipe and makes no model for the line."""
    return run.data.params.get("data.folds", "None") != "None"


def newest_trainings(client: MlflowClient, experiment_id: str, count: int) -> list[Run]:
    """The newest runs of an experiment; sweeps are not among them, but their runs are."""
    return [*islice((run for run in _pages(client, experiment_id) if PARENT_TAG not in run.data.tags), count)]


def _search(client: MlflowClient, experiment_id: str, sweep: str, more: str | None = None) -> list[Run]:
    wanted = " and ".join([f"tags.{SWEEP_TAG} = {mlflow_quoted(sweep)}", *([more] if more else [])])
    return [*_pages(client, experiment_id, wanted)]


def _pages(client: MlflowClient, experiment_id: str, wanted: str = "") -> Iterator[Run]:
    """All runs that are wanted, the newest first; MLflow gives them in pages."""
    token: str | None = ""
    while token is not None:
        page = client.search_runs([experiment_id], wanted, max_results=1000, page_token=token or None)
        yield from page
        token = page.token or None


@dataclass(frozen=True)
class Repetition:
    """Runs that differ only in fold or seed, and in what these make of the data.

    Args:
        common: the parameters in which others differ, by name.
        runs: at least two.
    """

    common: dict[str, str]
    runs: list[Run]

    def mean(self, metric: str, form: str) -> str:
        """Mean and spread of a metric, in the form that :func:`format` takes."""
        values = [run.data.metrics[metric] for run in self.runs if metric in run.data.metrics]
        spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        return f"{statistics.mean(values):{form}}{spread}" if values else ""


def repetitions(runs: Sequence[Run]) -> list[Repetition]:
    """The runs of a sweep over folds or seeds, by their other parameters."""
    chosen = differing(runs)
    if not {*chosen} & {*_REPEATS}:
        return []
    others = [name for name in chosen if name not in _REPEATS and not name.startswith("found.")]
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.data.params.get(name, "") for name in others), []).append(run)
    return [Repetition(dict(zip(others, values, strict=True)), group) for values, group in groups.items()]


def differing(runs: Sequence[Run]) -> list[str]:
    """Names of the parameters that are not the same in all runs."""
    names = sorted({name for run in runs for name in run.data.params})
    return [name for name in names if len({run.data.params.get(name) for run in runs}) > 1]


def leaderboard(runs: Sequence[Run]) -> DataFrame:
    """A row for each run, in their order: run, status, the parameters in which they differ, metrics, ``pareto``."""
    import pandas as pd

    chosen = [name for name in differing(runs) if not name.startswith("found.")]
    rows = [
        {
            "run": run.info.run_name,
            "run_id": run.info.run_id,
            "status": run.info.status,
            **{name: run.data.params.get(name) for name in chosen},
            **{name: run.data.metrics.get(name) for name in METRICS},
        }
        for run in runs
    ]
    table = pd.DataFrame(rows)
    for name in METRICS:
        table[name] = table[name].astype(float)
    return table.assign(pareto=pareto(table))


def pareto(table: DataFrame) -> list[bool]:
    """Which runs are on the front: no other is as good at every one of quality and costs, and better at one."""
    import numpy as np

    values = table[[QUALITY, *COSTS]].to_numpy(dtype=float) * np.array([-1.0, *(1.0 for _ in COSTS)])
    known = ~np.isnan(values).any(axis=1)
    return [
        bool(known[place])
        and not any(
            known[other] and (values[other] <= one).all() and (values[other] < one).any()
            for other in range(len(values))
        )
        for place, one in enumerate(values)
    ]
