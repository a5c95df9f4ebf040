"""Trainings from Python that begin with a checkpoint: as a run of their own, or as the run that was broken off."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from tests.conftest import run_here, train_here, write_images
from tyre_lightning.checkpointing import GRADIENTS
from tyre_lightning.config import PathsConfig, TrainConfig
from tyre_lightning.data.dataset import Batch
from tyre_lightning.errors import UserError
from tyre_lightning.model.classifier import JUDGEMENT, TyreClassifier
from tyre_lightning.resuming import run_folder
from tyre_lightning.tracking.journal import FOLDER, Journal

UNTRACKED = ("logger.registered_model=null", "logger.system_metrics=false")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Of a training on a local lake of two classes, with four batches an epoch."""
    write_images(tmp_path / "lake" / "v1", {"train": 10, "test": 2}, ("crack", "good"))
    return [f"data.root={tmp_path}/lake/v1", *UNTRACKED]


def test_every_training_has_a_folder_of_its_own(options: list[str], tmp_path: Path) -> None:
    train_here(tmp_path, *options)
    first = run_here(tmp_path)
    kept = (first / "checkpoints" / "best.ckpt").read_bytes()
    train_here(tmp_path, *options, "seed=1")
    assert (first / "checkpoints" / "best.ckpt").read_bytes() == kept
    assert (run_here(tmp_path) / "checkpoints" / "best.ckpt").is_file() and run_here(tmp_path) != first
    with pytest.raises(UserError, match=f"{run_here(tmp_path)}/checkpoints/last.ckpt is of a run that has done its 1"):
        train_here(tmp_path, *options, "ckpt_path=last")


@pytest.mark.parametrize("mode", [RunMode.RUN, RunMode.MULTIRUN])
def test_a_script_of_hydra_s_may_train_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: RunMode) -> None:
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path / "hydra")), mode=mode)
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    config = TrainConfig(paths=PathsConfig(str(tmp_path / "out")))
    assert run_folder(config) == tmp_path / "hydra"
    Journal(tmp_path / "hydra" / FOLDER).begin("a", "first", "sqlite:///mlflow.db")
    second = run_folder(config)
    if mode is RunMode.RUN:
        assert second.parent == tmp_path / "out" / "train" and not second.exists()
    else:
        assert second == tmp_path / "hydra"  # where a sweep that is continued goes on


def test_a_new_run_has_a_best_checkpoint_of_its_own(options: list[str], tmp_path: Path) -> None:
    train_here(tmp_path, *options)
    first = run_here(tmp_path) / "checkpoints"
    out_of_reach(first / "last.ckpt")
    kept = (first / "best.ckpt").read_bytes()
    train_here(tmp_path, *options, f"ckpt_path={first}/last.ckpt", "trainer.max_epochs=2")
    second = run_here(tmp_path) / "checkpoints"
    assert second != first
    assert (first / "best.ckpt").read_bytes() == kept
    found = torch.load(second / "best.ckpt", weights_only=True)
    assert found["epoch"] == 1 and found[JUDGEMENT]["calibration"] is not None
    paths = [state["best_model_path"] for key, state in found["callbacks"].items() if "best_model_path" in state]
    assert all(path.startswith(str(second)) for path in filter(None, paths))


def out_of_reach(checkpoint: Path) -> None:
    """Let the peak that a checkpoint remembers be one that no later epoch comes near."""
    content = torch.load(checkpoint, weights_only=True)
    (state,) = [state for key, state in content["callbacks"].items() if key.startswith("BestEpoch")]
    state["peak"] = 1.0
    torch.save(content, checkpoint)


@pytest.mark.parametrize("batches", [2, 3])
def test_a_run_broken_off_between_two_steps_loses_no_gradient(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    options = [*options, f"trainer.accumulate_grad_batches={batches}", "data.val_fraction=0.1"]
    train_here(tmp_path, *options)
    whole = run_here(tmp_path)
    begin = TyreClassifier.on_train_batch_start

    def stop(self: TyreClassifier, batch: Batch, batch_idx: int) -> None:
        if batch_idx == batches + 1:
            raise KeyboardInterrupt
        begin(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(TyreClassifier, "on_train_batch_start", stop)
        with pytest.raises(KeyboardInterrupt):
            train_here(tmp_path, *options)
    broken = run_here(tmp_path)
    assert (broken / "checkpoints" / "last.ckpt").is_file()
    train_here(tmp_path, *options, "ckpt_path=last")
    assert run_here(tmp_path) == broken  # the same run went on
    for name in ("best", "last"):
        first, second = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (whole, broken))
        for part in ("state_dict", "current_model_state"):
            assert all(torch.equal(second[part][key], value) for key, value in first[part].items())
        assert GRADIENTS not in first
