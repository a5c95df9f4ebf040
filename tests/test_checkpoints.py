"""Checkpoints on disks that fill up, fail, or lose what they had."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from tests.conftest import ONE_NETWORK, run_here, train_here, write_images
from tyre_lightning.checkpointing import BEST, LAST, PREVIOUS, WholeCheckpoints, save_whole, sound, sweep_up
from tyre_lightning.config import TrainConfig
from tyre_lightning.data.dataset import Batch
from tyre_lightning.errors import UserError
from tyre_lightning.model.best_epoch import BestEpoch
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.resuming import find_checkpoint
from tyre_lightning.tracking.journal import FOLDER as TRACKING
from tyre_lightning.tracking.journal import Journal

UNTRACKED = ("logger.registered_model=null", "logger.system_metrics=false")
LARGE = 200_000


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond a part of a checkpoint, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(number: int) -> dict[str, Any]:
    return {"weights": torch.full((LARGE // 4,), number, dtype=torch.float32)}


def number_in(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["weights"][0])


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path) -> None:
    saver = WholeCheckpoints()
    for name in (BEST, LAST):
        saver.save_checkpoint(content(1), tmp_path / name)
    for name in (BEST, LAST):
        with full_disk(), pytest.raises(UserError, match=f"cannot write {tmp_path}/{name}: File too large"):
            saver.save_checkpoint(content(2), tmp_path / name)
    assert [number_in(tmp_path / name) for name in (BEST, LAST)] == [1, 1]
    assert {path.name for path in tmp_path.iterdir()} == {BEST, LAST}


def test_a_checkpoint_is_written_beside_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not through a folder for temporary files, which may be on another disk, full, or not there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    moved: list[Path] = []
    move = os.replace

    def note(source: str | Path, target: str | Path) -> None:
        assert Path(source).parent == Path(target).parent
        moved.append(Path(target))
        move(source, target)

    monkeypatch.setattr(os, "replace", note)
    WholeCheckpoints().save_checkpoint(content(1), tmp_path / "checkpoints" / LAST)
    assert moved == [tmp_path / "checkpoints" / LAST]


def test_the_last_checkpoint_before_stays(tmp_path: Path) -> None:
    for number in range(1, 4):
        save_whole(content(number), tmp_path / LAST)
        assert number_in(tmp_path / LAST) == number
    assert number_in(tmp_path / PREVIOUS) == 2
    (tmp_path / ".half.ckpt").write_bytes(b"of a process that was killed")
    sweep_up(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF  # in the weights: torch itself loads it and says nothing
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "without its end": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a flipped bit": flip,
    "something else": lambda path: path.write_bytes(b"<html>"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run's checkpoints, which hold their numbers."""
    folder = tmp_path / "train" / "run" / "checkpoints"
    for number, name in enumerate((BEST, PREVIOUS, LAST)):
        save_whole(content(number), folder / name)
    (folder / PREVIOUS).unlink()
    save_whole(content(1), folder / PREVIOUS)
    journal = Journal(folder.parent / TRACKING)
    journal.begin("0123", "a run", "sqlite:///mlflow.db")
    journal.append("params", values={"logger.experiment": TrainConfig().logger.experiment})
    return folder


def asking(folder: Path, path: str) -> TrainConfig:
    config = TrainConfig()
    config.ckpt_path, config.paths.output_dir = path, str(folder)
    return config


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_left_for_the_one_before(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for asked in ("last", f"{run}/{LAST}"):
        assert find_checkpoint(asking(tmp_path, asked)) == run / LAST
    for damaged, next_one in ((LAST, PREVIOUS), (PREVIOUS, BEST)):
        DAMAGES[damage](run / damaged)
        caplog.clear()
        for asked in ("last", f"{run}/{LAST}"):
            assert find_checkpoint(asking(tmp_path, asked)) == run / next_one
        assert f"{run}/{LAST} is damaged or gone: {run}/{next_one}, which was written before, takes its place" in (
            caplog.text
        )
    DAMAGES[damage](run / BEST)
    with pytest.raises(UserError, match=f"{run}/{LAST} is damaged or no checkpoint, and no whole one lies beside it"):
        find_checkpoint(asking(tmp_path, "last"))


def test_a_checkpoint_of_another_name_has_none_beside_it(run: Path) -> None:
    other = run / "mine.ckpt"
    other.write_bytes(b"")
    assert sound(other) is None


def test_another_epoch_becomes_the_best_where_the_best_is_lost(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    rule = BestEpoch(run, monitor="val/f1", mode="max")
    state = {**rule.state_dict(), "best_model_path": str(run / BEST), "peak": 0.9}
    rule.load_state_dict(state)
    assert rule.best_model_path == str(run / BEST) and rule.state_dict()["peak"] == 0.9
    flip(run / BEST)
    rule.load_state_dict(state)
    assert rule.best_model_path == "" and rule.state_dict()["peak"] < 0
    assert f"{run}/{BEST} is damaged or gone" in caplog.text


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Of a training of four batches an epoch."""
    write_images(tmp_path / "lake" / "v1", {"train": 10, "test": 2}, ("crack", "good"))
    return [f"data.root={tmp_path}/lake/v1", *UNTRACKED, ONE_NETWORK, "trainer.max_epochs=50"]


def fill_disk(folder: Path, patched: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patched.setattr(Path, "write_bytes", fail)


LOSSES: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], object], str, set[str]]] = {
    "deleted": (lambda folder, _: shutil.rmtree(folder), "/(best|last).ckpt is gone, though this run goes on", set()),
    "full": (fill_disk, "^cannot write .*/(best|last).ckpt: No space left on device$", {BEST, LAST}),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_no_epoch_is_trained_for_nothing(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, loss: str
) -> None:
    lose, message, left = LOSSES[loss]
    epochs: set[int] = set()
    begin = TyreClassifier.on_train_batch_start

    def count(self: TyreClassifier, batch: Batch, batch_idx: int) -> None:
        epochs.add(self.current_epoch)
        if (self.current_epoch, batch_idx) == (1, 0):
            lose(run_here(tmp_path) / "checkpoints", monkeypatch)
        begin(self, batch, batch_idx)

    monkeypatch.setattr(TyreClassifier, "on_train_batch_start", count)
    with pytest.raises(UserError, match=message):
        train_here(tmp_path, *options)
    assert epochs == {0, 1}
    assert status(tmp_path) == "FAILED"
    assert "ckpt" not in caplog.text  # the error says it once
    kept = {path.name: torch.load(path, weights_only=True) for path in (run_here(tmp_path) / "checkpoints").glob("*")}
    assert kept.keys() == left and all(one["epoch"] == 0 for one in kept.values())


def status(folder: Path) -> str:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tyre-defects")
    assert experiment is not None
    return str(client.search_runs([experiment.experiment_id])[0].info.status)
