from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tyre_lightning.errors import UserError
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.splits import split_fold, split_validation
from tyre_lightning.lake.tyres import groups_of


def make_catalog(**counts: int) -> Catalog:
    """So many images of each class."""
    codes = np.repeat(np.arange(len(counts), dtype=np.int32), list(counts.values()))
    keys = [f"v1/train/{name}/{number}.jpg" for name, count in counts.items() for number in range(count)]
    labels = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([*counts]))
    return Catalog(pa.table({"key": pa.array(keys), "label": labels}), tuple(counts))


def test_every_class_is_divided_by_the_fraction() -> None:
    catalog = make_catalog(good=1000, cracks=40, bulge=2)
    train, val = split_validation(catalog, 0.15, seed=0)
    assert val.counts() == {"good": 150, "cracks": 6, "bulge": 1}
    assert train.counts() == {"good": 850, "cracks": 34, "bulge": 1}
    assert sorted(train.keys() + val.keys()) == sorted(catalog.keys())


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    catalog = make_catalog(good=200, cracks=100)
    shuffled = catalog.take(np.random.default_rng(0).permutation(len(catalog)))
    first = set(split_validation(catalog, 0.2, seed=0)[1].keys())
    assert set(split_validation(shuffled, 0.2, seed=0)[1].keys()) == first
    other = set(split_validation(catalog, 0.2, seed=1)[1].keys())
    assert len(first & other) < len(first) / 2


def test_few_images_change_sides_when_others_are_added() -> None:
    before_train, before_val = (set(part.keys()) for part in split_validation(make_catalog(good=1000), 0.15, seed=0))
    after_train, after_val = (set(part.keys()) for part in split_validation(make_catalog(good=1100), 0.15, seed=0))
    assert len(before_val & after_train) + len(before_train & after_val) <= 20


def test_groups_are_never_divided() -> None:
    catalog = make_catalog(good=600, cracks=300)
    groups = [key.rpartition("/")[0] + str(index // 7) for index, key in enumerate(catalog.keys())]
    group_of = dict(zip(catalog.keys(), groups, strict=True))
    train, val = split_validation(catalog, 0.15, seed=3, groups=groups)
    assert set(map(group_of.get, train.keys())).isdisjoint(map(group_of.get, val.keys()))
    assert 90 <= val.counts()["good"] < 97
    assert 45 <= val.counts()["cracks"] < 52


@pytest.mark.parametrize("seed", range(8))
def test_a_group_that_is_most_of_a_class_stays_in_training(seed: int) -> None:
    groups = ["burst"] * 80 + [f"single {number}" for number in range(20)]
    _, val = split_validation(make_catalog(good=100), 0.15, seed, groups)
    assert len(val) == 15


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_both_sides_get_an_image(fraction: float) -> None:
    for groups in (None, ["a", "b", "b", "b"], ["a", "a", "b", "b"]):
        train, val = split_validation(make_catalog(good=4), fraction, 0, groups)
        assert len(train) > 0
        assert len(val) > 0


def test_a_class_without_images_is_left_alone() -> None:
    assert split_validation(make_catalog(good=10, cracks=0), 0.2, 0)[1].counts() == {"good": 2, "cracks": 0}


def test_a_class_that_cannot_be_divided() -> None:
    with pytest.raises(UserError) as caught:
        split_validation(make_catalog(good=10, cracks=1), 0.15, 0)
    assert str(caught.value) == (
        "class 'cracks' has a single image, which cannot be divided into train and val: "
        "add images, or a folder of validation images"
    )
    with pytest.raises(UserError, match="class 'good' has a single group of images"):
        split_validation(make_catalog(good=3), 0.15, 0, ["a", "a", "a"])


def test_a_tyre_with_several_defects_is_not_divided() -> None:
    """Images of one tyre lie in two class folders."""
    catalog = make_catalog(good=100, cracks=100, bulge=100)
    groups = [f"{label}{int(key.rpartition('/')[2][:-4]) // 2}" for key, label in rows(catalog)]
    groups = [group.replace("bulge", "cracks") for group in groups]
    for train, val in (split_validation(catalog, 0.2, 1, groups), split_fold(catalog, 5, 2, 1, groups)):
        group_of = dict(zip(catalog.keys(), groups, strict=True))
        assert set(map(group_of.get, train.keys())).isdisjoint(map(group_of.get, val.keys()))
        assert val.counts() == {"good": 20, "cracks": 20, "bulge": 20}


def rows(catalog: Catalog) -> list[tuple[str, str]]:
    return list(zip(catalog.keys(), catalog.labels(), strict=True))


def test_folds_hold_every_image_out_once_in_the_proportions_of_the_whole() -> None:
    catalog = make_catalog(good=103, cracks=40, bulge=0)
    held = [split_fold(catalog, 5, fold, seed=0) for fold in range(5)]
    assert sorted(key for _, part in held for key in part.keys()) == sorted(catalog.keys())
    for rest, part in held:
        assert sorted(rest.keys() + part.keys()) == sorted(catalog.keys())
        assert 20 <= part.counts()["good"] <= 21
        assert part.counts()["cracks"] == 8
    assert split_fold(catalog, 5, 0, seed=1)[1].keys() != held[0][1].keys()


def test_folds_balance_groups_of_all_sizes() -> None:
    sizes = [30, 20, 10, *[1] * 40]
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    parts = [split_fold(make_catalog(good=100), 4, fold, 0, groups)[1] for fold in range(4)]
    assert sorted(len(part) for part in parts) == [23, 23, 24, 30]


def test_more_folds_than_groups() -> None:
    with pytest.raises(UserError, match=r"class 'cracks' has 3 groups, which cannot be divided into 4 folds"):
        split_fold(make_catalog(good=10, cracks=3), 4, 0, 0)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, ["v1/train/good/T12_a.jpg", "v1/train/good/T12_b.jpg", "v1/train/good/x.jpg"]),
        (r"^(T\d+)_", ["id T12", "id T12", "v1/train/good/x.jpg"]),
        (r"T\d+_", ["id T12_", "id T12_", "v1/train/good/x.jpg"]),
    ],
)
def test_groups_come_from_file_names(pattern: str | None, expected: list[str]) -> None:
    keys = ["v1/train/good/T12_a.jpg", "v1/train/good/T12_b.jpg", "v1/train/good/x.jpg"]
    assert groups_of(keys, pattern) == expected
