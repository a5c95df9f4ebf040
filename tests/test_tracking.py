"""Runs that are broken off and go on, and tracking servers that go away and come back."""

from __future__ import annotations

import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import ONE_NETWORK, PROJECT, TINY, run_script, untracked_environment, write_images
from tests.fault_proxy import Fault, FaultProxy
from tests.mlflow_server import MlflowServer
from tests.once import once
from tyre_lightning.tracking.journal import FOLDER, Journal, put_aside, unsent
from tyre_lightning.tracking.system import SystemMonitor

EXPERIMENT = "tyre-defects"

# train.py in a process that dies of SIGKILL as a batch begins.
KILLED = """
import os, runpy, signal
from tyre_lightning.model.classifier import TyreClassifier
begin = TyreClassifier.on_train_batch_start
def die(self, batch, batch_idx):
    if (self.current_epoch, batch_idx) == ({epoch}, {batch}):
        os.kill(os.getpid(), signal.SIGKILL)
    begin(self, batch, batch_idx)
TyreClassifier.on_train_batch_start = die
runpy.run_path({project!r} + "/train.py", run_name="__main__")
"""

# train.py that waits for the server less long, at its end and between two tries, and says that training has begun.
HASTY = """
import runpy
from tyre_lightning.tracking import runs, sender
runs._PATIENCE = {patience}
sender._LONGEST_PAUSE = 2.0
from tyre_lightning.model.classifier import TyreClassifier
begin = TyreClassifier.on_train_epoch_start
def tell(self):
    open("epoch", "a").write("x")
    begin(self)
TyreClassifier.on_train_epoch_start = tell
runpy.run_path({project!r} + "/train.py", run_name="__main__")
"""


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """A local lake of two classes: 24 train and 4 test images in all."""
    write_images(tmp_path / "lake" / "v1", {"train": 12, "test": 2}, ("crack", "good"))
    return str(tmp_path / "lake" / "v1")


def script(text: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python text as train.py would be run."""
    (place := cwd / "script.py").write_text(text)
    return run_script(str(place), *options, cwd=cwd)


def only_run(uri: str) -> Run:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def history(uri: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every metric of the only run, as often as they were recorded."""
    client, run = MlflowClient(uri), only_run(uri)
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
        if not name.startswith("system/")
    }


def each_once(uri: str) -> bool:
    """Whether the only run has every metric of a step once; Lightning adds the epoch whenever it logs something."""
    steps = [[step for step, _ in points] for name, points in history(uri).items() if name != "epoch"]
    return all(len(found) == len({*found}) for found in steps)


def resumable(lake: str, minutes: int = 10, workers: int = 0) -> list[str]:
    """A training of three epochs with five batches each."""
    return [
        f"data.root={lake}", *TINY, ONE_NETWORK, "trainer.max_epochs=3", f"data.num_workers={workers}",
        "model.dropout=0.5", f"callbacks.checkpoint.minutes={minutes}", "trainer.log_every_n_steps=1",
        "logger.registered_model=null",
    ]  # fmt: skip


@pytest.fixture
def whole() -> Path:
    """The folder of a run that is never broken off, with its lake."""

    def train(folder: Path) -> None:
        write_images(folder / "lake" / "v1", {"train": 12, "test": 2}, ("crack", "good"))
        done = run_script("train.py", *resumable(str(folder / "lake" / "v1")), cwd=folder)
        assert done.returncode == 0, done.stderr

    return once("whole", train)


@pytest.mark.long
@pytest.mark.parametrize(
    ("minutes", "workers", "epoch", "batch"),
    [
        pytest.param(10, 0, 1, 3, id="from the epoch's start", marks=pytest.mark.slow),
        pytest.param(0, 0, 1, 3, id="from within an epoch"),
        pytest.param(0, 2, 2, 1, id="from within an epoch, with workers", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    whole: Path, tmp_path: Path, minutes: int, workers: int, epoch: int, batch: int
) -> None:
    options = resumable(str(whole / "lake" / "v1"), minutes, workers)
    killed = script(KILLED.format(project=str(PROJECT), epoch=epoch, batch=batch), *options, cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr
    uris = [f"sqlite:///{folder}/mlflow.db" for folder in (whole, tmp_path)]
    begun = only_run(uris[1])
    assert begun.info.status == "RUNNING"
    again = run_script("train.py", *options, "ckpt_path=last", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    ended = only_run(uris[1])
    assert (ended.info.run_id, ended.info.status) == (begun.info.run_id, "FINISHED")
    expected, found = map(history, uris)
    assert {*found} == {*expected}
    unequal = {name for name, points in expected.items() if found[name] != points}
    assert unequal <= {"model/latency_ms"}
    for name in ("best", "last"):
        first, second = (
            torch.load(next(folder.glob(f"outputs/train/*/checkpoints/{name}.ckpt")), weights_only=True)
            for folder in (whole, tmp_path)
        )
        for part in ("state_dict", *(["current_model_state"] if name == "last" else [])):
            assert all(torch.equal(second[part][key], value) for key, value in first[part].items())
        assert first["global_step"] == second["global_step"]
    assert not unsent(tmp_path / "outputs")


@pytest.mark.long
def test_another_configuration_or_a_finished_run_makes_a_new_run(lake: str, tmp_path: Path) -> None:
    options = [f"data.root={lake}", *TINY, ONE_NETWORK, "logger.registered_model=null"]
    assert run_script("train.py", *options, cwd=tmp_path).returncode == 0
    done = run_script("train.py", *options, "ckpt_path=last", cwd=tmp_path)
    assert done.returncode == 1
    assert "has done its 1 epochs: give a greater trainer.max_epochs" in done.stderr.strip().splitlines()[-1]


def during_training(folder: Path, action: Callable[[], None]) -> threading.Thread:
    """Do something in a thread as soon as training has begun."""

    def wait() -> None:
        end = time.monotonic() + 300
        while not (folder / "epoch").exists() and time.monotonic() < end:
            time.sleep(0.05)
        action()

    (thread := threading.Thread(target=wait)).start()
    return thread


@pytest.mark.long
def test_a_server_that_is_killed_and_comes_back_misses_nothing(lake: str, tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    options = [f"data.root={lake}", *TINY, ONE_NETWORK, "trainer.max_epochs=4", "trainer.log_every_n_steps=1"]
    with MlflowServer(tmp_path) as server:

        def restart() -> None:
            server.kill()
            time.sleep(2)
            server.start()

        options += [f"logger.tracking_uri={server.uri}"]
        thread = during_training(work, restart)
        done = script(HASTY.format(project=str(PROJECT), patience=60), *options, cwd=work)
        thread.join()
        assert done.returncode == 0, done.stderr
        run = only_run(server.uri)
        assert run.info.status == "FINISHED"
        assert len(history(server.uri)["train/loss_step"]) == 4 * 5
        assert each_once(server.uri)
        client = MlflowClient(server.uri)
        assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {
            "model",
            "report.html",
            "metrics.json",
        }
        assert [version.run_id for version in client.search_model_versions(f"name='{EXPERIMENT}'")] == [run.info.run_id]


@pytest.mark.long
def test_what_a_server_never_took_is_sent_later(lake: str, tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    options = [f"data.root={lake}", *TINY, ONE_NETWORK, "trainer.log_every_n_steps=1"]
    with MlflowServer(tmp_path) as server:
        options += [f"logger.tracking_uri={server.uri}"]
        thread = during_training(work, server.kill)
        done = script(HASTY.format(project=str(PROJECT), patience=1), *options, cwd=work)
        thread.join()
        assert done.returncode == 1
        assert "the tracking server does not answer as it should" in done.stdout
        last = done.stderr.strip().splitlines()[-1]
        assert "all of it is kept: python -m tyre_lightning.resend " in last
        command = shlex.split(last.partition("python ")[2])
        away = run_script(*command, cwd=work)
        assert away.returncode == 1 and "does not answer" in away.stderr
        server.start()
        sent = run_script(*command, cwd=work)
        assert sent.returncode == 0, sent.stderr
        run = only_run(server.uri)
        assert run.info.status == "FINISHED"
        assert each_once(server.uri)
        assert "test/f1" in run.data.metrics
        client = MlflowClient(server.uri)
        assert [version.run_id for version in client.search_model_versions(f"name='{EXPERIMENT}'")] == [run.info.run_id]
        assert not unsent(work / "outputs")


@pytest.mark.long
def test_a_server_that_answers_too_late_has_everything_once(
    lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    (work := tmp_path / "work").mkdir()
    options = [f"data.root={lake}", *TINY, ONE_NETWORK, "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
    with MlflowServer(tmp_path) as server, FaultProxy(server.uri) as proxy:
        calls = ("runs/log-batch", "model-versions/create", "mlflow-artifacts/", "runs/update")
        late = [Fault("late", match=call, operation="other", seconds=4) for call in calls]
        options += [f"logger.tracking_uri={proxy.endpoint}"]
        thread = during_training(work, lambda: proxy.add(*late))
        done = script(HASTY.format(project=str(PROJECT), patience=60), *options, cwd=work)
        thread.join()
        assert done.returncode == 0, done.stderr
        assert [fault.times for fault in late] == [0] * len(late)
        assert only_run(server.uri).info.status == "FINISHED"
        assert len(history(server.uri)["train/loss_step"]) == 2 * 5
        assert each_once(server.uri)
        assert len(MlflowClient(server.uri).search_model_versions(f"name='{EXPERIMENT}'")) == 1


def test_a_server_that_takes_nothing_is_an_error_before_training(lake: str, tmp_path: Path) -> None:
    options = [f"data.root={lake}", *TINY, "logger.tracking_uri=http://127.0.0.1:9"]
    environment = {**untracked_environment(), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run_script("train.py", *options, cwd=tmp_path, environment=environment)
    assert done.returncode == 1
    assert "does not answer as an MLflow server" in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_server_that_takes_no_run_is_an_error_before_training(lake: str, tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    with MlflowServer(tmp_path) as server, FaultProxy(server.uri) as proxy:
        proxy.add(Fault("status", match="runs/create", operation="other", status=403))
        done = run_script("train.py", f"data.root={lake}", *TINY, f"logger.tracking_uri={proxy.endpoint}", cwd=work)
    assert done.returncode == 1
    assert f"{proxy.endpoint} does not take a new run" in done.stderr.strip().splitlines()[-1]
    assert not list(work.rglob("*.ckpt"))


def test_a_line_that_was_half_written_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_metrics({"a": 1.0}, 3)
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b'{"kind": "metr')
    journal.mend()
    journal.add_metrics({"a": 2.0}, 4)
    assert journal.metric("a") == {3: 1.0, 4: 2.0}


def test_system_metrics_are_counted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    journal = Journal(tmp_path)
    journal.begin("0" * 32, "name", "sqlite:///nowhere.db")
    for _ in range(2):
        monitor = SystemMonitor(journal)
        time.sleep(0.5)
        monitor.finish()
    steps = [record["step"] for record in journal.of_kind("metrics")]
    assert len(steps) >= 4 and steps == [*range(len(steps))]


def test_a_journal_that_is_put_aside_keeps_its_artifacts(tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    journal = Journal(folder / FOLDER)
    journal.begin("0" * 32, "name", "sqlite:///nowhere.db")
    journal.add_text("kept", "note.txt")
    put_aside(folder)
    (old,) = unsent(folder)
    (record,) = old.of_kind("file")
    assert (old.folder / record["path"]).read_text() == "kept"
