"""A bucket that was listed before is listed again in less time, and never as it was."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import write_files
from tyre_lightning.config import S3Config
from tyre_lightning.lake import s3, s3_listing
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.s3_listing import list_again
from tyre_lightning.lake.s3_pages import Page
from tyre_lightning.lake.store import Entry

NAMES = [f"{number:03}.jpg" for number in range(10, 33)]


@pytest.fixture
def folder(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a bucket with 23 files, listed five at a time."""
    for module in (s3, s3_listing):
        monkeypatch.setattr(module, "PAGE", 5)
    write_files(bucket / "v1", *NAMES)
    return bucket / "v1"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys each page held that was parsed."""
    counts: list[int] = []
    original = Page.entries

    def counting(page: Page) -> list[Entry]:
        entries = original(page)
        counts.append(len(entries))
        return entries

    monkeypatch.setattr(Page, "entries", counting)
    return counts


def listed(folder: Path, memory: Path | None) -> list[Entry]:
    return [*open_store(f"s3://{folder.parent.name}/{folder.name}", S3Config(), memory).list()]


def test_an_unchanged_folder_is_not_parsed_again(folder: Path, tmp_path: Path, parsed: list[int]) -> None:
    first = listed(folder, tmp_path)
    assert [entry.key for entry in first] == [f"v1/{name}" for name in NAMES]
    parsed.clear()
    assert listed(folder, tmp_path) == first
    assert parsed == []


def test_what_fits_in_one_answer_is_not_kept(folder: Path, tmp_path: Path) -> None:
    remove(folder, *NAMES[5:])
    listed(folder, tmp_path)
    assert not [*tmp_path.iterdir()]


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


CHANGES: dict[str, Callable[[Path], None]] = {
    "a file at the beginning": lambda folder: write_files(folder, "000.jpg"),
    "a file in the middle": lambda folder: write_files(folder, "0201.jpg"),
    "many files in the middle": lambda folder: write_files(folder, *(f"0201{number:02}.jpg" for number in range(17))),
    "a file at the end": lambda folder: write_files(folder, "999.jpg"),
    "a folder": lambda folder: write_files(folder, "020/1.jpg", "020/2.jpg"),
    "other content": lambda folder: os.truncate(folder / NAMES[7], 1),
    "one gone, the last of a page": lambda folder: remove(folder, NAMES[4]),
    "the first page gone": lambda folder: remove(folder, *NAMES[:5]),
    "a page in the middle gone": lambda folder: remove(folder, *NAMES[5:10]),
    "the end gone": lambda folder: remove(folder, *NAMES[12:]),
    "all gone but one": lambda folder: remove(folder, *NAMES[1:]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(folder: Path, tmp_path: Path, change: str) -> None:
    before = listed(folder, tmp_path)
    CHANGES[change](folder)
    now = listed(folder, None)
    assert now != before
    assert listed(folder, tmp_path) == now
    assert listed(folder, tmp_path) == now  # from what the last one kept


def test_many_changes_in_a_row_are_seen(folder: Path, tmp_path: Path) -> None:
    draw = random.Random(5)
    for _ in range(12):
        for _ in range(draw.randint(0, 6)):
            name = f"{draw.randint(0, 60):03}.jpg"
            if draw.random() < 0.5:
                (folder / name).write_text(str(draw.random()))
            else:
                (folder / name).unlink(missing_ok=True)
        assert listed(folder, tmp_path) == listed(folder, None)


def test_a_damaged_memory_is_made_anew(folder: Path, tmp_path: Path, parsed: list[int]) -> None:
    first = listed(folder, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    assert listed(folder, tmp_path) == first
    parsed.clear()
    assert listed(folder, tmp_path) == first
    assert parsed == []


def test_a_memory_that_cannot_be_written_is_done_without(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert listed(folder, tmp_path / "file" / "listings") == listed(folder, None)


def test_servers_and_folders_are_told_apart(folder: Path, tmp_path: Path) -> None:
    write_files(folder.parent / "v2", *NAMES[3:])
    assert listed(folder, tmp_path) != listed(folder.parent / "v2", tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def element(key: str) -> bytes:
    return f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;1&quot;</ETag></Contents>".encode()


@pytest.mark.parametrize(("keys", "from_any_key"), [("cabd", True), ("abcd", False)], ids=["order", "start"])
def test_a_server_of_other_manners_is_listed_from_the_beginning(tmp_path: Path, keys: str, from_any_key: bool) -> None:
    """As directory buckets do: keys in no order, or an answer that always begins at the first."""

    def pages(after: str) -> Iterator[Page]:
        start = keys.index(after) + 1 if after and from_any_key else 0
        for place in range(start, len(keys), 2):
            contents = b"".join(map(element, keys[place : place + 2]))
            yield Page(contents, encoded=False)

    for _ in range(2):
        assert [entry.key for entry in list_again(pages, tmp_path / "kept")] == [*keys]
    assert not [*tmp_path.iterdir()]
