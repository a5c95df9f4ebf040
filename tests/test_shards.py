"""A lake is predicted on in shards: one listing, parts that are one data set, and no row lost or done twice."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import pytest
import yaml
from hydra import compose, initialize_config_dir

from tests import warm
from tests.conftest import PROJECT, Trained, run_script, use_server
from tests.fault_proxy import Fault, FaultProxy, Operation, Request
from tests.images import encode, picture
from tyre_lightning import prediction
from tyre_lightning.config import S3Config, config_folder, register_schemas
from tyre_lightning.demo.server import S3Server
from tyre_lightning.errors import UnreadableImage, UserError
from tyre_lightning.evaluation.predictions import read_about, read_predictions
from tyre_lightning.lake import manifest, place, store
from tyre_lightning.lake.manifest import Claim, Listing, Manifest, agree, find_manifest, shard_of
from tyre_lightning.lake.place import FolderPlace, Place, open_place
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry
from tyre_lightning.shards import Work
from tyre_lightning.summary import Summary
from tyre_lightning.tracking.registry import load_inspector

TYRES = 20
IMAGES = 2 * TYRES
CHUNK = 4
COMPOSING = threading.Lock()  # Hydra composes one config at a time


@pytest.fixture(scope="module")
def model(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that tells tyres by their file names."""
    inspector = load_inspector(trained.model, trained.tracking_uri)
    inspector.group_pattern = r"^(T\d+)_"
    inspector.save(folder := tmp_path_factory.mktemp("model") / "inspector")
    return folder


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """Files of tyres, the two pictures of each in folders far apart; one cannot be read."""
    files = {
        f"{folder}/T{tyre}_{folder}.png": encode(picture(10 * tyre + number, (40, 40)))
        for number, folder in enumerate(("early", "late"))
        for tyre in range(TYRES)
    }
    return files | {"late/T3_late.png": b"<html>"}


@pytest.fixture(scope="module")
def server(pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with the pictures in a bucket; what else there is comes through it."""
    folder = tmp_path_factory.mktemp("s3")
    write(pictures, folder / "plant" / "line")
    with S3Server(folder, static=True) as server:
        yield server


@pytest.fixture
def plant(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder behind the bucket; requests go to its server."""
    use_server(server, monkeypatch)
    return server.folder / "plant"


@pytest.fixture
def line(pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """They, in a folder; what was found is kept every four pictures."""
    monkeypatch.setattr(prediction, "_CHUNK", CHUNK)
    write(pictures, tmp_path / "line")
    return tmp_path / "line"


def write(files: dict[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each picture was read."""
    found: Counter[str] = Counter()
    read = Reader.read

    def counting(self: Reader, entries: Sequence[Entry]) -> list[bytes | UnreadableImage]:
        found.update(entry.key for entry in entries)
        return read(self, entries)

    monkeypatch.setattr(Reader, "read", counting)
    return found


def predict(model: Path | str, source: Path | str, output: Path | str, *more: str) -> Summary:
    given = [f"model='{model}'", f"input={source}", f"output={output}", "batch_size=2", "accelerator=cpu", *more]
    with COMPOSING, initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
        register_schemas()
        cfg = compose("predict", overrides=given)
    return prediction.predict(cfg)


def rows_of(place: Path) -> pd.DataFrame:
    """The rows of a file or of a data set, by key or tyre."""
    table = ds.dataset(str(place)).to_table().to_pandas()
    return table.sort_values([name for name in ("tyre", "key") if name in table]).reset_index(drop=True)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@contextmanager
def broken_off(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """Inside, the machine dies when it has read some pictures."""
    read, left = Reader.read, after

    def breaking(self: Reader, entries: Sequence[Entry]) -> list[bytes | UnreadableImage]:
        nonlocal left
        left -= len(entries)
        if left < 0:
            raise BrokenPipeError
        return read(self, entries)

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "read", breaking)
        try:
            yield
        except BrokenPipeError:
            return
    pytest.fail("it went on")


def test_the_parts_are_the_whole_and_one_data_set(model: Path, line: Path, tmp_path: Path) -> None:
    whole = predict(model, line, tmp_path / "rows.parquet")
    parts = predict(model, line, tmp_path / "out", "shards=3")
    assert replace(parts, output=whole.output, tyres_output=whole.tyres_output) == whole
    same(rows_of(tmp_path / "out"), rows_of(tmp_path / "rows.parquet"))
    same(rows_of(tmp_path / "out-tyres"), rows_of(tmp_path / "rows-tyres.parquet"))
    named = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] not in "._")
    assert named == [f"part-{shard:05d}-of-00003.parquet" for shard in range(3)]
    tyres = [{*pd.read_parquet(tmp_path / "out" / name)["tyre"]} for name in named]
    assert all(tyres) and sum(map(len, tyres)) == len(set.union(*tyres)) == TYRES
    assert not [*(tmp_path / "out").rglob("0*.parquet")] and not [*tmp_path.rglob(".*")]  # nothing that was kept
    said = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert (said["images"], said["unreadable"], said["tyres"], said["shards"]) == (IMAGES, 1, TYRES, 3)
    assert said["classes"] == {name: whole.classes[name] for name in said["classes"]} and said["model"] == str(model)
    assert sum(said["decisions"].values()) == TYRES and said["promise"]["max_escape_rate"] == 0.25


def test_tasks_of_srun_do_a_shard_each_and_never_all(model: Path, line: Path, tmp_path: Path, trained: Trained) -> None:
    given = [str(PROJECT / "predict.py"), f"model={model}", f"input={line}", f"output={tmp_path}/found", "shards=2"]
    slurm = {**trained.environment, "SLURM_JOB_ID": "12345", "SLURM_STEP_NUM_TASKS": "2"}
    each = [{**slurm, "SLURM_PROCID": str(number)} for number in range(2)]
    for done in warm.run_together(given, tmp_path, each, timeout=120):
        assert done.returncode == 1 and "srun has started 2 processes, each of which would do all of it" in done.stderr
    for done in warm.run_together([*given, "-m", "shard=0,1"], tmp_path, each, timeout=120):
        assert done.returncode == 1 and "srun has started 2 processes, each of which would sweep: " in done.stderr
    assert not (tmp_path / "found").exists()
    for done in warm.run_together([*given, "shard=${oc.env:SLURM_PROCID}"], tmp_path, each, timeout=120):
        assert done.returncode == 0, done.stderr
    predict(model, line, tmp_path / "whole.parquet")
    same(rows_of(tmp_path / "found"), rows_of(tmp_path / "whole.parquet"))


def test_what_takes_predictions_takes_parts(model: Path, line: Path, tmp_path: Path) -> None:
    predict(model, line, tmp_path / "rows.parquet")
    predict(model, line, tmp_path / "out", "shards=2", "shard=0")
    with pytest.raises(UserError, match=r"out has no _summary\.json: give a folder of predict.py in which all shards"):
        read_predictions(str(tmp_path / "out"))
    predict(model, line, tmp_path / "out", "shards=2", "shard=1")
    one, other = (read_predictions(str(tmp_path / name)).sort_values("key") for name in ("rows.parquet", "out"))
    same(one.reset_index(drop=True), other.reset_index(drop=True))
    assert read_about(str(tmp_path / "out")) == read_about(str(tmp_path / "rows.parquet"))
    (tmp_path / "out" / "part-00001-of-00002.parquet").unlink()
    for reads in (read_predictions, read_about):
        with pytest.raises(UserError, match=r"out has 1 of 2 parts: give the same to predict\.py again"):
            reads(str(tmp_path / "out"))
    (tmp_path / "out" / "_summary.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"_summary\.json cannot be read: give the same to predict\.py again"):
        read_about(str(tmp_path / "out"))


@pytest.mark.parametrize("output", ["rows.parquet", "rows.csv", "out"])
def test_a_run_that_was_broken_off_goes_on_after_what_is_kept(
    model: Path, line: Path, tmp_path: Path, looked: Counter[str], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    more = ["shards=3"] if output == "out" else []
    predict(model, line, tmp_path / "whole" / output, *more)
    looked.clear()
    broken = (0, 9, 9, 9)
    for after in broken:
        with broken_off(monkeypatch, after):
            predict(model, line, tmp_path / output, *more)
        assert not (tmp_path / output).is_file()
    predict(model, line, tmp_path / output, *more)
    assert len(looked) == IMAGES
    assert looked.total() - IMAGES <= len(broken) * CHUNK  # of each run what was not a whole chunk yet
    for path in (tmp_path / "whole").rglob("*.*"):
        if path.name != "manifest.json" and not path.name.startswith("_"):
            assert path.read_bytes() == (tmp_path / path.relative_to(tmp_path / "whole")).read_bytes(), path
    assert not [*tmp_path.glob(".*unfinished*")]


def test_what_is_kept_of_one_file_is_of_the_same_pictures_and_settings(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_once() -> None:
        with broken_off(monkeypatch, 15):
            predict(model, line, tmp_path / "rows.parquet")

    break_once()
    (line / "late" / "T50_late.png").write_bytes(encode(picture(7)))
    assert predict(model, line, tmp_path / "rows.parquet").images == IMAGES + 1
    assert "what an interrupted run has kept is of other images or settings: it is not used" in capsys.readouterr().out
    break_once()
    predict(model, line, tmp_path / "rows.parquet", "operating_point.max_escape_rate=0.6")
    assert "of other images or settings" in capsys.readouterr().out
    other = predict(model, line, tmp_path / "others.parquet", "operating_point.max_escape_rate=0.6")
    same(rows_of(tmp_path / "rows.parquet"), rows_of(tmp_path / "others.parquet"))
    break_once()
    (line / "early" / "T1_early.png").write_bytes(encode(picture(8)))  # the same name, another tyre's picture
    predict(model, line, tmp_path / "rows.parquet")
    predict(model, line, tmp_path / "others.parquet")
    same(rows_of(tmp_path / "rows.parquet"), rows_of(tmp_path / "others.parquet"))
    assert other.images == IMAGES + 1 and not [*tmp_path.glob(".*unfinished*")]


def test_one_file_has_one_writer_and_an_interrupt_says_what_is_kept(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep, seen = FolderPlace.put, []

    def second(self: FolderPlace, path: str, data: bytes) -> None:
        keep(self, path, data)
        seen.append(path)
        if len(seen) == 3:
            with pytest.raises(UserError, match=r"another process writes output=.*rows.csv now: wait for it"):
                predict(model, line, tmp_path / "rows.csv")
            raise KeyboardInterrupt

    monkeypatch.setattr(FolderPlace, "put", second)
    with pytest.raises(KeyboardInterrupt):
        predict(model, line, tmp_path / "rows.csv")
    assert "12 of 40 images are done and kept: the same command goes on" in capsys.readouterr().out
    predict(model, line, tmp_path / "rows.csv")
    assert len(pd.read_csv(tmp_path / "rows.csv")) == IMAGES


def test_a_shard_that_two_processes_do_at_once_is_there_once(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job was requeued while its first copy still ran, which finishes while the second joins what it has kept."""
    predict(model, line, tmp_path / "whole.parquet")
    join = Work._join

    def late(self: Work, shard: int) -> Any:
        monkeypatch.setattr(Work, "_join", join)
        predict(model, line, tmp_path / "out", "shards=2", f"shard={shard}")
        return join(self, shard)

    monkeypatch.setattr(Work, "_join", late)
    predict(model, line, tmp_path / "out", "shards=2")
    same(rows_of(tmp_path / "out"), rows_of(tmp_path / "whole.parquet"))
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(predict, model, line, tmp_path / "three", "shards=2") for _ in range(3)]:
            assert done.result().images == IMAGES
    same(rows_of(tmp_path / "three"), rows_of(tmp_path / "whole.parquet"))
    assert not [*(tmp_path / "three").rglob("00000*.parquet")]


def test_on_s3_another_machine_goes_on(
    model: Path, plant: Path, tmp_path: Path, looked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "_CHUNK", CHUNK)
    monkeypatch.setattr(place, "_SETTLED", 0.0)
    address, output, out = "s3://plant/line", "s3://plant/found/week-48", plant / "found" / "week-48"
    predict(model, address, tmp_path / "rows.parquet")
    looked.clear()
    with broken_off(monkeypatch, 9):
        predict(model, address, output, "shards=2", "shard=1")
    assert len([*(out / "_shards").rglob("00000?.parquet")]) == 2
    assert predict(model, address, output, "shards=2").images == IMAGES
    assert looked.total() <= IMAGES + CHUNK
    same(rows_of(out), rows_of(tmp_path / "rows.parquet"))
    same(rows_of(plant / "found" / "week-48-tyres"), rows_of(tmp_path / "rows-tyres.parquet"))
    assert not [*out.rglob("00000?.parquet")] and (out / "_summary.json").is_file()
    looked.clear()
    predict(model, address, output, "shards=2")
    assert not looked


@dataclass
class Writing(Fault):
    """What goes wrong with writing, or deleting, alone."""

    operation: Operation = "other"
    method: str = "PUT"

    def hits(self, request: Request, draw: random.Random) -> bool:
        return request.method == self.method and super().hits(request, draw)


@pytest.mark.parametrize("match", ["_shards/listing", "_shards/manifest.json", "000000.parquet", "part-", "_summary"])
def test_a_store_that_is_busy_when_something_is_written_is_asked_again(
    model: Path, plant: Path, monkeypatch: pytest.MonkeyPatch, match: str
) -> None:
    """As S3 is when many processes begin at once."""
    monkeypatch.setattr(place, "_SETTLED", 0.0)
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.add(fault := Writing("status", match, times=4))
        assert predict(model, "s3://plant/line", f"s3://plant/busy-{len(match)}", "shards=2").images == IMAGES
    assert fault.times == 0


@pytest.mark.parametrize(("method", "needed"), [("PUT", "s3:PutObject there"), ("DELETE", "s3:DeleteObject there")])
def test_what_may_not_be_written_is_one_sentence(
    model: Path, plant: Path, monkeypatch: pytest.MonkeyPatch, method: str, needed: str
) -> None:
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.add(Writing("status", times=None, status=403, code="AccessDenied", method=method))
        with pytest.raises(UserError, match=f"access is denied: the credentials need {needed}"):
            predict(model, "s3://plant/line", f"s3://plant/denied{method}", "shards=2")


@pytest.mark.parametrize("there", ["folder", "s3"])
def test_of_many_that_start_at_once_one_lists(
    there: str, tmp_path: Path, plant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_LOOK", 0.05)
    monkeypatch.setattr(place, "_SETTLED", 1.0)
    root = str(tmp_path / "out") if there == "folder" else "s3://plant/out"
    start, listed = threading.Barrier(8), []

    def begin(number: int) -> Manifest:
        where = open_place(root, S3Config())

        def make(beat: Any) -> Manifest:
            listed.append(number)
            return list_some(where, [f"v1/{number}.png"])  # each sees something else

        start.wait()
        return agree(where, make, lambda text: None)

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(begin, range(8))]
    assert len(listed) == 1
    assert all(one == found[0] for one in found) and find_manifest(open_place(root, S3Config())) == found[0]


def list_some(where: Place, keys: Iterable[str]) -> Manifest:
    with where.scratch() as folder:
        listing = Listing((Entry(key, 1, "tag") for key in keys), None, 1, Path(folder), lambda: None)
        return listing.publish(where, listing.manifest({"model": "m"}, "m", 4))


def test_who_dies_while_it_lists_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, told = FolderPlace(str(tmp_path)), list[str]()
    monkeypatch.setattr(manifest, "_LOOK", 0.01)
    elsewhere = Claim(where)
    elsewhere._host = "another machine"
    assert elsewhere.get()
    monkeypatch.setattr(manifest, "_SILENT", 0.3)
    found = agree(where, lambda beat: list_some(where, ["a.png", "b.png"]), told.append)
    assert found.counts == [2] and len(told) == 1 and "another process lists the images" in told[0]


def test_what_a_killed_process_has_left_goes_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = FolderPlace(str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with monkeypatch.context() as patched:
        patched.setattr("os.getpid", lambda: dead.pid)
        left = where.scratch()
    with where.scratch() as mine:
        assert Path(left.name).is_dir() and Path(mine).is_dir()
        monkeypatch.setattr(place, "_OLD", -1)
        with where.scratch():
            assert not Path(left.name).exists() and Path(mine).is_dir()


def test_who_lists_last_takes_what_is_there(tmp_path: Path) -> None:
    where = FolderPlace(str(tmp_path))
    first = list_some(where, ["a.png"])
    assert list_some(where, ["a.png", "b.png"]) == first == find_manifest(where)


def test_a_manifest_that_was_torn_is_written_anew_and_one_of_others_refused(tmp_path: Path) -> None:
    """A file system without links shows a file before its content, and a kill leaves it so."""
    where = FolderPlace(str(tmp_path))
    for data in (b"", b'{"id": "'):
        where.put(f"{manifest.FOLDER}/manifest.json", data)
        assert agree(where, lambda beat: list_some(where, ["a.png"]), print) == find_manifest(where)
    for data in (b"{}", b"[]", b'{"id": 1}'):
        where.put(f"{manifest.FOLDER}/manifest.json", data)
        with pytest.raises(UserError, match=r"manifest\.json is none that was written here: give another output"):
            find_manifest(where)


def test_rows_of_another_prediction_are_not_joined_to_these(model: Path, line: Path, tmp_path: Path) -> None:
    """Somebody has deleted what says what the parts are of."""
    predict(model, line, out := tmp_path / "out", "shards=3")
    shutil.rmtree(out / "_shards")
    for folder in (out, tmp_path / "out-tyres"):
        with pytest.raises(UserError, match=rf"/{folder.name} has part-00000-of-00003\.parquet already, whose"):
            predict(model, line, out, "shards=2")
        shutil.rmtree(folder)
    assert predict(model, line, out, "shards=2").images == ds.dataset(str(out)).count_rows() == IMAGES


@pytest.mark.parametrize("output", ["rows.parquet", "out"])
def test_what_is_damaged_is_done_again(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """By a disk: what is written here is whole, or not there."""
    more = ["shards=2"] if output == "out" else []
    predict(model, line, tmp_path / "whole" / output, *more)
    with broken_off(monkeypatch, 9):
        predict(model, line, tmp_path / output, *more)
    for number, kept in enumerate(sorted(tmp_path.rglob("00000?.parquet"))):
        kept.write_bytes(kept.read_bytes()[: 100 * number])
    predict(model, line, tmp_path / output, *more)
    same(rows_of(tmp_path / output), rows_of(tmp_path / "whole" / output))
    assert len([one for one in caplog.messages if "is damaged: its pictures are looked at again" in one]) == 2


def test_a_listing_or_a_note_that_is_damaged_is_one_sentence(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(model, line, out := tmp_path / "out", "shards=2")
    note, _ = sorted(out.rglob("done/*.json"))
    for content in (b"", b"[]", b"{}"):
        note.write_bytes(content)
        with pytest.raises(UserError, match=r"done/00000-\d+-\d+\.json was damaged: give the same again"):
            predict(model, line, out, "shards=2")
        assert predict(model, line, out, "shards=2") == whole
    with broken_off(monkeypatch, 9):
        predict(model, line, out := tmp_path / "other", "shards=2")
    listed = sorted(out.rglob("listed.parquet"))[0]
    for spoil in (lambda: listed.write_bytes(b"PAR1"), listed.unlink):
        spoil()
        with pytest.raises(UserError, match=r"listed\.parquet, which lists the images, cannot be read \("):
            predict(model, line, out, "shards=2")


def test_a_part_of_tyres_that_is_gone_is_made_again(model: Path, line: Path, tmp_path: Path) -> None:
    predict(model, line, tmp_path / "out", "shards=2")
    before = rows_of(tmp_path / "out-tyres")
    (tmp_path / "out-tyres" / "part-00001-of-00002.parquet").unlink()
    predict(model, line, tmp_path / "out", "shards=2")
    same(rows_of(tmp_path / "out-tyres"), before)


@pytest.mark.parametrize("there", ["folder", "s3"])
@pytest.mark.parametrize("of", ["out", "out-tyres"])
def test_a_part_of_another_size_is_made_again(
    model: Path, line: Path, plant: Path, tmp_path: Path, looked: Counter[str], there: str, of: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A full disk, or a program that copies folders, has cut it, or has put an empty one there."""
    monkeypatch.setattr(place, "_SETTLED", 0.0)
    folder = tmp_path if there == "folder" else plant / f"cut-{of}"
    output = str(folder / "out") if there == "folder" else f"s3://plant/cut-{of}/out"
    whole = predict(model, line, output, "shards=2")
    before = {name: rows_of(folder / name) for name in ("out", "out-tyres")}
    content = (part := folder / of / "part-00001-of-00002.parquet").read_bytes()
    for cut in (content[:-1], b"", content + b"x"):
        part.write_bytes(cut)
        caplog.clear()
        looked.clear()
        assert predict(model, line, output, "shards=2") == whole
        assert part.read_bytes() == content
        (said,) = caplog.messages
        assert re.fullmatch(r"shard 1 in .*out is not as large as it was written, so that it is not done", said)
        assert {shard_of(key.split("/")[-1].split("_")[0], 2) for key in looked} == {1}
    for name, rows in before.items():
        same(rows_of(folder / name), rows)
    part.write_bytes(b"")
    caplog.clear()
    assert predict(model, line, output, "shards=2", "shard=0").images < IMAGES  # it is not the one to do
    assert len(caplog.messages) == 1 and not part.read_bytes()


def test_what_changes_a_part_at_once_does_not_keep_a_run_busy_for_ever(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = FolderPlace.take

    def cut(self: FolderPlace, file: Path, path: str) -> None:
        take(self, file, path)
        Path(self.root, path).write_bytes(b"PAR1")

    with monkeypatch.context() as patched:
        patched.setattr(FolderPlace, "take", lambda *given: (cut if "part-" in given[2] else take)(*given))
        with pytest.raises(UserError, match=r"parts of output=.*out were deleted or changed meanwhile: give the same"):
            predict(model, line, tmp_path / "out", "shards=2")
        with pytest.raises(UserError, match=r"shard 1 in .*out was deleted or changed meanwhile: give the same"):
            predict(model, line, tmp_path / "out", "shards=2", "shard=1")
    assert predict(model, line, tmp_path / "out", "shards=2").images == IMAGES


def test_a_note_of_an_older_version_holds_as_long_as_the_part_is_there(
    model: Path, line: Path, tmp_path: Path, looked: Counter[str]
) -> None:
    whole = predict(model, line, out := tmp_path / "out", "shards=2")
    (note,) = out.rglob("done/00001-*.json")
    older = note.rename(note.with_name("00001.json"))
    looked.clear()
    assert predict(model, line, out, "shards=2") == whole and not looked
    (out / "part-00001-of-00002.parquet").unlink()
    assert predict(model, line, out, "shards=2") == whole and looked
    assert note.exists() and not older.exists()


def test_there_is_no_summary_while_a_part_is_done_again(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(model, line, out := tmp_path / "out", "shards=2")
    (note,) = out.rglob("done/00001-*.json")
    note.with_name("00001 (copy).json").write_bytes(note.read_bytes())  # as programs that copy folders make
    (out / "part-00001-of-00002.parquet").unlink()
    with broken_off(monkeypatch, 2):
        predict(model, line, out, "shards=2", "shard=1")
    assert not (out / "_summary.json").exists()
    assert predict(model, line, out, "shards=2") == whole and (out / "_summary.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["shards=3"], "was begun with shards=2, and this process has shards=3: give the same, or another output"),
        (["operating_point.max_escape_rate=0.6"], 'was begun with promise={"max_escape_rate": 0.25, '),
        (["input={}/line/early"], "/line, and this process has input="),
        (["model={}/other"], "/inspector, and this process has model="),
        (["explain=true"], "was begun with explain=false, and this process has explain=true"),
    ],
)
def test_a_process_on_other_terms_is_refused(
    model: Path, line: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    predict(model, line, tmp_path / "out", "shards=2", "shard=0")
    load_inspector(str(model), "").save(tmp_path / "other")
    given = {"model": str(model), "input": str(line), "shards": "2"}
    given |= dict(one.format(tmp_path).split("=") for one in more)
    with pytest.raises(UserError) as error:
        predict(given.pop("model"), given.pop("input"), tmp_path / "out", *(f"{k}={v}" for k, v in given.items()))
    assert message in str(error.value)


def test_another_model_of_the_same_name_is_refused(model: Path, line: Path, tmp_path: Path) -> None:
    inspector = load_inspector(str(model), "")
    inspector.save(tmp_path / "mine")
    predict(tmp_path / "mine", line, tmp_path / "out", "shards=2", "shard=0")
    with __import__("torch").no_grad():
        next(inspector.network.parameters()).mul_(1.5)
    inspector.save(tmp_path / "mine")
    with pytest.raises(UserError, match=r"mine is not what it was when output=.*out was begun"):
        predict(tmp_path / "mine", line, tmp_path / "out", "shards=2", "shard=1")


def test_a_champion_that_changes_meanwhile_does_not_split_the_shards(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_inspector(str(model), "")
    other.promise(replace(other.point.promised, max_escape_rate=0.6) if other.point else None)  # type: ignore[arg-type]
    other.save(tmp_path / "other")
    champion = str(model)
    monkeypatch.setattr(prediction, "exact_uri", lambda asked, uri: champion if "@" in asked else asked)
    predict("models:/tyres@champion", line, tmp_path / "out", "shards=2", "shard=0")
    champion = str(tmp_path / "other")
    predict("models:/tyres@champion", line, tmp_path / "out", "shards=2", "shard=1")
    predict(model, line, tmp_path / "rows.parquet")
    same(rows_of(tmp_path / "out"), rows_of(tmp_path / "rows.parquet"))
    assert read_about(str(tmp_path / "out"))["model"] == str(model)


@pytest.mark.parametrize("there", ["folder", "s3"])
def test_a_picture_that_is_gone_is_a_row(
    model: Path, line: Path, plant: Path, tmp_path: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = str(line) if there == "folder" else "s3://plant/line", "early/T7_early.png"
    publish, lies = Listing.publish, open_place(source, S3Config())
    content = lies.read(path)
    assert content

    def delete(self: Listing, *given: Any) -> Manifest:
        lies.remove([path])
        return publish(self, *given)

    monkeypatch.setattr(Listing, "publish", delete)
    try:
        found = predict(model, source, tmp_path / "rows.parquet")
    finally:
        lies.put(path, content)
    assert (found.images, found.unreadable) == (IMAGES, 2)
    rows = pd.read_parquet(tmp_path / "rows.parquet").set_index("key")
    assert rows.loc["line/early/T7_early.png", "error"] == "it was listed, and is not there any more"
    assert {*rows[rows["tyre"] == "T7"]["decision"]} == {"review"}


@contextmanager
def denied(plant: Path, match: str, there: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Meanwhile the files whose path has that in it may not be read."""
    with monkeypatch.context() as patched, FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        if there == "s3":
            patched.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            proxy.add(Fault("status", match, times=None, status=403, code="AccessDenied"))
        else:
            at_once = store._at_once

            def refuse(path: str, flags: int) -> int:  # not by permissions, which root has in any case
                if match in path:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return at_once(path, flags)

            patched.setattr(store, "_at_once", refuse)
        yield


def test_shards_of_a_glob_find_their_pictures_whatever_else_has_gone_and_wherever_they_start(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    predict(model, "line/*/*.png", tmp_path / "out", "shards=2", "shard=0")
    shutil.rmtree(line / "late")
    monkeypatch.chdir(line)
    with pytest.raises(UserError, match=r"output=.* was begun with input=.*, and this process has input="):
        predict(model, "early/*.png", tmp_path / "out", "shards=2", "shard=1")
    predict(model, "*/*.png", tmp_path / "out", "shards=2", "shard=1")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == IMAGES and rows[rows["key"].str.startswith("line/early/")]["error"].isna().all()


@pytest.mark.parametrize("there", ["folder", "s3"])
def test_a_picture_that_may_not_be_read_is_a_row(
    model: Path, line: Path, plant: Path, tmp_path: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(line) if there == "folder" else "s3://plant/line"
    with denied(plant, "early/T7_early.png", there, monkeypatch):
        found = predict(model, source, tmp_path / "rows.parquet")
    assert (found.images, found.unreadable) == (IMAGES, 2)
    rows = pd.read_parquet(tmp_path / "rows.parquet").set_index("key")
    assert rows.loc["line/early/T7_early.png", "error"] == "it may not be read"
    assert {*rows[rows["tyre"] == "T7"]["decision"]} == {"review"}
    with (
        denied(plant, "line/", there, monkeypatch),
        pytest.raises(UserError, match=r"cannot read '.*: (P|access is d)"),
    ):
        predict(model, source, tmp_path / "none.parquet")


def test_a_folder_that_is_not_mounted_any_more_is_no_row(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Listing.publish

    def unmount(self: Listing, *given: Any) -> Manifest:
        line.rename(tmp_path / "elsewhere")
        line.mkdir()
        return publish(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Listing, "publish", unmount)
        with pytest.raises(UserError, match=r"nothing lies in .*line any more"):
            predict(model, line, tmp_path / "out", "shards=2")
    line.rmdir()
    (tmp_path / "elsewhere").rename(line)
    assert predict(model, line, tmp_path / "out", "shards=2").unreadable == 1


def test_a_start_that_fails_leaves_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for output in ("out", "rows.csv"):
        with pytest.raises(UserError, match="empty holds no images"):
            predict(model, tmp_path / "empty", tmp_path / output, f"shards={2 - ('.' in output)}")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_more_shards_than_tyres(model: Path, line: Path, tmp_path: Path) -> None:
    assert predict(model, line, tmp_path / "out", "shards=50").images == IMAGES
    assert len(ds.dataset(str(tmp_path / "out")).files) == 50


def test_a_listing_that_is_replaced_splits_nothing(
    model: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server may do it that knows no conditional writing."""
    look = Work._look_at

    def replace_it(self: Work, *given: Any) -> None:
        look(self, *given)
        path = tmp_path / "out" / "_shards" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id": "another"}))

    monkeypatch.setattr(Work, "_look_at", replace_it)
    with pytest.raises(UserError, match=r"another process has listed the images of .*out anew"):
        predict(model, line, tmp_path / "out", "shards=2", "shard=0")
    assert not [*(tmp_path / "out").glob("part-*")]


def test_a_tyre_s_shard_never_changes() -> None:
    """Or a version of the product that goes on with another's output would lose pictures and do others twice."""
    assert [shard_of(name, 64) for name in ("T1", "T2", "v1/a.png", "ü", "\udcff")] == [55, 15, 39, 46, 27]
    counts = Counter(shard_of(f"T{number}", 8) for number in range(8000))
    assert min(counts.values()) > 850 and max(counts.values()) < 1150


def test_a_sweep_s_shards_end_with_the_summary_of_all(
    model: Path, pictures: dict[str, bytes], trained: Trained, tmp_path: Path
) -> None:
    write(pictures, tmp_path / "line")
    given = [f"model={model}", "input=line", "accelerator=cpu", "shards=2", "output=out"]

    def run(*more: str) -> tuple[int, str]:
        done = run_script("predict.py", *given, *more, cwd=tmp_path, environment=trained.environment)
        return done.returncode, done.stdout + done.stderr

    code, said = run("shard=1")
    assert code == 0 and "1 of 2 shards are done" in said
    code, said = run("-m", "shard=range(2)")
    assert code == 3 and said.count("40 images") == 1 and "a row for each tyre is in out-tyres" in said, said
    code, said = run("-m", "shard=range(2)", "operating_point.max_escape_rate=0.6")
    assert code == 1 and "error: shard=0: output=out was begun with promise=" in said and "goes on" not in said, said
    code, said = run("-m", "shard=0,2")
    assert code == 1 and "error: shard=2 must be from 0 to 1, since there are shards=2\n" in said, said
    code, said = run("-m", "shard=range(2)", "output=out,out/")
    assert code == 0 and "not all" not in said, said
    code, said = run()
    assert code == 3 and "40 images" in said


FAILS = """
import runpy
from tyre_lightning.errors import Unwritable
from tyre_lightning.shards import Work
do = Work.do
def fail(self, shard, *given):
    if shard == 0:
        raise Unwritable("the disk of this machine is full")
    do(self, shard, *given)
Work.do = fail
runpy.run_path({project!r} + "/predict.py", run_name="__main__")
"""


def test_a_shard_that_fails_leaves_the_others_alone(
    model: Path, pictures: dict[str, bytes], trained: Trained, tmp_path: Path
) -> None:
    write(pictures, tmp_path / "line")
    (tmp_path / "failing.py").write_text(FAILS.format(project=str(PROJECT)))
    given = [f"model={model}", "input=line", "accelerator=cpu", "shards=2", "output=out"]
    script = [str(tmp_path / "failing.py"), "-m", "shard=range(2)", *given]
    done = warm.run(script, tmp_path, trained.environment, timeout=100)
    assert done.returncode == 1
    assert "error: shard=0: the disk of this machine is full; the same command goes on" in done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["part-00001-of-00002.parquet"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["output=rows.csv", "shards=2"], "output=rows.csv is one file, and shards=2 write a part each: give"),
        (["output=out", "shards=0"], "shards=0 must be from 1 to 500"),
        (["output=out", "shards=4", "shard=4"], "shard=4 must be from 0 to 3, since there are shards=4"),
        (["output=s3://plant"], "output=s3://plant must be a place on this machine, or s3://bucket/prefix"),
        (["output=s3://plant/rows.parquet"], "output=s3://plant/rows.parquet must be a place on this machine, or"),
        (["output=http://plant/rows"], "output=http://plant/rows must be a place on this machine, or s3://"),
        (["output=s3://plant/rows", "explain=true"], "explain=true draws pictures on this machine: give output="),
        (["output=rows.xlsx"], "output=rows.xlsx must end in one of .parquet, .csv, .jsonl, or in / if it is a folder"),
    ],
)
def test_what_cannot_be_is_one_sentence(more: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        predict("m", "i", "rows.csv", *more)
    assert str(error.value).startswith(message)


def test_pictures_are_not_drawn_among_those_that_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    for output in (tmp_path / "line" / "rows.csv", tmp_path / "line" / "out/", f"{tmp_path}/line/../line/rows.csv"):
        with pytest.raises(UserError, match=r"explain=true would draw pictures into input=.*/line, where the next"):
            predict("m", tmp_path / "line", output, "explain=true", "shards=1")
    with pytest.raises(UserError) as error:  # there is no such model
        predict("m", tmp_path / "line", tmp_path / "lines.csv", "explain=true")
    assert "explain" not in str(error.value)


def commands() -> Iterator[str]:
    """The commands of the page, and the one that Kubernetes starts."""
    text = (PROJECT / "docs" / "predict.md").read_text(encoding="utf-8")
    yield from re.findall(r"^python predict\.py .*$", text, re.MULTILINE)
    job = yaml.safe_load("".join(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["completionMode"] == "Indexed" and container["command"] == ["sh", "-c"]
    assert f"shards={job['spec']['completions']}" in container["args"][0]
    yield container["args"][0].strip()


def made_local(command: str) -> list[str]:
    """The arguments of a command of the page, without a launcher, and with fewer shards."""
    arguments = [one.replace("64", "3") for one in shlex.split(command)[2:] if "launcher" not in one]
    return [one.replace("s3://plant/found/lake", "out").replace("output=week-48", "output=out/x") for one in arguments]


def test_the_commands_of_the_page(model: Path, pictures: dict[str, bytes], trained: Trained, tmp_path: Path) -> None:
    write(pictures, tmp_path / "line")
    said = [*commands()]
    assert len(said) == 6 and "$JOB_COMPLETION_INDEX" in said[-1]
    assert {*re.findall(r"hydra/launcher=(\w+)", " ".join(said))} == {"joblib", "submitit_slurm", "ray"}
    whole, sweep, again, *_, indexed = map(made_local, said)
    real = {"model=": f"model={model}", "input=": "input=line"}

    def run(arguments: list[str], number: int = 0) -> int:
        given = [real.get(one[: one.find("=") + 1], one) for one in arguments]
        given = [one.replace("$JOB_COMPLETION_INDEX", str(number)) for one in given]
        return run_script("predict.py", *given, cwd=tmp_path, environment=trained.environment).returncode

    assert [run(indexed, number) for number in (2, 0)] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == [
        "part-00000-of-00003.parquet",
        "part-00002-of-00003.parquet",
    ]
    assert run(sweep) == 3 and run(again) == 3 and run(whole) == 3
    one, other = rows_of(tmp_path / "out" / "x.parquet"), tmp_path / "out" / "x.parquet"
    other.unlink()
    (tmp_path / "out" / "x-tyres.parquet").unlink()
    same(one, rows_of(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_starts_shards(
    model: Path, pictures: dict[str, bytes], trained: Trained, tmp_path: Path, launcher: str
) -> None:
    write(pictures, tmp_path / "line")
    given = [f"model={model}", "input=line", "accelerator=cpu", "output=out", "shards=3", "shard=range(3)"]
    more = [f"hydra/launcher={launcher}", "-m"]
    done = run_script("predict.py", *given, *more, cwd=tmp_path, environment=trained.environment)
    assert done.returncode == 3 and "40 images" in done.stdout, done.stderr
    assert len(rows_of(tmp_path / "out")) == IMAGES and len(rows_of(tmp_path / "out-tyres")) == TYRES


LOGGED = """
import os, runpy, sys
from tyre_lightning import prediction
from tyre_lightning.lake.reader import Reader
prediction._CHUNK = 4
read = Reader.read
def noting(self, entries):
    with open("looked", "a") as file:
        file.write("".join(entry.key + chr(10) for entry in entries))
    return read(self, entries)
Reader.read = noting
runpy.run_path({project!r} + "/predict.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.long
def test_kills_lose_nothing_and_cost_little(
    model: Path, pictures: dict[str, bytes], trained: Trained, tmp_path: Path
) -> None:
    """``kill -9`` when some more pictures have been looked at, six times."""
    chance, looked = random.Random(0), tmp_path / "looked"
    write(pictures, tmp_path / "line")
    predict(model, tmp_path / "line", tmp_path / "whole" / "out", "shards=2")
    (tmp_path / "logged.py").write_text(LOGGED.format(project=str(PROJECT)))
    command = ["logged.py", f"model={model}", "input=line", "output=out", "shards=2", "batch_size=2"]
    looked.touch()
    for _ in range(6):
        until = len(looked.read_text().splitlines()) + chance.randint(1, 12)
        with warm.running(command, tmp_path, trained.environment, tmp_path / "said", tmp_path / "said") as process:
            while process.poll() is None and len(looked.read_text().splitlines()) < until:
                time.sleep(0.002)
    done = warm.run(command, tmp_path, trained.environment, timeout=100)
    assert done.returncode == 3
    for name in ("out", "out-tyres"):
        same(rows_of(tmp_path / name), rows_of(tmp_path / "whole" / name))
    keys = looked.read_text().splitlines()
    assert len({*keys}) == IMAGES
    assert len(keys) - IMAGES <= 6 * (CHUNK + 4)  # of each run one chunk, and what was fetched ahead
