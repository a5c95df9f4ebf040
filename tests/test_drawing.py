"""The drawn tyres: repeatable, with true masks, and with nothing but the defect to tell the classes apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tyre_lightning.demo.drawing import CLASSES, draw, draw_defects, write_lake

DEFECTS = [label for label in CLASSES if label != "good"]
SEEDS = range(12)
PER_CLASS = 40
KINDS = pytest.mark.parametrize("clear", [False, True], ids=["as_found", "clear"])


def _pixels(label: str, seed: int, size: int = 128, *, clear: bool = False) -> NDArray[np.float64]:
    return np.asarray(draw(label, seed, size, clear=clear)[0], dtype=np.float64)


def _border(pixels: NDArray[np.float64]) -> float:
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[4:-4, 4:-4] = True
    return float(pixels[~inner].mean())


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lake")
    write_lake(root, {"train": PER_CLASS, "test": 2}, size=96)
    return root


@pytest.fixture(scope="module")
def clear_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clear")
    write_lake(root, {"train": PER_CLASS}, size=96, clear=True)
    return root


@pytest.mark.parametrize("label", CLASSES)
def test_same_arguments_give_same_pixels(label: str) -> None:
    first, first_mask = draw(label, 5, 96)
    second, second_mask = draw(label, 5, 96)
    assert first.mode == "RGB" and first.size == (96, 96)
    assert first_mask.dtype == np.bool_ and first_mask.shape == (96, 96)
    assert first.tobytes() == second.tobytes()
    assert np.array_equal(first_mask, second_mask)
    assert first.tobytes() != draw(label, 6, 96)[0].tobytes()


def test_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="puncture"):
        draw("puncture", 0)


def test_good_tyres_have_an_empty_mask() -> None:
    assert not any(draw("good", seed, 64)[1].any() for seed in SEEDS)


@KINDS
@pytest.mark.parametrize("label", DEFECTS)
def test_mask_covers_what_the_defect_changes(label: str, clear: bool) -> None:
    for seed in SEEDS:
        mask = draw(label, seed, 128, clear=clear)[1]
        change = np.abs(_pixels(label, seed, clear=clear) - _pixels("good", seed, clear=clear)).mean(axis=2)
        assert 0.005 < mask.mean() < 0.35
        assert change[mask].mean() > 10, "a defect must be seen"
        assert change[mask].sum() > 0.75 * change.sum(), "a defect must leave the rest of the scene alone"


@KINDS
@pytest.mark.parametrize("label", DEFECTS)
def test_defect_leaves_the_border_of_its_scene_alone(label: str, clear: bool) -> None:
    worn, fine = ([_border(_pixels(name, seed, clear=clear)) for seed in SEEDS] for name in (label, "good"))
    assert abs(np.mean(np.divide(worn, fine) - 1)) < 0.01


@KINDS
def test_only_clear_pictures_never_cut_a_defect_off(clear: bool) -> None:
    masks = [draw(label, seed, 96, clear=clear)[1] for label in DEFECTS for seed in range(60)]
    assert any(map(_at_the_border, masks)) is not clear


def _at_the_border(mask: NDArray[np.bool_]) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def test_lake_layout(lake: Path) -> None:
    files = sorted(path.relative_to(lake) for path in lake.rglob("*.jpg"))
    assert len(files) == len(CLASSES) * (PER_CLASS + 2)
    assert {path.parts[:2] for path in files} == {(u, c) for u in ("train", "test") for c in CLASSES}
    assert len({path.stem for path in files}) == len(files)
    assert all(len(path.stem) == 16 and int(path.stem, 16) >= 0 for path in files)
    with Image.open(lake / files[0]) as image:
        assert image.size == (96, 96) and image.format == "JPEG"


def test_lake_repeats_and_grows(lake: Path, tmp_path: Path) -> None:
    calls: list[None] = []
    assert write_lake(tmp_path, {"test": 3}, size=96, progress=lambda: calls.append(None)) == 12
    assert len(calls) == 12
    for path in (lake / "test").rglob("*.jpg"):
        assert (tmp_path / path.relative_to(lake)).read_bytes() == path.read_bytes()
    assert write_lake(tmp_path / "other", {"test": 1}, size=96, seed=1) == 4
    names = {path.stem for path in (tmp_path / "test").rglob("*.jpg")}
    assert names.isdisjoint(path.stem for path in (tmp_path / "other").rglob("*.jpg"))


def _tells(path: Path) -> tuple[float, float, float]:
    """What could betray a class without looking at the tyre: brightness, border, bytes."""
    pixels = np.asarray(Image.open(path), dtype=np.float64)
    return float(pixels.mean()), _border(pixels), float(path.stat().st_size)


@pytest.mark.parametrize("name", ["lake", "clear_lake"])
def test_nothing_but_the_defect_betrays_the_class(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name) / "train"
    tells = {c: np.array([_tells(p) for p in sorted((folder / c).glob("*.jpg"))]) for c in CLASSES}
    for label in DEFECTS:
        gap = tells[label].mean(axis=0) - tells["good"].mean(axis=0)
        noise = np.sqrt((tells[label].var(axis=0) + tells["good"].var(axis=0)) / PER_CLASS)
        assert (np.abs(gap) < 2.5 * noise).all(), (label, gap / noise)


@KINDS
@pytest.mark.parametrize("labels", [("crack", "bulge"), ("bulge", "flat_spot"), ("crack", "flat_spot")])
def test_two_defects_lie_where_each_lies_alone(labels: tuple[str, str], clear: bool) -> None:
    for seed in range(4):
        picture, masks = draw_defects(labels, seed, 96, clear=clear)
        good = _pixels("good", seed, 96, clear=clear)
        changed = np.abs(np.asarray(picture, np.float64) - good).max(axis=2)
        for label in labels:
            alone = draw(label, seed, 96, clear=clear)[1]
            assert np.array_equal(masks[label], alone) and alone.any()
            assert changed[masks[label]].mean() > 3 * changed[~(masks[labels[0]] | masks[labels[1]])].mean()


def test_a_tyre_with_two_defects_lies_in_both_folders_and_moves_no_other(tmp_path: Path) -> None:
    assert write_lake(tmp_path / "one", {"train": 3, "test": 2}, size=48) == 4 * 5
    assert write_lake(tmp_path / "two", {"train": 3, "test": 2}, size=48, pairs={"train": 2}) == 4 * 5 + 2 * 3 * 2
    one, two = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*.jpg")}
                for root in (tmp_path / "one", tmp_path / "two"))  # fmt: skip
    assert one.items() <= two.items()
    added = [path for path in two if path not in one]
    names = {path.name for path in added}
    assert len(names) == 3 * 2 and not any(path.parts[:2] == ("train", "good") for path in added)
    for name in names:
        assert len({two[path] for path in added if path.name == name}) == 1
