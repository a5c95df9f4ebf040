"""People's answers become the next data version, on a real S3 server and in folders."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from mlflow import MlflowClient
from omegaconf import OmegaConf

from tests.conftest import train_here, use_server
from tests.fault_proxy import Fault, FaultProxy
from tests.images import encode, picture
from tyre_lightning.api import compose, open_data
from tyre_lightning.config import AcceptConfig, S3Config, config_folder, register_schemas
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.decision.thinning import TEST, TRAIN, VAL, held_out, stays
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.demo.server import S3Server
from tyre_lightning.errors import UserError
from tyre_lightning.lake.pinned import save
from tyre_lightning.lake.provenance import FILE, Provenance, read_provenance
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.writing import Job, open_target
from tyre_lightning.line.accept import Accepted, accept
from tyre_lightning.line.answered import CONTRADICTED, GONE, SEVERAL
from tyre_lightning.line.answers import CANNOT_TELL, NO_TYRE, Answer, latest
from tyre_lightning.line.plan import HELD_OUT, ONLY_HELD_OUT
from tyre_lightning.line.queue import COLUMNS, Queue, Stratum
from tyre_lightning.line.verdicts import CHANGED, DISAGREE, NO_DEFECT_SEEN, NOT_SHOWN, verdicts_of
from tyre_lightning.promote.promote import Outcome, promote

TRAINS: dict[str, Any] = {"val": 0.0, "test": 0.0}
HOLDS: dict[str, Any] = {"val": 0.0, "test": 0.999}


def jpeg(number: int) -> bytes:
    return encode(picture(number, (40, 40)), "JPEG")


@dataclass
class Plant:
    """Lakes and windows below one place, and what people said of them below another."""

    base: str
    folder: Path
    said: list[dict[str, Any]] = field(default_factory=list)

    def root(self, name: str) -> str:
        return name if "://" in name else f"{self.base}/{name}"

    def lay(self, name: str, files: Mapping[str, bytes]) -> str:
        target = open_target(self.root(name), S3Config())
        for path, data in files.items():
            target.put(path, data)
        return target.root

    def lake(self, usages: Mapping[str, int], **more: bytes) -> str:
        """So many pictures of each class."""
        number, files = 0, {}
        for usage, count in usages.items():
            for label in ("crack", "good"):
                for one in range(count):
                    files[f"{usage}/{label}/{usage}_{label}_{one}.jpg"] = jpeg(number := number + 1)
        return self.lay("v1", files)

    def queue(self, root: str, rows: Sequence[tuple[str, str, float]], tyres: Mapping[str, str] | None = None) -> None:
        """A queue of files below a root, each with why and probability."""
        name = self.root(root).rpartition("/")[2]
        table = pd.DataFrame([
            dict.fromkeys(COLUMNS) | {
                "tyre": (tyres or {}).get(path, f"{name}/{path}"), "key": f"{name}/{path}", "why": why,
                "stratum": str(probability), "probability": probability,
            }
            for path, why, probability in rows
        ])  # fmt: skip
        table["novelty"] = np.nan
        strata = {str(p): Stratum("audit", 1000, int(1000 * p)) for _, why, p in rows if why != "learn"}
        stem = f"{name}-{len([*self.folder.glob('*.parquet')])}"
        about = (f"models:/tyres/{1}", open_target(self.root(root), S3Config()).root, f"{stem}.csv", "2026-11-26")
        Queue(table, *about, 0, "good", 0.05, strata or {"x": Stratum("audit", 1, 1)}).write(
            str(self.folder / f"{stem}.parquet")
        )

    def say(self, tyre: str, answer: Any, who: str = "ann", **more: Any) -> None:
        self.said.append({"who": who, "time": "2026-11-26T10:00:00Z", "tyre": tyre, "answer": answer, **more})

    def accept(self, to: str = "v2", source: str = "v1", **options: Any) -> Accepted:
        return self.tell(to, source, **options)[0]

    def tell(self, to: str = "v2", source: str = "v1", **options: Any) -> tuple[Accepted, str]:
        (self.folder / "answers").mkdir(exist_ok=True)
        lines = "".join(json.dumps(one) + "\n" for one in self.said)
        (self.folder / "answers" / "said.jsonl").write_text(lines, encoding="utf-8")
        config = AcceptConfig(
            str(self.folder / "answers"), f"{self.folder}/*.parquet", self.root(source), self.root(to),
            left_out=str(self.folder / "left-out.jsonl"), **options,
        )  # fmt: skip
        found, lines_ = accept(OmegaConf.structured(config))
        return found, "\n".join(lines_)

    def listed(self, name: str) -> dict[str, Entry]:
        store = open_store(self.root(name), S3Config())
        return {entry.key.removeprefix(store.key("")): entry for entry in store.list()}

    def paths(self, name: str) -> set[str]:
        return {*self.listed(name)} - {FILE}

    def provenance(self, name: str) -> Provenance:
        found = read_provenance(open_store(self.root(name), S3Config()))
        assert found is not None
        return found

    def rows(self, name: str) -> dict[str, Mapping[str, Any]]:
        return {row["path"]: row for row in self.provenance(name).rows}

    def left(self) -> dict[str, str]:
        lines = (self.folder / "left-out.jsonl").read_text(encoding="utf-8").splitlines()
        return {one["tyre"]: one["reason"] for one in map(json.loads, lines)}

    def open(self, name: str, *more: str) -> TyreDataModule:
        return open_data(compose(f"data.root={self.root(name)}", "data.near_copies=false", "data.cache=none", *more))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """What is written to it by others than itself is not seen: each write would take it a second else."""
    folder = tmp_path_factory.mktemp("accept")
    (folder / "plant").mkdir()
    with S3Server(folder, static=True) as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    use_server(server, monkeypatch)
    return Plant(f"s3://plant/{uuid.uuid4().hex[:8]}", tmp_path)


@pytest.fixture
def local(tmp_path: Path) -> Plant:
    return Plant(str(tmp_path / "lakes"), tmp_path)


@pytest.fixture(params=["local", "bucket"])
def plant(request: pytest.FixtureRequest) -> Plant:
    found: Plant = request.getfixturevalue(request.param)
    return found


def week(plant: Plant) -> None:
    """A lake, a window that holds a copy of one of its pictures, and answers of all kinds."""
    plant.lake({"train": 5, "val": 2, "test": 2})
    new = {f"{name}.jpg": jpeg(100 + number) for number, name in enumerate("abcdefg")}
    plant.lay("week-48", new | {"copy.jpg": jpeg(1)})  # train/crack/train_crack_0.jpg
    drawn = [(path, "audit", 0.5) for path in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "copy.jpg")]
    plant.queue("week-48", [*drawn, ("e.jpg", "learn", np.nan), ("f.jpg", "review", 0.5), ("g.jpg", "learn", np.nan)])
    plant.queue("v1", [("test/good/test_good_0.jpg", "review", 0.5), ("test/crack/test_crack_0.jpg", "review", 0.5)])
    for name in "ae":
        plant.say(f"week-48/{name}.jpg", "crack")
    plant.say("week-48/b.jpg", "good")
    plant.say("week-48/copy.jpg", "good")
    plant.say("week-48/c.jpg", "good")
    plant.say("week-48/c.jpg", "crack", "bob")
    plant.say("week-48/d.jpg", CANNOT_TELL)
    plant.say("week-48/f.jpg", NO_TYRE)
    plant.say("v1/test/good/test_good_0.jpg", "crack")
    plant.say("v1/test/crack/test_crack_0.jpg", "crack")


def test_a_version_is_the_one_before_with_corrections_and_additions(plant: Plant) -> None:
    week(plant)
    before = plant.listed("v1")
    planned, said = plant.tell(dry_run=True, **TRAINS)
    assert plant.paths("v2") == set() if plant.base.startswith("s3:") else not Path(plant.root("v2")).exists()
    assert "to copy" in said and not (plant.folder / "left-out.jsonl").exists()

    found, said = plant.tell(**TRAINS)
    moved = {"train/crack/train_crack_0.jpg": "train/good/train_crack_0.jpg"}
    moved |= {"test/good/test_good_0.jpg": "test/crack/test_good_0.jpg"}
    new = {"train/crack/week-48/a.jpg", "train/crack/week-48/e.jpg", "train/good/week-48/b.jpg"}
    assert plant.paths("v2") == {*before} - {*moved} | {*moved.values()} | new
    after = plant.listed("v2")
    for path, entry in before.items():
        assert after[moved.get(path, path)][1:] == entry[1:]
    assert plant.listed("v1") == before
    assert found.copied == len(after) - 1 == planned.copied and found.there == 0
    store = open_store(plant.root("v2"), S3Config())
    assert store.get(store.key("train/crack/week-48/e.jpg")).data == jpeg(104)

    provenance, rows = plant.provenance("v2"), plant.rows("v2")
    assert {*rows} == new | {*moved.values()} and str(provenance) == "3 new, 2 corrected since v1"
    assert provenance.selected() == {"train/crack/week-48/e.jpg"} and provenance.complete
    corrected = rows["train/good/train_crack_0.jpg"]
    assert corrected["class_before"] == "crack" and corrected["class"] == "good" and corrected["who"] == ["ann"]
    assert corrected["copied_from"] == found.plan.contents.store.root + "/train/crack/train_crack_0.jpg"
    added = rows["train/crack/week-48/a.jpg"]
    assert (added["class_before"], added["probability"], added["why"], added["version"]) == (None, 0.5, "audit", "v2")
    assert added["copied_from"].endswith("/week-48/a.jpg") and rows["train/crack/week-48/e.jpg"]["probability"] is None

    assert "corrected from good to crack: 1" in said and "new in train: crack 2, good 1" in said
    assert "week-48/c.jpg: ann: good; bob: crack" in said and "confirmed: 1" in said
    assert said.endswith(f"next: python train.py data.root={found.provenance.to}")
    assert plant.left() == {
        "week-48/c.jpg": DISAGREE, "week-48/d.jpg": CANNOT_TELL, "week-48/f.jpg": NO_TYRE,
    }  # fmt: skip
    data = plant.open("v2")
    assert data.train.counts() == {"crack": 6, "good": 7} and data.test is not None
    assert data.test.counts() == {"crack": 3, "good": 1} and str(data.provenance) == str(provenance)

    again = plant.accept(**TRAINS)
    assert (again.copied, again.there) == (0, len(after) - 1) and plant.listed("v2") == after
    plant.say("week-48/g.jpg", "good")
    with pytest.raises(UserError, match=r"v2 is finished, and a version never changes.* give to="):
        plant.accept(**TRAINS)
    third, said = plant.tell("v3", "v2", **TRAINS)
    assert plant.paths("v3") == plant.paths("v2") | {"train/good/week-48/g.jpg"}
    assert f"{third.provenance.to}: 1 new, 0 corrected since v2 (3 new, 2 corrected since v1)" in said
    assert plant.rows("v3").items() > rows.items() and plant.provenance("v3").source == provenance.to


def test_an_interrupted_copy_goes_on_and_is_not_trained_on_before(
    bucket: Plant, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    week(bucket)
    with FaultProxy(server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

        def written() -> list[str]:
            return [path.rpartition("/v2/")[2] for method, path in proxy.requests if method == "PUT"]

        proxy.add(Fault("status", "/v2/", "other", times=None, skip=7, status=403, code="AccessDenied"))
        with pytest.raises(UserError, match=r"cannot copy 's3://plant/.* the credentials need s3:PutObject there"):
            bucket.accept(**TRAINS)
        assert written()[0] == FILE
        there = bucket.paths("v2")
        assert 0 < len(there) < 21
        with pytest.raises(UserError, match=r"v2' is an unfinished version of .*v1'.*go on with"):
            bucket.open("v2")
        with pytest.raises(UserError, match="is an unfinished version"):
            bucket.accept("v3", "v2")

        proxy.clear()
        proxy.requests.clear()
        proxy.add(Fault("status", "/v2/train/good", "other", times=9, status=503))  # an outage is waited for
        found = bucket.accept(**TRAINS)
        assert found.there == len(there) and found.copied == 21 - len(there)
        assert {*written()} == bucket.paths("v2") - there | {FILE} and written()[-1] == FILE
        assert not proxy.reads("jpg")
        proxy.requests.clear()
        bucket.accept(**TRAINS)
        assert not written() and bucket.open("v2").test is not None


def test_from_folders_to_a_bucket_and_back(bucket: Plant, local: Plant) -> None:
    week(local)
    local.accept("elsewhere", **TRAINS)
    local.accept(bucket.root("v2"), **TRAINS)
    assert bucket.paths("v2") == local.paths("elsewhere")
    found = local.accept("v3", bucket.root("v2"), **TRAINS)
    assert local.paths("v3") == local.paths("elsewhere") and found.plan.new == 0 == found.plan.corrected.total()
    for path in local.paths("v3"):
        assert Path(local.root("v3"), path).read_bytes() == Path(local.root("elsewhere"), path).read_bytes()


def test_a_copy_is_of_what_was_listed(bucket: Plant, local: Plant) -> None:
    """By the tag as the service's own condition: where KMS encrypts it, a copy's tag is another."""
    from tyre_lightning.lake.s3 import S3Store

    bucket.lake({"train": 1})
    asked: list[dict[str, str]] = []
    store, target = S3Store(bucket.root("v1"), S3Config()), S3Store(bucket.root("v2"), S3Config())
    client = target._connection().client
    client.meta.events.register("before-call.s3.CopyObject", lambda params, **_: asked.append(params["headers"]))
    entry = next(iter(store.list()))
    target.copy_from(store, entry, "v2/x.jpg")
    assert asked[0]["x-amz-copy-source-if-match"] == entry.etag
    local.lake({"train": 1})
    there = open_store(local.root("v1"), S3Config())
    job = Job(there, next(iter(there.list())), "x.jpg")
    Path(local.root("v1"), job.entry.key.partition("/")[2]).write_bytes(b"another picture")
    with pytest.raises(UserError, match=r"_0\.jpg' has changed since it was listed: run the same again"):
        open_target(bucket.root("v3"), S3Config()).copy(job)


HOSTILE = ("a b+c%41.jpg", "ü%2F&?#=.jpg", "'\"~;.jpg", "\u0438.JPG")


def test_names_of_all_kinds_survive(plant: Plant) -> None:
    plant.lay("v1", {f"train/{name}/{file}": jpeg(number) for number, (name, file) in enumerate(
        (name, file) for name in ("good", "cut +%/ü".replace("/", "")) for file in HOSTILE)})  # fmt: skip
    plant.lay("week 48%+ü", {file: jpeg(20 + number) for number, file in enumerate(HOSTILE)})
    plant.queue("week 48%+ü", [(file, "learn", np.nan) for file in HOSTILE])
    for file in HOSTILE:
        plant.say(f"week 48%+ü/{file}", "cut +%u\u0308")  # as another system writes it
    plant.accept()
    assert plant.paths("v2") == plant.paths("v1") | {f"train/cut +%ü/week 48%+ü/{file}" for file in HOSTILE}
    for number, file in enumerate(HOSTILE):
        store = open_store(plant.root("v2"), S3Config())
        assert store.get(store.key(f"train/cut +%ü/week 48%+ü/{file}")).data == jpeg(20 + number)


def test_two_pictures_that_want_one_name(local: Plant) -> None:
    local.lay("v1", {f"train/{name}/{one}.jpg": jpeg(number) for number, (name, one) in enumerate(
        (name, one) for name in ("good", "crack") for one in "xy")})  # fmt: skip
    local.lay("week", {f"cam{one}/p.jpg": jpeg(10 + one) for one in range(3)})
    local.queue("week", [(f"cam{one}/p.jpg", "learn", np.nan) for one in range(3)])
    local.queue("v1", [("train/good/x.jpg", "learn", np.nan)])
    for one in range(3):
        local.say(f"week/cam{one}/p.jpg", "good")
    local.say("v1/train/good/x.jpg", "crack")
    local.accept()
    new = local.paths("v2") - local.paths("v1")
    corrected = next(path for path in new if path.startswith("train/crack/"))
    assert corrected.endswith("/x.jpg") and len(corrected) > len("train/crack/x.jpg")
    assert len(new) == 4 and {path.rpartition("/")[2] for path in new} == {"p.jpg", "x.jpg"}
    assert "train/good/week/p.jpg" in new and sum(path.startswith("train/good/week-") for path in new) == 2
    assert "train/good/x.jpg" not in local.paths("v2")
    once = local.paths("v2")
    local.accept("v3", "v2")  # the same answers, of pictures that are in it
    assert local.paths("v3") == once


def answer(answer: Any, who: str = "ann", **more: Any) -> Answer:
    return Answer("T1", who, "2026-11-26", answer, **more)


@pytest.mark.parametrize(
    ("answers", "classes", "reason"),
    [
        ([answer("good")], ("good",), None),
        ([answer([])], ("good",), None),
        ([answer("ok"), answer("good", "bob")], ("good",), None),
        ([answer("crack"), answer("crack", "bob")], ("crack",), None),
        ([answer("crack"), answer("good", "bob")], (), DISAGREE),
        ([answer("crack"), answer("bulge", "bob")], (), DISAGREE),
        ([answer("crack"), answer(["crack", "bulge"], "bob")], (), DISAGREE),
        ([answer(["crack", "bulge"]), answer(["bulge", "crack"], "bob")], ("bulge", "crack"), None),
        ([answer("crack"), answer(CANNOT_TELL, "bob")], ("crack",), None),
        ([answer(CANNOT_TELL)], (), CANNOT_TELL),
        ([answer(NO_TYRE), answer(CANNOT_TELL, "bob")], (), NO_TYRE),
        ([answer(NO_TYRE), answer("good", "bob")], (), DISAGREE),
    ],
)
def test_who_says_what(answers: list[Answer], classes: tuple[str, ...], reason: str | None) -> None:
    verdict = verdicts_of(answers, "good", {"ok"})["T1"]
    assert (verdict.classes, verdict.reason) == (classes, reason)


def test_a_defect_is_that_of_the_pictures_which_show_it() -> None:
    keys, tags = ("a", "b", "c"), ("1", "2", None)
    bad = verdicts_of([answer("crack", keys=keys, tags=tags, shows=("a", "c"))], "good")["T1"]
    told = [bad.against(key, tag) for key, tag in (("a", "1"), ("a", "9"), ("b", "2"), ("c", "3"), ("d", "4"))]
    assert told == [None, CHANGED, NO_DEFECT_SEEN, None, NOT_SHOWN]
    two = verdicts_of([answer("crack", keys=keys, shows=("a", "b")), answer("crack", "bob", shows=("b",))], "good")
    assert [two["T1"].against(key, "") for key in "abc"] == [NO_DEFECT_SEEN, None, NO_DEFECT_SEEN]
    good = verdicts_of([answer("good", keys=keys, shows=("a",))], "good")["T1"]
    assert good.against("b", "2") is None


def test_an_answer_in_a_file_says_which_pictures_show_it(tmp_path: Path) -> None:
    line = {"who": "ann", "time": "1", "tyre": "T1", "answer": "crack"}
    for name, more in (("a", {"shows": ["x.jpg"]}), ("b", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(json.dumps(line | more))
    assert [latest(str(tmp_path / name))[0].shows for name in "ab"] == [("x.jpg",), ()]


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", " x", "a\nb", "x" * 300, "a\\b"])
def test_what_cannot_be_a_folder_is_no_class(name: str) -> None:
    with pytest.raises(UserError, match="of ann on 'T1' cannot be a class"):
        verdicts_of([answer([name])], "good")


def test_what_remains_is_a_uniform_draw_of_the_window() -> None:
    """Of strata drawn with probabilities far apart each tyre is in it equally often, and in each usage."""
    probabilities, times = {"near": 1.0, "less": 0.4, "plain": 0.05}, 60_000
    rng = np.random.default_rng(0)
    for name, probability in probabilities.items():
        drawn = np.flatnonzero(rng.random(times) < probability)
        kept = [number for number in drawn.tolist() if stays(f"{name} {number}", probability, 0.05, 3)]
        assert len(kept) / times == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / times))
        usages = Counter(held_out(f"{name} {number}", 0.25, 0.25, 3) for number in kept)
        for usage, share in ((VAL, 0.25), (TEST, 0.25), (TRAIN, 0.5)):
            assert usages[usage] / len(kept) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(kept)))
    assert not stays("picked", float("nan"), 0.05, 3)
    assert [stays(f"{n}", 0.4, 0.05, 3) for n in range(50)] == [stays(f"{n}", 0.4, 0.05, 3) for n in range(50)]


def test_only_the_uniform_sample_is_held_out_and_what_was_selected_only_trains(local: Plant) -> None:
    local.lake({"train": 5, "val": 2, "test": 2})
    files = [f"{number}.jpg" for number in range(60)]
    local.lay("week", {file: jpeg(100 + number) for number, file in enumerate(files)})
    rows = [
        (file, "learn", np.nan) if n < 10 else (file, "audit", 1.0 if n < 40 else 0.25) for n, file in enumerate(files)
    ]
    local.queue("week", rows)
    for file in files:
        local.say(f"week/{file}", "good")
    local.accept(val=0.3, test=0.3)
    rows_ = local.rows("v2").values()
    usages = Counter((row["usage"], row["selected"]) for row in rows_)
    assert usages[VAL, True] == usages[TEST, True] == 0
    assert usages[VAL, False] > 2 and usages[TEST, False] > 2 and usages[TRAIN, False] > 2
    often = [row for row in rows_ if row["probability"] == 1]
    assert len(often) == 30 and 0 < sum(not row["selected"] for row in often) < 20  # a quarter of them
    assert not any(row["selected"] for row in rows_ if row["probability"] == 0.25)
    assert all(row["selected"] for row in rows_ if row["why"] == "learn")


@pytest.mark.parametrize("more", [(), ("data.folds=3", "data.fold=0"), ("data.folds=3", "data.fold=2")])
def test_training_does_not_hold_out_what_was_selected(local: Plant, more: tuple[str, ...]) -> None:
    """Where it divides the training pictures itself; a tyre with such a picture trains whole."""
    local.lake({"train": 9})
    local.lay("week", {f"T{n}_{side}.jpg": jpeg(100 + 2 * n + (side == "b")) for n in range(12) for side in "ab"})
    rows = [(f"T{n}_{side}.jpg", "learn", np.nan) for n in range(12) for side in "ab"]
    local.queue("week", rows, {path: path.partition("_")[0] for path, *_ in rows})
    for n in range(12):
        local.say(f"T{n}", "crack" if n % 2 else "cut", shows=[f"week/T{n}_a.jpg"])
    found = local.accept(group_pattern=r"^(T\d+)_", test=0.5, val=0.5 - 1e-9)
    assert found.plan.new == 12 and found.plan.new_classes == ["cut"]
    data = local.open("v2", "data.val_fraction=0.5", *more)
    held = [*data.val.keys(), *(data.test.keys() if data.test else [])]
    assert not [key for key in held if "/week/" in key] and len(held) > 6
    assert len([key for key in data.train.keys() if "/week/" in key]) == 12
    assert data.train.counts()["cut"] == 6


def test_a_catalog_of_a_version_divides_it_as_the_version_is_divided(local: Plant) -> None:
    local.lake({"train": 9})
    local.lay("week", {f"{n}.jpg": jpeg(100 + n) for n in range(9)})
    local.queue("week", [(f"{n}.jpg", "learn", np.nan) for n in range(9)])
    for n in range(9):
        local.say(f"week/{n}.jpg", "good")
    local.accept()
    data = local.open("v2", "data.val_fraction=0.5")
    save(path := local.folder / "catalog.parquet", local.root("v2"), data.tagged())
    again = open_data(compose(f"data.catalog={path}", "data.near_copies=false", "data.cache=none"))
    assert {*again.val.keys()} == {*data.val.keys()} and {*again.train.keys()} == {*data.train.keys()}
    assert str(again.provenance) == "9 new, 0 corrected since v1" and not [k for k in data.val.keys() if "/week/" in k]
    open_target(local.root("v2"), S3Config()).put(FILE, replace(local.provenance("v2"), complete=False).to_bytes())
    with pytest.raises(UserError, match="is an unfinished version"):
        open_data(compose(f"data.catalog={path}"))


def test_a_tyre_keeps_its_usage(local: Plant) -> None:
    pattern = r"^(T\d+)_"
    usages = ("train", "train", "train", "val", "test")
    good = {f"{usage}/good/T{number}_g.jpg": jpeg(number) for number, usage in enumerate(usages, 1)}
    crack = {f"{usage}/crack/T{number}_c.jpg": jpeg(number) for number, usage in enumerate(usages, 20)}
    local.lay("v1", good | crack)
    files = {"T1_n.jpg": "learn", "T4_n.jpg": "audit", "T5_n.jpg": "audit", "T5_m.jpg": "audit", "T9_n.jpg": "learn"}
    local.lay("week", {file: jpeg(300 + number) for number, file in enumerate(files)})
    tyres = {file: file.partition("_")[0] for file in files}
    local.queue("week", [(file, why, 0.5 if why == "audit" else np.nan) for file, why in files.items()], tyres)
    local.lay("later", {"T4_l.jpg": jpeg(400)})
    local.queue("later", [("T4_l.jpg", "learn", np.nan)], {"T4_l.jpg": "T4"})
    for tyre in ("T1", "T4", "T5", "T9"):
        local.say(tyre, "good")
    with pytest.raises(UserError, match=r"as a picture of tyre 'T4', and no group_pattern is given"):
        local.accept()
    with pytest.raises(UserError, match=r"as a picture of tyre 'T4', and group_pattern='\^\(T\)' tells 'T': give"):
        local.accept(group_pattern="^(T)")
    local.accept(group_pattern=pattern, **HOLDS)
    new = local.paths("v2") - local.paths("v1")
    assert new == {
        "train/good/week/T1_n.jpg", "train/good/week/T9_n.jpg", "val/good/week/T4_n.jpg",
        "test/good/week/T5_n.jpg", "test/good/week/T5_m.jpg",
    }  # fmt: skip
    assert local.left() == {"T4": HELD_OUT}


def test_several_defects_are_several_folders_where_the_lake_has_them(local: Plant) -> None:
    local.lake({"train": 3, "test": 2})
    local.lay("week", {"a.jpg": jpeg(50), "b.jpg": jpeg(51)})
    local.queue("week", [("a.jpg", "learn", np.nan), ("b.jpg", "learn", np.nan)])
    local.queue("v1", [("train/good/train_good_0.jpg", "learn", np.nan)])
    local.say("week/a.jpg", ["crack", "cut"])
    local.say("week/b.jpg", "cut")
    local.say("v1/train/good/train_good_0.jpg", ["crack", "cut"])
    local.accept("single")
    assert [*local.left().values()] == [SEVERAL] * 2 and "train/cut/week/b.jpg" in local.paths("single")
    found = local.accept(multi_label=True)
    both = {f"train/{label}/{rest}" for label in ("crack", "cut") for rest in ("week/a.jpg", "train_good_0.jpg")}
    assert local.paths("v2") - local.paths("v1") == both | {"train/cut/week/b.jpg"}
    assert "train/good/train_good_0.jpg" not in local.paths("v2")
    assert str(found.provenance) == "2 new, 1 corrected since v1"
    data = local.open("v2", "data.multi_label=true", "data.val_fraction=0.1")
    assert data.train.several() + data.val.several() == 2
    local.said.clear()
    local.say("v1/train/good/train_good_0.jpg", "crack")
    local.accept("v3", "v2", multi_label=True)
    assert local.paths("v2") - local.paths("v3") == {"train/cut/train_good_0.jpg"}


def test_a_new_class_is_learnt_before_it_is_held_out(local: Plant) -> None:
    local.lake({"train": 4, "val": 2, "test": 2})
    local.lay("week", {f"{name}.jpg": jpeg(60 + number) for number, name in enumerate("abc")})
    local.queue("week", [(f"{name}.jpg", "audit", 0.5) for name in "abc"])
    local.queue("v1", [("test/good/test_good_0.jpg", "review", 0.5)])
    local.say("v1/test/good/test_good_0.jpg", "cut")
    _, said = local.tell("v2a", **HOLDS)
    assert local.left() == {"v1/test/good/test_good_0.jpg": ONLY_HELD_OUT} and "NEW CLASS" not in said
    local.say("week/a.jpg", "cut")
    local.say("week/b.jpg", "good")
    _, said = local.tell("v2b", **HOLDS)
    assert "NEW CLASS 'cut', which no version before had" in said
    assert local.paths("v2b") - local.paths("v1") == {
        "train/cut/week/a.jpg", "test/good/week/b.jpg", "test/cut/test_good_0.jpg",
    }  # fmt: skip
    assert local.provenance("v2b").selected() == {"train/cut/week/a.jpg"}
    assert local.open("v2b").classes == ("crack", "cut", "good")


def test_what_has_changed_gone_or_other_answers_stays_out(local: Plant) -> None:
    local.lake({"train": 4})
    local.lay("week", {"a.jpg": jpeg(60), "same.jpg": jpeg(60), "c.jpg": jpeg(61)})
    local.queue("week", [(f"{name}.jpg", "learn", np.nan) for name in ("a", "same", "c", "gone")])
    local.say("week/a.jpg", "good")
    local.say("week/same.jpg", "crack")
    local.say("week/c.jpg", "crack", keys=["week/c.jpg"], tags=["what it was"])
    local.say("week/gone.jpg", "crack")
    local.accept()
    reasons = {"a.jpg": CONTRADICTED, "same.jpg": CONTRADICTED, "c.jpg": CHANGED, "gone.jpg": GONE}
    assert local.left() == {f"week/{file}": reason for file, reason in reasons.items()}
    assert local.paths("v2") == local.paths("v1")


def test_what_cannot_be_done_is_refused_before_anything_is_written(local: Plant) -> None:
    local.lake({"train": 2, "test": 1})
    local.queue("v1", [(f"train/crack/train_crack_{one}.jpg", "learn", np.nan) for one in range(2)])
    local.say("v1/train/crack/train_crack_0.jpg", "good")
    for to in ("v1", "v1/v2", ""):
        with pytest.raises(UserError, match="must be another place than from="):
            local.accept(to)
    local.lay("taken", {"train/good/other.jpg": b"x"})
    with pytest.raises(UserError, match=r"holds 1 objects that .* would not have, such as 'train/good/other\.jpg'"):
        local.accept("taken")
    local.say("v1/train/crack/train_crack_1.jpg", "good")
    with pytest.raises(UserError, match="class 'crack' has pictures in test and none in train"):
        local.accept()
    local.lay("odd", {"train/a/1.jpg": b"1", "train/b/2.jpg": b"2"})
    with pytest.raises(UserError, match=r"which class .* is not known: give good_class"):
        local.accept(source="odd")
    assert not Path(local.root("v2")).exists() and [*Path(local.root("taken")).rglob("*.parquet")] == []


def test_a_bucket_that_is_not_there(bucket: Plant) -> None:
    bucket.lake({"train": 2})
    bucket.queue("v1", [("train/good/train_good_0.jpg", "learn", np.nan)])
    bucket.say("v1/train/good/train_good_0.jpg", "crack")
    with pytest.raises(UserError, match=r"'s3://nowhere/v2/.*there is no such bucket"):
        bucket.accept("s3://nowhere/v2")


def gate(place: Path, *more: str) -> Outcome:
    lenient = ["gate.margin=0.9", "gate.max_escape_rate=0.999", "gate.max_overkill_rate=0.999", "gate.min_f1=0.001"]
    given = [f"tracking_uri=sqlite:///{place}/mlflow.db", *lenient, *more]
    register_schemas()
    with initialize_config_dir(str(config_folder("promote")), version_base="1.3"), contextlib.chdir(place):
        return promote(hydra_compose("promote", overrides=given))


@pytest.mark.long
def test_a_model_that_knows_a_new_class_is_compared_with_one_that_does_not(
    local: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From one version, over answers, to the next, to a training on it, to the gate."""
    write_lake(tmp_path / "drawn", {"train": 8, "test": 5}, size=64, clear=True)
    root, week = Path(local.root("v1")), Path(local.root("week"))
    for usage in ("train", "test"):
        shutil.copytree(tmp_path / "drawn" / usage / "flat_spot", week, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "drawn", root, ignore=shutil.ignore_patterns("flat_spot"))
    place, promise = tmp_path / "run", ("operating_point.max_escape_rate=0.4", "operating_point.confidence=0.6")
    learn = (*promise, "data.image_size=48", "data.batch_size=8", "logger.system_metrics=false")
    train_here(place, f"data.root={root}", *learn)
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    client.set_registered_model_alias("tyre-defects", "champion", "1")
    assert "labels" not in capsys.readouterr().out

    files = sorted(path.name for path in week.iterdir())
    local.queue("week", [(file, "review", 1.0) for file in files])
    for file in files:
        local.say(f"week/{file}", "flat_spot")
    local.accept(test=0.4)
    shown = sum(path.startswith("test/flat_spot/") for path in local.paths("v2"))
    assert 0 < shown < len(files) == 13
    train_here(place, f"data.root={local.root('v2')}", *learn)
    assert "labels   13 new, 0 corrected since v1" in capsys.readouterr().out
    version = client.get_model_version("tyre-defects", "2")
    run = client.get_run(str(version.run_id))
    assert "13 new, 0 corrected since v1" in run.data.tags["mlflow.note.content"]
    page = Path(client.download_artifacts(str(version.run_id), "report.html", str(tmp_path)))
    assert "13 new, 0 corrected since v1" in page.read_text(encoding="utf-8")

    found = gate(place)
    assert (found.champion, found.challenger) == ("1", "2") and [*found.new_classes] == ["flat_spot"]
    (ours, total), (theirs, same) = (found.new_classes["flat_spot"][who] for who in ("challenger", "champion"))
    left = 15 + shown - found.images  # those that look like a training picture
    assert shown - left <= total == same <= shown and total > 0
    assert theirs <= round(found.numbers["champion"]["escape_rate"] * (found.images - 5))
    told = f"challenger lets {ours} of {total} escape, champion lets {theirs} of {total} escape"
    assert f"'flat_spot', a class that not all of them know: {told}" in found.lines("tyre-defects", dry_run=False)
    tags = client.get_model_version("tyre-defects", "2").tags
    assert tags["promotion.new_class.flat_spot.champion"] == f"{theirs} of {total} escape"
