"""A model carries small copies of training pictures, and shows beside a new one those that look most alike to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2 import functional as F

import tyre_lightning as tl
from tests.conftest import Trained, run_script
from tyre_lightning.config import S3Config, to_train_config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.decoding import decode
from tyre_lightning.decision.novelty import DIRECTIONS, Reference
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation import likeness
from tyre_lightning.evaluation.likeness import thumbnail
from tyre_lightning.evaluation.strip import with_strip
from tyre_lightning.judging import learn_good_tyres
from tyre_lightning.lake.source import open_source
from tyre_lightning.lake.store import FolderStore
from tyre_lightning.model.examples import MOST, Example, Examples
from tyre_lightning.model.inspector import WEIGHTS_FILE, Inspector
from tyre_lightning.prediction import predict_batches
from tyre_lightning.tracking.registry import load_inspector

WIDEST = 2560  # the head of EfficientNet-B7


@pytest.fixture(scope="module")
def inspector(trained: Trained) -> Inspector:
    return load_inspector(trained.model, trained.tracking_uri)


@pytest.fixture(scope="module")
def data(trained: Trained) -> TyreDataModule:
    return tl.open_data(config_of(trained))


def config_of(trained: Trained) -> DictConfig:
    return tl.compose(
        "experiment=demo", f"data.root={trained.local}", "data.num_workers=0", "trainer.enable_progress_bar=false"
    )


def examples_of(inspector: Inspector) -> Examples:
    assert inspector.examples is not None
    return inspector.examples


def reference_of(width: int) -> Reference:
    """Any one, of features so wide."""
    rest, variances = np.ones(1, np.float32), np.ones(DIRECTIONS, np.float32)
    return Reference(np.zeros(width, np.float32), np.eye(DIRECTIONS, width, dtype=np.float32), variances, rest)


def plain(colour: str) -> bytes:
    return thumbnail(F.pil_to_tensor(Image.new("RGB", (200, 200), colour)))


def test_a_training_picture_looks_most_like_itself(inspector: Inspector, trained: Trained) -> None:
    pictures = examples_of(inspector).pictures
    assert len(pictures) > 30 and {picture.class_name for picture in pictures} == {*inspector.classes}
    for picture in pictures:
        assert picture.class_name == Path(picture.key).parts[-2]
        view = inspector.read((trained.local.parent / picture.key).read_bytes(), picture.key)
        (nearest,) = inspector.nearest(inspector.look([view]).features)
        assert nearest[0] == picture and len({one.key for one in nearest}) == 3
        seen = F.pil_to_tensor(Image.open(trained.local.parent / picture.key)).float().mean()
        assert abs(decode(picture.thumbnail, "").float().mean() - seen) < 5


def test_saved_loaded_and_from_a_checkpoint_it_shows_the_same(
    inspector: Inspector, trained: Trained, tmp_path: Path
) -> None:
    inspector.save(tmp_path)
    (best,) = trained.folder.glob("outputs/train/*/checkpoints/best.ckpt")
    for again in (Inspector.load(tmp_path), Inspector.from_checkpoint(best)):
        assert examples_of(again).pictures == examples_of(inspector).pictures
        assert np.array_equal(examples_of(again).places, examples_of(inspector).places)


def test_nearest_is_by_the_distance_in_standard_deviations() -> None:
    reference = replace(reference_of(200), variances=np.array([100, 1, *[1] * 126], np.float32))
    features = np.zeros((3, 200), np.float32)
    features[:, :2] = [[9, 0], [0, 2], [0, 100]]
    features[0, 199] = 1e4  # beside all directions
    examples = Examples.of([Example(name, "good", b"") for name in "abc"], features, reference)
    found = examples.nearest(np.zeros((2, 200), np.float32), reference, count=2)
    assert [[one.key for one in row] for row in found] == [["a", "b"]] * 2
    assert examples.nearest(np.zeros((0, 200), np.float32), reference) == []


def test_whatever_the_pictures_a_model_grows_by_less_than_5_mb(inspector: Inspector, tmp_path: Path) -> None:
    draw, reference = np.random.default_rng(0), reference_of(WIDEST)
    noise = [thumbnail(torch.from_numpy(draw.integers(0, 256, (3, 400, 400), np.uint8))) for _ in range(20)]
    worst = [thumbnail(torch.from_numpy(draw.integers(0, 256, (3, 96, 96), np.uint8))) for _ in range(20)]
    assert min(map(len, worst)) > 5000
    features = draw.normal(size=(MOST + 200, WIDEST)).astype(np.float32)
    sizes = []
    for small, longest in ((worst, 1024), (noise, 60), ([plain("red")], 60)):
        pictures = [
            Example(f"{place:0{longest}}", "crack", small[place % len(small)]) for place in range(len(features))
        ]
        examples = Examples.of(pictures, features, reference)
        assert 300 < len(examples.pictures) <= MOST
        assert examples.pictures == tuple(pictures[: len(examples.pictures)])  # no matter which are small
        sizes.append(len(examples.pictures))
        replace(inspector, reference=reference, examples=examples).save(tmp_path / "with")
        replace(inspector, reference=None, examples=None).save(tmp_path / "without")
        with_them, without = ((tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("with", "without"))
        assert with_them - without < 5_000_000
    assert sizes[0] < sizes[-1] == MOST


def test_of_many_pictures_some_are_drawn_and_always_the_same(
    inspector: Inspector, data: TyreDataModule, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "MOST", 12)
    trainer = to_train_config(config_of(trained)).trainer
    first, again = (learn_good_tyres(inspector, data, trainer).examples for _ in range(2))
    assert first is not None and again is not None and first.pictures == again.pictures
    keys = [picture.key for picture in first.pictures]
    assert len({*keys}) == 12 and {*keys} < {*data.train.keys()} and keys != data.train.keys()[:12]
    assert learn_good_tyres(replace(inspector, good_class=None), data, trainer).examples is None


def test_the_rows_name_them_and_the_picture_shows_them(inspector: Inspector, trained: Trained, tmp_path: Path) -> None:
    tables = {}
    for name in ("plain.parquet", "told.parquet", "told.csv"):
        explain = f"explain={str(name.startswith('told')).lower()}"
        given = [f"model={trained.model}", f"input={trained.local}/test/crack", f"output={name}", explain]
        done = run_script("predict.py", *given, cwd=tmp_path, environment=trained.environment)
        assert done.returncode == 0, done.stderr
        tables[name] = (pd.read_csv if name.endswith("csv") else pd.read_parquet)(tmp_path / name)
    told = tables["told.parquet"]
    pd.testing.assert_frame_equal(told.drop(columns=["overlay", "nearest"]), tables["plain.parquet"], check_exact=True)
    assert tables["told.csv"]["nearest"].tolist() == [", ".join(keys) for keys in told["nearest"]]
    known = {picture.key for picture in examples_of(inspector).pictures}
    assert all(len({*keys}) == 3 and {*keys} <= known for keys in told["nearest"])
    model = tl.Model(inspector, "it")
    for key, path in zip(told["key"], told["overlay"], strict=True):
        shown = model.explain(trained.local / "test" / key)
        with Image.open(tmp_path / path) as drawn:
            assert drawn.size == shown.size and drawn.height > 150  # of a picture of 64 pixels
            assert np.abs(np.asarray(drawn, float) - np.asarray(shown, float)).mean() < 5


def test_a_model_without_them_names_and_shows_none(inspector: Inspector, trained: Trained, tmp_path: Path) -> None:
    replace(inspector, examples=None).save(tmp_path / "model")
    older = Inspector.load(tmp_path / "model")
    assert older.examples is None
    source = open_source(str(trained.local / "test" / "crack"), S3Config())
    assert isinstance(source.store, FolderStore)
    for bare in (older, replace(inspector, reference=None, examples=None)):
        (rows,) = predict_batches(bare, source.store, source.entries(), 32, tmp_path / "drawn")
        assert [row["nearest"] for row in rows] == [[]] * 5
        assert {Image.open(row["overlay"]).size for row in rows} == {(64, 64)}


def test_a_model_that_lacks_a_part_of_them_is_refused(inspector: Inspector, tmp_path: Path) -> None:
    inspector.save(tmp_path)
    state = load_file(tmp_path / WEIGHTS_FILE)
    state["examples.keys_end"] = state["examples.keys_end"][:-1]
    save_file(state, tmp_path / WEIGHTS_FILE)
    with pytest.raises(UserError, match="holds no model that this version can load"):
        Inspector.load(tmp_path)


@pytest.mark.parametrize("size", [(40, 300), (640, 160)])
def test_the_strip_has_each_in_its_place_whatever_its_name(size: tuple[int, int]) -> None:
    names = ["v1/train/good/a.jpg", "b" * 300 + ".jpg", "v1/갈라짐/\n\x1b.jpg"]
    shown = [
        Example(name, label, plain(colour))
        for name, label, colour in zip(names, ["good", "crack, " * 60, "갈라짐"], ["red", "lime", "blue"], strict=True)
    ]
    picture = Image.new("RGB", size, "black")
    sheet = with_strip(picture, shown)
    assert sheet.crop((0, 0, *size)).tobytes() == picture.tobytes()
    strip = np.asarray(sheet, int)[size[1] :]
    middles = []
    for channel in range(3):
        rows, columns = np.nonzero((strip[..., channel] > 240) & (strip.sum(axis=2) < 300))
        assert np.ptp(rows) == np.ptp(columns) == 95
        middles.append(columns.mean())
        text = strip[rows.max() + 1 :, columns.min() : columns.max() + 1]
        assert (text < 160).any()  # names are below
    assert middles == sorted(middles)
    assert with_strip(picture, []) is picture
