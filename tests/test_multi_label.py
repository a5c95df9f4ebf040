"""One picture with several defects: the same file in several class folders, from the lake to the served model."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

import tyre_lightning as tl
from tests.conftest import ONE_NETWORK, run_here, run_script, train_here, write_images
from tests.once import once
from tyre_lightning.api import open_data
from tyre_lightning.audit.audit import examine
from tyre_lightning.config import DataConfig, OperatingPointConfig, S3Config, config_folder, register_schemas
from tyre_lightning.data.dataset import balanced
from tyre_lightning.decision.calibration import fit_temperature
from tyre_lightning.decision.operating_point import measure_rates
from tyre_lightning.decision.outputs import Outputs
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.judging import find_shared
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.fingerprint import fingerprint, with_content_tags
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.pinned import load
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.several import merged
from tyre_lightning.lake.splits import split_validation
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.model.metrics import DefectMetrics
from tyre_lightning.prediction import predict
from tyre_lightning.promote.promote import promote
from tyre_lightning.tracking.registry import load_inspector

CLASSES = ("bulge", "crack", "flat_spot", "good")
GOOD = 3
PAIRS = 3  # of two defects out of three
OUTPUTS = Outputs(GOOD, multi_label=True)
PROMISE = ("operating_point.max_escape_rate=0.4", "operating_point.confidence=0.6")
LEARN = (ONE_NETWORK, "data.image_size=64", "trainer.max_epochs=4", "data.batch_size=8", "logger.system_metrics=false")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lake") / "v1"
    write_lake(root, {"train": 8, "test": 5}, size=64, clear=True, pairs={"train": 6, "test": 4})
    return root


@dataclass(frozen=True)
class Run:
    """A training on pictures with two defects."""

    place: Path  # where it trained
    metrics: dict[str, float]
    scores: Scores  # of the test images

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.place}/mlflow.db"

    def model(self) -> Inspector:
        with contextlib.chdir(self.place):
            return load_inspector("models:/tyre-defects/1", self.uri)


@pytest.fixture(scope="module")
def run(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    def train(made: Path) -> None:
        metrics = train_here(made / "run", f"data.root={lake}", "data.multi_label=true", *LEARN, *PROMISE)
        (made / "metrics.json").write_text(json.dumps(metrics))

    made = once("two defects", train)
    place = shutil.copytree(made / "run", tmp_path_factory.mktemp("run") / "run")
    metrics = json.loads((made / "metrics.json").read_text())
    return Run(place, metrics, Scores.read(run_here(place) / "scores" / "test.parquet", OUTPUTS))


def listed(root: str, memory: Path) -> tuple[Catalog, Catalog]:
    """The training images as they lie there, and the same as pictures."""
    store = open_store(root, S3Config())
    catalog = read_catalog(store, "train", CLASSES, strict=True)
    return catalog, merged(catalog, with_content_tags(store, catalog, memory), "good")


def rows_of(run: Run, images: Path, name: str, *options: str) -> pd.DataFrame:
    """predict.py's rows with the run's model."""
    register_schemas()
    given = ["model=models:/tyre-defects/1", f"input={images}", f"output={run.place}/{name}", "accelerator=cpu"]
    with initialize_config_dir(str(config_folder("predict")), version_base="1.3"), contextlib.chdir(run.place):
        predict(compose("predict", overrides=[*given, f"tracking_uri={run.uri}", *options]))
    path = run.place / name
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=False)


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_the_same_file_in_two_class_folders_is_one_picture(
    lake: Path, bucket: Path, where: str, tmp_path: Path
) -> None:
    shutil.copytree(lake, bucket / "v1")
    alone, pictures = listed(str(lake) if where == "folder" else f"s3://{bucket.name}/v1", tmp_path)
    assert len(alone) == 4 * 8 + 2 * 6 * PAIRS and len(pictures) == 4 * 8 + 6 * PAIRS
    assert pictures.several() == 6 * PAIRS
    assert pictures.counts() == alone.counts() == {"bulge": 20, "crack": 20, "flat_spot": 20, "good": 8}
    for key, copy in pictures.copies():
        assert key < copy and Path(key).name == Path(copy).name
    shows = dict(zip(pictures.keys(), pictures.truth(CLASSES).tolist(), strict=True))
    key, copy = next(pictures.copies())
    assert [name for name, hit in zip(CLASSES, shows[key], strict=True) if hit] == sorted(
        {Path(key).parts[-2], Path(copy).parts[-2]}
    )


def test_what_is_recorded_of_a_lake_is_the_same_either_way(lake: Path, tmp_path: Path) -> None:
    alone, pictures = listed(str(lake), tmp_path)
    store = open_store(str(lake), S3Config())
    tagged = [with_content_tags(store, catalog, tmp_path) for catalog in (alone, pictures)]
    assert fingerprint(tagged[:1]) == fingerprint(tagged[1:])
    back = pictures.apart()
    assert dict(zip(back.keys(), back.labels(), strict=True)) == dict(zip(alone.keys(), alone.labels(), strict=True))
    assert alone.apart() is alone


def test_good_together_with_a_defect_stays_a_conflict(
    lake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(lake, tmp_path / "v1")
    good = sorted((root / "train" / "good").iterdir())[0]
    for name in ("crack", "bulge"):
        shutil.copy(good, root / "train" / name / "other.jpg")
    alone, pictures = listed(str(root), tmp_path / "memory")
    assert pictures.several() == 6 * PAIRS and len(alone) - len(pictures) == 6 * PAIRS
    assert {f"v1/train/{name}/other.jpg" for name in ("crack", "bulge")} <= {*pictures.keys()}
    find_shared(open_data(tl.compose(f"data.root={root}", "data.multi_label=true")))
    told = [record.getMessage() for record in caplog.records if "lie in different classes" in record.getMessage()]
    assert len(told) == 1 and "train/bulge/other.jpg" in told[0] and "data.multi_label" not in told[0]


def test_without_the_setting_the_warning_names_it(lake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = (
        *LEARN,
        "data.near_copies=true",
        "trainer.max_epochs=1",
        "model.weights=none",
        "logger.registered_model=null",
    )
    metrics = train_here(tmp_path, f"data.root={lake}", *options)
    count = 10 * PAIRS
    assert f"{count} of them are the same file in several folders of defects: data.multi_label=true" in caplog.text
    assert metrics["test/images"] == 4 * 5 + 2 * 4 * PAIRS  # as before: each copy is an image
    assert not [name for name in metrics if "average_precision" in name or "caught" in name]


def test_copies_of_one_folder_come_along_only_with_another_folder(lake: Path, tmp_path: Path) -> None:
    root = shutil.copytree(lake, tmp_path / "v1")
    _, pictures = listed(str(root), tmp_path / "memory")
    key, copy = next(pictures.copies())
    shutil.copy(root.parent / copy, (root.parent / copy).with_name("again.jpg"))
    (single,) = [key for key in pictures.keys() if "/good/" in key][:1]
    shutil.copy(root.parent / single, root / "train" / "good" / "again.jpg")
    _, found = listed(str(root), tmp_path / "memory")
    assert len(found) == len(pictures) + 1 and found.several() == pictures.several()
    assert {other for one, other in found.copies() if one == key} >= {copy} and found.counts()["good"] == 9


def test_two_empty_files_are_two_damaged_pictures(lake: Path, tmp_path: Path) -> None:
    root = shutil.copytree(lake, tmp_path / "v1")
    for name in ("crack", "bulge"):
        (root / "train" / name / "empty.jpg").touch()
    alone, pictures = listed(str(root), tmp_path / "memory")
    assert pictures.several() == 6 * PAIRS and len(alone) - len(pictures) == 6 * PAIRS
    assert sum(key.endswith("/empty.jpg") for key in pictures.keys()) == 2


def test_splits_and_sampling_count_a_picture_as_of_its_rarest_defect(lake: Path, tmp_path: Path) -> None:
    _, pictures = listed(str(lake), tmp_path)
    train, val = split_validation(pictures, 0.25, 0)
    assert {*train.keys()} | {*val.keys()} == {*pictures.keys()} and len(train) + len(val) == len(pictures)
    assert all(train.counts().values()) and all(val.counts().values())
    shows = np.array([[1, 0], [1, 0], [1, 0], [1, 1]], bool)
    assert balanced(shows).tolist() == [0.25, 0.25, 0.25, 1.0]


def test_no_defect_is_likelier_than_that_there_is_one() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (500, 4))
    found = OUTPUTS.probabilities(logits, 1.7)
    defects, defective = found[:, :GOOD], 1 - found[:, GOOD]
    np.testing.assert_allclose(defective, 1 / (1 + np.exp(logits[:, GOOD] / 1.7)))
    assert (defects <= defective[:, None]).all() and (defects.sum(axis=1) > 1).any()
    said, all_said = OUTPUTS.likeliest(logits), OUTPUTS.listed(logits)
    assert ((said == GOOD) == (defective < 0.5)).all()
    assert all_said[np.arange(500), said].all() and (all_said[:, GOOD] == (said == GOOD)).all()
    assert (all_said[said == GOOD].sum(axis=1) == 1).all()
    bad = said != GOOD
    likely = (defects[bad] >= 0.5) | (np.arange(GOOD) == said[bad, None])
    assert (all_said[bad][:, :GOOD] == likely).all() and (all_said.sum(axis=1) > 1).any()


def test_the_temperature_makes_p_defective_mean_what_it_says() -> None:
    draw = np.random.default_rng(1)
    odds = draw.normal(0, 2, 4000)
    defective = draw.random(4000) < 1 / (1 + np.exp(-odds))
    logits = np.concatenate([draw.normal(0, 9, (4000, 3)), -3 * odds[:, None]], axis=1)  # three times too sure
    labels = np.where(defective, 0, GOOD)
    assert fit_temperature(*OUTPUTS.outcomes(logits, labels)) == pytest.approx(3, rel=0.1)


def test_metrics_of_defects_are_scikit_learns() -> None:
    draw = torch.Generator().manual_seed(0)
    shows = torch.randint(0, 2, (60, 3), generator=draw)
    shows[:, 2] = (shows[:, :2].sum(1) == 0).long()
    logits = 1.5 * torch.randn(60, 3, generator=draw) + 2 * shows - 1
    metrics, outputs = DefectMetrics(["bulge", "crack", "good"], "good"), Outputs(2, multi_label=True)
    for part in (slice(0, 25), slice(25, 60)):
        metrics.update(logits[part], shows[part])
    found = {name: float(value) for name, value in metrics.compute().items()}
    said, truth = outputs.listed(logits.double().numpy()), shows.numpy()
    probability = outputs.probabilities(logits.double().numpy())
    assert found["f1"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert found["accuracy"] == pytest.approx((said == truth).all(axis=1).mean()) and found["images"] == 60
    for index, name in enumerate(("bulge", "crack")):
        expected = average_precision_score(truth[:, index], probability[:, index])
        assert found[f"average_precision/{name}"] == pytest.approx(expected, abs=1e-6)
        assert found[f"recall/{name}"] == pytest.approx((said & (truth == 1))[:, index].sum() / truth[:, index].sum())
    assert "average_precision/good" not in found
    metrics.reset()
    metrics.update(logits[:30], shows[:30])
    assert metrics.compute()["images"] == 30


def shown(rows: pd.DataFrame, lake: Path) -> NDArray[np.bool_]:
    """What each picture shows, by the folders in which a file of its name lies."""
    names = rows["key"].str.rpartition("/")[2]
    return np.array([[(lake / "test" / folder / name).is_file() for folder in CLASSES] for name in names])


def test_training_predict_and_the_served_model_say_the_same(run: Run, lake: Path) -> None:
    rows = rows_of(run, lake / "test", "rows.parquet").set_index("key")
    assert len(run.scores) == 4 * 5 + 4 * PAIRS and len(rows) == 4 * 5 + 2 * 4 * PAIRS
    said = rows.loc[[key.removeprefix("v1/") for key in run.scores.keys.to_pylist()]]
    recorded = 1 - said["p_good"].to_numpy()
    ours = run.scores.defective(GOOD, run.metrics["temperature"])
    assert np.abs(ours - recorded).max() < 1e-6 and ours.std() > 1e-3
    with contextlib.chdir(run.place):
        mlflow.set_tracking_uri(run.uri)
        served = mlflow.pyfunc.load_model("models:/tyre-defects/1")
        files = [(lake.parent / key).read_bytes() for key in run.scores.keys[:12].to_pylist()]
        answers = served.unwrap_python_model().predict(None, pd.DataFrame({"image": files}))
    assert np.abs(1 - answers["p_good"].to_numpy(float) - ours[:12]).max() < 1e-6
    assert [[*names] for names in answers["defects"]] == [[*names] for names in said["defects"][:12]]
    kept = Inspector.from_checkpoint(run_here(run.place) / "checkpoints" / "best.ckpt")
    assert kept.multi_label and kept.spec() == run.model().spec()


def test_a_picture_with_two_defects_is_one_image_of_the_recorded_data(run: Run) -> None:
    client: Any = mlflow.MlflowClient(run.uri)
    (recorded,) = client.search_runs([client.get_experiment_by_name("tyre-defects").experiment_id])
    profiles = {part.tags[0].value: json.loads(part.dataset.profile) for part in recorded.inputs.dataset_inputs}
    assert profiles["test"]["images"] == len(run.scores)
    assert sum(profiles["test"]["classes"].values()) == len(run.scores) + 4 * PAIRS


def test_all_defects_are_listed_and_each_is_measured(run: Run, lake: Path) -> None:
    rows = rows_of(run, lake / "test", "listed.parquet")
    rows = rows[~rows["key"].str.rpartition("/")[2].duplicated()]
    shows, columns = shown(rows, lake), [f"p_{name}" for name in CLASSES]
    assert (shows[:, :GOOD].sum(axis=1) == 2).sum() == 4 * PAIRS
    for name, index in zip(CLASSES[:GOOD], range(GOOD), strict=True):
        expected = average_precision_score(shows[:, index], rows[f"p_{name}"])
        assert run.metrics[f"test/average_precision/{name}"] == pytest.approx(expected, abs=0.02)  # uncalibrated there
        accepted = (rows["decision"] == "accept").to_numpy()[shows[:, index]].mean()
        assert run.metrics[f"test/caught/{name}"] == pytest.approx(1 - accepted)
        assert run.metrics[f"test/escape_rate/{name}"] == pytest.approx(accepted)
    for row, defects, label in zip(rows[columns].to_numpy(), rows["defects"], rows["class"], strict=True):
        likely = {name for name, p in zip(CLASSES[:GOOD], row, strict=False) if p >= 0.5}
        assert {*defects} == (set() if label == "good" else likely | {label})
    every = rows_of(run, lake, "every.parquet")["defects"]
    assert (every.str.len() > 1).any() and (every.str.len() == 1).any()
    table = rows_of(run, lake / "test", "rows.csv")
    assert {*table["defects"]} == {", ".join(defects) for defects in rows["defects"]}


def test_a_picture_that_the_model_shows_is_named_by_all_its_defects(run: Run, lake: Path, tmp_path: Path) -> None:
    examples = run.model().examples
    assert examples is not None
    pictures = listed(str(lake), tmp_path)[1]
    shows = dict(zip(pictures.keys(), pictures.truth(CLASSES).tolist(), strict=True))
    for picture in examples.pictures:
        assert picture.class_name.split(", ") == [
            name for name, hit in zip(CLASSES, shows[picture.key], strict=True) if hit
        ]
    assert {"bulge, crack", "good"} <= {picture.class_name for picture in examples.pictures}


def test_a_tyre_has_the_defects_of_all_its_pictures(run: Run, lake: Path, tmp_path: Path) -> None:
    inspector = run.model()
    inspector.group_pattern = r"^(T\d)_"
    for number, path in enumerate(sorted((lake / "test").glob("*/*.jpg"))):
        shutil.copy(path, tmp_path / f"T{number % 4}_{number}.jpg")
    inspector.save(tmp_path / "model")
    given = [f"model={tmp_path}/model", f"input={tmp_path}", f"output={tmp_path}/out.parquet", "accelerator=cpu"]
    with initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
        predict(compose("predict", overrides=given))
    pictures, tyres = (pd.read_parquet(tmp_path / f"out{end}.parquet") for end in ("", "-tyres"))
    union = pictures.groupby("tyre")["defects"].agg(lambda lists: sorted({name for names in lists for name in names}))
    assert {name: [*defects] for name, defects in zip(tyres["tyre"], tyres["defects"], strict=True)} == dict(union)


def test_a_pinned_catalog_has_every_file_of_a_picture(run: Run, lake: Path) -> None:
    found = load(str(next(run.place.rglob("catalog.parquet"))), S3Config())
    assert sum(len(catalog) for catalog in found.catalogs.values()) == len([*lake.glob("*/*/*.jpg")])


@pytest.mark.slow
def test_the_same_pictures_again_are_merged_again(run: Run, lake: Path, tmp_path: Path) -> None:
    pinned = next(run.place.rglob("catalog.parquet"))
    metrics = train_here(
        tmp_path, f"data.catalog={pinned}", f"data.root={lake}", "data.multi_label=true", *LEARN, *PROMISE
    )
    assert {name: metrics[name] for name in metrics if name.startswith(("test/", "val/"))} == {
        name: value for name, value in run.metrics.items() if name.startswith(("test/", "val/"))
    }


def test_the_gate_compares_a_model_of_several_with_one_of_one_class(run: Run, lake: Path, tmp_path: Path) -> None:
    place = shutil.copytree(run.place, tmp_path / "run")
    register_schemas()
    gate = ["gate.margin=0.9", "gate.max_escape_rate=0.99", "gate.max_overkill_rate=0.999", "gate.min_f1=0.001"]
    given = ["model=tyre-defects", f"tracking_uri=sqlite:///{place}/mlflow.db", *gate]
    with initialize_config_dir(str(config_folder("promote")), version_base="1.3"), contextlib.chdir(place):
        first = promote(compose("promote", overrides=given))
        assert first.promoted, first.reasons
        for name in ("escape_rate", "overkill_rate", "f1"):
            assert first.numbers["challenger"][name] == pytest.approx(run.metrics[f"test/{name}"], abs=1e-6)
    other = train_here(place, f"data.root={lake}", *LEARN, *PROMISE, "trainer.max_epochs=1", "seed=3")
    with initialize_config_dir(str(config_folder("promote")), version_base="1.3"), contextlib.chdir(place):
        second = promote(compose("promote", overrides=[*given, "dry_run=true"]))
    assert second.challenger == "2" and second.champion == "1" and second.images == 4 * 5 + 2 * 4 * PAIRS
    assert second.numbers["challenger"]["escape_rate"] == pytest.approx(other["test/escape_rate"], abs=1e-6)
    assert second.fingerprint == first.fingerprint  # the same files, whatever they are taken for


def test_each_defect_s_escapes_are_those_of_all_tyres_that_show_it(run: Run) -> None:
    inspector = run.model()
    assert inspector.point is not None and inspector.calibration is not None and run.scores.shows is not None
    tyres = run.scores.counted(GOOD, inspector.temperature)
    found = measure_rates(inspector.point, tyres, inspector.calibration, CLASSES, "good").escape_by_class
    assert sum(part.total for part in found.values()) > (tyres.labels != GOOD).sum()
    assert {name: part.total for name, part in found.items()} == {
        name: int(tyres.shows[:, index].sum()) for index, name in enumerate(CLASSES[:GOOD])
    }


def test_the_report_and_the_tables_have_each_defect(run: Run) -> None:
    page, table = (
        min(run.place.rglob(name), key=lambda path: path.stat().st_mtime).read_text(encoding="utf-8")  # the first run's
        for name in ("report.html", "metrics.json")
    )
    assert 'id="several"' in page and f"{run.metrics['test/average_precision/crack']:.3f}" in page
    assert '"average_precision", "crack"' in table and '"caught", "crack"' in table


def test_an_older_version_refuses_such_a_model(run: Run) -> None:
    content = torch.load(run_here(run.place) / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["tyre_lightning_format"] == 6 and '"format": 6' in run.model().spec()


def test_the_audit_counts_them_and_calls_them_no_conflict(lake: Path, tmp_path: Path) -> None:
    data = DataConfig(root=str(lake), cache_dir=str(tmp_path))
    before = examine(data, S3Config())
    after = examine(DataConfig(root=str(lake), cache_dir=str(tmp_path), multi_label=True), S3Config())
    exact = before.conflicts["kind"] == "exact copy"
    assert exact.sum() == 10 * PAIRS
    assert not (after.conflicts["kind"] == "exact copy").any()
    assert f"{10 * PAIRS} images lie in several class folders and show several defects" in after.sentences()
    assert len(after.images) == len(before.images) - 10 * PAIRS and "bulge, crack" in {*after.images["label"]}


def test_the_good_class_must_be_known(tmp_path: Path) -> None:
    write_lake(tmp_path / "v1", {"train": 2}, size=64)
    (tmp_path / "v1" / "train" / "good").rename(tmp_path / "v1" / "train" / "fine")
    with pytest.raises(UserError, match=r"data\.multi_label=true must know which of the classes 'bulge', .* 'fine'"):
        train_here(tmp_path / "run", f"data.root={tmp_path}/v1", "data.multi_label=true")


def test_what_validation_does_not_show_and_pictures_do_not_have_is_said(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    write_images(root := tmp_path / "v1", {"train": 4, "val": 3, "test": 2}, ("bulge", "crack", "good"))
    shutil.rmtree(root / "val" / "bulge")
    for name in ("bulge", "crack"):
        shutil.rmtree(root / "test" / name)
    options = ("data.multi_label=true", ONE_NETWORK, "model.weights=none", "logger.registered_model=null")
    train_here(tmp_path / "run", f"data.root={root}", *options, "operating_point.max_escape_rate=0.5")
    told, said = [record.getMessage() for record in caplog.records], capsys.readouterr().out
    assert told.count("no validation image shows 'bulge': the promise says nothing of such tyres") == 1
    assert not [one for one in recwarn if "samples" in str(one.message)]
    assert "train    12 images of 12 tyres: bulge 4, crack 4, good 4; 0 with several defects\n" in said
    assert "\n\n\n" not in said.partition("the model on")[2]  # no gap where there are no defects to list


def test_a_loss_of_one_s_own_gets_all_labels(lake: Path, tmp_path: Path) -> None:
    options = ("data.multi_label=true", *LEARN, "trainer.max_epochs=1", "logger.registered_model=null")
    loss = "+model.loss={_target_: torch.nn.BCEWithLogitsLoss}"
    metrics = train_here(tmp_path / "run", f"data.root={lake}", *options, loss)
    assert 0 < metrics["train/loss_epoch"] < 2
    with pytest.raises(UserError, match=r"fails on logits \[3, 4\] and labels \[3, 4\]"):
        train_here(tmp_path / "run", f"data.root={lake}", *options, "+model.loss={_target_: torch.nn.NLLLoss}")


def test_a_checkpoint_of_the_other_kind_is_refused(run: Run, lake: Path, tmp_path: Path) -> None:
    last = run_here(run.place) / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=r"was trained with data\.multi_label=True, not False"):
        train_here(tmp_path, f"data.root={lake}", *LEARN, f"ckpt_path={last}", "trainer.max_epochs=6")


def test_an_onnx_file_says_how_its_logits_are_read(run: Run, tmp_path: Path) -> None:
    model = run.model()
    model.promise(OperatingPointConfig(0.4, 0.6, max_novel_rate=0.5))
    model.save(tmp_path / "model")
    output = tmp_path / "tyre.onnx"
    done = run_script("-m", "tyre_lightning.export", f"model={tmp_path}/model", f"output={output}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "novelty is not in it" in done.stdout
    (entry,) = onnx.load(output).metadata_props
    assert json.loads(entry.value)["multi_label"] is True
