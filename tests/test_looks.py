"""What was seen of images is shared: each is looked at once, by whichever process and machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests import warm
from tests.cases import first_of
from tests.conftest import untracked_environment, write_images
from tests.images import encode, picture
from tyre_lightning.audit import looks
from tyre_lightning.audit.audit import audit, look_ahead
from tyre_lightning.audit.embedding import Embedder
from tyre_lightning.audit.memory import Memory
from tyre_lightning.config import DataConfig, TrainConfig, config_folder, register_schemas, to_audit_config
from tyre_lightning.data import datamodule
from tyre_lightning.errors import UserError
from tyre_lightning.lake.place import FolderPlace
from tyre_lightning.opening import open_data

CLASSES = ("crack", "good")


class Seeing(Embedder):
    """Counts the images that it is shown."""

    seen = 0

    def __call__(self, views: Any) -> Any:
        Seeing.seen += len(views)
        return super().__call__(views)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    write_images(root := tmp_path / "lake" / "v1", {"train": 25, "test": 5}, CLASSES)
    return root


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    Seeing.seen = 0
    monkeypatch.setattr(looks, "Embedder", Seeing)


def audit_config(root: Path | str, *more: str) -> DictConfig:
    register_schemas()
    with initialize_config_dir(str(config_folder("audit")), version_base="1.3"):
        return compose("audit", overrides=[f"data.root={root}", *more])


def machine(tmp_path: Path, name: str) -> str:
    """A machine has a cache of its own."""
    return f"data.cache_dir={tmp_path}/{name}"


@pytest.mark.parametrize("there", first_of(["s3", "folder"]))
def test_machines_look_at_a_part_each_and_no_other_looks_again(
    there: str, lake: Path, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"data.looks={tmp_path}/looks" if there == "folder" else f"data.looks=s3://{bucket.name}/looks"
    counts = [
        look_ahead(audit_config(lake, place, machine(tmp_path, f"m{shard}"), "shards=3", f"shard={shard}"))
        for shard in range(3)
    ]
    assert sum(counts) == 60 and min(counts) > 0
    assert Seeing.seen == 2 * 60  # from afar, and close
    found = audit(audit_config(lake, place, machine(tmp_path, "judge"), f"output={tmp_path}/audit"))
    assert Seeing.seen == 2 * 60 and len(found.images) == 60
    monkeypatch.setattr(datamodule, "_LOOKED_AT", 10)  # among so many a training looks only where others have
    data = DataConfig(root=str(lake), image_size=32, cache_dir=f"{tmp_path}/trainer", looks=place.partition("=")[2])
    assert open_data(TrainConfig(data=data)).looked
    assert Seeing.seen == 2 * 60


def test_a_training_does_not_look_at_what_an_audit_that_was_killed_has_left(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = look_ahead(audit_config(lake, f"data.looks={tmp_path}/looks", machine(tmp_path, "m"), "shards=3", "shard=0"))
    data = DataConfig(root=str(lake), image_size=32, cache_dir=f"{tmp_path}/trainer", looks=f"{tmp_path}/looks")
    monkeypatch.setattr(datamodule, "_LOOKED_AT", 59 - seen)
    assert not open_data(TrainConfig(data=data)).looked and Seeing.seen == 2 * seen
    assert f"not looked for among 60 images, {60 - seen} of them never seen, which would take about" in caplog.text
    monkeypatch.setattr(datamodule, "_LOOKED_AT", 60 - seen)
    assert open_data(TrainConfig(data=data)).looked and Seeing.seen == 60 + seen


def test_a_training_shares_what_it_sees_and_sees_only_what_is_new(lake: Path, tmp_path: Path) -> None:
    def train_on(name: str) -> None:
        data = DataConfig(root=str(lake), image_size=32, cache_dir=f"{tmp_path}/{name}", looks=f"{tmp_path}/looks")
        open_data(TrainConfig(data=data))

    train_on("one")
    assert Seeing.seen == 60
    (lake / "train/crack/new.jpg").write_bytes((lake / "train/crack/1.jpg").read_bytes())
    train_on("other")
    assert Seeing.seen == 61


def test_a_place_that_takes_nothing_keeps_no_training_but_a_shard_says_so(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("cannot write there")

    monkeypatch.setattr(FolderPlace, "put", refuse)
    data = DataConfig(root=str(lake), image_size=32, cache_dir=f"{tmp_path}/one", looks=f"{tmp_path}/looks")
    assert open_data(TrainConfig(data=data)).looked
    assert "what was seen stays on this machine: cannot write there" in caplog.text
    options = (f"data.looks={tmp_path}/looks", machine(tmp_path, "two"), "shards=2", "shard=1")
    with pytest.raises(UserError, match="cannot write there"):
        look_ahead(audit_config(lake, *options))


def test_what_a_machine_saw_before_it_shared_is_shared_too(lake: Path, tmp_path: Path) -> None:
    """By a training, or by a shard whose place did not answer: the same command again must not leave it out."""
    place, one = f"data.looks={tmp_path}/looks", machine(tmp_path, "one")
    audit(audit_config(lake, one, f"output={tmp_path}/audit"))
    for _ in range(2):
        assert look_ahead(audit_config(lake, place, one, "shards=1", "shard=0")) == 60
    assert len([*(tmp_path / "looks").rglob("*.parquet")]) == 2  # from afar, and close
    look_ahead(audit_config(lake, place, machine(tmp_path, "two"), "shards=1", "shard=0"))
    assert Seeing.seen == 2 * 60


def test_a_damaged_part_is_seen_again(lake: Path, tmp_path: Path) -> None:
    def train_on(name: str) -> None:
        data = DataConfig(root=str(lake), image_size=32, cache_dir=f"{tmp_path}/{name}", looks=f"{tmp_path}/looks")
        open_data(TrainConfig(data=data))

    train_on("one")
    (part,) = (tmp_path / "looks").rglob("*.parquet")
    part.write_bytes(part.read_bytes()[:-100])
    train_on("other")
    assert Seeing.seen == 120


def test_on_s3_the_next_version_s_copies_are_not_looked_at_again(lake: Path, bucket: Path, tmp_path: Path) -> None:
    def look_at(version: str) -> int:
        before = Seeing.seen
        options = f"data.looks={tmp_path}/looks", machine(tmp_path, version), "shards=1", "shard=0"
        look_ahead(audit_config(f"s3://{bucket.name}/{version}", *options))
        return (Seeing.seen - before) // 2

    shutil.copytree(lake, bucket / "v1")
    shutil.copytree(lake, bucket / "v2")
    (bucket / "v2/train/good/0.jpg").rename(bucket / "v2/train/crack/corrected.jpg")
    (bucket / "v2/train/good/new.jpg").write_bytes(encode(picture(1000, (40, 40)), "JPEG"))
    assert look_at("v1") == 60
    assert look_at("v2") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["shards=4", "data.looks=x"],
            "shards=4 look at a part each: give shard=..., or -m 'shard=range(4)', and",
        ),
        (["shards=4", "shard=0"], "shard=0 sees a part of the lake: give data.looks=s3://bucket/prefix, or a folder"),
        (["shards=4", "shard=4", "data.looks=x"], "shard=4 must be from 0 to 3, since there are shards=4"),
    ],
)
def test_what_cannot_be_is_one_sentence(options: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        to_audit_config(audit_config("lake", *options))
    assert str(refused.value).startswith(message)


def test_the_command_of_the_page(lake: Path, tmp_path: Path) -> None:
    shards = ["-m", "tyre_lightning.audit", "-m", f"data.root={lake}", "data.looks=looks", "shards=2", "shard=range(2)"]
    done = warm.run(shards, tmp_path, untracked_environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    assert "shard 1 of 2: " in done.stdout and "images are looked at; looks keeps it" in done.stdout
    schema = looks._schema()
    memory = Memory(tmp_path / "none", FolderPlace(str(tmp_path / "looks")))
    assert [len(memory.load(path.name, schema)[0]) for path in (tmp_path / "looks").iterdir()] == [60, 60]
    assert not (tmp_path / "multirun").exists()
