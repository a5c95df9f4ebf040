"""``tyre inbox``: each picture that a camera puts down gets its verdict, once, whatever happens meanwhile."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests import warm
from tests.conftest import Trained
from tests.images import encode, picture
from tests.test_serve import Plant, inspector, plant  # noqa: F401 (a fixture)
from tyre_lightning.config import InboxConfig, S3Config, config_folder, register_schemas
from tyre_lightning.errors import MissingObject, StoreUnavailable, Unwritable, UserError
from tyre_lightning.lake import store
from tyre_lightning.lake.s3 import S3Store
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.writing import FolderTarget
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.serving import folder_arrivals
from tyre_lightning.serving import inbox as inbox_module
from tyre_lightning.serving import models as models_module
from tyre_lightning.serving.bucket_arrivals import BucketArrivals
from tyre_lightning.serving.folder_arrivals import FolderArrivals
from tyre_lightning.serving.inbox import Inbox, open_arrivals
from tyre_lightning.serving.models import Held, Models
from tyre_lightning.serving.tyres import Tyres, Waiting
from tyre_lightning.tracking.asked import open_workers, warmed

JPEG = encode(picture(0), "JPEG")


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was told of; verdicts are said too, where an earlier test has let them be."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def held() -> Held:
    return Held(warmed(inspector(1)), "models:/tyres/1")


@pytest.fixture(scope="module")
def held_alone() -> Held:
    return Held(warmed(inspector(1, None)), "models:/tyres/1")


@dataclass
class Line:
    """A camera's place, and what works on it in this thread."""

    work: Inbox
    models: Models

    def until(self, holds: Callable[[], object], seconds: float = 60) -> None:
        """Work until something holds; fails where it does not come to."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end
            self.work.step()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.work.step()


@contextmanager
def line(place: Path | str, held: Held, **options: Any) -> Iterator[Line]:
    config = InboxConfig(model="x", input=str(place), **options)
    models = Models("x", "sqlite:////dev/null/none.db")
    models.held = held
    with open_workers() as workers:
        work = Inbox(config, open_arrivals(str(place), config.output, S3Config()), models, workers)
        try:
            yield Line(work, models)
        finally:
            work.end()


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def times(folder: Path) -> Mapping[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("[!.]*.json")}


def test_a_picture_gets_its_verdict_beside_it(tmp_path: Path, held_alone: Held) -> None:
    (tmp_path / "day" / "cam1").mkdir(parents=True)
    with line(tmp_path, held_alone) as work:
        work.steps(3)
        (tmp_path / "day" / "cam1" / "T1.jpg").write_bytes(JPEG)
        (tmp_path / "notes.txt").write_bytes(b"x")
        work.until((verdict := tmp_path / "day" / "cam1" / "T1.jpg.json").exists)
    row = read(verdict)
    assert row["key"] == row["tyre"] == f"{tmp_path.name}/day/cam1/T1.jpg" and row["error"] is None
    assert list(row) == ["key", "tyre", "class", "decision", "picture_decision", "reason", "novelty", "p_crack",
                         "p_good", "error", "model", "content"]  # fmt: skip
    assert row["model"] == "models:/tyres/1"
    assert {path.name for path in (tmp_path / "day" / "cam1").iterdir()} == {"T1.jpg", "T1.jpg.json"}
    assert not list(tmp_path.rglob(".*"))


def test_its_verdict_is_predict_s(trained: Trained, tmp_path: Path) -> None:
    from tyre_lightning.prediction import predict

    register_schemas()
    images = sorted((trained.local / "test").rglob("*.jpg"))[::5]
    (tmp_path / "box").mkdir()
    for number, image in enumerate(images):
        (tmp_path / "box" / f"{number}.jpg").write_bytes(image.read_bytes())
    (tmp_path / "box" / "bad.jpg").write_bytes(b"<html>")
    output, uri = tmp_path / "rows.jsonl", f"tracking_uri={trained.tracking_uri}"
    with initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
        options = [f"model={trained.model}", f"input={tmp_path}/box", f"output={output}", uri, "accelerator=cpu"]
        predict(compose("predict", overrides=options))
    expected = {row["key"]: row for row in map(json.loads, output.read_text().splitlines())}
    models = Models(trained.model, trained.tracking_uri)
    with line(tmp_path / "box", models.load()) as work:
        work.until(lambda: len(times(tmp_path)) == len(expected))
    found = [read(path) for path in (tmp_path / "box").glob("*.json")]
    assert all(row.pop("model") == trained.model and row.pop("content") for row in found)
    assert {row["key"]: row for row in found} == expected


def test_a_file_that_is_still_written_is_waited_for(
    tmp_path: Path, held_alone: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_arrivals, "SETTLED_SECONDS", 1.5)
    with line(tmp_path, held_alone) as work, (tmp_path / "slow.jpg").open("wb", 0) as file:
        begun = time.monotonic()
        file.write(JPEG[: len(JPEG) // 2])
        while time.monotonic() < begun + 0.8:  # in which a picture would have its verdict
            work.steps(1)
        assert not times(tmp_path)
        file.write(JPEG[len(JPEG) // 2 :])
        work.until((verdict := tmp_path / "slow.jpg.json").exists)
        assert read(verdict)["error"] is None
        (tmp_path / "cut.jpg").write_bytes(JPEG[:-200])
        (tmp_path / "empty.jpg").touch()
        work.until(lambda: len(times(tmp_path)) == 3)
        assert read(tmp_path / "cut.jpg.json")["error"] and read(tmp_path / "cut.jpg.json")["class"] is None
        assert read(tmp_path / "empty.jpg.json")["error"] == "the file is empty"


def test_a_picture_that_changes_while_it_is_looked_at_is_looked_at_again(tmp_path: Path, held: Held) -> None:
    place = open_arrivals(str(tmp_path), None, S3Config())
    assert isinstance(place, FolderArrivals)
    (tmp_path / "T1_a.jpg").write_bytes(JPEG)
    while not [*place.ready()]:
        pass
    (tmp_path / "T1_a.jpg").write_bytes(JPEG + b"more")
    assert not place.counts("T1_a.jpg", readable=True)
    found: list[str] = []
    while not found:
        found = [*place.ready()]
    assert found == ["T1_a.jpg"] and place.counts("T1_a.jpg", readable=True)


def test_a_name_that_comes_back_is_a_new_picture(tmp_path: Path, held_alone: Held) -> None:
    with line(tmp_path, held_alone) as work:
        (tmp_path / "1.jpg").write_bytes(JPEG)
        work.until((verdict := tmp_path / "1.jpg.json").exists)
        before = read(verdict)["p_good"]
        (tmp_path / "1.jpg").rename(tmp_path / "elsewhere")
        work.steps(2)
        (tmp_path / "1.jpg").write_bytes(encode(picture(9), "JPEG"))
        work.until(lambda: read(verdict)["p_good"] != before)


@pytest.mark.parametrize("there", ["folder", "s3"])
def test_a_picture_that_is_renamed_counts_once(there: str, tmp_path: Path, bucket: Path, held: Held) -> None:
    """Its verdict is there under the new name too, which the line knows; the tyre has not got more of it."""
    folder, place = (tmp_path, str(tmp_path)) if there == "folder" else (bucket, f"s3://{bucket.name}")
    with line(place, held, pictures=2, wait=600) as work:
        (folder / "T1_latest.jpg").write_bytes(JPEG)
        work.until((folder / "T1_latest.jpg.json").exists)
        (folder / "T1_latest.jpg").rename(folder / "T1_1.jpg")
        work.until((folder / "T1_1.jpg.json").exists)
        work.steps(3)
        assert not (folder / "T1.tyre.json").exists()
        second = "T1_latest.jpg"
        (folder / second).write_bytes(encode(picture(1), "JPEG"))
        work.until((folder / "T1.tyre.json").exists)
        (folder / second).rename(folder / "T1_2.jpg")
        work.until((folder / "T1_2.jpg.json").exists)
        (folder / "T1_2.jpg").rename(folder / "T1_3.jpg")
        work.until((folder / "T1_3.jpg.json").exists)
        work.steps(3)
    assert read(folder / "T1.tyre.json")["pictures"] == ["T1_1.jpg", second]
    one, same = (read(folder / f"T1_{name}.jpg.json") for name in ("2", "3"))
    assert one["content"] == same["content"] and one["p_good"] == same["p_good"]
    (folder / "T1_3.jpg").rename(folder / "T1_4.jpg")  # while nothing looks
    with line(place, held, pictures=2, wait=0.1) as work:
        work.until((folder / "T1_4.jpg.json").exists)
        work.steps(5)
        assert not (folder / "T1.tyre-2.json").exists()
        (folder / "T1_5.jpg").write_bytes(encode(picture(2), "JPEG"))
        work.until((folder / "T1.tyre-2.json").exists)
    assert read(folder / "T1.tyre-2.json")["n_pictures"] == 3


@pytest.mark.parametrize("last", ["T1_c.jpg", "elsewhere"])
def test_a_picture_that_is_renamed_again_before_its_tyre_is_looked_at_counts_once(
    tmp_path: Path, held: Held, last: str
) -> None:
    (tmp_path / "T1_a.jpg").write_bytes(JPEG)
    with line(tmp_path, held, wait=1.5) as work:
        work.until((tmp_path / "T1.tyre.json").exists)
        (tmp_path / "T1_a.jpg").rename(tmp_path / "T1_b.jpg")
        work.until((tmp_path / "T1_b.jpg.json").exists)
        work.steps(1)
        (tmp_path / "T1_b.jpg").rename(tmp_path / last)
        end = time.monotonic() + 3
        work.until(lambda: time.monotonic() > end)
        assert work.work.judged == 2 + (last == "T1_c.jpg")
    assert not (tmp_path / "T1.tyre-2.json").exists()


def test_a_name_from_before_the_verdict_counts_no_more(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a store that was away has held up: the picture was renamed meanwhile, and its tyre decided on."""
    verdict, real, added = tmp_path / "T1.tyre.json", Tyres.add, list[str]()

    def add(tyres: Tyres, path: str, *more: Any) -> None:
        if path == "T1_a.jpg" and not verdict.exists():
            raise StoreUnavailable("the store does not answer")
        real(tyres, path, *more)
        added.append(path)

    monkeypatch.setattr(Tyres, "add", add)
    with line(tmp_path, held, pictures=1) as work:
        (tmp_path / "T1_a.jpg").write_bytes(JPEG)
        work.until((tmp_path / "T1_a.jpg.json").exists)
        (tmp_path / "T1_a.jpg").rename(tmp_path / "T1_b.jpg")
        work.until(lambda: added == ["T1_b.jpg", "T1_a.jpg"])
        work.steps(2)
    assert read(verdict)["pictures"] == ["T1_b.jpg"] and not (tmp_path / "T1.tyre-2.json").exists()


def test_two_pictures_of_one_content_are_two(tmp_path: Path, held: Held) -> None:
    """As those of two cameras without light. Also if both are moved elsewhere before the tyre has its verdict."""
    with line(tmp_path, held, pictures=3, wait=0.5) as work:
        for name in ("T1_a.jpg", "T1_b.jpg"):
            (tmp_path / name).write_bytes(JPEG)
            work.until((tmp_path / f"{name}.json").exists)
        for name in ("T1_a.jpg", "T1_b.jpg"):
            (tmp_path / name).unlink()
        work.until((tmp_path / "T1.tyre.json").exists)
    assert read(tmp_path / "T1.tyre.json")["n_pictures"] == 2


def test_verdicts_may_go_elsewhere(tmp_path: Path, held: Held) -> None:
    (box := tmp_path / "box" / "a").mkdir(parents=True)
    (box / "T1_a.jpg").write_bytes(JPEG)
    for judged in (1, 0):
        with line(tmp_path / "box", held, output=str(tmp_path / "out"), wait=0.01) as work:
            work.until((tmp_path / "out" / "T1.tyre.json").exists)
            work.steps(3)
            assert work.work.judged == judged
    assert [path.name for path in box.iterdir()] == ["T1_a.jpg"]
    assert (tmp_path / "out" / "a" / "T1_a.jpg.json").exists()


def test_a_tyre_s_verdict_comes_with_its_last_picture_or_after_a_while(tmp_path: Path, held: Held) -> None:
    with line(tmp_path, held, pictures=2, wait=60) as work:
        (tmp_path / "T1_a.jpg").write_bytes(JPEG)
        work.until((tmp_path / "T1_a.jpg.json").exists)
        work.steps(2)
        assert not (tmp_path / "T1.tyre.json").exists()
        assert read(tmp_path / "T1_a.jpg.json")["decision"] is None
        (tmp_path / "T1_b.jpg").write_bytes(encode(picture(1), "JPEG"))
        work.until((tmp_path / "T1.tyre.json").exists)
    said = read(tmp_path / "T1.tyre.json")
    assert said["tyre"] == "T1" and said["n_pictures"] == 2 and said["pictures"] == ["T1_a.jpg", "T1_b.jpg"]
    assert said["p_defective"] == max(1 - read(tmp_path / f"T1_{view}.jpg.json")["p_good"] for view in "ab")
    with line(tmp_path, held, wait=0.3) as work:
        (tmp_path / "T2_a.jpg").write_bytes(JPEG)
        work.until((tmp_path / "T2.tyre.json").exists)


def test_a_tyre_of_many_folders_is_one_and_its_name_is_safe(tmp_path: Path) -> None:
    held = Held(warmed(inspector(1, "^(.*)_")), "m")
    for cam in "ab":
        (tmp_path / cam).mkdir()
        (tmp_path / cam / f"x..\\T:1_{cam}.jpg").write_bytes(JPEG)
    with line(tmp_path, held, pictures=2) as work:
        work.until(lambda: len(times(tmp_path)) == 3)
    (verdict,) = tmp_path.glob("*.tyre.json")
    assert read(verdict)["tyre"] == "x..\\T:1" and len(read(verdict)["pictures"]) == 2


class _Strict(Inspector):
    """Says what it is told to."""

    said = "accept"

    def verdict(self, sighting: Any) -> Any:
        from tyre_lightning.model.inspector import Verdict

        return Verdict(self.said, None)


def test_a_late_picture_makes_a_verdict_no_less_strict(tmp_path: Path, held: Held) -> None:
    strict = _Strict(**{item.name: getattr(held.inspector, item.name) for item in fields(held.inspector)})
    own = Held(strict, "models:/tyres/1")
    for number, (said, expected) in enumerate([("review", "review"), ("accept", "review"), ("reject", "reject")], 1):
        strict.said = said
        with line(tmp_path, own, wait=0.1) as work:
            (tmp_path / f"T1_{number}.jpg").write_bytes(encode(picture(number), "JPEG"))
            name = "T1.tyre.json" if number == 1 else f"T1.tyre-{number}.json"
            work.until((tmp_path / name).exists)
        found = read(tmp_path / name)
        assert (found["decision"], found["verdict"], found["n_pictures"]) == (expected, number, number)


def test_what_a_killed_run_has_done_is_not_done_again(tmp_path: Path, held: Held) -> None:
    """Of one tyre the second picture's verdict was written, and not the tyre's; another was judged and told."""
    with line(tmp_path, held, pictures=1) as work:
        (tmp_path / "T1_a.jpg").write_bytes(JPEG)
        work.until((tmp_path / "T1.tyre.json").exists)
    with line(tmp_path, held, wait=600) as work:
        for name in ("T1_b", "T2_a"):
            (tmp_path / f"{name}.jpg").write_bytes(JPEG)
            work.until((tmp_path / f"{name}.jpg.json").exists)
    before = times(tmp_path)
    with line(tmp_path, held, wait=0.1) as work:
        work.until((tmp_path / "T1.tyre-2.json").exists)
        work.until((tmp_path / "T2.tyre.json").exists)
        work.steps(3)
        assert work.work.judged == 0
    assert {path: time for path, time in times(tmp_path).items() if path in before} == before
    assert len(times(tmp_path)) == len(before) + 2


def test_a_tyre_that_is_decided_on_while_its_past_is_read_keeps_that_verdict(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    with line(tmp_path, held, wait=600) as work:
        (tmp_path / "T1_a.jpg").write_bytes(JPEG)
        work.until((tmp_path / "T1_a.jpg.json").exists)
    verdict, real = tmp_path / "T1.tyre.json", Tyres.open

    def slow(tyres: Tyres, name: str) -> Waiting:
        found = real(tyres, name)
        while threading.current_thread() is not threading.main_thread() and not verdict.exists():
            time.sleep(0.01)
        return found

    monkeypatch.setattr(Tyres, "open", slow)
    with line(tmp_path, held, wait=0.1) as work:
        (tmp_path / "T1_b.jpg").write_bytes(encode(picture(1), "JPEG"))
        work.until((second := tmp_path / "T1.tyre-2.json").exists)
    assert read(verdict)["pictures"] == ["T1_b.jpg"] and read(second)["pictures"] == ["T1_a.jpg", "T1_b.jpg"]


def test_a_tyre_s_verdict_is_of_one_version(tmp_path: Path, held: Held) -> None:
    other = Held(warmed(inspector(2)), "models:/tyres/2")
    with line(tmp_path, held, pictures=2) as work:
        (tmp_path / "T1_a.jpg").write_bytes(JPEG)
        work.until((tmp_path / "T1_a.jpg.json").exists)
        work.models.held = other
        (tmp_path / "T1_b.jpg").write_bytes(JPEG)  # the same picture
        work.until((tmp_path / "T1.tyre.json").exists)
    said, second = read(tmp_path / "T1.tyre.json"), read(tmp_path / "T1_b.jpg.json")
    assert read(tmp_path / "T1_a.jpg.json")["model"] == "models:/tyres/1"
    assert said["model"] == second["model"] == "models:/tyres/2"
    assert said["p_defective"] == 1 - second["p_good"]


def test_a_disk_that_is_full_is_tried_again(
    tmp_path: Path, held_alone: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, full = FolderTarget.put, [True]

    def put(target: FolderTarget, path: str, data: bytes) -> None:
        if full[0]:
            raise Unwritable("cannot write: the disk is full")
        real(target, path, data)

    monkeypatch.setattr(FolderTarget, "put", put)
    (tmp_path / "1.jpg").write_bytes(JPEG)
    with line(tmp_path, held_alone) as work:
        work.until(lambda: caplog.records)
        full[0] = False
        work.until((tmp_path / "1.jpg.json").exists)
    assert [record.getMessage() for record in caplog.records] == ["cannot write: the disk is full; trying again"]


def test_what_others_have_written_stops_nothing(tmp_path: Path, held: Held, caplog: pytest.LogCaptureFixture) -> None:
    """A file for a verdict that is none, a folder where one is to be, and a name that has no room for its verdict."""
    for number, content in enumerate((b"5", b"[1]", b"{}", b'{"tyre": "T3"}', b'{"tyre": "T4", "pictures": 1}')):
        (tmp_path / f"T{number}.tyre.json").write_bytes(content)
        (tmp_path / f"T{number}_a.jpg").write_bytes(JPEG)
        (tmp_path / f"T{number}_a.jpg.json").write_bytes(content)
    (tmp_path / "T5.tyre.json").mkdir()
    long = f"T7_{'x' * 250}"[:247] + ".jpg"
    for name in ("T5_a.jpg", "T6_a.jpg", long):
        (tmp_path / name).write_bytes(JPEG)
    with line(tmp_path, held, pictures=1, wait=0) as work:
        work.until((tmp_path / "T6.tyre.json").exists)
        (tmp_path / "T5.tyre.json").rmdir()
        work.until((tmp_path / "T5.tyre.json").is_file)
        own = [tmp_path / f"T{number}.tyre{'-2' if 2 <= number <= 4 else ''}.json" for number in range(7)]
        work.until(lambda: all(path.is_file() and b"n_pictures" in path.read_bytes() for path in own))
    assert [read(path)["n_pictures"] for path in own] == [1] * 7
    assert len([one for one in caplog.messages if "is too long for that of its verdict" in one and long in one]) == 1


def test_a_folder_that_is_away_for_a_moment_is_looked_at_again(
    tmp_path: Path, held_alone: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its disk does not answer; or it is deleted, and made anew before its parent is listed."""
    (day := tmp_path / "day").mkdir()
    with line(tmp_path, held_alone) as work, monkeypatch.context() as patched:
        work.steps(2)
        real = os.listdir

        def away(path: Any) -> list[str]:
            if os.fspath(path) == str(day):
                raise OSError(5, "Input/output error", path)
            return real(path)

        patched.setattr(os, "listdir", away)
        (day / "a.jpg").write_bytes(JPEG)
        work.steps(3)
        patched.undo()
        work.until((day / "a.jpg.json").exists)
        shutil.rmtree(day)
        arrivals = work.work._arrivals
        assert isinstance(arrivals, FolderArrivals)
        arrivals._folders[""].next = time.monotonic() + 1
        work.steps(1)
        day.mkdir()
        (day / "b.jpg").write_bytes(JPEG)
        work.until((day / "b.jpg.json").exists)
    assert [one for one in caplog.messages if "day" in one] == [
        f"cannot list '{day}': Input/output error; trying again"
    ]


def test_a_disk_that_is_mounted_again_has_no_new_pictures(
    tmp_path: Path, held_alone: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile its mount point is an empty folder. What takes the folder's place for good is new."""
    camera, away = tmp_path / "camera", tmp_path / "away"
    (camera / "day").mkdir(parents=True)
    for name in ("a.jpg", "day/b.jpg"):
        (camera / name).write_bytes(JPEG)
    with line(camera, held_alone, output=str(found := tmp_path / "found")) as work:
        work.until(lambda: work.work.judged == 2)
        before = times(found)
        camera.rename(away)
        camera.mkdir()
        work.steps(3)
        camera.rmdir()
        away.rename(camera)
        (camera / "day" / "c.jpg").write_bytes(JPEG)
        work.until((found / "day" / "c.jpg.json").exists)
        work.steps(3)
        assert work.work.judged == 3 and {**times(found), **before} == times(found)
        camera.rename(away)
        camera.mkdir()
        (camera / "a.jpg").write_bytes(encode(picture(1), "JPEG"))
        work.until(lambda: work.work.judged == 4)
    told = f"'{camera}' is another folder than before, and empty (is its disk mounted?); trying again"
    assert caplog.messages == [told]


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_a_disk_below_that_comes_and_goes_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, held: Held, apart: bool, empty: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile its mount point is an empty folder, or none."""
    camera, away = tmp_path / "camera", tmp_path / "away"
    (day := camera / "day").mkdir(parents=True)
    found = tmp_path / "found" if apart else camera
    options = {"output": str(found)} if apart else {}

    def unmount() -> None:
        day.rename(away)
        if empty:
            day.mkdir()

    def mount() -> None:
        if empty:
            day.rmdir()
        away.rename(day)

    with line(camera, held, pictures=2, wait=600, **options) as work:
        for name in ("T1_a", "T1_b", "T2_a"):
            (day / f"{name}.jpg").write_bytes(encode(picture(int(name[1])), "JPEG"))
        work.until((found / "T1.tyre.json").exists)
        work.until(lambda: work.work.judged == 3)
        (day / "T2_b.jpg").write_bytes(JPEG)
        work.steps(1)
        unmount()
        (camera / "T3_a.jpg").write_bytes(JPEG)
        work.until((found / "T3_a.jpg.json").exists)
        before = times(found)
        mount()
        work.until((found / "T2.tyre.json").exists)
        (day / "T3_b.jpg").write_bytes(JPEG)
        work.until((found / "T3.tyre.json").exists)
        work.steps(3)
        assert work.work.judged == 6 and {**times(found), **before} == times(found)
        unmount()
    for judged in (0, 1):  # it comes back after a restart, and with one more picture
        with line(camera, held, pictures=2, wait=0.1, **options) as work:
            work.steps(3)
            mount()
            if judged:
                (day / "T4_a.jpg").write_bytes(JPEG)
                work.until((found / "T4.tyre.json").exists)
            work.steps(5)
            assert work.work.judged == judged
            unmount()
    mount()
    assert {path.name for path in found.glob("*.tyre*.json")} == {f"T{number}.tyre.json" for number in range(1, 5)}
    assert all(read(found / f"T{number}.tyre.json")["n_pictures"] == 2 for number in range(1, 4))
    assert not warned(caplog)


def test_verdicts_wait_for_their_disk(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is written below its mount point is hidden when it is mounted again; what it has is not known meanwhile."""
    monkeypatch.setattr("tyre_lightning.serving.inbox._RETRY_SECONDS", 0.05)
    (box := tmp_path / "box").mkdir()
    (disk := tmp_path / "disk").mkdir()
    real, mounted = os.path.ismount, [str(disk)]
    monkeypatch.setattr(os.path, "ismount", lambda path: os.fspath(path) in mounted or real(path))
    with line(box, held, output=str(found := disk / "found"), pictures=1) as work:
        (box / "T1_a.jpg").write_bytes(JPEG)
        work.until((found / "T1.tyre.json").exists)
        disk.rename(tmp_path / "away")
        disk.mkdir()
        mounted.clear()
        for name in ("T1_b.jpg", "T2_a.jpg"):
            (box / name).write_bytes(encode(picture(1), "JPEG"))
        work.until(lambda: warned(caplog))
        work.steps(3)
        assert not [*disk.iterdir()]
        disk.rmdir()
        (tmp_path / "away").rename(disk)
        mounted.append(str(disk))
        work.until((found / "T1.tyre-2.json").exists)
        work.until((found / "T2.tyre.json").exists)
    assert warned(caplog) == [f"cannot write to {found}: no disk is mounted at '{disk}' any more; trying again"]


def test_a_picture_that_is_away_between_two_looks_is_waited_for(
    tmp_path: Path, held_alone: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk was, for a moment: nothing else has changed when it is there again."""
    monkeypatch.setattr(folder_arrivals, "_COARSE_SECONDS", 0.0)
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "2.png")
    real, left = os.stat, [3]

    def stat(path: Any, **options: Any) -> os.stat_result:
        if os.fspath(path) == str(tmp_path / "1.jpg") and left[0]:
            left[0] -= 1
            raise FileNotFoundError(2, "No such file or directory", path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    with line(tmp_path, held_alone) as work:
        work.until((tmp_path / "1.jpg.json").exists)
        assert not left[0]
        (tmp_path / "2.png").write_bytes(JPEG)
        work.until((tmp_path / "link.jpg.json").exists)


def test_a_folder_that_is_empty_on_another_disk_is_told_of(
    tmp_path: Path, held_alone: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (day := tmp_path / "day").mkdir()
    (day / "1.jpg").write_bytes(JPEG)
    real = os.stat
    with line(tmp_path, held_alone, output=str(tmp_path / "found")) as work:
        work.until((tmp_path / "found" / "day" / "1.jpg.json").exists)
        (day / "1.jpg").unlink()
        work.steps(2)
        assert not warned(caplog)  # it is only empty

        def stat(path: Any, **options: Any) -> Any:
            found = real(path, **options)
            if os.fspath(path) != str(day):
                return found
            return SimpleNamespace(st_mtime_ns=found.st_mtime_ns, st_dev=found.st_dev + 1)

        monkeypatch.setattr(os, "stat", stat)
        os.utime(day, (1, 1))
        work.steps(3)
    assert warned(caplog) == [f"'{day}' is on another disk than before, and empty (is its disk mounted?)"]


def test_after_a_restart_too_a_name_that_comes_back_is_a_new_picture(tmp_path: Path, held_alone: Held) -> None:
    (tmp_path / "box").mkdir()
    options = {"output": str(tmp_path / "found")}
    (tmp_path / "box" / "1.jpg").write_bytes(JPEG)
    with line(tmp_path / "box", held_alone, **options) as work:
        work.until((verdict := tmp_path / "found" / "1.jpg.json").exists)
    before = read(verdict)["content"]
    with line(tmp_path / "box", held_alone, **options) as work:
        work.steps(2)
        (tmp_path / "box" / "1.jpg").unlink()
        work.steps(2)
        (tmp_path / "box" / "1.jpg").write_bytes(encode(picture(9), "JPEG"))
        work.until(lambda: read(verdict)["content"] != before)


def test_what_is_no_file_is_no_picture(tmp_path: Path, held_alone: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_arrivals, "SETTLED_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "T1.jpg").mkdir()
    (tmp_path / "T1.jpg" / "a.jpg").write_bytes(JPEG)
    with line(tmp_path, held_alone) as work:
        work.until((tmp_path / "T1.jpg" / "a.jpg.json").exists)
        work.steps(4)
    assert [*times(tmp_path)] == [str(tmp_path / "T1.jpg" / "a.jpg.json")]


def test_a_store_that_is_away_makes_no_picture_unreadable(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures are looked at by a new model, and for a moment they cannot be had."""
    with line(tmp_path, held, pictures=2, wait=60) as work:
        (tmp_path / "T1_a.jpg").write_bytes(JPEG)
        work.until((tmp_path / "T1_a.jpg.json").exists)
        work.models.held = Held(held.inspector, "models:/tyres/2")
        (tmp_path / "T1_b.jpg").write_bytes(JPEG)
        place, real, left = work.work._arrivals, work.work._arrivals.read, [3]

        def away(path: str) -> bytes:
            left[0] -= path.endswith("T1_a.jpg")
            if path.endswith("T1_a.jpg") and left[0] >= 0:
                raise StoreUnavailable("the endpoint does not answer")
            return real(path)

        monkeypatch.setattr(place, "read", away)
        work.until((tmp_path / "T1.tyre.json").exists)
    assert (said := read(tmp_path / "T1.tyre.json"))["n_unreadable"] == 0 and said["n_pictures"] == 2 and left[0] < 0


def test_a_machine_that_does_not_answer_makes_no_picture_unreadable(
    tmp_path: Path, held_alone: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network's disk: its files are listed still, and cannot be opened for longer than one is waited for."""
    monkeypatch.setattr(folder_arrivals, "SETTLED_SECONDS", 0.1)
    monkeypatch.setattr(inbox_module, "_RETRY_SECONDS", 0.1)
    real, away = store._at_once, [True]

    def opened(path: str, flags: int) -> int:
        if away[0] and path.endswith(".jpg"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return real(path, flags)

    monkeypatch.setattr(store, "_at_once", opened)
    (tmp_path / "1.jpg").write_bytes(JPEG)
    with line(tmp_path, held_alone) as work:
        work.until(lambda: warned(caplog))
        work.steps(5)
        assert not (tmp_path / "1.jpg.json").exists()
        away[0] = False
        work.until((tmp_path / "1.jpg.json").exists)
    assert read(tmp_path / "1.jpg.json")["error"] is None
    assert warned(caplog) == [f"cannot read '{tmp_path}/1.jpg': Stale file handle; trying again"]


def test_a_bucket_is_an_inbox_too(bucket: Path, held: Held) -> None:
    for name in ("a/T0_a.jpg", "b/T0_b.jpg"):
        (bucket / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / "in" / name).write_bytes(JPEG)
    with line(f"s3://{bucket.name}/in", held, pictures=2) as work:
        work.until((bucket / "in" / "T0.tyre.json").exists)
        for name in ("b/T1_a.jpg", "a/T1_b.jpg", "c/T2_a.jpg", "c/T2_b.jpg"):  # also before what was last
            (bucket / "in" / name).parent.mkdir(exist_ok=True)
            (bucket / "in" / name).write_bytes(JPEG)
        work.until((bucket / "in" / "T1.tyre.json").exists)
        work.until((bucket / "in" / "T2.tyre.json").exists)
        (bucket / "in" / "0.jpg").write_bytes(b"<html>")  # of no tyre, and before all others: by the whole listing
        work.until((bucket / "in" / "0.jpg.json").exists)
    before = times(bucket)
    assert len(before) == 7 + 3
    with line(f"s3://{bucket.name}/in", held, wait=0.1) as work:
        work.steps(5)
        assert work.work.judged == 0
    assert times(bucket) == before


def test_a_bucket_s_name_that_is_used_again_is_a_new_picture(bucket: Path, held: Held) -> None:
    """As cameras that always write the same name: of each content there is one verdict, and the last one counts."""
    one, other = (encode(picture(seed), "JPEG") for seed in (0, 1))
    latest, verdict, tyre = bucket / "T1_latest.jpg", bucket / "T1_latest.jpg.json", bucket / "T1.tyre.json"
    latest.write_bytes(one)
    with line(f"s3://{bucket.name}", held, wait=0.1) as work:
        work.until(tyre.exists)
        first = read(verdict)
        (bucket / ".new").write_bytes(other)  # an object is there whole
        (bucket / ".new").rename(latest)
        work.until((bucket / "T1.tyre-2.json").exists)
        assert read(verdict)["content"] != first["content"] and read(verdict)["p_good"] != first["p_good"]
        assert read(bucket / "T1.tyre-2.json")["pictures"] == ["T1_latest.jpg"]
        written = times(bucket)
        arrivals = work.work._arrivals
        assert isinstance(arrivals, BucketArrivals)
        arrivals._known["T1_latest.jpg"] = "another way to encrypt the same"
        arrivals._all()
        assert "T1_latest.jpg" in arrivals._found
        work.steps(5)
        assert times(bucket) == written and work.work.judged == 2


def test_a_bucket_s_new_end_is_found_by_one_request(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (bucket / f"{number:03}.jpg").write_bytes(JPEG)
    place = open_arrivals(f"s3://{bucket.name}", None, S3Config())
    assert isinstance(place, BucketArrivals) and len([*place.ready()]) == 30
    asked: list[dict[str, str]] = []
    real = place._store._answers

    def answers(folder: str, **options: str) -> Any:
        asked.append(options)
        return real(folder, **options)

    monkeypatch.setattr(place._store, "_answers", answers)
    (bucket / "030.jpg").write_bytes(JPEG)
    assert [*place.ready()] == ["030.jpg"]
    assert [one for one in asked if one] == [{"StartAfter": "029.jpg"}]


def test_a_store_that_is_away_is_asked_again(bucket: Path, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    with line(f"s3://{bucket.name}", held) as work:
        place, left = work.work._arrivals, [3]
        real = place.read

        def away(path: str) -> bytes:
            left[0] -= 1
            if left[0] >= 0:
                raise StoreUnavailable("the endpoint does not answer")
            return real(path)

        monkeypatch.setattr(place, "read", away)
        monkeypatch.setattr("tyre_lightning.serving.inbox._RETRY_SECONDS", 0.05)
        (bucket / "x.jpg").write_bytes(JPEG)
        work.until((bucket / "x.jpg.json").exists)
        assert left[0] < 0


def test_a_listing_that_ends_in_the_midst_loses_nothing(
    bucket: Path, held_alone: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store is too busy for the second page, of what is new or of all; what the first one had is looked at."""
    monkeypatch.setattr("tyre_lightning.serving.inbox._RETRY_SECONDS", 0.05)
    with line(f"s3://{bucket.name}", held_alone) as work:
        store, busy = work.work._arrivals.store, [True]
        assert isinstance(store, S3Store)

        def torn(real: Callable[..., Iterator[Entry]], *given: Any) -> Iterator[Entry]:
            for entry in real(*given):
                yield entry
                if busy[0]:
                    raise StoreUnavailable("the endpoint is busy")

        with monkeypatch.context() as patched:
            patched.setattr(store, "list", partial(torn, store.list))
            patched.setattr(store, "list_after", partial(torn, store.list_after))
            for number in range(3):
                (bucket / f"{number}.jpg").write_bytes(encode(picture(number), "JPEG"))
            work.until(lambda: len(times(bucket)) == 3)
            work.until(lambda: warned(caplog))
            busy[0] = False
            (bucket / "3.jpg").write_bytes(JPEG)
            work.until((bucket / "3.jpg.json").exists)
        assert work.work.judged == 4 and {*warned(caplog)} == {"the endpoint is busy; trying again"}


@pytest.mark.parametrize("there", ["folder", "s3"])
def test_a_picture_that_is_gone_before_it_is_looked_at_has_no_verdict(
    there: str, tmp_path: Path, bucket: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its camera has renamed it in between: its tyre has no unreadable picture. One that comes back has a verdict."""
    folder, place = (tmp_path, str(tmp_path)) if there == "folder" else (bucket, f"s3://{bucket.name}")
    with line(place, held, pictures=2, wait=600) as work:
        real, gone = work.work._arrivals.read, [*("T1_tmp.jpg", "T1_1.jpg")]

        def late(path: str) -> bytes:
            if path in gone:
                gone.remove(path)
                if path == "T1_tmp.jpg":
                    (folder / path).rename(folder / "T1_1.jpg")
                raise MissingObject("it is not there")
            return real(path)

        monkeypatch.setattr(work.work._arrivals, "read", late)
        (folder / "T1_tmp.jpg").write_bytes(JPEG)
        work.until((folder / "T1_1.jpg.json").exists)
        (folder / "T1_2.jpg").write_bytes(encode(picture(1), "JPEG"))
        work.until((folder / "T1.tyre.json").exists)
    assert not gone and not (folder / "T1_tmp.jpg.json").exists()
    assert (said := read(folder / "T1.tyre.json"))["n_pictures"] == 2 and said["n_unreadable"] == 0


@pytest.mark.long
def test_the_command_outlives_kills_and_ends_when_it_is_told_to(
    tmp_path: Path, plant: Plant  # noqa: F811
) -> None:  # fmt: skip
    """It is killed in the midst of many pictures, and started again; each has one verdict, which is whole."""
    (box := tmp_path / "box").mkdir()
    for number in range(120):
        (box / f"T{number // 3}_{number}.jpg").write_bytes(encode(picture(number), "JPEG"))
    options = [f"input={box}", "pictures=3", f"tracking_uri={plant.uri}", "model=models:/tyres@champion"]
    command = ["-m", "tyre_lightning.inbox", *options]
    out, err = tmp_path / "out", tmp_path / "err"
    with warm.running(command, tmp_path, os.environ, out, err) as first:
        while len(times(box)) < 20:
            assert first.poll() is None
            time.sleep(0.005)
        first.kill()
        first.wait()
    before = times(box)
    assert 20 <= len(before) < 160
    with warm.running(command, tmp_path, os.environ, out, err) as second:
        while len(times(box)) < 160:
            assert second.poll() is None
            time.sleep(0.05)
        second.send_signal(signal.SIGINT)
        assert second.wait(60) == 0, err.read_text()
    with warm.running(command, tmp_path, os.environ, out, err) as third:
        while out.read_text().count("verdicts go to") < 3:
            time.sleep(0.02)
        third.send_signal(signal.SIGTERM)
        assert third.wait(60) == 0 and out.read_text().endswith("0 pictures got their verdicts\n")
    after = times(box)
    assert {path: after[path] for path in before} == before
    rows = [read(path) for path in box.glob("*.jpg.json")]
    assert len(rows) == 120 and all(row["error"] is None for row in rows)
    assert all(len(read(path)["pictures"]) == 3 for path in box.glob("*.tyre.json"))
    assert f"{120 - sum('.jpg.json' in path for path in before)} pictures got their verdicts" in out.read_text()


def test_a_promoted_model_takes_over(tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(models_module, "POLL_SECONDS", 0.05)
    plant.promote(1)
    models = Models("models:/tyres@champion", plant.uri)
    with line(tmp_path, models.load()) as work:
        work.work._models = models
        models.follow()
        plant.promote(2)
        number = 0
        while number == 0 or read(tmp_path / f"T{number}_a.jpg.json")["model"] != "models:/tyres/2":
            number += 1
            (tmp_path / f"T{number}_a.jpg").write_bytes(JPEG)
            work.until((tmp_path / f"T{number}_a.jpg.json").exists)
            assert number < 100
        models.end()
    plant.promote(1)


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        open_arrivals(str(tmp_path / "none"), None, S3Config())
