"""What a run records is what predict.py says with the model that the run registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from mlflow.entities import Run
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from tests.conftest import PROJECT, run_here, train_here, write_images
from tyre_lightning.config import register_schemas
from tyre_lightning.decision.calibration import softmax
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.prediction import predict

CLASSES = ["crack", "dent", "good"]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    write_images(root := tmp_path / "lake" / "v1", {"train": 10, "test": 6}, CLASSES)
    return root


def predictions(folder: Path, images: Path) -> pd.DataFrame:
    """predict.py's rows with the newest registered model."""
    uri = f"sqlite:///{folder}/mlflow.db"
    newest = max(int(version.version) for version in MlflowClient(uri).search_model_versions("name='tyre-defects'"))
    given = [f"model=models:/tyre-defects/{newest}", f"input={images}", f"output={folder}/rows.parquet"]
    register_schemas()
    with initialize_config_dir(str(PROJECT / "conf" / "predict"), version_base="1.3"):
        predict(compose("predict", overrides=[*given, f"tracking_uri={uri}"]))
    return pd.read_parquet(folder / "rows.parquet").sort_values("key", ignore_index=True)


def newest_run(folder: Path) -> Run:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tyre-defects")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["callbacks.ema.decay=0.9"], id="with a moving average"),
        pytest.param(["callbacks.ema.decay=null"], id="without a moving average"),
        pytest.param(["trainer.precision=bf16-mixed"], id="in bfloat16"),
        pytest.param(["callbacks.early_stopping.patience=1", "trainer.max_epochs=5"], id="stopped early"),
    ],
)
def test_what_a_run_records_is_what_predict_says(lake: Path, tmp_path: Path, options: list[str]) -> None:
    promise = ["operating_point.max_escape_rate=0.5", "operating_point.confidence=0.6"]
    learn = ["trainer.max_epochs=3", "data.image_size=64", "logger.system_metrics=false"]
    train_here(tmp_path, f"data.root={lake}", *promise, *learn, *options)
    rows = predictions(tmp_path, lake / "test")
    metrics = newest_run(tmp_path).data.metrics
    recorded = Scores.read(run_here(tmp_path) / "scores" / "test.parquet")
    found = rows[[f"p_{name}" for name in CLASSES]].to_numpy()
    assert [f"v1/{key}" for key in rows["key"]] == recorded.keys
    assert np.abs(softmax(recorded.logits, metrics["temperature"]) - found).max() < 1e-6
    assert recorded.logits.std(axis=0).max() > 1e-3  # else there would be little to compare

    truth = rows["key"].str.split("/").str[-2]
    assert metrics["test/accuracy"] == pytest.approx(accuracy_score(truth, rows["class"]))
    assert metrics["test/f1"] == pytest.approx(f1_score(truth, rows["class"], average="macro"))
    defective = truth != "good"
    assert metrics["test/auroc_defective"] == pytest.approx(
        roc_auc_score(defective, 1 - softmax(recorded.logits)[:, 2]), abs=1e-6
    )
    assert metrics["test/loss"] == pytest.approx(log_loss(truth, softmax(recorded.logits), labels=CLASSES), abs=1e-5)
    assert metrics["test/escape_rate"] == pytest.approx((rows["decision"][defective] == "accept").mean())
    assert metrics["test/overkill_rate"] == pytest.approx((rows["decision"][~defective] == "reject").mean())


def test_the_validation_metrics_of_a_run_are_those_of_the_kept_checkpoint(lake: Path, tmp_path: Path) -> None:
    learn = ["trainer.max_epochs=4", "data.image_size=64", "logger.system_metrics=false"]
    returned = train_here(tmp_path, f"data.root={lake}", *learn)
    kept = Scores.read(run_here(tmp_path) / "scores" / "val.parquet")
    f1 = f1_score(kept.labels, kept.logits.argmax(axis=1), average="macro")
    assert returned["val/f1"] == pytest.approx(f1)
    assert newest_run(tmp_path).data.metrics["val/f1"] == pytest.approx(f1)
