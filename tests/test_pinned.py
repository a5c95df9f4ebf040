"""What a run trained on is identified by its contents, written down, and found again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_images
from tests.images import encode, picture
from tyre_lightning.config import Changed, DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.errors import UserError
from tyre_lightning.lake.fingerprint import fingerprint
from tyre_lightning.lake.pinned import load, save
from tyre_lightning.lake.provenance import Provenance
from tyre_lightning.model.backbones import preset

CLASSES = ("bulge", "good")


@pytest.fixture
def lake(bucket: Path) -> Path:
    """A lake of 2 classes with 6 train and 3 test images each."""
    write_images(bucket / "v1", {"train": 6, "test": 3}, CLASSES)
    return bucket / "v1"


def remote(lake: Path) -> str:
    return f"s3://{lake.parent.name}/v1"


def module(root: str | None, **options: object) -> TyreDataModule:
    config = DataConfig(**{"root": root, "image_size": 32, "batch_size": 4, "num_workers": 0, **options})  # type: ignore[arg-type]
    return TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))


def pin(data: TyreDataModule, folder: Path) -> str:
    """Write down what a data module has; gives the file."""
    save(folder / "catalog.parquet", data.store.root, data.tagged())
    return str(folder / "catalog.parquet")


def digest(data: TyreDataModule) -> str:
    return fingerprint([*data.tagged().values()])


def keys(data: TyreDataModule) -> dict[str, list[str]]:
    return {usage: catalog.keys() for usage, catalog in data.catalogs().items()}


def test_a_bucket_and_its_copy_have_one_fingerprint(lake: Path, tmp_path: Path) -> None:
    shutil.copytree(lake, tmp_path / "v1")  # with other times
    assert digest(module(remote(lake))) == digest(module(str(tmp_path / "v1")))


def test_a_fingerprint_has_no_order(lake: Path) -> None:
    catalog = module(remote(lake)).train
    order = random.Random(1).sample(range(len(catalog)), len(catalog))
    assert fingerprint([catalog]) == fingerprint([catalog.take(order)])
    assert fingerprint([catalog]) == fingerprint([catalog.take(order[:4]), catalog.take(order[4:])])


@pytest.mark.parametrize("where", ["s3", "folder"])
@pytest.mark.parametrize("change", ["content", "name", "class", "fewer"])
def test_a_fingerprint_follows_every_change(lake: Path, where: str, change: str) -> None:
    root = remote(lake) if where == "s3" else str(lake)
    before = digest(module(root))
    path = lake / "train" / "good" / "0.jpg"
    if change == "content":  # of the same size
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif change == "name":
        path.rename(path.with_name("zero.jpg"))
    elif change == "class":
        path.rename(lake / "train" / "bulge" / "zero.jpg")
    else:
        path.unlink()
    assert digest(module(root)) != before


def test_files_of_a_folder_are_read_once_for_it(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(module(str(lake)))
    data = module(str(lake))
    monkeypatch.setattr(type(data.store), "get", None)
    assert digest(data) == before


@pytest.mark.parametrize("where", ["s3", "folder"])
def test_a_pinned_catalog_stays_as_it_was(lake: Path, tmp_path: Path, where: str) -> None:
    root = remote(lake) if where == "s3" else str(lake)
    before = module(root)
    path = pin(before, tmp_path)
    write_images(lake, {"val": 2}, CLASSES)  # now there is a split already
    (lake / "train" / "good" / "new.jpg").write_bytes(encode(picture(99), "JPEG"))
    os.utime(lake / "train" / "good" / "0.jpg")  # the same content at another time
    after = module(None, catalog=path)
    assert keys(after) == keys(before)
    assert after.classes == before.classes
    assert fingerprint([*after.tagged().values()]) == fingerprint([*before.tagged().values()])
    assert sorted(key for batch in after.train_dataloader() for key in batch.key) == sorted(before.train.keys())
    assert not [note for batch in after.train_dataloader() for note in batch.notes]
    np.testing.assert_array_equal(
        after.train.codes({"bulge": 0, "good": 1}), before.train.codes({"bulge": 0, "good": 1})
    )


def test_a_catalog_in_a_bucket(lake: Path) -> None:
    before = module(remote(lake))
    pin(before, lake.parent)
    assert keys(module(None, catalog=f"s3://{lake.parent.name}/catalog.parquet")) == keys(before)


def test_a_pinned_bucket_is_not_listed(lake: Path, tmp_path: Path) -> None:
    path = pin(module(remote(lake)), tmp_path)
    shutil.rmtree(lake)
    assert len(module(None, catalog=path).train) == 10


@pytest.mark.parametrize("where", ["s3", "folder"])
def test_what_has_gone_or_changed_is_said(
    lake: Path, tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = remote(lake) if where == "s3" else str(lake)
    path = pin(module(root), tmp_path)
    (lake / "test" / "good" / "0.jpg").unlink()
    (lake / "test" / "good" / "1.jpg").write_bytes(encode(picture(99), "JPEG"))
    data = module(root, catalog=path, from_run="a run")
    sentence = "1 gone (v1/test/good/0.jpg) and 1 changed (v1/test/good/1.jpg)"
    assert caplog.messages == [f"of the images to train on, {sentence}; training goes on with what is there"]
    assert data.test is not None
    assert len(data.test) == 5
    assert not [note for batch in data.test_dataloader() for note in batch.notes]  # it has been said
    with pytest.raises(UserError) as caught:
        module(root, catalog=path, from_run="a run", changed=Changed.error)
    assert str(caught.value) == (f"of the images to train on, {sentence}: restore them, or give data.changed=reread")


def test_when_all_have_gone(lake: Path, tmp_path: Path) -> None:
    path = pin(module(str(lake)), tmp_path)
    shutil.rmtree(lake / "test")
    with pytest.raises(UserError, match=f"none of the test images to train on is in '{lake}' any more"):
        module(None, catalog=path)


def test_other_classes_than_pinned(lake: Path, tmp_path: Path) -> None:
    path = pin(module(str(lake)), tmp_path)
    with pytest.raises(UserError, match=r"data\.classes=\['good', 'bulge'\], but the catalog to train on has"):
        module(None, catalog=path, classes=["good", "bulge"])


def test_no_catalog(lake: Path, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(
        UserError, match=r"data\.catalog=.*x\.parquet is not a catalog: give the catalog\.parquet of a run"
    ):
        module(None, catalog=str(tmp_path / "x.parquet"))
    with pytest.raises(UserError, match=r"cannot read '.*y\.parquet': No such file or directory"):
        module(None, catalog=str(tmp_path / "y.parquet"))


def damaged(whole: bytes) -> Iterator[bytes]:
    """A file that was cut, or of which some bytes are others."""
    draws = random.Random(0)
    for _ in range(40):
        place = draws.randrange(8, len(whole) - 8)
        yield whole[:place]
        yield whole[:place] + draws.randbytes(8) + whole[place + 8 :]


def test_a_damaged_file_of_a_version_is_one_sentence(lake: Path, tmp_path: Path) -> None:
    """Of a footer pyarrow says so in one way, of the pages in others."""
    path, told = Path(pin(module(str(lake)), tmp_path)), set[str]()
    for data in damaged(path.read_bytes()):
        path.write_bytes(data)
        try:
            load(str(path), S3Config())
        except UserError as error:
            told.add(str(error))
    assert told == {f"data.catalog={path} is not a catalog: give the catalog.parquet of a run"}
    rows = [{"path": f"train/good/{number}.jpg", "why": "audit", "selected": True} for number in range(200)]
    for data in damaged(Provenance(rows, "v1", "v2", []).to_bytes()):
        try:
            Provenance.from_bytes(data, "v2")
        except UserError as error:
            told.add(str(error).partition(":")[0])
    assert "v2 is not what tyre accept wrote" in told


def test_order_and_split_survive_the_file(lake: Path, tmp_path: Path) -> None:
    data = module(remote(lake))
    pinned = load(pin(data, tmp_path), S3Config())
    assert pinned.root == remote(lake)
    assert {usage: catalog.keys() for usage, catalog in pinned.catalogs.items()} == keys(data)
    assert pinned.catalogs["val"].counts() == data.val.counts()
