"""The gate's images are new to every model: of no tyre of which one has learnt from a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from tests.images import encode, picture
from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.pinned import Pinned
from tyre_lightning.lake.reader import open_cache, open_reader
from tyre_lightning.lake.store import FolderStore
from tyre_lightning.lake.texts import column
from tyre_lightning.lake.tyres import Shown, tyre_of
from tyre_lightning.promote.unseen import Past, unseen

CLASSES = ("crack", "good")
PATTERN = r"^(T\d+)_"
OTHER = r"_(\d+)\."


def catalog(tags: Mapping[str, str]) -> Catalog:
    """Images by key, with content tags."""
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * len(tags), pa.int32()), pa.array(CLASSES))
    sizes = pa.array([1] * len(tags), pa.int64())
    columns = {"key": column([*tags]), "label": labels, "size": sizes, "etag": column([*tags.values()])}
    return Catalog(pa.table(columns), CLASSES)


def run(root: Path, test: Mapping[str, str] | None = None, groups: Mapping[str, str] | None = None) -> Pinned:
    """One that learnt from two images of a lake of version 1, and had those of ``test``."""
    catalogs = {"train": catalog({"v1/train/crack/T1_50.jpg": "a"}), "val": catalog({"v1/val/crack/T2_60.jpg": "b"})}
    if test:
        catalogs["test"] = catalog(test)
    shown = {
        usage: Shown({}, {key: (groups or {}).get(key, key) for key in one.keys()}) for usage, one in catalogs.items()
    }
    return Pinned(str(root / "v1"), CLASSES, catalogs, shown)


NOW = {"v2/test/crack/T1_7.jpg": "x", "v2/test/crack/T3_60.jpg": "y", "v2/test/crack/T9_9.jpg": "z"}
THEN = {key.replace("v2", "v1"): tag for key, tag in NOW.items()}
KNOWN = {"v1/test/crack/T9_9.jpg": "group", "v1/val/crack/T2_60.jpg": "group"}


@pytest.mark.parametrize(
    ("pattern", "own", "groups", "left"),
    [
        (None, None, {}, [0, 1, 2]),
        (PATTERN, PATTERN, {}, [1, 2]),
        (PATTERN, None, {}, [1, 2]),
        (None, PATTERN, {}, [1, 2]),  # the challenger tells no tyres, but the champion learnt from them
        (OTHER, PATTERN, {}, [2]),
        (None, None, KNOWN, [0, 1]),  # the lake's new version has the same images under other keys
        (PATTERN, OTHER, KNOWN, []),
    ],
)
def test_no_image_is_of_a_tyre_that_a_model_has_learnt_from(
    pattern: str | None, own: str | None, groups: Mapping[str, str], left: list[int], tmp_path: Path
) -> None:
    past = Past(run(tmp_path, THEN, groups), own, near_copies=True)
    shown = Shown({key: tyre_of(key, pattern) for key in NOW})
    reader = open_reader(store := FolderStore(str(tmp_path)), open_cache(store, DataConfig()), DataConfig())
    assert unseen(reader, (catalog(NOW), catalog(NOW)), shown, pattern, {"champion": past}, S3Config()) == left


@pytest.mark.parametrize(("looked", "left"), [(True, [0, 1, 2]), (False, [1, 2])])
def test_near_copies_are_looked_for_where_a_run_did_not(looked: bool, left: list[int], tmp_path: Path) -> None:
    for number in range(3):
        for usage, first in (("test", 10), ("train", 50)):
            (folder := tmp_path / "v1" / usage / "crack").mkdir(parents=True, exist_ok=True)
            (folder / f"T{first + number}_{number}.jpg").write_bytes(encode(picture(first + number), "JPEG"))
    (tmp_path / "v1" / "train" / "good").mkdir()
    copy, of = (tmp_path / "v1" / name for name in ("train/crack/T50_0.jpg", "test/crack/T10_0.jpg"))
    copy.write_bytes(of.read_bytes())
    store = FolderStore(str(tmp_path / "v1"))
    test, train = (read_catalog(store, usage, CLASSES, strict=False) for usage in ("test", "train"))
    pinned = Pinned(str(tmp_path / "v1"), CLASSES, {"train": train, "test": test}, {"test": Shown()})
    reader = open_reader(store, open_cache(store, DataConfig()), DataConfig())
    assert unseen(reader, (test, test), Shown(), None, {"champion": Past(pinned, None, looked)}, S3Config()) == left


def test_what_a_run_was_told_is_in_its_parameters(tmp_path: Path) -> None:
    pinned = run(tmp_path)
    assert Past.of(pinned, {"data.group_pattern": "None"}) == Past(pinned, None, near_copies=True)
    told = {"data.group_pattern": PATTERN, "data.near_copies": "False"}
    assert Past.of(pinned, told) == Past(pinned, PATTERN, near_copies=False)
    too_many = {"data.near_copies": "True", "found.near_copies": "False"}
    assert Past.of(pinned, too_many) == Past(pinned, None, near_copies=False)
