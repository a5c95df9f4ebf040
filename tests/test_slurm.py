"""A training in a job of SLURM, of which there are the variables, the signal and a stand-in for ``scontrol`` here."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import ONE_NETWORK, run_here, train_here, write_images
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.dataset import Batch
from tyre_lightning.errors import UserError
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.ranks import check_ranks
from tyre_lightning.slurm import job, requeued_when_told

SCONTROL = '#!/bin/sh\necho "$@" >> "{log}"\necho "Access denied" >&2\nexit {code}\n'
VARIABLES = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_RESTART_COUNT")
UNTRACKED = ("logger.registered_model=null", "logger.system_metrics=false", "trainer.max_epochs=2")


@pytest.fixture(autouse=True)
def in_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job 12345."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``scontrol`` was asked; the file is there once it was."""
    return stand_in(tmp_path, monkeypatch, 0)


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Of a training of four batches an epoch."""
    write_images(tmp_path / "lake" / "v1", {"train": 10, "test": 2}, ("crack", "good"))
    return [f"data.root={tmp_path}/lake/v1", *UNTRACKED, ONE_NETWORK]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> Path:
    (folder / "bin").mkdir()
    (folder / "bin" / "scontrol").write_text(SCONTROL.format(log=folder / "asked", code=code))
    (folder / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    return folder / "asked"


def signalled(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> None:
    """Train until SLURM says, in the second batch of the second epoch, that the time is over."""
    begin = TyreClassifier.on_train_batch_start

    def tell(self: TyreClassifier, batch: Batch, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGUSR1)
        begin(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(TyreClassifier, "on_train_batch_start", tell)
        with pytest.raises(KeyboardInterrupt):
            train_here(folder, *options)


def runs(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.get_experiment_by_name("tyre-defects")
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


@pytest.mark.long
def test_one_command_serves_first_start_requeue_and_restart(
    options: list[str], asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tyre_lightning")
    signalled(monkeypatch, tmp_path, *options)
    assert asked.read_text() == "requeue 12345\n"
    first = run_here(tmp_path)
    content = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)
    assert (content["epoch"], content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"]) == (
        1,
        2,
    )
    assert not [*tmp_path.rglob("hpc_ckpt*")]
    (run,) = runs(tmp_path)
    assert run.info.status == "KILLED" and run.data.tags["slurm_job"] == "12345"
    metrics = train_here(tmp_path, *options)
    assert run_here(tmp_path) == first
    assert [one.info.status for one in runs(tmp_path)] == ["FINISHED"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")  # of several commands in a job, those before it had finished
    assert train_here(tmp_path, *options)["test/f1"] == metrics["test/f1"]
    assert "this run has finished before" in caplog.text
    assert len(runs(tmp_path)) == 1
    monkeypatch.setenv("SLURM_JOB_ID", "12346")
    train_here(tmp_path, *options, "trainer.max_epochs=1")
    assert len(runs(tmp_path)) == 2


def test_time_may_be_over_before_training_begins(
    options: list[str], asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TyreDataModule, "tagged", lambda self: os.kill(os.getpid(), signal.SIGUSR1))
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt):
        train_here(tmp_path, *options)
    assert asked.read_text() == "requeue 12345\n"
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_job_that_slurm_does_not_queue_again_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(tmp_path, monkeypatch, 1)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(KeyboardInterrupt), requeued_when_told():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert (tmp_path / "asked").read_text() == "requeue 77_3\n"
    assert "SLURM does not queue job 77_3 again (Access denied): ckpt_path=last goes on with the run" in caplog.text


def test_ctrl_c_queues_no_job_again(asked: Path) -> None:
    with pytest.raises(KeyboardInterrupt), requeued_when_told():
        os.kill(os.getpid(), signal.SIGINT)
    assert not asked.exists()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": ""}, None),
        ({"SLURM_JOB_ID": "80"}, "80"),
        ({"SLURM_JOB_ID": "80", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}, "77_3"),
    ],
)
def test_a_job_has_one_name(variables: dict[str, str], name: str | None) -> None:
    assert job(variables) == name


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "4"},  # sbatch without srun, or an interactive shell
        {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"},
        {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"},
    ],
)
def test_one_of_several_tasks_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"SLURM_NTASKS={variables['SLURM_NTASKS']}, but this process was started al"):
        train_here(tmp_path, "data.root=not-even-there")


@pytest.mark.parametrize("variables", [{}, {"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}])
def test_one_task_of_many_is_fine(variables: dict[str, str]) -> None:
    check_ranks(1, 1, sweep=False, environment=variables)
