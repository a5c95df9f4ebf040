"""``tyre serve``: the same answers as MLflow's server, a bounded queue, and a new champion without a lost request."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
import torch
from mlflow.pyfunc.scoring_server import invocations

from tests import warm
from tests.images import encode, picture
from tests.mlflow_server import lay_database
from tests.test_serving import FORMS, JSON
from tyre_lightning.config import DataConfig, S3Config, ServeConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.errors import UserError
from tyre_lightning.line.listening import Server, listen
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.inspector import Inspector, nothing_seen
from tyre_lightning.model.weights import load_weights
from tyre_lightning.serving import app as app_module
from tyre_lightning.serving import models as models_module
from tyre_lightning.serving import serve as serve_module
from tyre_lightning.serving.app import App, Limits
from tyre_lightning.serving.forms import read_parts
from tyre_lightning.serving.models import Models
from tyre_lightning.serving.serve import TOKEN, check_token, limits, options
from tyre_lightning.tracking.asked import _decoded, _read, look, open_workers
from tyre_lightning.tracking.registry import _save_pyfunc, exact_uri

LITE = "efficientnet_lite0"
EVIL = 'T1\r\nX-Evil: 1\n"}{\\'


def inspector(seed: int, pattern: str | None = r"^(T\d+)_") -> Inspector:
    """A small one with a last layer of its own, which tells pictures apart."""
    torch.manual_seed(seed)
    chosen = preset(LITE)
    network = Network(LITE, 2, chosen.mean, chosen.std).eval()
    load_weights(network, LITE, "imagenet", S3Config())
    torch.nn.init.normal_(dict(network.named_parameters())["head.1.weight"], std=0.3)
    prep = Preprocessing.of(chosen, DataConfig(image_size=96))
    return Inspector(network, LITE, ["crack", "good"], prep, "good", group_pattern=pattern)


@dataclass(frozen=True)
class Plant:
    """A registry with two versions of a model, of which the first is the champion, and pictures."""

    uri: str
    versions: list[Path]  # as MLflow has them
    pictures: list[bytes]

    def promote(self, version: int) -> None:
        mlflow.MlflowClient(self.uri).set_registered_model_alias("tyres", "champion", str(version))


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    folder = tmp_path_factory.mktemp("plant")
    lay_database(folder / "mlflow.db")
    client = mlflow.MlflowClient(uri := f"sqlite:///{folder}/mlflow.db")
    client.create_registered_model("tyres")
    versions = []
    for seed in (1, 2):
        (made := inspector(seed)).save(folder / str(seed) / "inspector")
        _save_pyfunc(place := folder / str(seed) / "model", folder / str(seed) / "inspector", made)
        client.create_model_version("tyres", str(place))
        versions.append(place)
    plant = Plant(uri, versions, [encode(picture(seed), "JPEG") for seed in range(4)])
    plant.promote(1)
    return plant


@dataclass
class Served:
    """A server, as a client talks to it."""

    address: str
    app: App
    models: Models
    port: int

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(self.address + path, headers=headers, timeout=30)

    def post(self, path: str, body: bytes, kind: str, **headers: str) -> requests.Response:
        given = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(self.address + path, data=body, headers=given, timeout=30)

    def rows(self, path: str, body: bytes, kind: str) -> list[dict[str, Any]]:
        answer = self.post(path, body, kind)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["predictions"]
        return found

    def metric(self, name: str) -> float:
        lines = [line.rpartition(" ") for line in self.get("/metrics").text.splitlines()]
        return next(float(value) for found, _, value in lines if found == name)


@contextmanager
def serving(model: str, uri: str, room: Limits | None = None, token: str | None = None) -> Iterator[Served]:
    """The real application and server, in a thread of this process."""
    config = ServeConfig(model=model, port=0, tracking_uri=uri)
    with listen("127.0.0.1", 0) as listening, open_workers() as workers:
        models = Models(model, uri)
        app = App(models, workers, room or limits(config), token)
        begun = threading.Event()
        server = Server(app, begun.set, 5, **options())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        begun.wait(30)
        port = listening.getsockname()[1]
        try:
            yield Served(f"http://127.0.0.1:{port}", app, models, port)
        finally:
            models.end()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def served(plant: Plant) -> Iterator[Served]:
    with serving("models:/tyres/1", plant.uri) as found:
        found.models.load()
        yield found


@pytest.fixture(scope="module")
def of_mlflow(plant: Plant) -> Any:
    return mlflow.pyfunc.load_model(str(plant.versions[0]))


def records(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps({"dataframe_records": rows}).encode()


@pytest.mark.parametrize("form", [name for name in FORMS if name not in ("csv", "parquet")])
def test_answers_are_those_of_mlflow_s_server(form: str, plant: Plant, served: Served, of_mlflow: Any) -> None:
    images = [b64encode(data).decode() for data in plant.pictures]
    asked = [*images, None, "no base64!", b64encode(b"<html>").decode()]
    tyres = ["T1", "T2", "T1", None, "T2", "7", EVIL]
    kind, body = FORMS[form]([{"image": one, "tyre": tyre} for one, tyre in zip(asked, tyres, strict=True)])
    answer = invocations(body, kind, of_mlflow, of_mlflow.metadata.get_input_schema())  # type: ignore[no-untyped-call]
    rows = served.rows("/invocations", body, kind)
    assert rows == json.loads(answer.response)["predictions"]
    assert len({row["p_good"] for row in rows[:4]}) == 4  # of four pictures


@pytest.mark.parametrize(
    "rows",
    [
        [{"image": 5, "tyre": 7}, {"image": "x", "tyre": None}],
        [{"uri": "s3://plant/../x.jpg", "image": None}, {"uri": "file:///etc/passwd", "image": None}],
        [{"uri": "s3://plant/T1_1.jpg"}, {"uri": ""}],
        [{"uri": "x", "image": "y"}],
    ],
)
def test_odd_rows_are_answered_as_by_mlflow_s_server(
    rows: list[dict[str, Any]], served: Served, of_mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TYRE_SERVE_S3", "s3://elsewhere")
    body = records(rows)
    answer = invocations(body, JSON, of_mlflow, of_mlflow.metadata.get_input_schema())  # type: ignore[no-untyped-call]
    assert served.rows("/invocations", body, JSON) == json.loads(answer.response)["predictions"]


def test_image_files_are_taken_as_they_are(plant: Plant, served: Served) -> None:
    texts = [{"image": b64encode(data).decode(), "tyre": f"T{i // 2}"} for i, data in enumerate(plant.pictures)]
    expected = served.rows("/invocations", records(texts), JSON)
    files = [("files", (f"T{i // 2}_{i}.jpg", data, "image/jpeg")) for i, data in enumerate(plant.pictures)]
    answer = requests.post(f"{served.address}/predict", files=files, timeout=30)
    assert answer.json()["predictions"] == expected
    assert answer.headers["X-Model-Version"] == "models:/tyres/1"
    for query in ("tyre=T0", "name=C:%5CT0_x.jpg", "name=day/T0_x.jpg"):
        (row,) = served.rows(f"/predict?{query}", plant.pictures[0], "image/jpeg")
        alone = {name for name in row if name != "decision" and name != "reason"}
        assert {name: row[name] for name in alone} == {name: expected[0][name] for name in alone}
    (nameless,) = served.rows("/predict", b"<html>", "application/octet-stream")
    assert (nameless["tyre"], nameless["error"]) == (None, "it is not an image file")


def test_names_of_others_stay_where_they_belong(plant: Plant, served: Served) -> None:
    answer = requests.post(
        f"{served.address}/predict", data=plant.pictures[0], params={"tyre": EVIL}, headers={"Content-Type": "image/x"},
        timeout=30,
    )  # fmt: skip
    assert answer.json()["predictions"][0]["tyre"] == EVIL
    assert "X-Evil" not in answer.headers and EVIL[:2] not in served.get("/metrics").text


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "sentence"),
    [
        ("/invocations", JSON, b"{", 400, "the body is no JSON"),
        ("/invocations", JSON, b"[" * 100_000, 400, "the body is no JSON"),
        ("/invocations", JSON, b"\xff\xfe", 400, "the body is no JSON"),
        ("/invocations", JSON, b"[]", 400, "neither a column 'image' nor a column 'uri'"),
        ("/invocations", JSON, b'{"instances": ["x"]}', 400, "neither a column 'image'"),
        ("/invocations", JSON, b'{"inputs": {"image": ["x"], "tyre": []}}', 400, "must be equally long"),
        ("/invocations", JSON, b'{"inputs": {}, "instances": []}', 400, "give one of them"),
        ("/invocations", JSON, b'{"dataframe_split": {"columns": ["image"], "data": [[]]}}', 400, "each row of"),
        ("/invocations", JSON, b'{"dataframe_split": {"columns": [["x"]], "data": []}}', 400, "neither a column"),
        ("/invocations", "text/csv", b"image\nx", 415, "must be application/json"),
        ("/predict", "text/plain", b"x", 415, "must be an image file"),
        ("/predict", "multipart/form-data", b"x", 400, "names no boundary"),
        ("/predict", "multipart/form-data; boundary=b", b"x", 400, "no whole multipart"),
        ("/predict", "multipart/form-data; boundary=b", b"--b\r\nx\r\n--b--", 400, "has no head"),
        ("/predict", "multipart/form-data; boundary=b", b"--b\r\na: b\r\n\r\nx\r\n--b--", 400, "has no file"),
        ("/predict?" + "&".join("a=b" for _ in range(99)), "image/x", b"x", 400, "Max number of fields exceeded"),
        ("/nothing", JSON, b"", 404, "there is no such thing here"),
        ("/predict/../metrics", JSON, b"", 405, "ask for this by GET"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    path: str, kind: str, body: bytes, status: int, sentence: str, served: Served
) -> None:
    answer = served.post(path, body, kind)
    assert answer.status_code == status and sentence in answer.json()["message"], answer.text


def test_requests_that_are_made_to_take_long_are_refused(served: Served) -> None:
    """Python's own parser takes minutes for the first, and ends in a RecursionError at the others."""
    many, deep, kind = b";a" * 500_000, b"(" * 4000, "multipart/form-data; boundary="
    for head, status, said in ((many, 400, "the head of a part of the body has more"), (deep, 200, "")):
        body = b"--b\r\nContent-Disposition: form-data; filename=" + head + b"\r\n\r\nx\r\n--b--"
        answer = served.post("/predict", body, f"{kind}b")
        assert answer.status_code == status and said in answer.text
    assert "names no boundary" in served.post("/predict", b"x", kind + "(" * 4000).json()["message"]
    bomb = b'{"instances": [' + b"{}," * 1_000_000 + b"{}]}"
    assert "has more than 1000000 values" in served.post("/invocations", bomb, JSON).json()["message"]


@pytest.mark.parametrize(
    ("disposition", "tyre"),
    [
        ('form-data; name="a"; filename="T1_x.jpg"', "T1"),
        ("form-data; FileName = T1_x.jpg ;name=a", "T1"),
        ("form-data; filename=\"x.jpg\"; filename*=UTF-8''T1_%e2%82%ac.jpg", "T1"),
        ("form-data; filename*=x-none''T2_%e2.jpg; filename=T1_x.jpg", "T1"),
        ('form-data; name="filename=T2_x"; filename="T1_\\";filename=T2_.jpg"', "T1"),
        ('form-data;\r\n name=a;\r\n\tfilename="T1_ä.jpg"', "T1"),
        ('form-data; filename="C:\\\\T1_x.jpg"', "T1"),
        ('form-data; filename=""', None),
    ],
)
def test_a_part_s_file_name(disposition: str, tyre: str | None) -> None:
    body = f"--b\r\nX: y\r\nContent-Disposition: {disposition}\r\n\r\nx\r\n--b--".encode()
    (row,) = read_parts(body, 'multipart/form-data; boundary="b"', {}, r"^(T\d+)_").rows
    assert row.get("tyre") == tyre and row["image"] == b"x"


def test_an_address_does_not_climb_out_of_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TYRE_SERVE_S3", "s3://plant/line1")
    for path in ("line1/../secret.jpg", "line1/./../../other/x.jpg", "line1/..", "line10/x.jpg"):
        with pytest.raises(UserError, match="is below none of the addresses that TYRE_SERVE_S3 lists"):
            _read(f"s3://plant/{path}")


def test_white_space_in_base64_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        assert _decoded("AA AA\n" * 500_000) == bytes(3 * 500_000)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def head_of(served: Served, *lines: str) -> http.client.HTTPResponse:
    """What a head is answered of which no body follows."""
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall("\r\n".join((*lines, "Host: x", "", "")).encode())
        response = http.client.HTTPResponse(client)
        response.begin()
        response.read()
        return response


def test_a_body_is_refused_by_its_head(served: Served) -> None:
    """None of it is sent here."""
    post = "POST /predict HTTP/1.1"
    assert head_of(served, post, f"Content-Length: {1 << 40}").status == 413
    assert head_of(served, post, f"Content-Length: {'9' * 20}").status in (400, 413)
    assert head_of(served, post, "Transfer-Encoding: chunked").status == 411
    assert head_of(served, post, "Content-Length: 1", "Origin: http://evil").status == 403
    assert head_of(served, post, f"Content-Length: {1 << 40}", "Expect: 100-continue").status == 413
    assert head_of(served, "GET /predict HTTP/1.1").status == 405


def test_a_client_that_sends_too_much_reads_the_refusal(plant: Plant) -> None:
    with serving("models:/tyres/1", plant.uri, Limits(8, 1 << 20, 1 << 20)) as found:
        found.models.load()
        answer = found.post("/predict", bytes(16 << 20), "image/jpeg")
        assert answer.status_code == 413 and "1048576 bytes" in answer.json()["message"]
        many = records([{"image": "x"}] * 9)
        assert "may have 8 pictures" in found.post("/invocations", many, JSON).json()["message"]


def test_what_there_is_no_room_for_is_refused_and_the_rest_is_answered(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("models:/tyres/1", plant.uri, Limits(4, 1 << 20)) as found:
        found.models.load()
        go, real = threading.Event(), look

        def slow(*asked: Any) -> Any:
            assert go.wait(30)
            return real(*asked)

        monkeypatch.setattr(app_module, "look", slow)
        with ThreadPoolExecutor(12) as pool:
            waiting = [pool.submit(found.post, "/predict", plant.pictures[0], "image/jpeg") for _ in range(12)]
            refused, *_ = [one.result() for one in islice(as_completed(waiting, 30), 8)]  # all: the others wait
            assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
            assert "4 pictures wait already: ask again in" in refused.json()["message"]
            assert found.get("/health").status_code == 200  # it is busy, and well
            assert found.metric("tyre_waiting_pictures") == 4
            go.set()
            statuses = [one.result().status_code for one in waiting]
        assert sorted(statuses) == [200] * 4 + [429] * 8
        assert found.metric("tyre_waiting_pictures") == 0
        assert found.metric('tyre_requests_total{status="429"}') == 8
        assert found.post("/predict", plant.pictures[0], "image/jpeg").status_code == 200


def test_the_bytes_of_all_requests_together_are_bounded(plant: Plant) -> None:
    with serving("models:/tyres/1", plant.uri, Limits(100, 5000, 4000)) as found:
        found.models.load()
        with socket.create_connection(("127.0.0.1", found.port)) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/x\r\nContent-Length: 4000\r\n\r\nx")
            while found.app._bytes != 4000:
                time.sleep(0.01)
            refused = found.post("/predict", bytes(2000), "image/x")
            assert refused.status_code == 429 and "others' requests take all room: ask again in 1 s" in refused.text
            assert found.post("/predict", bytes(1000), "image/x").status_code == 200  # and it holds nobody else
        while found.app._bytes:
            time.sleep(0.01)
        assert found.post("/predict", bytes(2000), "image/x").status_code == 200


def test_clients_that_are_slow_are_let_go(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_BODY_SECONDS", 0.2)
    monkeypatch.setattr(app_module, "_LINGER_SECONDS", 0.1)
    monkeypatch.setattr(serve_module, "_SILENT_SECONDS", 0.2)
    with serving("models:/tyres/1", plant.uri) as found:
        found.models.load()
        body = head_of(found, "POST /predict HTTP/1.1", "Content-Type: image/x", "Content-Length: 9")
        assert body.status == 408
        for sent in (b"", b"POST /predict HT"):
            with socket.create_connection(("127.0.0.1", found.port), timeout=20) as client:
                client.sendall(sent)
                assert client.recv(1) == b""


def test_many_connections_that_say_nothing_hold_nobody_up(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are more than the server takes."""
    monkeypatch.setattr(serve_module, "_CONNECTIONS", 50)
    with serving("models:/tyres/1", plant.uri) as found:
        found.models.load()
        silent = [socket.create_connection(("127.0.0.1", found.port)) for _ in range(200)]
        try:
            assert found.get("/health").status_code == 200
            assert found.post("/predict", plant.pictures[0], "image/jpeg").status_code == 200
        finally:
            for one in silent:
                one.close()


@contextmanager
def command(folder: Path, uri: str) -> Iterator[tuple[warm.Process, str]]:
    """The verb itself, and where it listens."""
    out, given = folder / "out", ["model=models:/tyres/1", "port=0", f"tracking_uri={uri}"]
    with warm.running(["-m", "tyre_lightning.serve", *given], folder, os.environ, out, folder / "err") as process:
        while not (found := re.search(r"listening at (\S+)", out.read_text())):
            assert process.poll() is None, (folder / "err").read_text()
            time.sleep(0.02)
        yield process, found[1]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_what_was_asked_is_answered_when_the_server_is_told_to_end(
    ending: signal.Signals, plant: Plant, tmp_path: Path
) -> None:
    body = records([{"image": b64encode(plant.pictures[0]).decode()}] * 400)
    with command(tmp_path, plant.uri) as (process, address), ThreadPoolExecutor(1) as pool:

        def ask() -> requests.Response:
            return requests.post(f"{address}/invocations", body, headers={"Content-Type": JSON}, timeout=60)

        while requests.get(f"{address}/ready", timeout=30).status_code != 200:
            time.sleep(0.05)
        asked = pool.submit(ask)
        while "tyre_waiting_pictures 0" in requests.get(f"{address}/metrics", timeout=30).text:
            assert not asked.done()
        process.send_signal(ending)
        assert len(asked.result().json()["predictions"]) == 400
        assert process.wait(30) == 0
        with pytest.raises(requests.ConnectionError):
            ask()
    assert (tmp_path / "err").read_text() == ""


def test_a_server_that_waits_for_the_registry_can_be_told_to_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with command(tmp_path, uri) as (process, address):
            silent.accept()
            assert requests.get(f"{address}/health", timeout=30).status_code == 200
            assert requests.get(f"{address}/ready", timeout=30).status_code == 503
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_nothing_but_http_is_spoken(served: Served) -> None:
    more = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13")
    assert head_of(served, "GET /health HTTP/1.1", *more).status == 200


def test_pictures_of_a_client_that_is_gone_are_not_looked_at(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("models:/tyres/1", plant.uri) as found:
        found.models.load()
        go, seen = threading.Event(), list[str]()

        def slow(_: Inspector, asked: Mapping[str, Any], key: str) -> dict[str, Any]:
            seen.append(key)
            assert go.wait(30)
            return nothing_seen("x")

        monkeypatch.setattr(app_module, "look", slow)
        body = records([{"image": "x"}] * 50)
        with socket.create_connection(("127.0.0.1", found.port)) as client:
            client.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            client.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            while not seen:
                time.sleep(0.01)
        time.sleep(0.2)  # until it is known
        go.set()
        while found.metric("tyre_waiting_pictures"):
            time.sleep(0.01)
        assert len(seen) < 50
        assert found.metric('tyre_requests_total{status="499"}') == 1


def test_a_request_that_fails_is_counted_and_its_other_pictures_are_not_looked_at(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("models:/tyres/1", plant.uri) as found:
        found.models.load()
        seen = list[str]()

        def failing(_: Inspector, asked: Mapping[str, Any], key: str) -> dict[str, Any]:
            seen.append(key)
            if key != "row 0":
                time.sleep(0.02)
                return nothing_seen("x")
            raise RuntimeError("the engine is broken")

        monkeypatch.setattr(app_module, "look", failing)
        assert found.post("/invocations", records([{"image": "x"}] * 200), JSON).status_code == 500
        assert found.metric('tyre_requests_total{status="500"}') == 1
        while found.metric("tyre_waiting_pictures"):
            time.sleep(0.01)
        assert len(seen) < 200


def test_health_and_readiness(plant: Plant) -> None:
    with serving("models:/tyres@champion", plant.uri) as found:
        assert [found.get(path).status_code for path in ("/ping", "/health", "/ready")] == [200, 200, 503]
        early = found.post("/predict", plant.pictures[0], "image/jpeg")
        assert early.status_code == 503 and early.headers["Retry-After"]
        found.models.load()
        assert found.get("/ready").status_code == 200
        assert found.get("/version").json()["model"] == "models:/tyres/1"


def test_metrics_are_prometheus_s(plant: Plant) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    with serving("models:/tyres/1", plant.uri) as found:
        found.models.load()
        found.rows("/invocations", records([{"image": b64encode(plant.pictures[0]).decode()}, {"image": "x"}]), JSON)
        found.post("/predict", b"", "text/plain")
        answer = found.get("/metrics")
    families = {one.name: one for one in parser.text_string_to_metric_families(answer.text)}
    values = {(s.name, *s.labels.values()): s.value for one in families.values() for s in one.samples}
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert values["tyre_pictures_total", "none"] == 2 and values["tyre_unreadable_pictures_total",] == 1
    assert values["tyre_requests_total", "200"] == values["tyre_requests_total", "415"] == 1
    assert values["tyre_request_seconds_count",] == values["tyre_request_seconds_bucket", "+Inf"] == 1
    assert values["tyre_model_info", "models:/tyres/1"] == values["tyre_registry_up",] == 1


def test_a_promoted_model_takes_over_and_no_request_is_lost(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight clients ask for two pictures without pause; no answer has one of each version."""
    monkeypatch.setattr(models_module, "POLL_SECONDS", 0.05)
    plant.promote(1)
    rows = [{"image": b64encode(data).decode()} for data in plant.pictures[:2]]
    over, answers = threading.Event(), list[requests.Response]()

    def ask(found: Served) -> None:
        session = requests.Session()
        while not over.is_set():
            answers.append(
                session.post(
                    f"{found.address}/invocations", data=records(rows), headers={"Content-Type": JSON}, timeout=30
                )
            )

    with serving("models:/tyres@champion", plant.uri) as found, ThreadPoolExecutor(8) as pool:
        found.models.load()
        found.models.follow()
        asking = [pool.submit(ask, found) for _ in range(8)]
        plant.promote(2)
        while not answers or answers[-1].headers.get("X-Model-Version") != "models:/tyres/2":
            time.sleep(0.02)
        time.sleep(0.2)
        over.set()
        for one in asking:
            one.result()
    plant.promote(1)
    assert {one.status_code for one in answers} == {200}
    said = {(one.headers["X-Model-Version"], *(row["p_good"] for row in one.json()["predictions"])) for one in answers}
    assert len(said) == 2 and len({share for one in said for share in one[1:]}) == 4  # each version says one thing
    assert answers[-1].headers["X-Model-Version"] == "models:/tyres/2"


def test_a_registry_that_is_away_leaves_the_model_in_use(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(models_module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(models_module, "_LONGEST_PAUSE", 0.02)
    with serving("models:/tyres@champion", plant.uri) as found:
        found.models.load()
        real = exact_uri

        def away(*_: Any) -> str:
            raise UserError("the tracking URI does not answer")

        monkeypatch.setattr(models_module, "exact_uri", away)
        found.models.follow()
        while found.metric("tyre_registry_up"):
            time.sleep(0.01)
        assert found.post("/predict", plant.pictures[0], "image/jpeg").status_code == 200
        monkeypatch.setattr(models_module, "exact_uri", real)
        while not found.metric("tyre_registry_up"):
            time.sleep(0.01)
    said = [record.message for record in caplog.records if record.name == models_module.__name__]
    assert said == [
        "going on with models:/tyres/1: the tracking URI does not answer",
        "models:/tyres@champion can be followed again",
    ]


def test_a_token_is_asked_for_where_it_is_set(plant: Plant) -> None:
    with serving("models:/tyres/1", plant.uri, token="t" * 20) as found:
        found.models.load()
        for shown in ("", "Bearer x", "Basic " + "t" * 20, "Bearer ü"):
            answer = found.post("/predict", b"x", "image/x", Authorization=shown.encode().decode("latin-1"))
            assert answer.status_code == 401 and "Bearer TOKEN" in answer.json()["message"]
        assert found.post("/predict", b"x", "image/x", Authorization="Bearer " + "t" * 20).status_code == 200
        assert found.get("/metrics").status_code == 401 and found.get("/ready").status_code == 200


def test_other_machines_ask_only_where_it_is_said_who_may(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(model="x", host="0.0.0.0")
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(UserError) as refused:
        check_token(config)
    assert str(refused.value) == (
        "host=0.0.0.0 lets other machines ask: set TYRE_SERVE_TOKEN to the bearer token that they must show, or give "
        "open=true where all who reach the address may ask"
    )
    assert check_token(replace(config, open=True)) is check_token(replace(config, host="127.0.0.1")) is None
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(UserError, match="TYRE_SERVE_TOKEN has fewer than 16 characters"):
        check_token(config)
    monkeypatch.setenv(TOKEN, "t" * 20)
    assert check_token(config) == "t" * 20
