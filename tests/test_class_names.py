"""Any folder's name is a class, everywhere; and a name in two Unicode forms is one."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from markupsafe import escape
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

from tests.conftest import run_here, table_of, train_here, write_files, write_images
from tests.mlflow_server import lay_database
from tyre_lightning.config import CONF, DataConfig, S3Config, config_folder
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.figures import confusion_figure
from tyre_lightning.lake.listing import good_class, read_lake
from tyre_lightning.lake.pinned import load, save
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.tyres import find_tyre
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.names import figure_text, mlflow_name
from tyre_lightning.prediction import predict
from tyre_lightning.tracking.journal import unsent
from tyre_lightning.tracking.sweeps import SWEEP_TAG, runs_of

NFC, NFD = (unicodedata.normalize(form, "Riß é") for form in ("NFC", "NFD"))
PREPROCESSING = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32))
OTHER = {NFC: NFD, NFD: NFC}
ODD = [
    "cracks (deep)", "cracks [deep]", "worn & torn", "x=1", "x+1", "it's", "100%+ worn", "a, b", "[bold]a[b",
    "$\\frac$", "<b>", '"', "#", "裂纹", "दरार", "images", "=1+1", NFD, "y" * 230, "good",
]  # fmt: skip


@pytest.mark.parametrize("name", [*ODD, "a\nb", "a\x00b", " ", "..", "a" * 1000, "é" * 250])
def test_mlflow_takes_every_name_and_tells_it_from_its_like(name: str) -> None:
    checks: list[Any] = [_validate_metric_name, _validate_param_name, _validate_tag_name]
    for prefix in ("found.images.train.", "test_unshared/escape_rate_high/", ""):
        mapped = prefix + mlflow_name(name) if prefix.endswith(".") else mlflow_name(prefix + name)
        for check in checks:
            check(mapped)
        assert len(mapped) <= 250
    likes = {name, *(name.replace(one, other) for one in "()[]&=+'%,$<" for other in "()[]&=+'%,$<_")}
    assert len({mlflow_name(like) for like in likes}) == len(likes)
    assert mlflow_name(mlflow_name(name)) == mlflow_name(name)


@pytest.mark.parametrize(
    "name", ["crack", "flat_spot", "a.b-c d:e", "Riß", "裂纹", "20241101", "lot-20241101", "y" * 200]
)
def test_a_name_that_mlflow_takes_stays(name: str) -> None:
    assert mlflow_name(name) == name
    assert mlflow_name(f"val/recall/{name}") == f"val/recall/{name}"


def test_two_classes_never_share_a_name_in_mlflow(tmp_path: Path) -> None:
    write_files(tmp_path, *(f"train/{name}/1.png" for name in ("a(b", mlflow_name("a(b"))))
    with pytest.raises(UserError, match=r"MLflow cannot tell the classes .* apart: rename"):
        read_lake(open_store(str(tmp_path), S3Config()), DataConfig())


@pytest.mark.parametrize("name", ODD)
def test_a_figure_shows_every_name(name: str, tmp_path: Path) -> None:
    figure: Figure = confusion_figure(np.eye(2, dtype=np.int64), [name, "$x$ $y$"])
    figure.savefig(tmp_path / "figure.png", dpi=20)
    assert len(figure_text(name)) <= 45


def test_a_sweep_finds_its_runs_in_any_folder(tmp_path: Path) -> None:
    lay_database(tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("sweeps")
    folders = ["out/it's", 'out/5"', "out/a%b", "out/a_b", "out/x=1 & (y)", NFC]
    for folder in folders:
        client.create_run(experiment, run_name=folder, tags={SWEEP_TAG: folder})
    assert [[run.info.run_name for run in runs_of(client, experiment, folder)] for folder in folders] == [
        [folder] for folder in folders
    ]


# Unicode forms


def lake_of(folder: Path, *names: str) -> Path:
    write_files(folder, *(f"{name}/{index}.png" for index, name in enumerate(names)))
    return folder


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A lake's root, and the folder behind it."""
    if request.param == "folder":
        path: Path = request.getfixturevalue("tmp_path")
        return str(path), path
    bucket: Path = request.getfixturevalue("bucket")
    return f"s3://{bucket.name}", bucket


@pytest.mark.parametrize(("train", "test"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_a_class_in_two_unicode_forms_is_one(root: tuple[str, Path], train: str, test: str) -> None:
    lake_of(root[1], f"train/{train}", "train/ok", f"test/{test}", "test/ok")
    lake = read_lake(open_store(root[0], S3Config()), DataConfig())
    assert lake.test is not None and lake.classes == (NFC, "ok")
    assert lake.train.counts() == lake.test.counts() == {NFC: 1, "ok": 1}
    assert f"test/{test}/2.png" in "".join(lake.test.keys())  # keys stay as the store has them
    for given in (NFC, NFD):
        chosen = read_lake(open_store(root[0], S3Config()), DataConfig(classes=["ok", given]))
        assert chosen.classes == ("ok", NFC) and chosen.train.counts() == {"ok": 1, NFC: 1}
        assert good_class(lake.classes, given) == NFC


def test_both_forms_in_one_usage_are_one_class(root: tuple[str, Path]) -> None:
    lake_of(root[1], f"train/{NFC}", f"train/{NFD}", f"train/{NFD}/deep", "train/ok")
    lake = read_lake(open_store(root[0], S3Config()), DataConfig())
    assert lake.train.counts() == {NFC: 3, "ok": 1}
    assert len({*lake.train.keys()}) == 4


@pytest.mark.parametrize("form", [NFC, NFD])
def test_a_usage_is_found_in_either_form(form: str, tmp_path: Path) -> None:
    lake_of(tmp_path, f"{form}/a", f"{form}/b")
    data = DataConfig()
    data.usage.train = OTHER[form]
    assert read_lake(open_store(str(tmp_path), S3Config()), data).train.counts() == {"a": 1, "b": 1}


def test_classes_may_not_be_given_in_both_forms(tmp_path: Path) -> None:
    from tyre_lightning.command_line import check_config
    from tyre_lightning.config import register_schemas

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["data.root=lake"])
    cfg.data.classes = [NFC, NFD]
    with pytest.raises(UserError, match="each once"):
        check_config(cfg)


def test_what_older_versions_saved_in_the_other_form_is_the_same_class(tmp_path: Path) -> None:
    lake_of(tmp_path / "lake", f"train/{NFD}", "train/ok", f"val/{NFD}", "val/ok")
    config = DataConfig(root=str(tmp_path / "lake"), image_size=32, near_copies=False)
    data = TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))
    path = tmp_path / "catalog.parquet"
    save(path, data.store.root, data.catalogs())
    table = pq.read_table(path)
    place = table.schema.get_field_index("label")
    labels = [NFD if label == NFC else label for label in table["label"].to_pylist()]
    about = table.schema.metadata[b"tyre_lightning"].decode()
    old = about.replace(NFC, NFD).replace("Ri\\u00df \\u00e9", "Ri\\u00df e\\u0301").encode()
    pq.write_table(table.set_column(place, "label", [labels]).replace_schema_metadata({b"tyre_lightning": old}), path)
    pinned = load(str(path), S3Config())
    assert pinned.classes == (NFC, "ok") and pinned.catalogs["train"].counts() == {NFC: 1, "ok": 1}
    network = Network("efficientnet_lite0", 2, (0.5,) * 3, (0.5,) * 3)
    inspector = Inspector(network, "efficientnet_lite0", [NFD, "ok"], PREPROCESSING, NFD)
    assert (inspector.classes, inspector.good_class) == ([NFC, "ok"], NFC)


def test_a_tyre_is_one_in_two_unicode_forms() -> None:
    found = {find_tyre(f"test/a/{name}-1.png", rf"({pattern}.*)-") for name in (NFC, NFD) for pattern in ("Riß é", NFD)}
    assert found == {NFC}


# All the way


@pytest.mark.long
def test_any_folder_is_a_class_all_the_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = [name for name in ODD if name != NFD]
    write_images(tmp_path / "lake" / "v1", {"train": 3, "val": 1, "test": 1}, odd)
    write_images(tmp_path / "lake" / "v1", {"train": 3, "val": 1}, [NFD])
    write_images(tmp_path / "lake" / "v1", {"test": 1}, [NFC])
    metrics = train_here(
        tmp_path, f"data.root={tmp_path}/lake/v1", "data.near_copies=false", "logger.system_metrics=false"
    )
    assert {f"test/recall/{name}" for name in (*odd, NFC)} <= {*metrics}
    assert not unsent(tmp_path / "out") and "refuses" not in caplog.text
    assert not (run_here(tmp_path) / "tracking" / "refused.jsonl").exists()
    client = MlflowClient(uri := f"sqlite:///{tmp_path}/mlflow.db")
    (version,) = client.search_model_versions("name = 'tyre-defects'")
    run = client.get_run(str(version.run_id))
    assert run.info.status == "FINISHED"
    for name in (*odd, NFC):
        assert run.data.params[f"found.images.train.{mlflow_name(name)}"] == "3"
    table = table_of(client, run.info.run_id, "metrics.json")
    assert {*odd, NFC} <= {*table[(table["usage"] == "test") & (table["metric"] == "recall")]["class"]}
    page = Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).read_text(encoding="utf-8")
    assert all(str(escape(name)) in page for name in odd)
    columns = {f"p_{name}" for name in (*odd, NFC)}
    assert columns <= {*served(uri, tmp_path / "lake" / "v1" / "test" / "good" / "0.jpg")}
    for output in ("rows.csv", "rows.parquet"):
        with initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
            cfg = compose("predict")
        cfg.model, cfg.tracking_uri, cfg.input = "models:/tyre-defects/1", uri, str(tmp_path / "lake" / "v1" / "test")
        cfg.output = str(tmp_path / output)
        predict(cfg)
        rows = pd.read_csv(cfg.output) if output.endswith("csv") else pd.read_parquet(cfg.output)
        assert columns <= {*rows.columns} and {*rows["class"]} <= {*odd, NFC} and len(rows) == len(ODD)


def served(uri: str, image: Path) -> Any:
    """The columns of what the registered model answers, as its schema says too."""
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/tyre-defects/1")
    answer = model.predict(pd.DataFrame({"image": [image.read_bytes()]}))
    assert {*answer.columns} == {*model.metadata.signature.outputs.input_names()}
    return answer.columns
