"""The page on which people answer: nothing that was confirmed is lost, no stranger gets in, nobody is led."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import torch
import uvicorn
from omegaconf import OmegaConf
from PIL import Image

from tests import warm
from tests.browser import asked, browser_tests, chromium, resize
from tests.conftest import subprocess_environment
from tests.images import encode, picture
from tests.test_examples import reference_of
from tests.test_select import choose, rows, write
from tyre_lightning.config import DataConfig, ReviewConfig, S3Config, Tool, to_review_config
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.agreement import agreement, kappa
from tyre_lightning.demo.server import S3Server
from tyre_lightning.errors import UserError
from tyre_lightning.lake.store import FolderStore
from tyre_lightning.line.answers import CANNOT_TELL, DEFECTIVE, GOOD, NO_TYRE, latest, open_sink, read_answers
from tyre_lightning.line.desk import LEASE_SECONDS, Desk, Refused, Seat
from tyre_lightning.line.queue import Queue, Stratum
from tyre_lightning.line.review import TOKEN, prepare, review
from tyre_lightning.line.server import LARGEST_BODY
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.examples import Example, Examples
from tyre_lightning.model.inspector import Inspector

EVIL = "<img src=x onerror=alert(1)>"
CLASSES = ("bulge", "crack", "good")
SECRET = "a-token-that-nobody-guesses"


def write_queue(folder: Path, tyres: Mapping[str, Sequence[str]], root: str | None = None, **options: Any) -> str:
    """A queue of tyres with the keys of their pictures, below ``folder``/week; gives its path."""
    looks = np.random.default_rng(1).dirichlet([1, 1, 3], sum(map(len, tyres.values()))).tolist()
    pictures = pd.DataFrame([{"tyre": name, "key": key} for name, keys in tyres.items() for key in keys])
    drawn = {"why": "audit", "stratum": "s", "probability": 0.1, "decision": "accept", "class": "good", "novelty": 0.5}
    classes = options.pop("classes", CLASSES)
    table = pictures.assign(**drawn, **{f"p_{name}": [row[at] for row in looks] for at, name in enumerate(classes)})
    strata = {"s": Stratum("audit", 10 * len(tyres), len(tyres))}
    about = "predictions.parquet", "2026-11-26T00:00:00+00:00", 0, "good", 0.05
    Queue(table, None, root or str(folder / "week"), *about, strata, **options).write(path := str(folder / "q.parquet"))
    return path


@pytest.fixture
def plant(tmp_path: Path) -> str:
    """A queue of eight tyres, of which the first has three pictures."""
    tyres = {f"T{number}": [f"week/{number}_{view}.jpg" for view in range(1 if number else 3)] for number in range(8)}
    for seed, key in enumerate(key for keys in tyres.values() for key in keys):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(encode(picture(seed), "JPEG"))
    return write_queue(tmp_path, tyres)


@dataclass
class Page:
    """A server, as a browser talks to it."""

    address: str
    desk: Desk
    cookies: dict[str, Any] = field(default_factory=dict)

    def get(self, path: str, **headers: str) -> requests.Response:
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(self.address + path, headers=shown, cookies=self.cookies, timeout=30)

    def post(self, path: str, body: Any, **headers: str | None) -> requests.Response:
        given = {"Origin": self.address, "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
        data = body if isinstance(body, bytes | str) or hasattr(body, "__next__") else json.dumps(body)
        shown = {name: value for name, value in given.items() if value is not None}
        return requests.post(self.address + path, data=data, headers=shown, cookies=self.cookies, timeout=30)

    def ask(self, path: str, who: str = "ann", **more: Any) -> Any:
        answer = self.post(path, {"who": who, "screen": "1", **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def names(self, who: str = "ann", **more: Any) -> list[str]:
        return [one["name"] for one in self.ask("/next", who, **more)["tyres"]]


@contextmanager
def serving(queue: str, answers: str | Path, **options: Any) -> Iterator[Page]:
    """The real application and server, in a thread of this process."""
    config = ReviewConfig(queue=queue, answers=str(answers), tracking_uri="sqlite:////dev/null/none.db", **options)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    desk, _, app = prepare(config, Queue.read(queue), port)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Page(f"http://127.0.0.1:{port}", desk)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_an_answer_is_on_the_disk_before_the_next_tyre_is_told(plant: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers") as page:
        first, second, _ = page.ask("/next")["tyres"]
        assert (first["name"], len(first["keys"]), second["name"]) == ("T0", 3, "T1")
        tags = [page.get(f"/picture/0/{place}").headers["ETag"].strip('"') for place in range(2)]
        store = FolderStore(str(tmp_path / "week"))
        assert tags == [store.get(key).etag for key in first["keys"][:2]]
        state = page.ask("/answer", tyre=0, answer="crack", shows=[2, 0], tags=[*tags, None])
        (line,) = lines(tmp_path / "answers")
        assert line.pop("time") > "2026"
        assert line == {
            "format": 1, "who": "ann", "tyre": "T0", "keys": first["keys"], "tags": [*tags, None], "answer": "crack",
            "queue": plant, "shows": [first["keys"][0], first["keys"][2]],
        }  # fmt: skip
        assert [one["name"] for one in state["tyres"]] == ["T1", "T2", "T3"]
        assert {name: state["progress"][name] for name in ("total", "done", "mine")} == {
            "total": 8, "done": 1, "mine": 1,
        }  # fmt: skip
        page.ask("/answer", tyre=1, answer=NO_TYRE)
        page.ask("/answer", tyre=2, answer="good", tags=["never shown"])
        assert lines(tmp_path / "answers")[2]["tags"] == [None] and "shows" not in lines(tmp_path / "answers")[2]
    assert read_answers(str(tmp_path / "answers"), "good") == {"T0": DEFECTIVE, "T1": "neither", "T2": GOOD}


def test_a_review_goes_on_where_it_stopped_and_takes_back_what_was_said_before(plant: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers") as page:
        for tyre, said in enumerate(("good", "crack", CANNOT_TELL)):
            page.ask("/answer", tyre=tyre, answer=said)
    with serving(plant, tmp_path / "answers") as page:
        assert page.names() == ["T3", "T4", "T5"]
        page.ask("/answer", tyre=3, answer="good")
        assert page.ask("/undo")["undone"] == 3  # of this start, then of the one before
        state = page.ask("/undo")
        assert state["undone"] == 2 and state["tyres"][0]["name"] == "T2" and state["progress"]["mine"] == 2
        page.ask("/answer", tyre=2, answer="bulge")
        assert page.post("/undo", {"who": "bob"}).json()["undone"] is None
    with serving(plant, tmp_path / "answers") as page:
        assert page.names()[0] == "T3"
    assert {one.tyre: one.answer for one in latest(str(tmp_path / "answers"))} == {
        "T0": "good", "T1": "crack", "T2": "bulge",
    }  # fmt: skip


def test_what_is_skipped_comes_again_at_the_end(plant: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers") as page:
        page.names()
        assert page.names(skip=0)[0] == "T1"
        for tyre in range(1, 8):
            last = page.ask("/answer", tyre=tyre, answer="good")
        assert [one["name"] for one in last["tyres"]] == ["T0"]


def answer_everything(page: Page, who: str, found: list[tuple[str, str]]) -> None:
    held = page.ask("/next", who)["tyres"]
    while held:
        found.append((held[0]["name"], who))
        held = page.ask("/answer", who, tyre=held[0]["index"], answer="good")["tyres"]


def test_no_tyre_goes_to_two_at_once_but_for_the_share_that_is_to(tmp_path: Path) -> None:
    tyres = {f"T{number}": [f"week/{number}.jpg"] for number in range(120)}
    (tmp_path / "week").mkdir()
    queue = write_queue(tmp_path, tyres)
    shared = []
    for run in ("first", "second"):
        found: list[tuple[str, str]] = []
        with serving(queue, tmp_path / run, overlap=0.2) as page:
            people = [threading.Thread(target=answer_everything, args=(page, who, found)) for who in ("a", "b", "c")]
            for one in people:
                one.start()
            for one in people:
                one.join()
            assert page.desk.progress().done == 120
        counts = Counter(name for name, _ in found)
        assert len(found) == len({*found}) and {*counts.values()} == {1, 2}
        shared.append({name for name, count in counts.items() if count == 2})
    assert shared[0] == shared[1] and 12 <= len(shared[0]) <= 36


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_tyres_of_someone_who_has_left_go_to_others(plant: str, tmp_path: Path) -> None:
    clock, (ann, bob) = Clock(), (Seat("ann", "1"), Seat("bob", "1"))
    desk = Desk(Queue.read(plant), plant, open_sink(str(tmp_path / "said"), S3Config()), [], clock=clock)
    assert (desk.next(ann), desk.next(bob)) == ([0, 1, 2], [3, 4, 5])
    clock.now = LEASE_SECONDS - 1
    assert desk.next(bob) == [3, 4, 5]
    with pytest.raises(Refused, match="someone else has taken T1"):
        desk.answer(bob, 1, "good", (), ())
    clock.now = LEASE_SECONDS + 1
    desk.answer(bob, 3, "good", (), ())
    assert desk.next(bob) == [4, 5, 0]
    with pytest.raises(Refused, match="someone else has taken T0, because nothing was heard of you for long"):
        desk.answer(ann, 0, "crack", (), ())
    assert desk.next(ann) == [1, 2, 6]
    assert [one.who for one in latest(str(tmp_path / "said"))] == ["bob"]


def test_one_name_at_two_screens_is_given_different_tyres(plant: str, tmp_path: Path) -> None:
    desk = Desk(Queue.read(plant), plant, open_sink(str(tmp_path / "said"), S3Config()), [], overlap=1)
    here, there = desk.next(Seat("ann", "1")), desk.next(Seat("ann", "2"))
    assert not {*here} & {*there} and len(there) == 3
    assert desk.next(Seat("bob", "1")) == here


def test_several_defects_are_said_where_the_model_tells_several(plant: str, tmp_path: Path) -> None:
    table = [{**row, "defects": ["crack"] if row["class"] == "crack" else []} for row in rows(200)]
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text("".join(json.dumps(row) + "\n" for row in table))
    assert choose(str(predictions), tmp_path / "several.parquet", budget=30).multi_label
    assert not choose(write(tmp_path / "one.parquet", rows(200)), tmp_path / "one_q.parquet", budget=30).multi_label
    with serving(plant, tmp_path / "answers") as page:
        assert page.post("/answer", {"who": "ann", "tyre": 0, "answer": ["crack"]}).status_code == 409
    keys = {"T0": ["week/0_0.jpg", "week/0_1.jpg"]}
    with serving(write_queue(tmp_path, keys, multi_label=True), tmp_path / "answers") as page:
        for wrong in (["crack", "good"], [], ["crack", "crack"], ["Crack", "bulge"]):
            assert page.post("/answer", {"who": "ann", "tyre": 0, "answer": wrong}).status_code == 409
        page.ask("/answer", tyre=0, answer=["bulge", "crack"], shows=[1])
    (line,) = lines(tmp_path / "answers")
    assert (line["answer"], line["shows"]) == (["bulge", "crack"], ["week/0_1.jpg"])


def test_agreement_is_cohen_s_kappa() -> None:
    assert kappa({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}) == pytest.approx(0.4)
    assert np.isnan(kappa({})) and np.isnan(kappa({("good", "good"): 9}))
    ann = dict(zip("abcdef", ("good", "crack", "good", "crack", "good", "crack"), strict=True))
    bob = {**ann, "a": "crack"}
    both = agreement({"ann": ann, "bob": bob})
    assert both.shared == 6 and both.kappa == pytest.approx((5 / 6 - 0.5) / 0.5)
    zoe = {"a": "good", "b": "crack"}
    three = agreement({"ann": ann, "bob": bob, "zoe": zoe})  # bob and zoe: one of two agree, which chance would too
    assert three.shared == 10 and three.kappa == pytest.approx((6 * both.kappa + 2 * 1 + 2 * 0) / 10)


def test_the_agreement_of_two_persons_is_told(plant: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers", overlap=1) as page:
        assert page.ask("/next")["progress"]["agreement"] is None
        for who, last in (("ann", "crack"), ("bob", "good")):
            for tyre, said in enumerate(("good", "crack", "good", last)):
                state = page.ask("/answer", who, tyre=tyre, answer=said)
        assert state["progress"]["agreement"] == {"kappa": pytest.approx(0.5), "shared": 4}
        assert state["progress"]["done"] == 4


# ---- what lasts


@contextmanager
def started(
    queue: str, folder: Path, environment: Mapping[str, str], log: Path, *more: str
) -> Iterator[tuple[warm.Process, str, str]]:
    """The command in a process of its own that writes to a file, the address that it tells, and what it said before."""
    command = ["-m", "tyre_lightning.review", f"queue={queue}", "port=0", *more]
    with warm.running(command, folder, environment, log, log) as process:
        while not (found := re.search(r"^open (\S+).*\n", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield process, found[1], log.read_text()[: found.start()]


@pytest.mark.long
def test_a_kill_loses_nothing_that_was_confirmed(
    s3_server: S3Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    logs = tmp_path_factory.mktemp("logs")
    (tmp_path / "week").mkdir()
    queue = write_queue(tmp_path, {f"T{number}": [f"week/{number}.jpg"] for number in range(3000)})
    environment = {**subprocess_environment(s3_server), TOKEN: SECRET}
    with started(queue, tmp_path, environment, logs / "first", "host=0.0.0.0") as (process, address, said):
        assert "3000 tyres, 0 of them answered; answers go to answers" in said and SECRET not in said
        assert re.fullmatch(rf"http://[^/]+:\d+/\?token={SECRET}", address)
        page = Page(f"http://127.0.0.1:{address.rpartition(':')[2].partition('/')[0]}", None)  # type: ignore[arg-type]
        page.cookies = page.get(f"/?token={SECRET}").cookies.get_dict()
        confirmed: list[tuple[str, str]] = []

        def answer_on(who: str) -> None:
            held = page.ask("/next", who)["tyres"]
            while True:
                given = {"who": who, "screen": "1", "tyre": held[0]["index"], "answer": "crack"}
                try:
                    answer = page.post("/answer", given)
                except requests.RequestException:
                    return
                confirmed.append((held[0]["name"], who))
                held = answer.json()["tyres"]

        people = [threading.Thread(target=answer_on, args=(who,)) for who in ("ann", "bob")]
        for one in people:
            one.start()
        while len(confirmed) < 60:
            time.sleep(0.005)
        process.kill()
        for one in people:
            one.join()
    kept = {(one.tyre, one.who) for one in latest(str(tmp_path / "answers"))}
    assert {*confirmed} <= kept and len(kept) <= len(confirmed) + 2
    with started(queue, tmp_path, environment, logs / "second", "host=0.0.0.0") as (process, _, said):
        assert f"{len(kept)} of them answered" in said
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    rest = (logs / "second").read_text().splitlines()[-1]
    assert rest == f"{3000 - len(kept)} of 3000 tyres are left; to go on, give the same command again"
    assert not any(SECRET in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())


def test_half_a_line_does_no_harm_and_a_wrong_one_is_named(plant: str, tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "answers"
    with serving(plant, folder) as page:
        for tyre in range(2):
            page.ask("/answer", tyre=tyre, answer="crack", who="Zoë")
    (file,) = folder.glob("*.jsonl")
    data = file.read_bytes()
    for cut in (data.rindex("ë".encode()) + 1, len(data) - 1 - len('"}'), len(data) - 20):
        for rest in (b"", b"\0" * 40):  # as a file system leaves what it had no time to write
            file.write_bytes(data[:cut] + rest)
            assert [one.tyre for one in latest(str(folder))] == ["T0"]
    assert "its last line was broken off, as by a power cut, and is left out" in caplog.text
    with serving(plant, folder) as page:  # another file goes on
        assert page.names()[0] == "T1"
        page.ask("/answer", tyre=1, answer="good")
    assert {one.tyre: one.answer for one in latest(str(folder))} == {"T0": "crack", "T1": "good"}
    file.write_bytes(data[:-1])
    assert len(latest(str(folder))) == 3  # of Zoë and ann: a whole line counts without its end
    for wrong in (data[:40] + b"\n" + data, data + b'{"tyre": "T2"}', data + b"[]\n"):
        file.write_bytes(wrong)
        with pytest.raises(UserError, match=r"\.jsonl, line [13]: it is no answer, which has tyre, who"):
            latest(str(folder))


def test_a_full_disk_is_told_and_the_tyre_stays(plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, full = os.fsync, [True]

    def fsync(number: int) -> None:
        if full:
            os.ftruncate(number, os.fstat(number).st_size - 30)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    with serving(plant, tmp_path / "answers") as page:
        monkeypatch.setattr(os, "fsync", fsync)
        answer = page.post("/answer", {"who": "ann", "screen": "1", "tyre": 0, "answer": "good"})
        assert answer.status_code == 503 and "No space left on device" in answer.json()["detail"]
        assert page.names()[0] == "T0"
        full.clear()
        page.ask("/answer", tyre=0, answer="crack")
    assert [one.answer for one in latest(str(tmp_path / "answers"))] == ["crack"]


def test_a_later_answer_counts_though_the_clock_was_set_back(plant: str, tmp_path: Path) -> None:
    line = {"tyre": "T0", "who": "ann", "time": "2099-01-01T00:00:00Z", "answer": "good"}
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "z.jsonl").write_text(json.dumps(line) + "\n")
    with serving(plant, tmp_path / "answers") as page:
        assert page.ask("/undo")["undone"] == 0
        page.ask("/answer", tyre=0, answer="crack")
    assert [one.answer for one in latest(str(tmp_path / "answers"))] == ["crack"]


def test_answers_on_s3_are_confirmed_read_again_and_never_lost(plant: str, bucket: Path) -> None:
    place = f"s3://{bucket.name}/line/answers"
    with serving(plant, place) as page:
        page.ask("/answer", tyre=0, answer="crack", shows=[1])
        page.ask("/answer", tyre=1, answer="good")
        assert page.ask("/undo")["undone"] == 1
        page.ask("/answer", tyre=1, answer="bulge")
        assert len([*(bucket / "line" / "answers").iterdir()]) == 4
    assert {one.tyre: one.answer for one in latest(place)} == {"T0": "crack", "T1": "bulge"}
    assert read_answers(place, "good", S3Config()) == {"T0": DEFECTIVE, "T1": DEFECTIVE}
    with serving(plant, place) as page:
        assert page.names()[0] == "T2"
        shutil.rmtree(bucket)
        answer = page.post("/answer", {"who": "ann", "screen": "1", "tyre": 2, "answer": "good"})
        assert answer.status_code == 503 and "cannot write 's3://" in answer.json()["detail"]
        assert page.names()[0] == "T2"


# ---- attacks


@contextmanager
def guarded(plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A server that listens to all of a network."""
    monkeypatch.setenv(TOKEN, SECRET)
    with serving(plant, tmp_path / "answers", host="0.0.0.0", name="review.plant") as page:
        yield page


def port_of(page: Page) -> str:
    return page.address.rpartition(":")[2]


def test_attack_a_name_that_was_made_to_lead_here(plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: to the browser the attacker's page and this server are one origin."""
    with serving(plant, tmp_path / "answers") as page:
        for host in ("evil.example", "evil.example:80", f"127.0.0.1.evil.example:{port_of(page)}", "10.0.0.7", "", "["):
            for found in (
                page.get("/", Host=host),
                page.get("/picture/0/0", Host=host),
                page.post("/next", {"who": "eve"}, Host=host, Origin=f"http://{host}"),
            ):
                assert found.status_code in (400, 421), host
        for host in (f"localhost:{port_of(page)}", f"[::1]:{port_of(page)}", "LOCALHOST"):
            assert page.get("/", Host=host).status_code == 200
    with guarded(plant, tmp_path, monkeypatch) as page:
        assert page.get(f"/?token={SECRET}", Host="evil.example").status_code == 421
        for host in ("review.plant", "10.0.0.7:8090", f"{socket.gethostname()}:8090"):
            assert page.get(f"/?token={SECRET}", Host=host).status_code == 200


def test_attack_another_page_sends_an_answer(plant: str, tmp_path: Path) -> None:
    body = {"who": "eve", "tyre": 0, "answer": "good"}
    with serving(plant, tmp_path / "answers") as page:
        own = page.address
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": f"http://127.0.0.1:{int(port_of(page)) + 1}"},
            {"Origin": f"{own}.evil.example"},
            {"Origin": f"http://evil.example@127.0.0.1:{port_of(page)}"},
            {"Origin": None},
            {"Origin": own, "Sec_Fetch_Site": "cross-site"},
            {"Origin": own, "Sec_Fetch_Site": "same-site"},
            {"Origin": None, "Sec_Fetch_Site": "none"},
        ):
            for path in ("/answer", "/undo", "/next"):
                assert page.post(path, body, **headers).status_code == 403, headers
        assert page.post("/answer", body, Content_Type="text/plain").status_code == 415  # what a form can send
        assert page.post("/answer", body, Content_Type=None).status_code == 415
        assert page.post("/answer", body, Sec_Fetch_Site="same-origin").status_code == 200
    assert [line["who"] for line in lines(tmp_path / "answers")] == ["eve"]


def test_attack_another_page_shows_the_pictures(plant: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers") as page:
        for site in ("cross-site", "same-site"):
            for path in ("/picture/0/0", "/overlay/0/0", "/nearest/0/0"):
                assert page.get(path, Sec_Fetch_Site=site).status_code == 403
        assert page.get("/", Sec_Fetch_Site="cross-site").status_code == 200  # a link to the page
        assert page.get("/picture/0/0", Sec_Fetch_Site="same-origin").status_code == 200


def test_attack_without_the_token(plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(plant, tmp_path, monkeypatch) as page:
        cookie = f"tyre-review-{port_of(page)}"
        for wrong in ("", "?token=", "?token=guess", f"?token={SECRET[:-1]}", f"?Token={SECRET}", "?token=%00%ff"):
            found = page.get(f"/{wrong}")
            assert found.status_code == 401 and "Set-Cookie" not in found.headers and "script" not in found.text
        for name, value in ((cookie, SECRET), (cookie, ""), ("token", SECRET), (cookie, "é")):
            found = page.get("/picture/0/0", Cookie=f"{name}={value}".encode())  # type: ignore[arg-type]
            assert found.status_code == 401
        assert page.get(f"/picture/0/0?token={SECRET}").status_code == 401  # it opens the page only
        assert page.post("/next", {"who": "eve"}).status_code == 401


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_never_see(
    plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with guarded(plant, tmp_path, monkeypatch) as page:
        found = page.get(f"/?token={SECRET}")
        said = found.headers["Set-Cookie"].lower()
        assert "httponly" in said and "samesite=strict" in said and SECRET not in said and SECRET not in found.text
        page.cookies = found.cookies.get_dict()
        assert page.get("/").status_code == page.get("/picture/0/0").status_code == 200
        page.ask("/answer", tyre=0, answer="good")
    own = [record for record in caplog.records if not record.name.startswith(("urllib3", "requests"))]
    assert SECRET not in "".join(record.getMessage() for record in own)
    assert SECRET not in json.dumps(lines(tmp_path / "answers"))


def test_a_token_is_made_at_each_start_where_others_can_ask(plant: str, tmp_path: Path) -> None:
    def token(**options: Any) -> str | None:
        config = ReviewConfig(queue=plant, answers=str(tmp_path / "answers"), **options)
        return prepare(config, Queue.read(plant), 1)[1].token

    made = [token(host="0.0.0.0"), token(host="0.0.0.0"), token(host="::")]
    assert len({*made}) == 3 and all(one and len(one) >= 40 for one in made)
    assert token() is token(host="localhost") is token(host="::1") is None


ELSEWHERE = (
    *("/picture/0/../../../../etc/passwd", "/picture/0/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/picture/..%2f../0"),
    *("/picture/%2Fetc%2Fpasswd/0", "/picture/0/3", "/picture/-1/0", "/picture/0/-1", "/picture/8/0"),
    *("/picture/week/0_0.jpg", "/picture/0/0/../../../q.parquet", "/picture/1e0/0", "/picture/0/0%00"),
    *("/picture/99999999999999999999999/0", "/overlay/8/0", "/nearest/0/3", "/static/../q.parquet"),
    *("/docs", "/openapi.json", "/redoc", "/favicon.ico", "//etc/passwd", "http://evil.example/"),
)


def test_attack_for_files_that_are_not_in_the_queue(plant: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers") as page:
        for path in ELSEWHERE:
            with socket.create_connection(("127.0.0.1", int(port_of(page)))) as line:  # a client would tidy up the path
                line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda line=line: line.recv(65536), b""))  # type: ignore[misc]
            assert re.match(rb"HTTP/1.1 4(04|22|00)", answer) and b"root:" not in answer and len(answer) < 2000, path


@pytest.mark.parametrize("key", ["week/../q.parquet", "../week/0_0.jpg", "/etc/passwd", "week/a/../../q.parquet"])
def test_attack_by_a_queue_that_names_files_elsewhere(key: str, plant: str, tmp_path: Path) -> None:
    queue = write_queue(tmp_path, {"T0": [key]})
    with pytest.raises(UserError, match="which is not below root="):
        prepare(ReviewConfig(queue=queue, answers=str(tmp_path / "answers")), Queue.read(queue), 1)


def test_attack_by_size_and_by_nonsense(plant: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers") as page:
        assert page.post("/next", b" " * (LARGEST_BODY + 1)).status_code == 413
        assert page.post("/next", iter([b'{"who": "eve"}'])).status_code == 411  # of a length that is not said
        assert page.post("/next", b"[" * LARGEST_BODY).status_code == 400
        for who in ("", " ", "x" * 61, "a\nb", "\0", "\u202eann", 3, None, ["ann"], {"ann": 1}):
            assert page.post("/next", {"who": who}).status_code == 422, who
        good = {"who": "ann", "tyre": 0, "answer": "good"}
        wrong: dict[str, Any]
        for wrong in ({"tyre": "0"}, {"tyre": 0.5}, {"tyre": True}, {"answer": 3}, {"answer": "x" * 1001},
                      {"time": "1"}, {"screen": "x" * 41}, {"shows": [[]]}, {"tags": [1]},
                      {"answer": None}):  # fmt: skip
            assert page.post("/answer", good | wrong).status_code == 422, wrong
        for wrong in ({"answer": "../x"}, {"answer": ""}, {"answer": "GOOD"}, {"answer": ["crack"]}, {"shows": [3]},
                      {"shows": [-1]}, {"shows": [0]}):  # fmt: skip
            assert page.post("/answer", good | wrong).status_code == 409, wrong
        for tyre in (8, -1, 10**30):
            assert page.post("/answer", good | {"tyre": tyre}).status_code in (404, 422)
        for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"):
            assert requests.request(method, f"{page.address}/", timeout=9).status_code == 405
        assert EVIL not in page.post("/answer", good | {"tyre": EVIL}).text  # nothing is echoed
    assert not (tmp_path / "answers").exists()


def test_every_answer_forbids_what_browsers_might_make_of_it(plant: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers") as page:
        found = [page.get("/"), page.get("/picture/0/0"), page.get("/none"), page.get("/", Host="evil.example"),
                 page.post("/next", {"who": "ann"}), page.post("/next", "")]  # fmt: skip
        policies = {answer.headers["Content-Security-Policy"].partition(";")[0] for answer in found}
        again = page.get("/").headers["Content-Security-Policy"]
    assert policies == {"default-src 'none'"}
    for answer in found:
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    policy = found[0].headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "*" not in policy and policy != again  # a nonce is used once
    assert "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy


def test_attack_by_names_that_look_like_html(tmp_path: Path) -> None:
    (tmp_path / "week").mkdir()
    classes = ("</script><script>alert(1)</script>", EVIL, "good")
    with serving(write_queue(tmp_path, {EVIL: ["week/a.jpg"]}, classes=classes), tmp_path / "answers") as page:
        html = page.get("/").text
        assert "alert(1)" in html and not re.search(r"<img src=x|<script>alert|alert\(1\)</script>", html)
        assert page.ask("/next", EVIL)["tyres"][0]["name"] == EVIL  # JSON, which nothing takes for HTML
        page.ask("/answer", EVIL, tyre=0, answer=EVIL)
    assert [one.who for one in latest(str(tmp_path / "answers"))] == [EVIL]


# ---- pictures


def test_pictures_are_sent_as_they_are_or_as_the_project_sees_them(tmp_path: Path) -> None:
    (tmp_path / "week").mkdir()
    deep = Image.fromarray(np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16))
    files = {
        "a.jpg": encode(picture(1), "JPEG"), "b.png": encode(picture(2)), "c.tif": encode(picture(3), "TIFF"),
        "d.png": encode(deep), "e.jpg": encode(picture(4), "JPEG")[:300], "f.jpg": b"no picture",
        "g.webp": encode(picture(5), "WEBP"),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / "week" / name).write_bytes(data)
    names = [*files, "gone.jpg"]
    with serving(write_queue(tmp_path, {name: [f"week/{name}"] for name in names}), tmp_path / "answers") as page:
        found = dict(zip(names, (page.get(f"/picture/{index}/0") for index in range(len(names))), strict=True))
        for name, kind in (("a.jpg", "jpeg"), ("b.png", "png"), ("g.webp", "webp")):
            assert (found[name].content, found[name].headers["Content-Type"]) == (files[name], f"image/{kind}")
        for name in ("c.tif", "d.png"):
            assert found[name].headers["Content-Type"] == "image/jpeg" and found[name].content[:3] == b"\xff\xd8\xff"
        for name, why in (
            ("e.jpg", "cannot decode"),
            ("f.jpg", "it is not an image file"),
            ("gone.jpg", "cannot read"),
        ):
            assert found[name].status_code == 503 and why in found[name].json()["detail"]
            page.ask("/answer", tyre=names.index(name), answer=CANNOT_TELL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One with random weights, and examples."""
    torch.manual_seed(1)
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=64))
    network = Network("efficientnet_lite0", 3, preprocessing.mean, preprocessing.std).eval()
    inspector = Inspector(network, "efficientnet_lite0", [*CLASSES], preprocessing, "good")
    thumbnails = [encode(picture(seed), "JPEG") for seed in range(4)]
    look = inspector.look([inspector.read(data, "") for data in thumbnails])
    inspector.reference = reference_of(look.features.shape[1])
    shown = [Example(f"v1/train/good/{seed}.jpg", "good", data) for seed, data in enumerate(thumbnails)]
    inspector.examples = Examples.of(shown, look.features, inspector.reference)
    inspector.save(folder := tmp_path_factory.mktemp("model"))
    return str(folder)


def test_the_model_s_looks_are_shown_once_it_is_there(plant: str, model: str, tmp_path: Path) -> None:
    with serving(plant, tmp_path / "answers", model=model) as page:
        for _ in range(600):
            if not (state := page.ask("/next"))["trouble"]:
                break
            assert state["trouble"] == "the model is loading"
            time.sleep(0.05)
        overlay = page.get("/overlay/0/1")
        assert overlay.headers["Content-Type"] == "image/jpeg"
        plain = Image.open(tmp_path / "week" / "0_1.jpg")
        drawn = Image.open(BytesIO(overlay.content))
        assert drawn.size == plain.size
        assert np.abs(np.asarray(drawn, float) - np.asarray(plain, float)).max() > 30
        near = page.get("/nearest/0/1").json()
        assert near[0]["key"] == "v1/train/good/1.jpg" and near[0]["picture"].startswith("data:image/jpeg;base64,")
        assert len(near) == 3


@pytest.mark.parametrize(
    ("given", "sentence"),
    [(None, "no model is known: give model="), ("none/of/these", "the model cannot be used: model=none/of/these is")],
)
def test_without_a_model_the_page_says_so_and_works(
    given: str | None, sentence: str, plant: str, tmp_path: Path
) -> None:
    with serving(plant, tmp_path / "answers", model=given) as page:
        while (said := page.ask("/next")["trouble"]) == "the model is loading":
            time.sleep(0.02)
        assert said.startswith(sentence)
        assert page.get("/overlay/0/0").json()["detail"] == said
        page.ask("/answer", tyre=0, answer="good")


# ---- other tools


def exchanged(config: ReviewConfig) -> None:
    review(OmegaConf.structured(config))


def studio(tasks: list[dict[str, Any]], said: Mapping[str, str], by: Any) -> list[dict[str, Any]]:
    """What Label Studio exports when a person has labelled some pictures."""
    for number, task in enumerate(tasks):
        choice = {"id": "x", "from_name": "answer", "to_name": "image", "type": "choices"}
        result = [choice | {"value": {"choices": [said[key]]}} for key in said if key == task["data"]["key"]]
        about = {"id": number, "completed_by": by, "was_cancelled": False, "updated_at": "2026-11-26T10:00:00.5Z"}
        task |= {"id": number, "annotations": [about | {"result": result}]}
    return tasks


def fiftyone(data: dict[str, Any], said: Mapping[str, str]) -> dict[str, Any]:
    """What FiftyOne writes of the same."""
    for sample in data["samples"]:
        if name := said.get(sample["key"]):
            sample["answer"] = {"_id": {"$oid": "6"}, "_cls": "Classification", "tags": [], "label": name}
            sample["last_modified_at"] = {"$date": "2026-11-26T10:00:00.500Z"}
    return data


LABELS = {"week/0_0.jpg": "good", "week/0_1.jpg": "crack", "week/0_2.jpg": "good", "week/1_0.jpg": "good",
          "week/2_0.jpg": NO_TYRE, "week/3_0.jpg": CANNOT_TELL}  # fmt: skip


@pytest.mark.parametrize("tool", Tool)
def test_what_another_tool_labelled_becomes_answers_once(
    tool: Tool, plant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, answers = tmp_path / "tasks.json", tmp_path / "answers"
    config = ReviewConfig(queue=plant, answers=str(answers), tool=tool)
    exchanged(ReviewConfig(queue=plant, export_to=str(tasks), tool=tool))
    assert "10 pictures of 8 tyres" in capsys.readouterr().out
    given = json.loads(tasks.read_text())
    config.import_from = str(tasks)
    if tool is Tool.fiftyone:
        assert {Path(sample["filepath"]).is_file() for sample in given["samples"]} == {True}
        content: Any = fiftyone(given, LABELS)
        with pytest.raises(UserError, match="FiftyOne does not say who labelled: give who="):
            exchanged(config)
        config.who = "ann@plant"
    else:
        assert '<Choice value="crack"/>' in (tmp_path / "tasks.xml").read_text()
        content = studio(given, LABELS, {"id": 3, "email": "ann@plant"})
    tasks.write_text(json.dumps(content))
    for new, known in ((4, 0), (0, 4)):
        exchanged(config)
        assert f"{new} answers are new, {known} were known, and 0 wait" in capsys.readouterr().out
    found = lines(answers)
    assert {(line["tyre"], line["answer"], line["who"]) for line in found} == {
        ("T0", "crack", "ann@plant"), ("T1", "good", "ann@plant"), ("T2", NO_TYRE, "ann@plant"),
        ("T3", CANNOT_TELL, "ann@plant"),
    }  # fmt: skip
    assert {line["time"] for line in found} == {"2026-11-26T10:00:00.500000Z"}
    assert [line["shows"] for line in found if "shows" in line] == [["week/0_1.jpg"]]
    with serving(plant, answers) as page:  # a second thought on the page outlives the file
        assert page.names()[0] == "T4"
        page.ask("/undo", "ann@plant")
        page.ask("/answer", "ann@plant", tyre=3, answer="good")
    exchanged(config)
    assert {one.tyre: one.answer for one in latest(str(answers))}["T3"] == "good"


def test_labels_of_some_pictures_wait_and_strange_ones_are_named(plant: str, tmp_path: Path, capsys: Any) -> None:
    tasks = tmp_path / "tasks.json"
    exchanged(ReviewConfig(queue=plant, export_to=str(tasks)))
    given = json.loads(tasks.read_text())
    config = ReviewConfig(queue=plant, answers=str(tmp_path / "answers"), import_from=str(tasks))
    tasks.write_text(json.dumps(studio(given, {"week/0_0.jpg": "good", "week/1_0.jpg": "crack"}, 7)))
    exchanged(config)
    assert "1 answers are new, 0 were known, and 1 wait for labels" in capsys.readouterr().out
    assert [one.who for one in latest(str(tmp_path / "answers"))] == ["Label Studio user 7"]
    foreign = [{**given[0], "data": {"tyre": "T99", "key": "week/99.jpg", "image": ""}}]
    for content, message in [
        (studio(given, {"week/1_0.jpg": "dent"}, 7), "has the label dent, and the queue knows good, bulge, crack"),
        (studio(foreign, {"week/99.jpg": "good"}, 7), "has the picture week/99.jpg, which is not in the queue"),
        ({"samples": []}, "is not what label_studio writes"),
        ([{"data": {}}], "is not what label_studio writes"),
    ]:
        tasks.write_text(json.dumps(content))
        with pytest.raises(UserError, match=re.escape(message)):
            exchanged(config)
    config.import_from = str(tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"gone\.json cannot be read: No such file"):
        exchanged(config)


# ---- mistakes


def test_mistakes_are_one_sentence(plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: Path) -> None:
    answers = str(tmp_path / "answers")
    rootless = Queue.read(plant)
    Queue(**{**vars(rootless), "root": None}).write(nowhere := str(tmp_path / "nowhere.parquet"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, message in [
            ({"queue": str(tmp_path / "gone.parquet")}, "is no queue that tyre select wrote"),
            ({"queue": plant, "root": str(tmp_path / "gone")}, "there is no folder"),
            ({"queue": plant, "root": f"s3://{bucket.name}-gone"}, "there is no such bucket"),
            ({"queue": plant, "root": str(tmp_path)}, "which is not below root="),
            ({"queue": plant, "answers": f"s3://{bucket.name}-gone/a"}, "there is no such bucket"),
            ({"queue": nowhere}, "does not say where its pictures lie: give root="),
            ({"queue": plant, "port": port}, f"cannot listen at 127.0.0.1, port {port}: Address already in use: give"),
            ({"queue": plant, "host": "no.such.host.invalid"}, "cannot listen at no.such.host.invalid, port"),
        ]:
            with pytest.raises(UserError, match=re.escape(message)):
                exchanged(ReviewConfig(**{"answers": answers, "port": 0, **options}))
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(UserError, match=f"{TOKEN} has fewer than 16 characters"):
        exchanged(ReviewConfig(queue=plant, answers=answers, port=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 1.5}, r"overlap=1\.5 must be from 0 to 1"),
        ({"port": 70000}, "port=70000 must be from 0 to 65535"),
        ({"export_to": "a", "import_from": "b"}, "export_to and import_from are two commands"),
        ({"export_to": "s3://b/t.json"}, "is an address, and must be a place on this machine"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_review_config(OmegaConf.structured(ReviewConfig(**options)))


# ---- the page in a browser


class Screen:
    """The page, as a person uses it."""

    def __init__(self, driver: Any, page: Page) -> None:
        self.driver, self.page = driver, page

    def text(self, name: str) -> str:
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).textContent", name))

    def press(self, keys: str) -> None:
        self.driver.find_element("tag name", "body").send_keys(keys)

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def until(self, name: str, text: str) -> None:
        for _ in range(200):
            if text in self.text(name):
                return
            time.sleep(0.02)
        raise AssertionError(f"{name} shows {self.text(name)!r}, not {text!r}")

    def until_loaded(self) -> None:
        script = "const p = document.getElementById('large'); return !p.hidden && p.complete && p.naturalWidth"
        while not self.driver.execute_script(script):
            time.sleep(0.02)

    def tap_twice(self, x: int, y: int) -> None:
        """A tenth of a second apart by the events' own clock, however busy this machine is."""
        now, tap = time.time(), {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind, after in (("Pressed", 0.0), ("Released", 0.02), ("Pressed", 0.1), ("Released", 0.12)):
            event = {"type": f"mouse{kind}", "timestamp": now + after, **tap}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def scale(self) -> float:
        style = self.driver.execute_script("return document.getElementById('large').style.transform")
        return float(re.search(r"scale\((.*)\)", style)[1])  # type: ignore[index]

    def said(self, folder: Path) -> dict[str, Any]:
        return {one.tyre: one.answer for one in latest(str(folder), needed=False)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@contextmanager
def looking(browser: Any, queue: str, answers: Path, **options: Any) -> Iterator[Screen]:
    """A new person's screen; afterwards nothing went wrong in it, and it has asked nobody else."""
    with serving(queue, answers, **options) as page:
        browser.get_log("browser"), browser.get_log("performance")
        resize(browser, 1280)
        browser.get(page.address)
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        browser.get(page.address)
        screen = Screen(browser, page)
        browser.find_element("id", "given").send_keys("Zoë\n")
        yield screen
        assert [
            entry for entry in browser.get_log("browser") if not re.search("status of (409|503)", entry["message"])
        ] == []
        assert all(url.startswith((page.address, "data:", f"blob:{page.address}")) for url in asked(browser))
        browser.get("about:blank")


class TestPage:
    pytestmark = browser_tests

    def test_answers_by_keys_an_undo_and_the_next(self, plant: str, tmp_path: Path, browser: Any) -> None:
        answers = tmp_path / "answers"
        with looking(browser, plant, answers) as screen:
            screen.until("name", "T0")
            assert screen.text("shares") == ""
            screen.press("p")
            assert "bulge" in screen.text("shares")
            screen.until_loaded()
            browser.find_elements("css selector", "#strip input")[1].click()
            screen.press("2")
            screen.until("name", "T1")
            assert screen.said(answers) == {"T0": "bulge"} and lines(answers)[0]["who"] == "Zoë"
            assert lines(answers)[0]["shows"] == ["week/0_0.jpg", "week/0_2.jpg"] and all(lines(answers)[0]["tags"])
            assert screen.text("note").startswith("T0: bulge. The model: ")
            screen.press("1")
            screen.until("name", "T2")
            screen.press("u")
            screen.until("name", "T1")
            assert screen.said(answers) == {"T0": "bulge"}
            screen.press("3")
            screen.until("name", "T2")
            screen.press("n")
            screen.until("name", "T3")
            screen.press("s")
            screen.until("name", "T4")
            screen.press("c")
            screen.until("name", "T5")
            screen.until("progress", "4 of 8 done, 4 by you, 4 waiting")
            browser.refresh()  # the name is remembered, and the work goes on
            screen.until("name", "T5")
            assert screen.said(answers) == {"T0": "bulge", "T1": "crack", "T2": NO_TYRE, "T4": CANNOT_TELL}
            for name in ("T6", "T7", "T3"):
                screen.click("#answers .good")
                screen.until("name", name)
            screen.click("#answers .good")
            screen.until("end", "All 8 tyres are answered")

    def test_the_picture_is_zoomed_and_what_cannot_be_read_says_why(
        self, plant: str, tmp_path: Path, browser: Any
    ) -> None:
        (tmp_path / "week" / "1_0.jpg").write_bytes(b"no picture")
        with looking(browser, plant, tmp_path / "answers") as screen:
            screen.until("name", "T0")
            screen.until_loaded()
            stage = browser.find_element("id", "stage")
            wheel = "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -500, clientX: 300, clientY: 300}))"
            browser.execute_script(wheel, stage)
            assert screen.scale() == pytest.approx(np.e)
            screen.tap_twice(300, 300)
            assert screen.scale() == 1
            screen.tap_twice(300, 300)
            assert screen.scale() == 3
            screen.press("---")
            for apart in (50, 100, 125):  # two fingers
                points = [{"x": 400 + side * apart, "y": 300, "id": side + 1} for side in (-1, 1)]
                kind = "touchStart" if apart == 50 else "touchMove"
                browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
            assert screen.scale() == pytest.approx(2.5, rel=0.1)
            before = browser.execute_script("return document.getElementById('large').src")
            screen.press("\ue014")  # arrow right
            for _ in range(100):
                if browser.execute_script("return document.getElementById('large').src") != before:
                    break
                time.sleep(0.02)
            assert (
                screen.scale() == 1 and browser.execute_script("return document.getElementById('large').src") != before
            )
            screen.press("1")
            screen.until(
                "fault", "This picture cannot be shown: cannot decode image 'week/1_0.jpg': it is not an image"
            )
            screen.press("1")
            screen.until("name", "T2")

    def test_several_defects_are_chosen_and_sent(self, plant: str, tmp_path: Path, browser: Any) -> None:
        queue = write_queue(tmp_path, {EVIL: ["week/0_0.jpg"], "T1": ["week/1_0.jpg"]}, multi_label=True)
        with looking(browser, queue, tmp_path / "answers") as screen:
            screen.until("name", EVIL)  # as text
            screen.press("\n")
            screen.until("note", "Choose what you see first")
            for key in "123":
                screen.press(key)
            pressed = (
                "return [...document.querySelectorAll('#answers [aria-pressed=true]')].map(one => one.textContent)"
            )
            assert browser.execute_script(pressed) == ["2bulge", "3crack"]  # a good tyre has no defect
            screen.press("\n")
            screen.until("name", "T1")
            assert screen.said(tmp_path / "answers") == {EVIL: ["bulge", "crack"]}
            assert browser.execute_script("return document.querySelectorAll('[onerror], img[src=x]').length") == 0

    def test_a_defect_that_no_button_has_gets_one(self, plant: str, tmp_path: Path, browser: Any) -> None:
        from selenium.webdriver import Keys

        answers = tmp_path / "answers"
        with looking(browser, plant, answers) as screen:
            screen.until("name", "T0")
            screen.press("x")
            browser.find_element("id", "called").send_keys(f"no answer{Keys.ESCAPE}")
            screen.press("x")
            browser.find_element("id", "called").send_keys(f" {EVIL}\n")
            screen.until("name", "T1")
            screen.press("x")
            browser.find_element("id", "called").send_keys("Good\n")
            screen.until("note", "that cannot be a class, since it is 'good' in other letters")
            while browser.find_element("class name", "panel").get_attribute("aria-busy") == "true":
                time.sleep(0.02)
            screen.press("4")
            screen.until("name", "T2")
            assert screen.said(answers) == {"T0": EVIL, "T1": EVIL}
            assert browser.execute_script("return document.querySelectorAll('[onerror], img[src=x]').length") == 0
            browser.refresh()  # and others have the button too
            screen.until("name", "T2")
            assert browser.find_elements("css selector", "#answers button")[3].text.endswith(EVIL)

    def test_every_screen_has_room_for_the_picture_and_for_thumbs(
        self, plant: str, tmp_path: Path, browser: Any
    ) -> None:
        with looking(browser, plant, tmp_path / "answers") as screen:
            screen.until("name", "T0")
            screen.until_loaded()
            for size in ((320, 640), (390, 844), (820, 1180), (1180, 820), (844, 390), (1280, 800)):
                resize(browser, *size)
                wide, width, height, smallest, lowest = browser.execute_script(
                    "const box = (one) => one.getBoundingClientRect();"
                    "const stage = box(document.getElementById('stage'));"
                    "const shown = [...document.querySelectorAll('button, label')].filter(one => box(one).width);"
                    "const answers = [...document.querySelectorAll('#answers button')].map(one => box(one).bottom);"
                    "return [document.documentElement.scrollWidth, stage.width, stage.height,"
                    " Math.min(...shown.map(one => Math.min(box(one).width, box(one).height))), Math.max(...answers)]"
                )
                assert wide <= size[0] and smallest >= 44 and lowest <= size[1], size
                assert width >= 0.5 * min(size[0], 560) and height >= 0.2 * size[1], size

    def test_the_model_s_looks_are_on_a_switch(self, plant: str, model: str, tmp_path: Path, browser: Any) -> None:
        with looking(browser, plant, tmp_path / "answers", model=model) as screen:
            screen.until("name", "T0")
            for _ in range(600):
                if screen.text("trouble") == "":
                    break
                time.sleep(0.02)
            screen.until_loaded()
            plain = browser.execute_script("return document.getElementById('large').src")
            assert screen.text("alike") == ""
            screen.press("ha")
            screen.until("alike", "good")
            for _ in range(200):
                if browser.execute_script("return document.getElementById('large').src") != plain:
                    break
                time.sleep(0.02)
            screen.until_loaded()
            assert "with what the model looked at" in browser.find_element("id", "large").get_attribute("alt")
            screen.press("h")
            assert browser.execute_script("return document.getElementById('large').src") == plain
