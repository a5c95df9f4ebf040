"""Trainings that cannot go well stop at once, with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tests.conftest import ONE_NETWORK, TINY, run_here, run_script, train_here, write_images
from tyre_lightning.checks import balanced_weights, check_monitors
from tyre_lightning.config import CallbacksConfig, CheckpointConfig, DataConfig, EarlyStoppingConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.errors import UserError
from tyre_lightning.model.backbones import preset

CLASSES = ("crack", "good")
UNTRACKED = ("logger.registered_model=null", "logger.system_metrics=false")


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A local lake of two classes: 8 images for training and 4 for validation."""
    write_images(root := tmp_path / "lake" / "v1", {"train": 4, "val": 2}, CLASSES)
    return root


def refused(folder: Path, lake: Path, *options: str) -> str:
    """What a training says that has to fail; its run has failed too."""
    with pytest.raises(UserError) as caught:
        train_here(folder, f"data.root={lake}", *UNTRACKED, ONE_NETWORK, *options)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tyre-defects")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]
    return str(caught.value)


def test_a_loss_that_is_no_number_ends_training(lake: Path, tmp_path: Path) -> None:
    rates = ("model.optimizer.head_lr=1e30", "model.optimizer.backbone_lr=1e30", "model.optimizer.warmup_fraction=0")
    said = refused(tmp_path, lake, *rates, "trainer.max_epochs=50")
    assert "in epoch 1, so that training cannot go on: give smaller model.optimizer.backbone_lr" in said
    assert not (run_here(tmp_path) / "checkpoints" / "last.ckpt").exists()  # nothing could go on with it


def test_weights_that_are_no_numbers_take_no_other_s_place(lake: Path, tmp_path: Path) -> None:
    rates = ("model.optimizer.head_lr=1e30", "model.optimizer.backbone_lr=1e30", "model.optimizer.warmup_fraction=0")
    refused(
        tmp_path, lake, *rates, "trainer.max_epochs=50", "callbacks.checkpoint.minutes=0", "callbacks.ema.decay=null"
    )
    kept = torch.load(run_here(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in kept.values())


@pytest.mark.slow
@pytest.mark.long
def test_of_several_processes_each_says_it_in_one_sentence(lake: Path, tmp_path: Path) -> None:
    rates = ("model.optimizer.head_lr=1e30", "model.optimizer.backbone_lr=1e30", "model.optimizer.warmup_fraction=0")
    given = [f"data.root={lake}", *TINY, *UNTRACKED, *rates, "trainer=ddp_cpu", "trainer.max_epochs=50"]
    done = run_script("train.py", *given, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("error: ") and "so that training cannot go on: give smaller model.optimizer" in said


def test_validation_images_that_cannot_be_read_end_training(lake: Path, tmp_path: Path) -> None:
    for path in lake.glob("val/*/*.jpg"):
        path.write_bytes(b"<html>")
    said = refused(tmp_path, lake)
    assert said == "none of the 4 val images can be decoded: `python -m tyre_lightning.audit` says why"


def test_a_batch_that_batchnorm_cannot_learn_from_ends_training(lake: Path, tmp_path: Path) -> None:
    for number in range(3):
        (lake / "train" / "good" / f"{number}.jpg").unlink()
    said = refused(tmp_path, lake)
    assert said.startswith(
        "BatchNorm cannot learn from a batch of one image of 28 pixels: give another data.batch_size"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["callbacks.checkpoint.monitor=val/recall/good"], "callbacks.checkpoint.monitor=val/recall/good cannot be"),
        (
            ["callbacks.checkpoint.monitor=val/auroc_defective"],
            "choose from val/loss, val/accuracy, val/f1, ",
        ),
        (["callbacks.early_stopping.monitor=val/auroc", "callbacks.early_stopping.patience=1"], "early_stopping.mon"),
    ],
)
@pytest.mark.parametrize("cause", ["unreadable", "limited"])
def test_an_epoch_is_chosen_by_classes_that_validation_can_see(
    lake: Path, tmp_path: Path, options: list[str], said: str, cause: str
) -> None:
    if cause == "unreadable":
        for path in lake.glob("val/good/*.jpg"):
            path.write_bytes(b"<html>")
    limit = ["data.batch_size=2", "trainer.limit_val_batches=0.5"] if cause == "limited" else []
    assert said in refused(tmp_path, lake, *options, *limit)


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        ("train", "trainer.limit_train_batches=0.4 leaves none of 2 batches: give at least 0.5"),
        ("val", "trainer.limit_val_batches=0.4 leaves none of 1 batches: give at least 1"),
    ],
)
def test_less_than_a_batch_is_nothing_to_train_on(lake: Path, tmp_path: Path, usage: str, message: str) -> None:
    assert refused(tmp_path, lake, f"trainer.limit_{usage}_batches=0.4") == message


def data_of(lake: Path) -> TyreDataModule:
    config = DataConfig(root=str(lake), image_size=32)
    return TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))


def test_a_class_without_images_has_no_weight(lake: Path) -> None:
    data = data_of(lake)
    assert balanced_weights(data) == [1.0, 1.0]
    data.train = data.train.take([0, 1])
    with pytest.raises(UserError, match="class_weights=balanced cannot weigh class 'good', of which no image is left"):
        balanced_weights(data)


@pytest.mark.parametrize("monitor", ["val/images", "val/unreadable", "val/f2", "train/loss_epoch", "val/recall/dent"])
def test_an_epoch_is_chosen_by_what_validation_measures(lake: Path, monitor: str) -> None:
    data = data_of(lake)
    check_monitors(CallbacksConfig(CheckpointConfig("val/recall/crack"), EarlyStoppingConfig(monitor)), data)
    named = f"monitor={monitor} cannot be used here: choose from val/loss, val/accuracy, val/f1, "
    with pytest.raises(UserError, match=rf"callbacks\.checkpoint\.{named}"):
        check_monitors(CallbacksConfig(CheckpointConfig(monitor)), data)
    with pytest.raises(UserError, match=rf"callbacks\.early_stopping\.{named}"):
        check_monitors(CallbacksConfig(early_stopping=EarlyStoppingConfig(monitor, patience=2)), data)
