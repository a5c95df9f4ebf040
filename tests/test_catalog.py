from __future__ import annotations

import gc
import multiprocessing
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_files
from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.lake import mapped
from tyre_lightning.lake.catalog import Catalog, Lake
from tyre_lightning.lake.listing import good_class, read_catalog, read_lake
from tyre_lightning.lake.reader import open_store


def read(folder: Path, **data: object) -> Lake:
    return read_lake(open_store(str(folder), S3Config()), DataConfig(**data))  # type: ignore[arg-type]


def message_of(folder: Path, **data: object) -> str:
    """The sentence that a user reads when the lake in ``folder`` is wrong; printed, so that `pytest -s` shows it."""
    with pytest.raises(UserError) as caught:
        read(folder, **data)
    print(f"\n{caught.value}")
    return str(caught.value)


def test_s3_and_its_local_copy_give_the_same_lake(bucket: Path) -> None:
    folder = bucket / "lakes" / "v1"
    write_files(
        folder,
        "train/good/1.jpg",
        "train/good/line 2/camera#3/2.PNG",
        "train/cracks/Größe+50%.jpeg",
        "train/cracks/readme.txt",
        "test/good/1.jpg",
    )
    local = read(folder)
    remote = read_lake(open_store(f"s3://{bucket.name}/lakes/v1", S3Config()), DataConfig())
    assert remote.classes == local.classes == ("cracks", "good")
    assert remote.val is local.val is None
    assert remote.test is not None and local.test is not None
    for one, other in ((remote.train, local.train), (remote.test, local.test)):
        assert one.keys() == other.keys()
        assert one.labels() == other.labels()
        assert one.table["size"] == other.table["size"]
        assert one.ignored == other.ignored
    assert local.train.keys() == [
        "v1/train/cracks/Größe+50%.jpeg",
        "v1/train/good/1.jpg",
        "v1/train/good/line 2/camera#3/2.PNG",
    ]
    assert local.train.labels() == ["cracks", "good", "good"]


def test_what_counts_as_an_image(tmp_path: Path) -> None:
    images = [f"train/good/{name}" for name in ("a.jpg", "b.JPEG", "c.Png", "d.webp", "e.BMP", "f.tif", "g.TIFF")]
    others = [f"train/good/{name}" for name in ("a.txt", ".DS_Store", "._a.jpg", ".thumbs/a.jpg", "jpg", "x.jpg.bak")]
    write_files(tmp_path, *images, *others, "train/bad/1.jpg", "train/loose.jpg", "train/.cache/1.jpg")
    lake = read(tmp_path)
    assert lake.classes == ("bad", "good")
    assert lake.train.keys()[1:] == [f"{tmp_path.name}/{name}" for name in images]
    assert lake.train.ignored == len(others) + 1  # and the image without a class


def test_a_class_does_not_swallow_its_longer_namesake(tmp_path: Path) -> None:
    write_files(tmp_path, "train/good/1.jpg", "train/good_old/1.jpg", "train/good_old/2.jpg")
    assert read(tmp_path).train.counts() == {"good": 1, "good_old": 2}


def test_given_classes_keep_their_order_and_leave_others_out(tmp_path: Path) -> None:
    write_files(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "test/c/1.jpg", "test/new/1.jpg")
    lake = read(tmp_path, classes=["c", "a"])
    assert lake.classes == ("c", "a")
    assert lake.train.labels() == ["c", "a"]
    assert lake.test is not None
    assert lake.test.counts() == {"c": 1, "a": 0}


def test_a_class_missing_from_test_shifts_no_index(tmp_path: Path) -> None:
    write_files(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "test/c/1.jpg")
    test = read(tmp_path).test
    assert test is not None
    assert test.counts() == {"a": 0, "b": 0, "c": 1}
    assert test.codes({"a": 0, "b": 1, "c": 2}).tolist() == [2]


def test_other_folder_names_for_the_usages(tmp_path: Path) -> None:
    write_files(tmp_path, "images/training/a/1.jpg", "images/training/b/1.jpg", "images/valid/a/1.jpg")
    data = DataConfig()
    data.usage.train, data.usage.val = "images/training", "images/valid"
    lake = read_lake(open_store(str(tmp_path), S3Config()), data)
    assert len(lake.train) == 2
    assert lake.val is not None and len(lake.val) == 1


def test_catalog_access(tmp_path: Path) -> None:
    write_files(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "train/b/3.jpg")
    catalog = read(tmp_path).train
    assert (catalog.key(2), catalog.label(2)) == (f"{tmp_path.name}/train/b/3.jpg", "b")
    assert catalog.codes({"b": 0, "a": 1}).tolist() == [1, 1, 0]
    assert catalog.table["size"].to_pylist() == [13, 13, 13]
    chosen = catalog.take(np.array([2, 0]))
    assert chosen.keys() == [catalog.key(2), catalog.key(0)]
    assert chosen.counts() == {"a": 1, "b": 1}
    assert catalog.take([]).counts() == {"a": 0, "b": 0}
    assert pickle.loads(pickle.dumps(chosen)).keys() == chosen.keys()


def test_an_empty_catalog_still_has_its_classes(tmp_path: Path) -> None:
    catalog = read_catalog(open_store(str(tmp_path), S3Config()), "test", ["a", "b"], strict=False)
    assert len(catalog) == 0
    assert catalog.counts() == {"a": 0, "b": 0}
    assert catalog.codes({"a": 0, "b": 1}).shape == (0,)


def test_no_train_folder(tmp_path: Path) -> None:
    write_files(tmp_path, "training/a/1.jpg", "test/a/1.jpg")
    assert message_of(tmp_path) == (
        f"'{tmp_path}' has no folder 'train': found 'test', 'training' (the layout is <usage>/<class>/<file>)"
    )


def test_a_prefix_that_does_not_exist(bucket: Path) -> None:
    write_files(bucket, "v1/train/a/1.jpg")
    with pytest.raises(UserError) as caught:
        read_lake(open_store(f"s3://{bucket.name}/v2", S3Config()), DataConfig())
    assert str(caught.value) == (
        f"'s3://{bucket.name}/v2' has no folder 'train': found no folders (the layout is <usage>/<class>/<file>)"
    )


def test_images_without_class_folders(tmp_path: Path) -> None:
    write_files(tmp_path, "train/1.jpg")
    assert message_of(tmp_path) == (f"'{tmp_path}/train' has no class folders: the layout is <usage>/<class>/<file>")


def test_a_single_class(tmp_path: Path) -> None:
    write_files(tmp_path, "train/good/1.jpg")
    assert message_of(tmp_path) == (
        f"'{tmp_path}/train' has only the class 'good': at least two are needed (the layout is <usage>/<class>/<file>)"
    )


def test_a_class_without_images(tmp_path: Path) -> None:
    write_files(tmp_path, "train/good/1.jpg", "train/notes/a.txt")
    assert message_of(tmp_path) == (f"class 'notes' has no images in '{tmp_path}/train/notes': add some or remove it")


def test_a_given_class_that_does_not_exist(tmp_path: Path) -> None:
    write_files(tmp_path, "train/bulge/1.jpg", "train/cracks/1.jpg", "train/good/1.jpg")
    assert message_of(tmp_path, classes=["good", "crack"]) == (
        f"class 'crack' of data.classes is not in '{tmp_path}/train': choose from 'cracks', 'bulge', 'good'"
    )


def test_a_class_that_only_test_has(tmp_path: Path) -> None:
    write_files(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/new/1.jpg")
    assert message_of(tmp_path) == (
        f"class 'new' is in '{tmp_path}/test' but not in '{tmp_path}/train': "
        "add it there, or list the classes to use in data.classes"
    )


def test_a_usage_with_none_of_the_classes(tmp_path: Path) -> None:
    write_files(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg")
    assert message_of(tmp_path, classes=["a", "b"]) == (
        f"'{tmp_path}/val' has no image of the classes 'a', 'b': add some or remove the folder"
    )


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("crack", "good"), "good"),
        (("OK", "crack"), "OK"),
        (("Non-Defective", "defective"), "Non-Defective"),
        (("crack", "no defect"), "no defect"),
        (("crack", "good", "ok"), None),
        (("crack", "goods"), None),
    ],
)
def test_the_good_class_is_found_by_its_name(classes: tuple[str, ...], expected: str | None) -> None:
    assert good_class(classes, None) == expected


def test_a_configured_good_class() -> None:
    assert good_class(("crack", "fine"), "fine") == "fine"
    with pytest.raises(UserError) as caught:
        good_class(("crack", "fine"), "fin")
    assert str(caught.value) == "data.good_class='fin' is not a class: choose from 'fine', 'crack'"


def test_other_processes_map_a_large_catalog_and_its_file_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "train/good/1.jpg", "train/bad/2.jpg", "train/bad/3.jpg")
    monkeypatch.setattr(mapped, "LARGE", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    catalog = read(tmp_path).train
    sent = pickle.dumps(catalog)
    assert pickle.dumps(catalog) == sent and catalog.key(0).encode() not in sent
    (file,) = (tmp_path / "temporary").iterdir()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(keys_of, (catalog,)) == (catalog.keys(), catalog.counts())
    assert file.exists()  # whoever has mapped it does not end it
    received = pickle.loads(sent)
    del catalog
    gc.collect()
    assert not file.exists()
    assert received.labels() == ["bad", "bad", "good"]


def keys_of(catalog: Catalog) -> tuple[list[str], dict[str, int]]:
    return catalog.keys(), catalog.counts()
