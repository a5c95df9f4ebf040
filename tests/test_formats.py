"""What an earlier version has made is still of use: the fixtures are a run's of format 1, its weights made constant.

Constant weights compress to some kilobytes; their names, shapes and everything beside them are as they were.
"""

from __future__ import annotations

import json
import logging
import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from tests.conftest import ONE_NETWORK, Trained, train_here, write_images
from tests.images import encode, picture
from tyre_lightning.config import OperatingPointConfig, S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.lake.pinned import load as load_pinned
from tyre_lightning.model.inspector import SPEC_FILE, WEIGHTS_FILE, Inspector
from tyre_lightning.tracking.journal import Journal
from tyre_lightning.tracking.registry import load_inspector

OLD = Path(__file__).parent / "format_1"
OF_PICTURES = "promises its escape rate of pictures, not of tyres"


def unpacked(name: str, folder: Path) -> Path:
    """A fixture as it was before it was compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    (path := folder / name).write_bytes(lzma.decompress((OLD / f"{name}.xz").read_bytes()))
    return path


@pytest.fixture
def old_model(tmp_path: Path) -> Path:
    unpacked(WEIGHTS_FILE, tmp_path / "model")
    shutil.copy(OLD / SPEC_FILE, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_a_model_of_format_1_predicts_and_says_that_its_promise_was_of_pictures(
    kind: str, old_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = load_inspector(str(old_model if kind == "folder" else unpacked("best.ckpt", tmp_path)), "")
    assert caplog.text.count(OF_PICTURES) == 1
    spec = json.loads((OLD / SPEC_FILE).read_text())["judgement"]
    assert found.point is not None and found.point.threshold == spec["operating_point"]["threshold"]
    assert found.calibration is not None and found.calibration.defective_total == 7
    image = found.read(encode(picture()), "a.png")
    (answer,) = found.answers([image])
    assert answer["picture_decision"] in ("accept", "reject") and answer["class"] in found.classes
    found.promise(OperatingPointConfig(0.3, 0.8))
    found.save(tmp_path / "again")
    caplog.clear()
    assert Inspector.load(tmp_path / "again").answers([image])[0]["p_good"] == answer["p_good"]
    assert OF_PICTURES not in caplog.text


def test_a_run_goes_on_from_a_checkpoint_of_format_1(tmp_path: Path) -> None:
    write_images(root := tmp_path / "lake" / "v1", {"train": 6, "test": 2}, ["bulge", "crack", "flat_spot", "good"])
    last = unpacked("last.ckpt", tmp_path / "old" / "checkpoints")
    shutil.copytree(OLD / "tracking", tmp_path / "old" / "tracking")
    options = [f"data.root={root}", f"ckpt_path={last}", "trainer.max_epochs=3", "logger.system_metrics=false"]
    metrics = train_here(tmp_path, *options, ONE_NETWORK, "data.batch_size=8")
    assert np.isfinite(metrics["train/loss_epoch"]) and metrics["test/images"] == 8
    (new,) = tmp_path.rglob("out/**/last.ckpt")
    assert torch.load(new, weights_only=True)["epoch"] == 2


def test_a_catalog_of_format_1_has_images_and_no_tyres() -> None:
    found = load_pinned(str(OLD / "catalog.parquet"), S3Config())
    assert {usage: len(catalog) for usage, catalog in found.catalogs.items()} == {"train": 39, "val": 9, "test": 20}
    assert found.shown == {}


def test_a_journal_of_format_1_is_read(tmp_path: Path) -> None:
    found = Journal(shutil.copytree(OLD / "tracking", tmp_path / "tracking"))
    assert found.run()["run_id"] and found.status() == "FINISHED" and not found.waiting
    assert found.params()["model.name"] == "efficientnet_lite0" and "val/f1" in found.metrics()


def test_what_a_newer_version_made_is_refused_in_one_sentence(old_model: Path, tmp_path: Path) -> None:
    spec = json.loads((old_model / SPEC_FILE).read_text())
    (old_model / SPEC_FILE).write_text(json.dumps({**spec, "format": 99}))
    with pytest.raises(UserError, match="of format 99, and this version knows up to 6: update"):
        Inspector.load(old_model)
    content = torch.load(unpacked("best.ckpt", tmp_path), weights_only=True)
    torch.save({**content, "tyre_lightning_format": 99}, tmp_path / "new.ckpt")
    with pytest.raises(UserError, match=r"new\.ckpt: the checkpoint has format 99, and this version knows up to 6"):
        Inspector.from_checkpoint(tmp_path / "new.ckpt")
    shutil.copytree(OLD / "tracking", tmp_path / "tracking")
    (tmp_path / "tracking" / "run.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="has format 99, and this version knows up to 3"):
        Journal(tmp_path / "tracking").run()


def test_what_is_made_now_has_a_number(trained: Trained) -> None:
    client = MlflowClient(trained.tracking_uri)
    run = str(client.get_model_version("tyre-demo", "1").run_id)
    found = load_inspector(trained.model, trained.tracking_uri)
    assert json.loads(found.spec())["format"] == 6
    assert "test" in load_pinned(client.download_artifacts(run, "catalog.parquet"), S3Config()).shown
    (best,) = trained.folder.glob("outputs/train/*/checkpoints/best.ckpt")
    assert torch.load(best, weights_only=True)["tyre_lightning_format"] == 6
    assert Journal(best.parents[1] / "tracking").run()["format"] == 3
    assert replace(found).group_pattern is None
