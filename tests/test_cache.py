"""The cache on the disk gives the right bytes or none: whoever else uses it, and however badly it was treated."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_files
from tyre_lightning.audit import looks
from tyre_lightning.audit.embedding import WIDTH
from tyre_lightning.audit.memory import Memory
from tyre_lightning.lake import s3_listing
from tyre_lightning.lake.cache import DiskCache
from tyre_lightning.lake.fingerprint import with_content_tags
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.store import FolderStore

LIMIT = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def value(name: str, size: int = 1000) -> bytes:
    """Bytes that follow from the name."""
    return random.Random(name).randbytes(size)


def got(cache: DiskCache, name: str) -> bytes | None:
    found = cache.get(name)
    return None if found is None else bytes(found)


def held(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def test_what_was_put_is_there_for_everybody(folder: Path) -> None:
    DiskCache(folder, LIMIT).put({name: value(name) for name in ("a", "b", "Größe\n東")})
    other = DiskCache(folder, LIMIT)
    for name in ("a", "b", "Größe\n東"):
        assert name in other
        assert got(other, name) == value(name)
    assert "c" not in other
    assert other.get("c") is None
    assert not other.problems


def test_a_value_may_be_written_to(folder: Path) -> None:
    cache = DiskCache(folder, LIMIT)
    cache.put({"a": b"abc"})
    first = cache.get("a")
    assert first is not None
    first[:] = b"xyz"
    assert got(cache, "a") == b"abc"


def test_the_bound_holds_and_what_is_used_stays(folder: Path) -> None:
    cache = DiskCache(folder, LIMIT)
    cache.put({"favourite": value("favourite", 10_000)})
    os.utime(held(folder)[0], (1, 1))
    for number in range(300):
        cache.put({str(number): value(str(number), 10_000)})
        assert got(cache, "favourite") == value("favourite", 10_000)
        assert sum(path.stat().st_size for path in held(folder)) <= LIMIT
        time.sleep(0.001)  # the order of use is a matter of the clock
    assert got(cache, "299") == value("299", 10_000)
    assert cache.get("0") is None
    assert sum(path.stat().st_size for path in held(folder)) > LIMIT / 2


def test_a_value_larger_than_the_bound_is_not_kept(folder: Path) -> None:
    cache = DiskCache(folder, LIMIT)
    cache.put({"small": b"small"})
    cache.put({"large": bytes(LIMIT)})
    assert cache.get("large") is None
    assert got(cache, "small") == b"small"


@pytest.mark.parametrize("damage", ["bit", "cut", "empty"])
def test_a_damaged_file_is_noticed_and_removed(folder: Path, damage: str) -> None:
    cache = DiskCache(folder, LIMIT)
    cache.put({"a": value("a")})
    (path,) = held(folder)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes({"bit": bytes(data), "cut": bytes(data[:300]), "empty": b""}[damage])
    assert cache.get("a") is None
    assert cache.problems == [f"'{path}' in the cache was damaged; it is fetched again"]
    cache.put({"a": value("a")})
    assert got(cache, "a") == value("a")


@pytest.mark.parametrize("place", ["a file", "/proc/none"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_bytes(b"")
    cache = DiskCache(tmp_path / place, LIMIT)
    cache.put({"a": b"abc"})
    assert cache.get("a") is None
    (problem,) = cache.problems
    assert f"the cache in '{tmp_path / place}' cannot be used (" in problem


def test_a_folder_that_vanishes(folder: Path) -> None:
    cache = DiskCache(folder, LIMIT)
    cache.put({"a": b"abc"})
    shutil.rmtree(folder)
    for _ in range(2):
        assert cache.get("a") is None
        cache.put({"a": b"abc"})
    assert cache.problems == [
        f"the cache in '{folder}' cannot be used (No such file or directory); going on without it"
    ]
    assert not folder.exists()  # it may have been on a disk that is no longer mounted


NOBODY = 65534


def _use_without_rights(folder: Path) -> None:
    if os.geteuid() == 0:  # root may write anywhere
        os.setuid(NOBODY)
    cache = DiskCache(folder, LIMIT)
    for name in ("a", "b"):
        assert got(cache, name) in (b"abc", None)
        cache.put({name: b"abc"})
    (problem,) = cache.problems
    assert f"the cache in '{folder}' cannot be used (" in problem


def test_a_folder_that_may_only_be_read() -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        folder = Path(open_to_all, "cache")
        DiskCache(folder, LIMIT).put({"a": b"abc"})
        before = sorted(folder.rglob("*"))
        for path in (*before, folder, Path(open_to_all)):
            path.chmod(0o555)
        process = multiprocessing.get_context("fork").Process(target=_use_without_rights, args=(folder,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert sorted(folder.rglob("*")) == before
        for path in (Path(open_to_all), folder, *(path for path in before if path.is_dir())):
            path.chmod(0o755)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_a_folder_that_others_may_write_to_is_not_used(folder: Path, mode: int) -> None:
    """They could have planted pixels in it, with the right checksum."""
    DiskCache(folder, LIMIT).put({"a": b"planted"})
    before = held(folder)
    folder.chmod(mode)
    cache = DiskCache(folder, LIMIT)
    assert cache.get("a") is None and "a" not in cache
    cache.put({"b": b"abc"})
    assert held(folder) == before
    (problem,) = cache.problems
    assert problem.startswith(f"the cache in '{folder}' cannot be used (others may write to it: remove it, or chmod")


def test_a_folder_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DiskCache(folder, LIMIT).put({"a": b"planted"})
    give_away(folder, monkeypatch)
    cache = DiskCache(folder, LIMIT)
    assert cache.get("a") is None
    (problem,) = cache.problems
    assert "it belongs to user " in problem and "give data.cache_dir a folder of your own" in problem


def test_a_value_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was planted before the folder was closed."""
    cache = DiskCache(folder, LIMIT)
    cache.put({"a": b"planted"})
    give_away(held(folder)[0], monkeypatch)
    assert cache.get("a") is None
    (problem,) = cache.problems
    assert "belongs to user " in problem


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file or folder another user's."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)


def test_what_is_made_is_for_its_user_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        DiskCache(folder, LIMIT).put({"a": b"abc"})
    finally:
        os.umask(before)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.iterdir()) if path.is_dir())


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_fingerprints_that_others_may_have_written_are_not_used(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(lake := tmp_path / "lake", "train/a/1.jpg", "train/b/1.jpg")
    store, memory = FolderStore(str(lake)), tmp_path / f"kept {mode}"
    catalog = read_catalog(store, "train", ("a", "b"), strict=True)
    tags = with_content_tags(store, catalog, memory).table["etag"].to_pylist()
    (kept,) = memory.iterdir()
    table = pq.read_table(kept)
    pq.write_table(table.set_column(2, "md5", pa.array(["planted"] * 2)), kept)
    assert with_content_tags(store, catalog, memory).table["etag"].to_pylist() == ["planted"] * 2
    memory.chmod(mode)
    for _ in range(2):
        assert with_content_tags(store, catalog, memory).table["etag"].to_pylist() == tags
    assert caplog.text.count(f"what is kept in '{memory}' is not used (others may write to it") == 1
    assert pq.read_table(kept)["md5"].to_pylist() == ["planted"] * 2


def test_a_listing_that_others_may_have_written_is_not_used(tmp_path: Path) -> None:
    (folder := tmp_path / "listings").mkdir()
    about = json.dumps([(1, "digest", "")])
    listed = pa.table({"key": ["planted"], "size": [1], "etag": [""]}, metadata={"tyre_lightning.blocks": about})
    pq.write_table(listed, folder / "x.parquet")
    assert s3_listing._load(folder / "x.parquet")[0].digest == "digest"
    folder.chmod(0o777)
    assert s3_listing._load(folder / "x.parquet")[0].digest == ""


def test_looks_that_others_may_have_written_are_not_used(tmp_path: Path) -> None:
    (folder := tmp_path / "looks" / "name").mkdir(parents=True)
    memory, schema = Memory(tmp_path), looks._schema()
    row = dict.fromkeys(schema.names) | {"key": "planted", "embedding": np.zeros(WIDTH, np.float16)}
    pq.write_table(pa.Table.from_pylist([row], schema), folder / "000001.parquet")
    assert sum(map(len, memory.load("name", schema))) == 1
    folder.chmod(0o777)
    assert sum(map(len, memory.load("name", schema))) == 0
    memory.save("name", schema.empty_table())
    assert len([*folder.iterdir()]) == 1


def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(folder, LIMIT)
    cache.put({"a": b"abc"})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 970, 30))
    cache.put({"b": b"abc"})
    assert cache.problems == [
        f"the cache in '{folder}' cannot be used (the disk is more than 95% full); going on without it"
    ]
    assert len(held(folder)) == 1


def test_a_disk_that_fills_while_a_value_is_written(folder: Path) -> None:
    cache = DiskCache(folder, LIMIT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        cache.put({"a": value("a", 10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(cache.problems) == 1
    assert not [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_a_counter_that_is_wrong_mends_itself(folder: Path) -> None:
    cache = DiskCache(folder, LIMIT)
    cache.put({"a": b"abc"})
    for text in ("", "nonsense", str(10 * LIMIT)):
        (folder / "bytes").write_text(text)
        cache.put({f"after {text}": b"abc"})
        assert got(cache, f"after {text}") == b"abc"
    assert not cache.problems


def _write(folder: Path, ready: Any) -> None:
    cache = DiskCache(folder, 1 << 20)
    ready.set()
    while True:
        for number in range(200):
            cache.put({str(number): value(str(number), 20_000)})


def test_killed_writers_leave_nothing_wrong(folder: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    for delay in (0.0, 0.01, 0.03, 0.1, 0.2):
        writer = context.Process(target=_write, args=(folder, ready := context.Event()))
        writer.start()
        assert ready.wait(60)
        time.sleep(delay)
        writer.kill()
        writer.join()
    cache = DiskCache(folder, LIMIT)
    found = [cache.get(str(number)) for number in range(200)]
    assert any(found)
    for number, data in enumerate(found):
        assert data is None or data == value(str(number), 20_000)
    assert not cache.problems
    cache.put({"new": b"abc"})
    assert got(cache, "new") == b"abc"
    for left in (folder / "new").iterdir():
        os.utime(left, (1, 1))
    for number in range(200, 400):  # until room has to be made
        cache.put({str(number): value(str(number), 20_000)})
    assert not list((folder / "new").iterdir())


def _use(folder: Path, seed: int) -> None:
    cache = DiskCache(folder, LIMIT)
    draw = random.Random(seed)
    for _ in range(300):
        name = str(draw.randrange(100))
        data = cache.get(name)
        assert data is None or data == value(name, 20_000)
        cache.put({name: value(name, 20_000)})
    sys.exit(1 if cache.problems else 0)


def test_many_processes_at_once(folder: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    processes = [context.Process(target=_use, args=(folder, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sum(path.stat().st_size for path in held(folder)) <= LIMIT
