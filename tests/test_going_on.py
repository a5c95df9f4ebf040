"""Trainings from Python that begin with a checkpoint: as a run of their own, or as the run that was broken off."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from tests.cases import first_of
from tests.conftest import ONE_NETWORK, run_here, train_here, write_images
from tyre_lightning.checkpointing import GRADIENTS
from tyre_lightning.config import PathsConfig, TrainConfig, known_keys
from tyre_lightning.data.dataset import Batch
from tyre_lightning.decision.operating_point import JUDGEMENT
from tyre_lightning.errors import UserError
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.resuming import different, find_checkpoint, run_folder
from tyre_lightning.tracking.journal import FOLDER, Journal

UNTRACKED = ("logger.registered_model=null", "logger.system_metrics=false")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Of a training on a local lake of two classes, with four batches an epoch."""
    write_images(tmp_path / "lake" / "v1", {"train": 10, "test": 2}, ("crack", "good"))
    return [f"data.root={tmp_path}/lake/v1", *UNTRACKED, ONE_NETWORK]


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize("batches", first_of([2, 3]))
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
    train_here(tmp_path, *options, "ckpt_path=last", "trainer.enable_progress_bar=true", "data.num_workers=1")
    assert run_here(tmp_path) == broken  # the same run went on
    for name in ("best", "last"):
        first, second = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (whole, broken))
        for part in ("state_dict", *(["current_model_state"] if name == "last" else [])):
            assert all(torch.equal(second[part][key], value) for key, value in first[part].items())
        assert GRADIENTS not in first


# Whether a run that was broken off is another run with another value of a setting: each is decided here, on purpose.
MATTERS = {
    **dict.fromkeys(
        (
            *("data.root", "data.bucket", "data.prefix", "data.usage.train", "data.usage.val", "data.usage.test"),
            *("data.classes", "data.good_class", "data.val_fraction", "data.group_pattern", "data.near_copies"),
            "data.multi_label",
            *("data.folds", "data.fold", "data.image_size", "data.eval_crop", "data.eval_views", "data.sampling"),
            *("data.batch_size", "data.unreadable", "data.changed", "data.catalog", "data.from_run"),
            "data.cache",  # resized pixels are not those of the files
            *("data.augment.min_scale", "data.augment.flip", "data.augment.brightness", "data.augment.contrast"),
            *("data.augment.turn", "model.logit_adjustment", "model.outliers"),
            *("data.augment.extra", "model.library", "model.loss", "model.optimizer.own", "callbacks.extra"),
            *("data.augment.saturation", "model.name", "model.weights", "model.dropout", "model.label_smoothing"),
            *("model.class_weights", "model.freeze_epochs", "model.freeze_stages", "model.channels_last"),
            *("model.optimizer.backbone_lr", "model.optimizer.head_lr", "model.optimizer.weight_decay"),
            *("model.optimizer.warmup_fraction", "trainer.max_epochs", "trainer.accelerator", "trainer.devices"),
            "trainer.num_nodes",
            *("trainer.precision", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
            *("trainer.deterministic", "trainer.limit_train_batches", "trainer.limit_val_batches"),
            *("trainer.limit_test_batches", "callbacks.checkpoint.monitor", "callbacks.checkpoint.mode"),
            *("callbacks.early_stopping.monitor", "callbacks.early_stopping.mode"),
            *("callbacks.early_stopping.patience", "callbacks.ema.decay", "operating_point.max_escape_rate"),
            *(
                "operating_point.confidence",
                "operating_point.max_overkill_rate",
                "operating_point.max_novel_rate",
                "seed",
            ),
            # Where and under which name a run is recorded, it cannot change later.
            *("logger.tracking_uri", "logger.experiment", "logger.run_name", "logger.registered_model"),
        ),
        True,
    ),
    **dict.fromkeys(
        (
            *("data.num_workers", "data.worker_start"),  # any number of any kind gives the same batches
            *("data.cache_dir", "data.cache_gb", "data.looks", "paths.output_dir", "ckpt_path"),
            # How the images are reached; that they are the same, their fingerprint says.
            *("s3.endpoint_url", "s3.region", "s3.profile", "s3.anonymous", "s3.path_style"),
            *("trainer.log_every_n_steps", "trainer.enable_progress_bar", "callbacks.checkpoint.minutes"),
            "logger.system_metrics",
        ),
        False,
    ),
}


def test_every_setting_is_decided_to_matter_or_not(tmp_path: Path) -> None:
    keys = known_keys(TrainConfig)
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    assert leaves == {*MATTERS}
    journal = Journal(tmp_path / FOLDER)
    journal.append("params", values=dict.fromkeys(leaves, "one"))
    for key, matters in MATTERS.items():
        given = {other: "another" if other == key else "one" for other in leaves}
        assert different(journal, given) == ([key] if matters else []), key


def leave_checkpoint(folder: Path, experiment: str, time: int) -> Path:
    """What find_checkpoint looks for, of a run in an experiment."""
    journal = Journal(folder / FOLDER)
    journal.begin("a", "name", "sqlite:///mlflow.db")
    journal.append("params", values={"logger.experiment": experiment})
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    torch.save({}, path)
    os.utime(path, (time, time))
    return path


def test_the_last_checkpoint_is_of_this_experiment(tmp_path: Path) -> None:
    runs = tmp_path / "train"
    config = TrainConfig(paths=PathsConfig(str(tmp_path)), ckpt_path="last")
    leave_checkpoint(runs / "1", "tyre-defects", 1)
    second = leave_checkpoint(runs / "2", "tyre-defects", 2)
    third = leave_checkpoint(runs / "3", "tyre-demo", 3)
    assert find_checkpoint(config) == second
    config.logger.experiment = "tyre-demo"
    assert find_checkpoint(config) == third
    config.logger.experiment = "mine"
    with pytest.raises(UserError, match=f"no run of experiment 'mine' in {runs} has left a checkpoint yet: give"):
        find_checkpoint(config)
