"""Training and the notebooks have the same images, split in the same way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Never

import pytest

from tests.conftest import write_images
from tests.test_notebooks import NOTEBOOKS, cells
from tyre_lightning.config import DataConfig, S3Config, TrainConfig
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.errors import UserError
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.model.backbones import preset
from tyre_lightning.opening import open_data


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
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), config)
    with pytest.raises(UserError, match=r"data\.good_class='fien' is not a class: choose from 'fine', 'crack'"):
        TyreDataModule(config, S3Config(), preprocessing, find_copies=look_nowhere)


def test_that_no_class_is_known_to_be_good_is_said_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(root := tmp_path / "v1", {"train": 3}, ("crack", "fine"))
    config = DataConfig(root=str(root))
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), config)
    with pytest.raises(AssertionError, match="looked at"):
        TyreDataModule(config, S3Config(), preprocessing, find_copies=look_nowhere)
    assert "none of the classes 'crack', 'fine' is known to be that of good tyres" in caplog.text
