"""The audit finds what was planted, and nothing in drawings of different tyres."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageEnhance

from tests import warm
from tests.conftest import untracked_environment, write_files
from tyre_lightning.audit.copies import NEAR, find_copies, near_copies, read_copies, whiten
from tyre_lightning.audit.embedding import COPIES, WIDTH
from tyre_lightning.audit.findings import COLUMNS
from tyre_lightning.audit.labels import shortcut, suspects
from tyre_lightning.audit.looks import look
from tyre_lightning.audit.memory import Memory
from tyre_lightning.config import Changed, DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.traits import TRAITS
from tyre_lightning.demo.drawing import CLASSES, draw
from tyre_lightning.errors import UserError
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Content, FolderStore
from tyre_lightning.model.backbones import preset

SIZE = 112


@dataclass(frozen=True)
class Planted:
    """A lake of drawn tyres, no two alike, and what was planted in it."""

    root: Path
    pairs: set[tuple[str, str]]  # the keys of copies


def _changed(image: Image.Image, how: str) -> Image.Image:
    if how == "turned":
        return image.transpose(Image.Transpose.ROTATE_90)
    if how == "mirrored":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if how == "darker":
        return ImageEnhance.Brightness(image).enhance(0.8)
    edge = SIZE // 25
    return image.crop((edge, edge, SIZE - edge, SIZE - edge)).resize((SIZE, SIZE))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """60 training and 20 test images; the first training images of each class lie elsewhere too, changed a little."""
    root = tmp_path_factory.mktemp("audit") / "v1"
    for number, label in enumerate(CLASSES):
        for index in range(20):
            usage = "train" if index < 15 else "test"
            path = root / usage / label / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(label, 100 * number + index, SIZE)[0].save(path, quality=90)
    pairs = set()
    for label, how in zip(CLASSES, ("turned", "mirrored", "darker", "cropped"), strict=True):
        with Image.open(root / "train" / label / "0.jpg") as image:
            _changed(image, how).save(root / "test" / label / f"{how}.jpg", quality=85)
        pairs.add((f"v1/train/{label}/0.jpg", f"v1/test/{label}/{how}.jpg"))
    (root / "test/crack/same.jpg").write_bytes((root / "train/good/1.jpg").read_bytes())
    pairs.add(("v1/train/good/1.jpg", "v1/test/crack/same.jpg"))
    (root / "train/crack/broken.jpg").write_bytes(b"no image")
    return Planted(root, pairs)


def read(root: Path) -> tuple[Reader, list[str]]:
    store = FolderStore(str(root))
    return Reader(store, None, Changed.reread), [entry.key for entry in store.list()]


def test_copies_are_found_turned_mirrored_darker_or_cropped_and_nothing_else(planted: Planted, tmp_path: Path) -> None:
    reader, keys = read(planted.root)
    pairs = find_copies(look(reader, [*reader.store.list()], Memory(tmp_path), COPIES, show=False))
    found = {frozenset((keys[one], keys[other])) for one, other in zip(pairs.left, pairs.right, strict=True)}
    assert found == {frozenset(pair) for pair in planted.pairs}
    exact = {keys[place] for places in (pairs.left, pairs.right) for place in places[pairs.exact]}
    assert exact == {"v1/train/good/1.jpg", "v1/test/crack/same.jpg"}


def test_files_that_cannot_be_read_show_no_tyre_however_alike_they_are(tmp_path: Path) -> None:
    (root := tmp_path / "v1").mkdir()
    for name in "adg":
        (root / f"{name}.jpg").write_bytes(b"<html>")
    for name in "be":
        draw("good", ord(name), 64)[0].save(root / f"{name}.jpg")
    for name in "cf":
        (root / f"{name}.jpg").write_bytes((root / "b.jpg").read_bytes())
    reader, keys = read(root)
    left, right = read_copies(Memory(tmp_path), reader, [*reader.store.list()])
    assert {(keys[one], keys[other]) for one, other in zip(left, right, strict=True)} == {
        ("v1/b.jpg", "v1/c.jpg"),
        ("v1/b.jpg", "v1/f.jpg"),
    }


def test_of_many_look_alikes_only_copies_are_taken_for_copies() -> None:
    """3,000 tyres differ in 16 things only, so that chance brings hundreds of pairs of them within the distance."""
    rng = np.random.default_rng(0)
    looks = rng.normal(0, 1, (3000, 16)) @ rng.normal(0, 1, (16, WIDTH))
    points = (20 + np.concatenate([looks, looks[:60] + 0.04 * rng.normal(0, 1, (60, WIDTH))])).astype(np.float16)
    whole = whiten(points)
    alike = (int((whole @ whole.T >= 1 - NEAR).sum()) - len(whole)) // 2
    left, right, _ = near_copies(points)
    pairs = {(min(pair), max(pair)) for pair in zip(left.tolist(), right.tolist(), strict=True)}
    planted = {(place, 3000 + place) for place in range(60)}
    assert alike > 500
    assert len(pairs & planted) >= 58
    assert len(pairs - planted) <= 3


def test_an_image_is_read_once_until_it_changes(tmp_path: Path) -> None:
    (root := tmp_path / "v1").mkdir()
    for index in range(3):
        draw("good", index, 64)[0].save(root / f"{index}.png")
    first = look(read(root)[0], [*FolderStore(str(root)).list()], Memory(tmp_path), COPIES, show=False)
    draw("good", 7, 64)[0].save(root / "1.png")

    class Counting(FolderStore):
        def get(self, key: str, largest: int | None = None) -> Content:
            fetched.append(key)
            return super().get(key, largest)

    fetched: list[str] = []
    store = Counting(str(root))
    second = look(Reader(store, None, Changed.reread), [*store.list()], Memory(tmp_path), COPIES, show=False)
    assert fetched == ["v1/1.png"]
    changed = (first.embeddings() != second.embeddings()).any(axis=1)
    assert changed.tolist() == [False, True, False]


def test_looking_draws_no_random_number(tmp_path: Path) -> None:
    (root := tmp_path / "v1").mkdir()
    draw("good", 0, 64)[0].save(root / "0.png")
    torch.manual_seed(0)
    look(read(root)[0], [*FolderStore(str(root)).list()], Memory(tmp_path), COPIES, show=False)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)


def test_measurements_mean_what_they_say(tmp_path: Path) -> None:
    (root := tmp_path / "v1").mkdir()
    pixels = np.full((40, 80, 3), (30, 60, 90), np.uint8)
    pixels[:4] = 250
    Image.fromarray(pixels).save(root / "plain.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 80, 1), np.uint8).repeat(3, 2)
    Image.fromarray(noise).save(root / "sharp.png")
    looks = look(read(root)[0], [*FolderStore(str(root)).list()], Memory(tmp_path / "kept"), COPIES, show=False)
    plain, sharp = (dict(zip(TRAITS, row, strict=True)) for row in looks.traits().tolist())
    assert (plain["width"], plain["height"]) == (80, 40)
    assert plain["top_red"] == pytest.approx(250, abs=1)
    assert [plain[f"bottom_{colour}"] for colour in ("red", "green", "blue")] == pytest.approx([30, 60, 90], abs=1)
    assert plain["sharpness"] < 20 < 100 < sharp["sharpness"]
    assert sharp["colour"] == pytest.approx(0, abs=0.1)


def data_module(planted: Planted, cache: Path, **options: object) -> TyreDataModule:
    config = DataConfig(root=str(planted.root), cache_dir=str(cache), val_fraction=0.3, **options)  # type: ignore[arg-type]
    return TyreDataModule(
        config, S3Config(), preset("efficientnet_lite0"), find_copies=partial(read_copies, Memory(cache))
    )


def test_no_split_divides_copies(planted: Planted, tmp_path: Path) -> None:
    data = data_module(planted, tmp_path)
    assert data.shared_with_train("test") == sorted(test for _, test in planted.pairs)
    assert data.grouping.conflicts == [("v1/train/good/1.jpg", "v1/test/crack/same.jpg")]
    for how in ("turned", "mirrored"):  # both into train, where a split could divide them
        source = next(planted.root.glob(f"test/*/{how}.jpg"))
        source.rename(planted.root / "train" / source.parent.name / source.name)
    try:
        for fold in range(4):
            folded = data_module(planted, tmp_path, folds=4, fold=fold)
            for usage, catalog in folded.catalogs().items():
                keys = set(catalog.keys())
                for label, how in (("good", "turned"), ("crack", "mirrored")):
                    pair = {f"v1/train/{label}/0.jpg", f"v1/train/{label}/{how}.jpg"}
                    assert pair <= keys or pair.isdisjoint(keys), usage
    finally:
        for how in ("turned", "mirrored"):
            source = next(planted.root.glob(f"train/*/{how}.jpg"))
            source.rename(planted.root / "test" / source.parent.name / source.name)


def test_wrong_labels_come_first() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    points = rng.normal(0, 1, (300, 20)).astype(np.float32)
    points[np.arange(300), labels] += 4
    wrong = rng.permutation(300)[:12]
    given = labels.copy()
    given[wrong] = (labels[wrong] + 1) % 3
    found = suspects(points, given, np.arange(300))
    assert found is not None
    assert len(set(found.place) & set(wrong)) >= 8
    assert len(set(found.place) - set(wrong)) <= 2
    right = {int(place): int(code) for place, code in zip(found.place, found.suggested, strict=True)}
    assert all(right[place] == labels[place] for place in set(found.place) & set(wrong))
    assert (np.diff(found.confidence) <= 0).all()
    assert abs(found.agreement - (300 - len(wrong)) / 300) <= 4 / 300


def test_doubts_about_labels_that_are_all_right_say_how_little_the_classifier_knows() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    points = rng.normal(0, 1, (300, 20)).astype(np.float32)
    points[np.arange(300), labels] += 1.5
    found = suspects(points, labels, np.arange(300))
    assert found is not None and len(found.place) > 15
    assert found.agreement < 1 - len(found.place) / 300 + 0.05


@pytest.mark.parametrize("betrays", [True, False])
def test_a_border_that_betrays_the_class_is_told_from_one_that_does_not(betrays: bool) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    traits = rng.normal(100, 20, (120, len(TRAITS))).astype(np.float32)
    if betrays:
        traits[:, TRAITS.index("left_blue")] += 100 * labels
    found = shortcut(traits, labels, np.arange(120))
    assert found is not None
    assert found.high is betrays
    assert found.chance == 0.5
    if betrays:
        assert max(found.importance, key=lambda name: found.importance[name]) == "left_blue"


def test_classes_too_small_to_judge() -> None:
    nothing = np.zeros((6, len(TRAITS)), np.float32)
    assert shortcut(nothing, np.array([0, 0, 0, 1, 1, 1]), np.arange(6)) is None
    assert suspects(nothing, np.array([0] * 5 + [1]), np.arange(6)) is None


def run_audit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return warm.run(["-m", "tyre_lightning.audit", *arguments], cwd, untracked_environment(), timeout=400)


def test_the_command_writes_a_table_and_a_page(planted: Planted, tmp_path: Path) -> None:
    done = run_audit(f"data.root={planted.root}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "86 images in 4 classes, 1 unreadable" in said
    assert (
        "1 pairs with the same bytes, 4 pairs of near-copies; 5 pairs lie in different usages, 1 in different" in said
    )
    findings = pd.read_csv(tmp_path / "audit/findings.csv")
    assert findings.iloc[0][["kind", "key"]].tolist() == ["unreadable", "v1/train/crack/broken.jpg"]
    copies = findings[findings["kind"].isin(["exact copy", "near-copy"])]
    assert {*zip(copies["key"], copies["other_key"], strict=True)} == planted.pairs
    assert copies.iloc[0]["other_key"] == "v1/test/crack/same.jpg"  # in another class
    images = pd.read_parquet(tmp_path / "audit/images.parquet")
    assert len(images) == 86 and set(TRAITS) <= set(images.columns)
    page = (tmp_path / "audit/audit.html").read_text()
    assert not re.search(r"(?:src|href)=.?(?!data:)", page.replace('src="data:', ""))  # nothing from elsewhere
    for key in _keys(planted.pairs):
        assert f'alt="{key}"' in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) >= 10
    assert _decoded(pictures[0]).size == (SIZE, SIZE)


def test_a_clean_lake_has_an_empty_table_of_all_columns(tmp_path: Path) -> None:
    for seed, label in enumerate(("good", "crack", "good", "crack")):
        path = tmp_path / "v1/train" / label / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(label, seed, SIZE)[0].save(path, quality=90)
    done = run_audit(f"data.root={tmp_path / 'v1'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 pairs with the same bytes, 0 pairs of near-copies; 0 pairs lie in" in " ".join(done.stdout.split())
    findings = pd.read_csv(tmp_path / "audit/findings.csv")
    assert findings.empty and findings.columns.tolist() == COLUMNS
    assert (tmp_path / "audit/audit.html").exists()


def _keys(pairs: set[tuple[str, str]]) -> Sequence[str]:
    return sorted(key for pair in pairs for key in pair)


def _decoded(text: str) -> Image.Image:
    import base64

    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_hostile_file_name_is_text(tmp_path: Path) -> None:
    root = tmp_path / "v1"
    for label in ("good", "bad"):
        (root / "train" / label).mkdir(parents=True)
        draw("good", 3, 64)[0].save(root / "train" / label / "<b onclick=x>.jpg")
    done = run_audit(f"data.root={root}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "audit/audit.html").read_text()
    assert "&lt;b onclick=x&gt;" in page and "<b onclick" not in page
    assert "too few images in a class" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: data.root is not set"),
        (["data.root=nowhere"], "error: there is no folder 'nowhere'"),
        (["data.rot=x"], "did you mean 'data.root'?"),
        (["data.root=.", "data.group_pattern='('"], "is no regular expression"),
        (["data.root=lake", r"data.group_pattern='^T\d+'"], "finds nothing in any of 2 file names, such as 'b.jpg'"),
    ],
)
def test_mistakes_get_a_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    write_files(tmp_path / "lake", "train/bad/a.jpg", "train/good/b.jpg")
    done = run_audit(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_an_output_that_cannot_be_made(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from tyre_lightning.audit.audit import audit
    from tyre_lightning.config import AuditConfig

    (tmp_path / "file").write_text("")
    config = AuditConfig(data=DataConfig(root="x"), output=str(tmp_path / "file" / "audit"))
    with pytest.raises(UserError, match=r"output=.* cannot be made: Not a directory"):
        audit(OmegaConf.structured(config))
