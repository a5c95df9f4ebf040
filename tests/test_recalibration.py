"""A registered network gets a new threshold by tyres that it has not learnt from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from scipy.stats import beta

from tests.conftest import train_here
from tests.once import once
from tyre_lightning.config import config_folder, register_schemas
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.scores import SCORES, Scores
from tyre_lightning.judging import Trained
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.promote.promote import promote
from tyre_lightning.recalibration import recalibrate
from tyre_lightning.tracking.registry import load_inspector
from tyre_lightning.tracking.runs import connect
from tyre_lightning.tracking.versions import ORIGIN

NAME = "again"
PROMISE = ("operating_point.max_escape_rate=0.3", "operating_point.confidence=0.8")
LOW = ("gate.margin=0.3", "gate.max_escape_rate=0.999", "gate.min_f1=0.01", "gate.max_overkill_rate=0.999")


@dataclass(frozen=True)
class Plant:
    """A model that was trained on v1, and a v2 with more tyres to validate on, some of which it has learnt from."""

    folder: Path
    root: Path
    learnt: frozenset[str]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def compose(self, verb: str, *overrides: str) -> DictConfig:
        register_schemas()
        with initialize_config_dir(str(config_folder(verb)), version_base="1.3"):
            return compose(verb, overrides=[f"tracking_uri={self.uri}", *overrides])

    def recalibrate(self, *overrides: str) -> Trained:
        return recalibrate(self.compose("recalibrate", f"root={self.root}", *overrides))

    def inspector(self, version: int) -> Inspector:
        return load_inspector(f"models:/{NAME}/{version}", self.uri)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    def train(made: Path) -> None:
        write_lake(made / "v1", {"train": 6, "val": 4, "test": 3}, size=48, clear=True)
        # A recalibration has its folder beside the training's: in each process's copy, where it works.
        names = f"logger.registered_model={NAME}", "logger.experiment=plant", "paths.output_dir=out"
        learn = "callbacks.ema.decay=null", "trainer.max_epochs=3", "data.image_size=64"  # enough to tell tyres apart
        train_here(made, f"data.root={made}/v1", f"data.cache_dir={made}/cache", *names, *PROMISE, *learn)

    folder = shutil.copytree(once("plant", train), tmp_path_factory.mktemp("plant") / "plant")
    shutil.copytree(folder / "v1", folder / "v2")
    write_lake(folder / "v2", {"val": 9}, size=48, seed=1, clear=True)
    learnt = sorted((folder / "v2" / "train").glob("*/*.jpg"))[::4]
    for path in learnt:  # as somebody does who divides a lake anew
        for usage in ("val", "test"):
            shutil.copy(path, folder / "v2" / usage / path.parent.name)
        path.unlink()
    write_lake(folder / "more", {"val": 1}, size=48, seed=4, clear=True)
    (folder / "more" / "val" / "crack").rename(folder / "v2" / "val" / "scuff")  # which the model does not know
    return Plant(folder, folder / "v2", frozenset(path.name for path in learnt))


@pytest.fixture(scope="module")
def again(plant: Plant) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(plant.folder)  # where MLflow keeps the artifacts
        return plant.recalibrate(f"model=models:/{NAME}@challenger")


def test_the_network_stays_and_what_follows_from_validation_is_new(plant: Plant, again: Trained) -> None:
    before, after = plant.inspector(1), plant.inspector(2)
    theirs: Mapping[str, Any] = before.network.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in after.network.state_dict().items())
    assert before.point and after.point and before.point.promised == after.point.promised
    assert before.calibration and after.calibration
    assert after.calibration.temperature != before.calibration.temperature
    assert after.validation is not None and before.validation is not None
    assert len(after.validation.texts("key")) > len(before.validation.texts("key"))
    assert again.model == f"models:/{NAME}/2"
    assert again.metrics["threshold"] == after.point.threshold


def test_the_promise_is_made_by_tyres_that_are_new_to_the_network(plant: Plant, again: Trained) -> None:
    """And is the one that the rule gives on what the registered model says of them."""
    found = Scores.read(plant.folder / again.folder / SCORES / "val.parquet")
    names = {key.rpartition("/")[2] for key in found.keys.to_pylist()}
    there = {path.name for path in (plant.root / "val").glob("*/*.jpg") if path.parent.name != "scuff"}
    assert plant.learnt and names == there - plant.learnt
    inspector = plant.inspector(2)
    good = inspector.classes.index("good")
    calibration, point = inspector.calibration, inspector.point
    assert calibration is not None and point is not None
    tyres = found.counted(good, calibration.temperature)
    defective = tyres.scores[tyres.labels != good]
    escaping = int((defective < point.threshold).sum())
    bounds = [float(beta.ppf(0.8, count + 1, len(defective) - count)) for count in (escaping, escaping + 1)]
    assert bounds[0] <= 0.3 < bounds[1]  # Clopper-Pearson's, and no threshold could be higher


def test_it_asks_to_become_the_champion_and_the_gate_knows_what_its_weights_have_learnt(
    plant: Plant, again: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(plant.folder)
    client = connect(plant.uri)
    assert client.get_model_version_by_alias(NAME, "challenger").version in (2, "2")
    run = client.get_run(again.run_id)
    assert run.data.tags[ORIGIN] == f"models:/{NAME}/1" and run.info.run_name == f"{NAME} 1 recalibrated"
    assert run.data.params["data.root"] == str(plant.root)
    with caplog.at_level(logging.WARNING):
        outcome = promote(plant.compose("promote", f"model={NAME}", "dry_run=true", *LOW))
    tests = {path.name for path in (plant.root / "test").glob("*/*.jpg")}
    assert outcome.images == len(tests - plant.learnt)
    assert "the weights of the challenger learnt from pictures of these tyres" in caplog.text


def test_another_promise_may_be_asked_for(
    plant: Plant, again: Trained, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a version that was recalibrated already, too: what its weights have learnt is still known."""
    monkeypatch.chdir(plant.folder)
    plant.recalibrate(f"model=models:/{NAME}/2", "operating_point.max_escape_rate=0.5")
    assert "the network does not know 'scuff': their pictures do not count" in caplog.text
    looser, before = plant.inspector(3), plant.inspector(2)
    assert looser.point and before.point and looser.point.threshold > before.point.threshold
    assert len(looser.validation.texts("key")) == len(before.validation.texts("key"))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=models:/none/1"], "model=models:/none/1 cannot be found"),
        (["model=outputs"], "model=outputs is no registered version"),
        ([f"model=models:/{NAME}/1", "root=gone"], "there is no folder 'gone'"),
        (
            [f"model=models:/{NAME}/1", "operating_point.max_escape_rate=0.01"],
            r"validation images are new to models:/again/1, too few for this promise",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    overrides: list[str], message: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plant.folder)
    before = len(connect(plant.uri).search_model_versions(f"name='{NAME}'"))
    with pytest.raises(UserError, match=message):
        plant.recalibrate(*overrides)
    assert len(connect(plant.uri).search_model_versions(f"name='{NAME}'")) == before


def test_by_tyres_that_it_knows_nothing_is_promised(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plant.folder)
    shutil.copytree(plant.folder / "v1", tmp_path / "v3")
    shutil.rmtree(tmp_path / "v3" / "val")
    (tmp_path / "v3" / "train").rename(tmp_path / "v3" / "val")
    write_lake(tmp_path / "v3", {"train": 2}, size=48, seed=3, clear=True)
    with pytest.raises(UserError, match="the network has learnt from all tyres of the validation images"):
        plant.recalibrate(f"model=models:/{NAME}/1", f"root={tmp_path}/v3")
