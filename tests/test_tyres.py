"""Where file names tell the tyre, it is trained, promised, judged and served as a whole."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from tests.conftest import table_of, train_here
from tests.images import encode, picture
from tests.once import once
from tyre_lightning.config import DataConfig, OperatingPointConfig, config_folder, register_schemas
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.operating_point import Calibration, OperatingPoint
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.ledger import Ledger
from tyre_lightning.lake.texts import column
from tyre_lightning.lake.tyres import count_tyres, find_tyre, tyre_names
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.inspector import Inspector, Sighting, nothing_seen
from tyre_lightning.prediction import predict
from tyre_lightning.summary import Summary
from tyre_lightning.tracking.tables import METRICS_TABLE

CLASSES = ("crack", "good")
PREPROCESSING = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32)).to_dict()
PATTERN = r"data.group_pattern='^(T\d+)_'"


def counted(names: list[str], pattern: str) -> int:
    keys = column(names)
    return count_tyres(keys, tyre_names(keys, pattern), pattern)


def write_tyres(root: Path, usage: str, first: int, tyres: int, views: str) -> None:
    """Tyres of every class, with a picture for each letter of ``views``."""
    for name in CLASSES:
        (folder := root / usage / name).mkdir(parents=True)
        for _ in range(tyres):
            first += 1
            for view in views:
                (folder / f"T{first}_{view}.jpg").write_bytes(encode(picture(10 * first + ord(view), (40, 40)), "JPEG"))


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a lake of tyres, two pictures each, and a run on it."""

    def train(folder: Path) -> None:
        root = folder / "lake" / "v1"
        write_tyres(root, "train", 0, 12, "ab")
        write_tyres(root, "val", 100, 8, "ab")
        write_tyres(root, "test", 200, 6, "ab")
        promise = ["operating_point.max_escape_rate=0.3", "operating_point.confidence=0.9"]
        learn = ["trainer.max_epochs=2", "data.image_size=64", "logger.system_metrics=false"]
        train_here(folder, f"data.root={root}", PATTERN, *promise, *learn)

    return shutil.copytree(once("tyres", train), tmp_path_factory.mktemp("plant") / "plant")


def predicted(plant: Path, folder: Path, source: Path) -> tuple[Summary, pd.DataFrame, pd.DataFrame]:
    """predict.py's summary, its rows by key, and its tyres by name."""
    uri = f"sqlite:///{plant}/mlflow.db"
    given = ["model=models:/tyre-defects/1", f"input={source}", f"output={folder}/rows.parquet", f"tracking_uri={uri}"]
    register_schemas()
    with initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
        summary = predict(compose("predict", overrides=[*given, "batch_size=3"]))
    tyres = folder / "rows-tyres.parquet"
    assert summary.tyres_output == str(tyres)
    return summary, pd.read_parquet(folder / "rows.parquet").set_index("key"), pd.read_parquet(tyres).set_index("tyre")


def test_a_run_counts_tyres(plant: Path) -> None:
    client = MlflowClient(f"sqlite:///{plant}/mlflow.db")
    run_id = str(client.get_model_version("tyre-defects", "1").run_id)
    assert client.get_run(run_id).data.metrics["test/images"] == 24
    numbers = table_of(client, run_id, METRICS_TABLE).set_index(["usage", "metric"])["value"]
    assert (numbers["test", "tyres"], numbers["val", "tyres"]) == (12, 16)
    found = Inspector.load(next(plant.rglob("inspector.json")).parent)
    assert found.group_pattern == r"^(T\d+)_"
    assert found.calibration is not None
    assert (found.calibration.defective_total, found.calibration.least_pictures) == (8, 2)


def test_a_tyre_gets_one_verdict_wherever_its_pictures_lie(plant: Path, tmp_path: Path) -> None:
    line = tmp_path / "line"
    for usage, view in (("early", "a"), ("late", "b")):
        for path in plant.glob(f"lake/v1/test/*/*_{view}.jpg"):
            (line / usage).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, line / usage / path.name)
    summary, rows, tyres = predicted(plant, tmp_path, line)
    assert len(rows) == 24 and len(tyres) == 12
    assert tyres.index.tolist() == sorted({path.name.partition("_")[0] for path in line.rglob("*.jpg")})
    for name, one in tyres.iterrows():
        pictures = rows[rows["tyre"] == name]
        assert one["p_defective"] == pytest.approx((1 - pictures["p_good"]).max(), abs=1e-12)
        assert {*pictures["decision"]} == {one["decision"]}
        worst = pictures.loc[one["key"]]
        assert (worst["picture_decision"], worst["class"]) == (one["decision"], one["class"])
    assert sum(summary.decisions.values()) == 12
    client = MlflowClient(f"sqlite:///{plant}/mlflow.db")
    metrics = client.get_run(str(client.get_model_version("tyre-defects", "1").run_id)).data.metrics
    defective = tyres["key"].str.extract(r"T(\d+)_")[0].astype(int).to_numpy() <= 206
    assert metrics["test/escape_rate"] == pytest.approx((tyres["decision"][defective] == "accept").mean())
    assert metrics["test/overkill_rate"] == pytest.approx((tyres["decision"][~defective] == "reject").mean())


def test_a_tyre_that_is_not_seen_whole_is_reviewed(
    plant: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (line := tmp_path / "line").mkdir()
    for path in plant.glob("lake/v1/test/good/*.jpg"):
        shutil.copy(path, line / path.name)
    first, second, *_ = sorted(line.glob("*_a.jpg"))
    first.unlink()
    second.write_bytes(b"<html>")
    with caplog.at_level(logging.WARNING):
        _, rows, tyres = predicted(plant, tmp_path, line)
    lonely, broken = (path.name.partition("_")[0] for path in (first, second))
    assert tyres.loc[lonely, "decision"] == tyres.loc[broken, "decision"] == "review"
    assert tyres.loc[lonely, "reason"] == "it has 1 picture, and the validation tyres had at least 2"
    assert tyres.loc[broken, "reason"] == "1 of its 2 pictures cannot be read"
    assert (tyres.loc[broken, "n_pictures"], tyres.loc[broken, "n_unreadable"]) == (1, 1)
    assert {*rows[rows["tyre"] == broken]["decision"]} == {"review"}
    assert {*tyres.drop([lonely, broken])["decision"]} <= {"accept", "reject"}
    assert "pictures of a tyre on average, and there were 2 of the validation tyres" in caplog.text


def test_a_served_model_gives_the_rows_of_a_tyre_one_verdict(plant: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{plant}/mlflow.db")
    served = mlflow.pyfunc.load_model("models:/tyre-defects/1")
    paths = sorted(plant.glob("lake/v1/test/*/T20[1-3]_*.jpg"))
    given = pd.DataFrame({"image": [path.read_bytes() for path in paths]})
    given["tyre"] = ["x", "x", None, "y", "y", "y"]
    answers = served.predict(given)
    assert answers["tyre"].tolist() == ["x", "x", None, "y", "y", "y"]
    for name in "xy":
        part = answers[answers["tyre"] == name]
        worst = part.loc[part["p_good"].astype(float).idxmin()]
        assert {*part["decision"]} == {worst["picture_decision"]}
    assert answers["decision"][2] == "review" and "it has 1 picture" in answers["reason"][2]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"^(X\d+)_", r"data.group_pattern='^(X\d+)_' finds nothing in any of 104 file names, such as 'T"),
        (r"^(T)", "data.group_pattern='^(T)' finds the same in all 104 file names, such as 'T' in 'T"),
    ],
)
def test_a_pattern_that_tells_nothing_is_refused(plant: Path, tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        train_here(tmp_path, f"data.root={plant}/lake/v1", f"data.group_pattern='{pattern}'")
    assert message in str(error.value)


def test_a_pattern_that_matches_no_name_at_prediction_is_refused(plant: Path, tmp_path: Path) -> None:
    (line := tmp_path / "line").mkdir()
    (line / "0001.jpg").write_bytes(encode(picture(), "JPEG"))
    with pytest.raises(
        UserError, match=r"tells tyres by data\.group_pattern=.* finds nothing in any of 1 file names, such as '0001"
    ):
        predicted(plant, tmp_path, line)
    assert not list(tmp_path.glob("rows*"))


def test_the_pictures_of_one_tyre_alone_are_a_tyre(plant: Path, tmp_path: Path) -> None:
    (line := tmp_path / "line").mkdir()
    for path in plant.glob("lake/v1/test/good/T207_*.jpg"):
        shutil.copy(path, line / path.name)
    _, rows, tyres = predicted(plant, tmp_path, line)
    assert len(rows) == 2 and tyres.index.tolist() == ["T207"]


@pytest.mark.parametrize("scores", [[0.1, math.nan], [math.nan, 0.1], [math.nan], [0.1, math.nan, 0.9]])
def test_a_tyre_of_which_a_score_is_no_number_is_for_a_person_to_see(scores: list[float], tmp_path: Path) -> None:
    network = TyreClassifier("efficientnet_lite0", [*CLASSES], PREPROCESSING, "good")
    inspector = Inspector.from_classifier(network)
    inspector.point = OperatingPoint(0.5, 0.5, OperatingPointConfig(0.05, 0.9))
    inspector.calibration = Calibration(1.0, [], 0, [], 0)
    seen = {"tyre": "T1", "key": "T1.jpg", "class": "good", "novelty": None, "error": None}
    rows = [seen | {"p_good": 1 - score} for score in scores]
    served = Sighting()
    for row in rows:
        served.add(inspector, row)
    with Ledger(tmp_path / "tyres.db", inspector) as ledger:
        for row in rows:
            ledger.add([row])
        for sighting in (served, *ledger.get(["T1"]), *(found for _, found in ledger.tyres())):
            assert inspector.verdict(sighting).decision == "review" and sighting.pictures == len(scores)
            assert math.isnan(sighting.score)


def test_the_picture_that_decides_on_a_tyre_is_the_same_in_predict_and_inbox(tmp_path: Path) -> None:
    """In whatever order scores, what is no score and damaged files come, and where no class is known to be good."""
    kinds: list[float | None] = [0.1, 0.9, math.nan, math.nan, None]
    for good in ("good", None):
        inspector = Inspector.from_classifier(TyreClassifier("efficientnet_lite0", [*CLASSES], PREPROCESSING, good))
        orders = [order for count in (1, 2, 3) for order in itertools.permutations(kinds, count)]
        with Ledger(tmp_path / f"{good}.db", inspector) as ledger:
            for name, order in enumerate(map(list, orders)):
                seen = Sighting()
                for place, score in enumerate(order):
                    row: dict[str, Any] = {"tyre": str(name), "key": f"{place}.jpg", "novelty": None, "error": None}
                    said: dict[str, Any] = {"class": f"class {place}", "p_good": 0.0 if score is None else 1 - score}
                    row |= nothing_seen("damaged") if score is None else said
                    seen.add(inspector, row)
                    ledger.add([row])
                (kept,) = ledger.get([str(name)])
                assert repr(kept) == repr(seen), order  # NaN is not NaN


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"^(T\d+)_", ["T1", None, None]),
        (r"T\d+", ["T1", None, None]),
        (r"^(T\d+)_|^line (\d+)", ["T1", "7", None]),
        (r"^(?:T|line )(\d+)", ["1", "7", None]),
        (r"^(T)?(\d+)?", ["T", None, None]),  # nothing is no name, or all such pictures would be one tyre
        (r"^\D*(\d*)", ["1", "7", None]),
        (r"\d*$", [None, None, None]),
        ("", [None, None, None]),
        (None, [None, None, None]),
    ],
)
def test_what_a_pattern_finds(pattern: str | None, found: list[str | None]) -> None:
    assert [find_tyre(f"v1/{name}.jpg", pattern) for name in ("T1_a", "line 7", "other")] == found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"^(T)", "finds the same in all 3 file names in which it finds something, such as 'T' in 'T3.jpg': put"),
        (r"(\d*)\.png", r"finds nothing in any of 4 file names, such as 'other.jpg'"),
        (r"^(\d*)", r"finds nothing in any of 4 file names, such as 'other.jpg'"),
    ],
)
def test_a_pattern_that_tells_no_tyre_from_another_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        counted(["v/T1.jpg", "v/T2.jpg", "v/T3.jpg", "v/other.jpg"], pattern)
    assert message in str(error.value)


def test_tyres_are_counted() -> None:
    assert counted(["v/T1_a.jpg", "v/T1_b.jpg", "v/T2_a.jpg", "v/other.jpg"], r"^(T\d+)_") == 3
    assert counted(["v/T1_a.jpg"], r"^(T\d+)_") == 1
