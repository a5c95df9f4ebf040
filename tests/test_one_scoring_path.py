"""What a run records is what predict.py says with the model that the run registered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from mlflow.entities import Run
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from torch import Tensor

from tests.conftest import ONE_NETWORK, TINY, run_here, run_script, train_here, write_images
from tyre_lightning.config import Changed, DataConfig, config_folder, register_schemas
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.calibration import softmax
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation import scoring
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.evaluation.scoring import Image, look_at
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import FolderStore
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.inspector import Inspector, Look
from tyre_lightning.prediction import predict
from tyre_lightning.promote.promote import promote

CLASSES = ["crack", "dent", "good"]
PROMISE = ["operating_point.max_escape_rate=0.5", "operating_point.confidence=0.6"]
LEARN = [ONE_NETWORK, "trainer.max_epochs=3", "data.image_size=64", "logger.system_metrics=false"]
PREPROCESSING = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32)).to_dict()


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    write_images(root := tmp_path / "lake" / "v1", {"train": 10, "test": 6}, CLASSES)
    return root


def predictions(folder: Path, images: Path) -> pd.DataFrame:
    """predict.py's rows with the newest registered model."""
    uri = f"sqlite:///{folder}/mlflow.db"
    newest = max(int(version.version) for version in MlflowClient(uri).search_model_versions("name='tyre-defects'"))
    given = [f"model=models:/tyre-defects/{newest}", f"input={images}", f"output={folder}/rows.parquet"]
    given.append("accelerator=cpu")  # as the training, so that the last digits are the same beside a GPU too
    register_schemas()
    with initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
        predict(compose("predict", overrides=[*given, f"tracking_uri={uri}"]))
    return pd.read_parquet(folder / "rows.parquet").sort_values("key", ignore_index=True)


def newest_run(folder: Path) -> Run:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tyre-defects")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["callbacks.ema.decay=0.9"], id="with a moving average"),
        pytest.param(["callbacks.ema.decay=null"], id="without a moving average", marks=pytest.mark.slow),
        pytest.param(["trainer.precision=bf16-mixed"], id="in bfloat16", marks=pytest.mark.slow),
        pytest.param(
            ["callbacks.early_stopping.patience=1", "trainer.max_epochs=5"], id="stopped early", marks=pytest.mark.slow
        ),
        pytest.param(["trainer.max_epochs=4", "ckpt_path=last"], id="resumed", marks=pytest.mark.slow),
    ],
)
def test_what_a_run_records_is_what_predict_says(lake: Path, tmp_path: Path, options: list[str]) -> None:
    given = [f"data.root={lake}", *PROMISE, *LEARN]
    if "ckpt_path=last" in options:
        train_here(tmp_path, *given)
    train_here(tmp_path, *given, *options)
    assert_predict_agrees(tmp_path, run_here(tmp_path), lake)


@pytest.mark.slow
@pytest.mark.long
def test_what_a_sweep_s_run_of_two_processes_records_is_what_predict_says(lake: Path, tmp_path: Path) -> None:
    (lake / "test" / "good" / "0.jpg").unlink()  # 17 images, which two cannot share alike
    given = [f"data.root={lake}", *PROMISE, *TINY, *LEARN, "trainer=ddp_cpu", "trainer.max_epochs=2"]
    done = run_script("train.py", "-m", "seed=1", *given, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"^epoch  train loss", done.stdout, re.MULTILINE)) == 1  # one process speaks for both
    (folder,) = tmp_path.glob("outputs/sweep/*/0")
    assert_predict_agrees(tmp_path, folder, lake)
    client, run_id = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), newest_run(tmp_path).info.run_id
    *epochs, judged = sorted(client.get_metric_history(run_id, "val/f1"), key=lambda one: one.timestamp)
    assert judged.step > max(one.step for one in epochs)  # so that it is the one that MLflow shows


def test_several_devices_share_the_images_and_none_gets_one_twice(lake: Path) -> None:
    inspector = Inspector.from_classifier(TyreClassifier("efficientnet_lite0", CLASSES, PREPROCESSING, "good"))
    asked: list[int] = []

    class Counting(Inspector):
        def look(self, images: Sequence[Tensor]) -> Look:
            asked.append(len(images))
            return super().look(images)

    copies = [Counting(**vars(one)) for one in inspector.on([torch.device("cpu")] * 3)]
    store = FolderStore(str(lake / "test"))
    entries = sorted(store.list())
    seen = [*look_at(copies, Reader(store, None, Changed.reread), entries, batch_size=4)]
    assert [entry for part in seen for entry in part.entries] == entries
    assert sum(asked) == len(entries) == 18
    alone = [*look_at([inspector], Reader(store, None, Changed.reread), entries, batch_size=4)]
    ours, theirs = (np.concatenate([part.look.logits for part in parts]) for parts in (seen, alone))
    np.testing.assert_array_equal(ours, theirs)


def test_processes_that_decode_for_a_gpu_give_what_threads_give(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspector = Inspector.from_classifier(TyreClassifier("efficientnet_lite0", CLASSES, PREPROCESSING, "good"))
    store = FolderStore(str(lake / "test"))
    (lake / "test" / "good" / "1.jpg").write_bytes(b"no picture")
    for path in sorted((lake / "test" / "crack").iterdir())[:2]:
        path.write_bytes(b"")  # the first batch has none that can be read
    entries = [
        entry._replace(etag="listed" if number == 7 else entry.etag) for number, entry in enumerate(store.list())
    ]
    found, problems = [], []
    for quick in (False, True):
        monkeypatch.setattr(scoring, "_is_quick", lambda _, quick=quick: quick)
        reader = Reader(store, None, Changed.reread)
        found.append([*look_at([inspector], reader, entries, batch_size=2, traits=True)])
        problems.append(reader.problems)
    assert problems[0] == problems[1] and len(problems[0]) == 1
    for ours, theirs in zip(*found, strict=True):
        assert ours.entries == theirs.entries
        np.testing.assert_array_equal(ours.look.logits, theirs.look.logits)
        for one, other in zip(ours.images, theirs.images, strict=True):
            if isinstance(one, Image):
                assert isinstance(other, Image) and one.traits == other.traits and torch.equal(one.view, other.view)
            else:
                assert str(one) == str(other)


def test_what_such_a_process_cannot_fetch_is_one_sentence(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspector = Inspector.from_classifier(TyreClassifier("efficientnet_lite0", CLASSES, PREPROCESSING, "good"))
    store = FolderStore(str(lake / "test"))
    entries = [*store.list()]
    monkeypatch.setattr(scoring, "_is_quick", lambda _: True)
    reader = Reader(store, None, Changed.error)
    with pytest.raises(UserError, match=r"^image '.*' is not what was listed \(tag .*\): start again[^\n]*$"):
        [*look_at([inspector], reader, [entries[0]._replace(etag="listed")], batch_size=2)]


def assert_predict_agrees(folder: Path, run: Path, lake: Path) -> None:
    """predict.py's rows, and the gate's numbers, are what the newest run in a folder recorded."""
    rows = predictions(folder, lake / "test")
    metrics = newest_run(folder).data.metrics
    recorded = Scores.read(run / "scores" / "test.parquet")
    found = rows[[f"p_{name}" for name in CLASSES]].to_numpy()
    assert [f"v1/{key}" for key in rows["key"]] == recorded.keys.to_pylist()
    assert np.abs(softmax(recorded.logits, metrics["temperature"]) - found).max() < 1e-6
    calibration = Inspector.from_checkpoint(run / "checkpoints" / "best.ckpt").calibration
    assert calibration is not None and calibration.measured
    novelty = calibration.novelty(recorded.distances())
    np.testing.assert_array_equal(rows["novelty"].to_numpy(), novelty)
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

    register_schemas()
    given = ["model=tyre-defects", f"tracking_uri=sqlite:///{folder}/mlflow.db", "dry_run=true"]
    with initialize_config_dir(str(config_folder("promote")), version_base="1.3"):
        numbers = promote(compose("promote", overrides=given)).numbers["challenger"]
    for name in ("escape_rate", "overkill_rate", "review_rate", "f1"):
        assert numbers[name] == pytest.approx(metrics[f"test/{name}"], abs=1e-6), name


@pytest.mark.long
def test_the_validation_metrics_of_a_run_are_those_of_the_kept_checkpoint(lake: Path, tmp_path: Path) -> None:
    returned = train_here(tmp_path, f"data.root={lake}", *LEARN, "trainer.max_epochs=4")
    kept = Scores.read(run_here(tmp_path) / "scores" / "val.parquet")
    f1 = f1_score(kept.labels, kept.logits.argmax(axis=1), average="macro")
    assert returned["val/f1"] == pytest.approx(f1)
    assert newest_run(tmp_path).data.metrics["val/f1"] == pytest.approx(f1)
