"""How long training lasts, where nobody has said."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from tests.conftest import ONE_NETWORK, TINY, run_here, write_images
from tests.mlflow_server import lay_database
from tyre_lightning.config import CONF, TrainerConfig, register_schemas
from tyre_lightning.resuming import different
from tyre_lightning.telling import tell_start
from tyre_lightning.tracking.journal import Journal
from tyre_lightning.trainer import epochs_of
from tyre_lightning.training import train


@pytest.mark.parametrize(
    ("images", "options", "epochs"),
    [
        (1000, {}, 12),  # 32 batches: 250 steps in 8 epochs
        (672, {}, 12),
        (450, {}, 17),  # 15 batches
        (217, {}, 36),  # 7 batches
        (10, {}, 36),  # more than 36 would be too much of the same
        (1000, {"limit_train_batches": 7}, 36),
        (1000, {"limit_train_batches": 0.5}, 16),
        (450, {"limit_train_batches": 1.0}, 17),
        (450, {"limit_train_batches": 99}, 17),
        (1000, {"accumulate_grad_batches": 3}, 23),  # 11 steps, the last of two batches
        (1000, {"limit_train_batches": 0.01}, 36),  # is refused later
        (217, {"max_epochs": 5}, 5),
        (1000, {"max_epochs": 100}, 100),
    ],
)
def test_few_images_are_seen_more_often(images: int, options: dict[str, float], epochs: int) -> None:
    assert epochs_of(TrainerConfig(**options), images, 32) == epochs  # type: ignore[arg-type]


class StopSoon(L.Callback):
    """Ends a training after an epoch, and remembers how many there were to be."""

    epochs: int | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs = trainer.max_epochs
        trainer.should_stop = True


@pytest.mark.parametrize(("given", "epochs"), [("null", 36), ("3", 3)])
def test_a_training_finds_says_and_records_its_epochs(
    given: str, epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "lake" / "v1", {"train": 10, "test": 2}, ("crack", "good"))
    register_schemas()
    places = [f"data.root={tmp_path}/lake/v1", f"paths.output_dir={tmp_path}/out"]
    record = [f"logger.tracking_uri=sqlite:///{tmp_path}/mlflow.db", "logger.system_metrics=false", ONE_NETWORK]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*TINY, *places, *record, f"trainer.max_epochs={given}"])
    tell_start(cfg)
    first = capsys.readouterr().out
    assert first.endswith("lake/v1\n" if given == "null" else "lake/v1, 3 epochs at most\n")
    lay_database(tmp_path / "mlflow.db")
    with contextlib.chdir(tmp_path):
        train(cfg, [stop := StopSoon()])
    assert stop.epochs == epochs
    assert f"  epochs   {epochs} at most, by batches of 4\n" in capsys.readouterr().out
    (run,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert run.data.params["found.epochs"] == str(epochs)
    assert run.data.params["found.image_size"] == "32"
    journal = Journal.at(run_here(tmp_path))
    assert journal is not None
    assert "found.epochs" in different(journal, {"found": {"epochs": epochs + 1}})  # another run than of more epochs
