"""Training and the notebooks have the same images, split in the same way."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Never

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import write_images
from tests.images import encode, picture
from tests.test_notebooks import NOTEBOOKS, cells
from tyre_lightning.config import DataConfig, EvalCrop, S3Config, TrainConfig
from tyre_lightning.data import datamodule
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.errors import UserError
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.from_timm import build
from tyre_lightning.opening import open_data
from tyre_lightning.recording import describe
from tyre_lightning.telling import tell_work


def config_of(lake: Path, *, near_copies: bool = True) -> TrainConfig:
    return TrainConfig(data=DataConfig(root=str(lake), image_size=32, near_copies=near_copies))


def cracks(catalog: Catalog) -> set[str]:
    """Which of the images that were copied are in a catalog."""
    pairs = zip(catalog.keys(), catalog.labels(), strict=True)
    return {Path(key).stem.removeprefix("again") for key, label in pairs if label == "crack"}


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    write_images(root := tmp_path / "v1", {"train": 10}, ("crack", "good"))
    for number in range(10):
        shutil.copy(root / "train" / "crack" / f"{number}.jpg", root / "train" / "crack" / f"again{number}.jpg")
    data = open_data(config_of(root))
    val, train = (cracks(data.catalogs()[usage]) for usage in ("val", "train"))
    assert val and not val & train
    assert not open_data(config_of(root, near_copies=False)).grouping.copies


def test_the_notebooks_open_the_images_as_training_does() -> None:
    code = "".join(line for path in NOTEBOOKS for cell in cells(path) for line in cell["source"])
    assert "data = tl.open_data(config)" in code and "TyreDataModule" not in code


def look_nowhere(*_: object) -> Never:
    raise AssertionError("images were looked at")


def test_a_wrong_good_class_is_refused_before_any_image_is_looked_at(tmp_path: Path) -> None:
    write_images(root := tmp_path / "v1", {"train": 3}, ("crack", "fine"))
    config = DataConfig(root=str(root), good_class="fien")
    with pytest.raises(UserError, match=r"data\.good_class='fien' is not a class: choose from 'fine', 'crack'"):
        TyreDataModule(config, S3Config(), preset("efficientnet_lite0"), find_copies=look_nowhere)


def test_among_too_many_images_near_copies_are_not_looked_for_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(root := tmp_path / "v1", {"train": 3}, ("crack", "good"))
    monkeypatch.setattr(datamodule, "_LOOKED_AT", 5)
    config = config_of(root)
    data = TyreDataModule(config.data, config.s3, preset("efficientnet_lite0"), find_copies=look_nowhere)
    (said,) = [record.getMessage() for record in caplog.records if "near-copies" in record.getMessage()]
    assert re.match(r"near-copies are not looked for among 6 images, which would take about \S+ hours and \S+ GB", said)
    assert "data.group_pattern" in said
    found = describe(OmegaConf.structured(config), data, data.tagged(), 1)["found"]
    assert found["near_copies"] is False  # so that the gate looks for them
    monkeypatch.setattr(datamodule, "_LOOKED_AT", 6)
    with pytest.raises(AssertionError, match="looked at"):
        TyreDataModule(config.data, config.s3, preset("efficientnet_lite0"), find_copies=look_nowhere)


def test_that_no_class_is_known_to_be_good_is_said_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(root := tmp_path / "v1", {"train": 3}, ("crack", "fine"))
    config = DataConfig(root=str(root))
    with pytest.raises(AssertionError, match="looked at"):
        TyreDataModule(config, S3Config(), preset("efficientnet_lite0"), find_copies=look_nowhere)
    assert "none of the classes 'crack', 'fine' is known to be that of good tyres" in caplog.text


def write_pictures(root: Path, *sizes: tuple[int, int]) -> None:
    """Training pictures of two classes of these widths and heights."""
    for name in ("crack", "good"):
        (folder := root / "train" / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            (folder / f"{number}.jpg").write_bytes(encode(picture(number, size), "JPEG"))


def said_of(data: TyreDataModule, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of the network."""
    model = TyreClassifier("efficientnet_lite0", [*data.classes], data.preprocessing.to_dict())
    tell_work(TrainConfig(), data, model, folder)
    return capsys.readouterr().out.partition("  epochs  ")[0].partition("; sees ")[2]


@pytest.mark.parametrize(
    ("sizes", "options", "said"),
    [
        pytest.param(
            [(640, 640)], {}, "400 x 400 pixels\n           of pictures of about 640 x 640: "
            "data.image_size=640 would show all\n           of them, at 2.6 times the time\n", id="large",
        ),
        pytest.param(
            [(640, 640), (300, 300), (40, 40)], {}, "300 x 300 pixels\n           of 5 of 14 pictures of about "
            "640 x 640: data.image_size=640 would show all\n           of them, at 4.6 times the time\n",
            id="their median",
        ),
        pytest.param(
            [(900, 100)], {}, "300 x 300 pixels\n           of pictures of about 900 x 100: "
            "data.image_size=900 would show all\n           of them, at 9.0 times the time\n", id="by their pixels",
        ),
        pytest.param([(320, 300)], {}, "310 x 310 pixels\n", id="nearly square"),
        pytest.param([(40, 40)], {}, "256 x 256 pixels\n", id="tiny"),
        pytest.param(
            [(640, 640)], {"image_size": 64}, "64 x 64 pixels\n           of pictures of about 640 x 640: "
            "data.image_size=640 would show all\n           of them, at 100.0 times the time\n", id="asked for",
        ),
        pytest.param([(64, 64)], {"image_size": 64}, "64 x 64 pixels\n", id="asked for, and no more is there"),
        pytest.param(
            [(700, 640)], {"eval_crop": EvalCrop.center}, "224 x 224 pixels\n           of pictures of about "
            "700 x 640: data.image_size=560 would show all\n           of their middle, at 6.2 times the time\n",
            id="center",
        ),
        pytest.param([(900, 256)], {"eval_crop": EvalCrop.center}, "224 x 224 pixels\n", id="center, not high"),
    ],
)  # fmt: skip
def test_the_network_sees_as_much_as_the_pictures_have(
    sizes: list[tuple[int, int]], options: dict[str, object], said: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_pictures(root := tmp_path / "v1", *sizes * 3)
    data = DataConfig(root=str(root), near_copies=False, **options)  # type: ignore[arg-type]
    assert said_of(open_data(TrainConfig(data=data)), tmp_path, capsys) == said


@pytest.mark.parametrize(("crop", "size", "times"), [(EvalCrop.whole, 672, 9), (EvalCrop.center, 448, 4)])
def test_a_network_of_one_size_can_be_built_for_the_size_that_is_named(
    crop: EvalCrop, size: int, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(root := tmp_path / "v1", *[(640, 480)] * 3)
    name, config = "timm/vit_tiny_patch16_224", DataConfig(root=str(root), near_copies=False, eval_crop=crop)
    said = said_of(TyreDataModule(config, S3Config(), preset(name)), tmp_path, capsys)
    assert f"of pictures of about 640 x 480: data.image_size={size} would show all\n" in said
    assert said.endswith(f", at {times}.0 times the time or more\n")  # it compares every place with every other
    again = TyreDataModule(replace(config, image_size=size), S3Config(), preset(name))
    assert said_of(again, tmp_path, capsys) == f"{size} x {size} pixels\n"
    assert build(name, size)(torch.zeros(1, 3, size, size)).shape == (1, 192)


def test_pictures_that_cannot_be_read_say_nothing_of_their_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(root := tmp_path / "v1", *[(64, 64)] * 4)
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"<html>")
    data = open_data(TrainConfig(data=DataConfig(root=str(root), near_copies=False)))
    assert said_of(data, tmp_path, capsys) == "400 x 400 pixels\n"
