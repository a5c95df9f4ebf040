"""The default recipe's parts on real tyre images, where they lie beside the project."""

from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.decoding import decode
from tyre_lightning.model.backbones import preset

LAKE = PROJECT.parent / "shared" / "data" / "tyres" / "v1"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not LAKE.is_dir(), reason="the real tyre images are not here")]


def module(root: Path, **options: object) -> TyreDataModule:
    config = DataConfig(**{"root": str(root), "num_workers": 2, **options})  # type: ignore[arg-type]
    return TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))


def test_counts_and_classes() -> None:
    data = module(LAKE)
    assert data.classes == ("bulge", "cracks", "flat_spots", "non_defective")
    assert data.good_class == "non_defective"
    assert data.test is not None
    assert list(data.test.counts().values()) == [70, 89, 64, 103]
    assert len(data.train) + len(data.val) == 900


def test_every_test_image_can_be_read() -> None:
    batches = list(module(LAKE, image_size=64).test_dataloader())
    assert sum(len(batch.label) for batch in batches) == 326
    assert not [error for batch in batches for error in batch.unreadable]


def test_two_classes_can_be_chosen() -> None:
    data = module(LAKE, classes=["cracks", "non_defective"])
    assert data.test is not None
    assert data.test.counts() == {"cracks": 89, "non_defective": 103}


def test_no_image_is_taken_for_damaged() -> None:
    paths = [path for path in LAKE.rglob("*") if path.is_file()]
    assert len(paths) == 1226
    for path in paths:
        decode(path.read_bytes(), path.name)
