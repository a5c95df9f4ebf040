"""Sweeps and studies: their parent run, their launchers, and how they go on after a kill."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import optuna
import pandas as pd
import pytest
from lightning.pytorch.trainer.states import TrainerFn
from mlflow import MlflowClient
from mlflow.entities import Param, Run
from omegaconf import OmegaConf

from tests.conftest import ONE_NETWORK, TINY, run_script, train_here, write_images
from tests.mlflow_server import lay_database
from tests.test_tracking import EXPERIMENT, script
from tyre_lightning.errors import Pruned, UserError
from tyre_lightning.evaluation.sweep_figures import cost_figure, parallel_figure
from tyre_lightning.tracking.leaderboard import Leaderboard
from tyre_lightning.tracking.pruning import Prune
from tyre_lightning.tracking.runs import open_experiment
from tyre_lightning.tracking.studies import PRUNED
from tyre_lightning.tracking.sweeper import StudySweeper, search_space
from tyre_lightning.tracking.sweeps import COSTS, PARENT_TAG, QUALITY, SWEEP_TAG, Repetition, pareto
from tyre_lightning.tracking.versions import CHALLENGER, create_version, make_challenger

# train.py in a process that dies of SIGKILL when the run of this number begins its second epoch.
KILLED = """
import os, runpy, signal
from hydra.core.hydra_config import HydraConfig
from tyre_lightning.model.classifier import TyreClassifier
begin = TyreClassifier.on_train_epoch_start
def die(self):
    if (HydraConfig.get().job.num, self.current_epoch) == ({number}, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    begin(self)
TyreClassifier.on_train_epoch_start = die
runpy.run_path({project!r} + "/train.py", run_name="__main__")
"""


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Of a training on a local lake of two classes, in seconds."""
    write_images(tmp_path / "lake" / "v1", {"train": 8, "test": 2}, ("crack", "good"))
    given = f"data.root={tmp_path}/lake/v1", *TINY, ONE_NETWORK
    return [*given, "logger.registered_model=null", "logger.system_metrics=false", "trainer.max_epochs=2"]


def recorded(folder: Path) -> tuple[list[Run], list[Run]]:
    """The parent runs and the others, the oldest first."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [r for r in runs if PARENT_TAG in r.data.tags], [r for r in runs if PARENT_TAG not in r.data.tags]


def kill(folder: Path, number: int, *arguments: str) -> None:
    """Run a sweep that is killed in one of its runs."""
    from tests.conftest import PROJECT

    killed = script(KILLED.format(number=number, project=str(PROJECT)), *arguments, cwd=folder)
    assert killed.returncode == -9, killed.stderr


@pytest.mark.long
def test_a_sweep_is_one_run_with_others_inside(options: list[str], tmp_path: Path) -> None:
    options = [*options, "logger.registered_model=tyres"]
    done = run_script("train.py", "-m", "model=efficientnet_lite0,efficientnet_lite1", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (parent,), children = recorded(tmp_path)
    assert parent.info.status == "FINISHED"
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.info.run_id] * 2
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    folder = Path(client.download_artifacts(parent.info.run_id, "", str(tmp_path)))
    table = pd.read_csv(folder / "leaderboard.csv")
    assert {*table["model.name"]} == {"efficientnet_lite0", "efficientnet_lite1"}
    assert table[QUALITY].is_monotonic_decreasing and table["pareto"].any()
    assert (table[[*COSTS]] > 0).all(axis=None)
    best = OmegaConf.load(folder / "best_config.yaml")
    assert best.model.name == table["model.name"][0]
    assert parent.data.tags["best_run"] == table["run_id"][0]
    assert parent.data.metrics[QUALITY] == table[QUALITY][0]
    for name in ("parallel_coordinates.png", "quality_and_cost.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert challenger(client, "tyres") == table["run_id"][0]


def challenger(client: MlflowClient, name: str) -> str | None:
    """The run whose model asks to become the champion, if one does."""
    version = client.get_registered_model(name).aliases.get(CHALLENGER)
    return None if version is None else client.get_model_version(name, version).run_id


def add_run(client: MlflowClient, status: str, quality: float, **params: str) -> str:
    """A run of the sweep ``mine`` that has ended, and its model."""
    experiment = open_experiment(client, EXPERIMENT)
    run = client.create_run(experiment, tags={SWEEP_TAG: "mine"}).info.run_id
    client.log_batch(run, params=[Param(f"data.{name}", value) for name, value in params.items()])
    client.log_metric(run, QUALITY, quality)
    create_version(client, run, "tyres", "model", challenger=False)
    client.set_terminated(run, status)
    return str(run)


def test_the_best_finished_run_of_a_sweep_is_its_challenger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_database(tmp_path / "mlflow.db")
    logger = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": EXPERIMENT}
    config = OmegaConf.create({"logger": logger, "hydra": {"sweep": {"dir": "mine"}}})
    board = Leaderboard()
    board.on_multirun_start(config)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    best = add_run(client, "FINISHED", 0.8, folds="None")
    add_run(client, "FAILED", 0.9, folds="None")
    fold = add_run(client, "FINISHED", 0.85, folds="3")
    add_run(client, "FINISHED", 0.7, folds="None")
    add_run(client, "FINISHED", math.nan, folds="None")
    assert challenger(client, "tyres") is None
    board.on_multirun_end(config)
    assert challenger(client, "tyres") == best
    assert "models:/tyres/1, is the challenger now" in capsys.readouterr().out
    (parent,), _ = recorded(tmp_path)
    assert parent.data.tags["best_run"] == fold  # the leaderboard is of folds too


def test_a_newer_challenger_than_a_sweep_s_best_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lay_database(tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    old, new = add_run(client, "FINISHED", 0.8), add_run(client, "FINISHED", 0.7)
    assert make_challenger(client, new) == ["models:/tyres/2"]
    assert make_challenger(client, old) == []
    assert challenger(client, "tyres") == new


def test_a_fold_never_asks_to_become_the_champion(options: list[str], tmp_path: Path) -> None:
    train_here(
        tmp_path, *options, "data.folds=2", "data.fold=0", "logger.registered_model=tyres", "trainer.max_epochs=1"
    )
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert len(client.search_model_versions("name = 'tyres'")) == 1
    assert challenger(client, "tyres") is None


@pytest.mark.long
def test_a_sweep_that_was_killed_goes_on_in_its_folder(options: list[str], tmp_path: Path) -> None:
    arguments = ("-m", "seed=0,1", *options, "hydra.sweep.dir=outputs/sweep/mine")
    kill(tmp_path, 1, *arguments)
    _, before = recorded(tmp_path)
    assert [run.info.status for run in before] == ["FINISHED", "RUNNING"]
    done = run_script("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parents, after = recorded(tmp_path)
    assert [run.info.status for run in (*parents, *after)] == ["FINISHED"] * 3
    assert [run.info.run_id for run in after] == [run.info.run_id for run in before]
    assert after[0].info.end_time == before[0].info.end_time  # not trained again
    assert "this run has finished before" in done.stdout and "goes on" in done.stdout


@pytest.mark.slow
@pytest.mark.long
def test_a_study_that_was_killed_goes_on_without_its_finished_trials(options: list[str], tmp_path: Path) -> None:
    arguments = (
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.study=rates", "hydra.sweeper.n_trials=3"),
        *("model.optimizer.head_lr=tag(log,interval(1e-4,1e-2))", "model=efficientnet_lite0,efficientnet_lite1"),
        *options,
    )
    kill(tmp_path, 1, *arguments)
    _, before = recorded(tmp_path)
    done = run_script("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (parent,), after = recorded(tmp_path)
    assert len(after) == 3 and [run.info.run_id for run in after[:2]] == [run.info.run_id for run in before]
    assert after[0].info.end_time == before[0].info.end_time
    study = optuna.load_study(study_name="rates", storage=f"sqlite:///{tmp_path}/outputs/sweep/rates/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert len({trial.params["model.optimizer.head_lr"] for trial in study.trials}) == 3
    for trial, run in zip(study.trials, after, strict=True):
        assert float(run.data.params["model.optimizer.head_lr"]) == trial.params["model.optimizer.head_lr"]
        assert run.data.params["model.name"] == trial.params["model"]
        assert run.data.metrics[QUALITY] == trial.value
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_hopeless_trial_is_ended_early(options: list[str], tmp_path: Path) -> None:
    (folder := tmp_path / "outputs" / "sweep" / "pruned").mkdir(parents=True)
    study = optuna.create_study(study_name="pruned", storage=f"sqlite:///{folder}/study.db", direction="maximize")
    for _ in range(5):  # trials that no real one can reach
        trial = study.ask({"seed": optuna.distributions.CategoricalDistribution(["0", "1"])})
        for epoch in range(6):
            trial.report(2.0, epoch)
        study.tell(trial, 2.0)
    done = run_script(
        *("train.py", "-m", "hydra/sweeper=optuna", "hydra.sweeper.study=pruned", "hydra.sweeper.n_trials=6"),
        *("seed=0,1", *options, "trainer.max_epochs=6"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert study.trials[5].state.name == "PRUNED" and len(study.trials[5].intermediate_values) == 3
    _, (run,) = recorded(tmp_path)
    assert run.info.status == "KILLED"


def test_a_trial_is_not_ended_after_its_last_epoch() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_warmup_steps=2))
    for _ in range(5):
        trial = study.ask()
        for epoch in range(4):
            trial.report(2.0, epoch)
        study.tell(trial, 2.0)
    prune = Prune(trial := study.ask(), QUALITY)

    def validated(epoch: int, of: int) -> None:
        state = SimpleNamespace(fn=TrainerFn.FITTING)
        trainer: Any = SimpleNamespace(state=state, callback_metrics={QUALITY: 0.1}, current_epoch=epoch, max_epochs=of)
        prune.on_validation_end(trainer, cast(L.LightningModule, None))

    validated(2, of=3)
    with pytest.raises(Pruned, match="pruned in epoch 4"):
        validated(3, of=5)
    assert trial.should_prune()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_other_launchers_need_no_change(options: list[str], tmp_path: Path, launcher: str) -> None:
    options = [*options, "trainer.max_epochs=1", "data.num_workers=1"]
    done = run_script("train.py", "-m", f"hydra/launcher={launcher}", "seed=0,1", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (parent,), children = recorded(tmp_path)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert "runs of this sweep" in done.stdout


def test_a_trial_without_a_number_is_a_failed_one() -> None:
    results: list[Any] = [{QUALITY: math.nan}, None, {"val/loss": 1.0}, {PRUNED: True}, {QUALITY: 0.5}]
    sweeper = StudySweeper("drawn", None, QUALITY, "maximize", len(results), 1, prune=False, seed=0)
    study = optuna.create_study(direction="maximize")
    for number, result in enumerate(results):
        study.ask()
        sweeper._tell(study, number, result)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "FAIL", "PRUNED", "COMPLETE"]


def test_a_study_says_what_it_cannot_draw_from() -> None:
    with pytest.raises(UserError, match="needs something to choose from"):
        search_space(["seed=1"])
    space, fixed = search_space(["a=1,2", "b=interval(0,1)", "c=tag(log,interval(1e-3,1.0))", "d=5", "e=range(1,4)"])
    assert fixed == ["d=5"]
    assert {name: type(kind).__name__.replace("Distribution", "") for name, kind in space.items()} == {
        "a": "Categorical", "b": "Float", "c": "Float", "e": "Categorical",
    }  # fmt: skip


def test_a_mean_has_the_form_of_its_values() -> None:
    values = ({"val/f1": 0.9, "model/parameters": 3376132.0}, {"val/f1": 0.8, "model/parameters": 3376132.0})
    runs = [cast(Run, SimpleNamespace(data=SimpleNamespace(metrics=metrics))) for metrics in values]
    repeated = Repetition({}, runs)
    assert repeated.mean("val/f1", ".4f") == "0.8500 ± 0.0707"
    assert repeated.mean("model/parameters", ",.0f") == "3,376,132 ± 0"
    assert repeated.mean("test/f1", ".4f") == ""


def test_the_pareto_front() -> None:
    rows = [(0.9, 10, 5), (0.8, 10, 5), (0.8, 5, 6), (0.7, 20, 4), (0.95, 30, 9), (float("nan"), 1, 1)]
    table = pd.DataFrame(rows, columns=[QUALITY, *COSTS])
    assert pareto(table) == [True, False, True, True, True, False]


def test_figures_take_one_run_and_texts(tmp_path: Path) -> None:
    table = pd.DataFrame([{"run": "a", "model": "x", QUALITY: 0.5, **dict.fromkeys(COSTS, 1.0), "pareto": True}])
    cost_figure(table, QUALITY, COSTS).savefig(tmp_path / "cost.png")
    parallel_figure(table, ["model"], QUALITY).savefig(tmp_path / "parallel.png")


def test_labels_of_a_large_study_do_not_lie_on_each_other() -> None:
    rates = [1e-3 * 1.05**i for i in range(100)]
    figure = parallel_figure(pd.DataFrame({"rate": rates, QUALITY: [0.5, *[float("nan")] * 99]}), ["rate"], QUALITY)
    places = sorted(text.get_position() for text in figure.axes[0].texts)
    heights = [y for x, y in places if x < 1]
    assert heights[-1] == 1.0 and all(b - a >= 0.035 for a, b in itertools.pairwise(heights))
    assert [text.get_text() for text in figure.axes[0].texts if text.get_position()[0] > 1] == ["0.5"]


def test_the_sweeper_costs_a_start_nothing() -> None:
    code = "import tyre_lightning.tracking.sweeper, sys; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
