"""torchvision's ImageNet weights: a server in its place, which may do to a download whatever networks do."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model, get_model_weights

from tests.cases import first_of
from tests.conftest import PROJECT
from tyre_lightning.config import BACKBONES, S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.model import weights as module
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.weights import load_weights

B0 = "efficientnet_b0"
PUBLISHED = [name for name in BACKBONES if "_lite" not in name]
PAGE = b"<html>Please log in</html>"

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # into networks without memory


@dataclass
class Publisher:
    """Serves one file in torchvision's place, and counts how often."""

    content: bytes = b""
    status: int = 200
    length: int | None = None  # that it says; None: the true one
    together: threading.Barrier | None = None  # answers when so many have asked
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        if self.together is not None:
            self.together.wait(30)
        request.send_response(self.status)
        request.send_header("Content-Length", str(self.length or len(self.content)))
        request.end_headers()
        request.wfile.write(self.content)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    found = Publisher()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.address = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def light(name: str) -> Network:
    """A backbone without memory for its numbers."""
    with torch.device("meta"):
        return Network(name, 3, preset(name).mean, preset(name).std)


def as_published(name: str) -> dict[str, Tensor]:
    """A state dict with torchvision's names and shapes, and one number for each tensor."""
    with torch.device("meta"):
        state: dict[str, Tensor] = get_model(name).state_dict()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}


def publish(
    publisher: Publisher, name: str, state: dict[str, Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Have the server serve a file under a name with its hash, as torchvision's are called; gives the name."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, path := folder / "published.pth")
    publisher.content = path.read_bytes()
    file = f"{name}_test-{sha256(publisher.content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(get_model_weights(name).DEFAULT.value, "url", f"{publisher.address}/models/{file}")
    return file


@pytest.mark.parametrize("name", first_of(PUBLISHED, 2))
def test_weights_as_torchvision_publishes_them_fit(
    name: str, publisher: Publisher, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(publisher, name, as_published(name), tmp_path, monkeypatch)
    load_weights(light(name), name, "imagenet", S3Config())
    old = {key: value for key, value in as_published(name).items() if "num_batches" not in key}
    torch.save(old, tmp_path / "old.pth")  # as PyTorch wrote them before 0.4.1
    load_weights(light(name), name, str(tmp_path / "old.pth"), S3Config())


def test_a_download_shows_itself_and_is_kept(
    publisher: Publisher,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(1)
    state = get_model(B0).state_dict()
    file = publish(publisher, B0, state, tmp_path, monkeypatch)
    for _ in range(2):
        network = Network(B0, 3, preset(B0).mean, preset(B0).std)
        load_weights(network, B0, "imagenet", S3Config())
        loaded = network.backbone.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items() if not key.startswith("classifier"))
    assert [path.name for path in home.iterdir()] == [file]
    assert len(publisher.asked) == 1
    said = capsys.readouterr()
    assert f"{publisher.address}/models/{file}" in said.out and "100%" in said.err


def test_the_documentation_names_the_files() -> None:
    page = (PROJECT / "docs/train.md").read_text(encoding="utf-8")
    for name in PUBLISHED:
        folder, _, file = get_model_weights(name).DEFAULT.url.rpartition("/")
        assert f"`{file}`" in page and f"`{folder}/`" in page


def test_a_file_that_was_put_into_torch_home_needs_no_network(
    publisher: Publisher, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = publish(publisher, B0, as_published(B0), tmp_path, monkeypatch)
    home.mkdir(parents=True)
    (home / file).write_bytes(publisher.content)
    load_weights(light(B0), B0, "imagenet", S3Config())
    assert not publisher.asked


def test_two_trials_at_once_disturb_each_other_in_nothing(
    publisher: Publisher, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = publish(publisher, B0, as_published(B0), tmp_path, monkeypatch)
    publisher.together = threading.Barrier(2)
    fork = multiprocessing.get_context("fork")
    trials = [fork.Process(target=load_weights, args=(light(B0), B0, "imagenet", S3Config())) for _ in range(2)]
    for trial in trials:
        trial.start()
    for trial in trials:
        trial.join(60)
    assert [trial.exitcode for trial in trials] == [0, 0] and len(publisher.asked) == 2
    assert [path.name for path in home.iterdir()] == [file]


def refusal(name: str = B0) -> str:
    with pytest.raises(UserError) as caught:
        load_weights(light(name), name, "imagenet", S3Config())
    text = str(caught.value)
    assert "\n" not in text
    for way in ("model=efficientnet_lite0", "model.weights=PATH or s3://", "model.weights=none"):
        assert way in text
    return text


@pytest.mark.parametrize("fault", ["cut", "page", "another file", "forbidden", "no connection", "silence"])
def test_what_goes_wrong_on_the_way_is_one_sentence(
    fault: str, publisher: Publisher, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = publish(publisher, B0, as_published(B0), tmp_path, monkeypatch)
    url = f"{publisher.address}/models/{file}"
    whole = publisher.content
    silent = socket.create_server(("127.0.0.1", 0))
    match fault:
        case "cut":
            publisher.content, publisher.length, why = whole[:10_000], len(whole), "the download was cut"
        case "page":
            publisher.content, why = PAGE, "a proxy sent a page of its own"
        case "another file":
            publisher.content, why = whole[:-1], "what came is another file"
        case "forbidden":
            publisher.status, why = 403, "HTTP Error 403: Forbidden"
        case "no connection":
            url, why = f"http://127.0.0.1:1/{file}", "Connection refused"
        case _:
            monkeypatch.setattr(module, "_SILENCE", 0.2)
            url, why = f"http://127.0.0.1:{silent.getsockname()[1]}/{file}", "timed out"
    monkeypatch.setattr(get_model_weights(B0).DEFAULT.value, "url", url)
    text = refusal()
    silent.close()
    assert text.startswith(f"the ImageNet weights of {B0} cannot be downloaded from {url} (") and why in text
    assert f"put a copy of that file into {home}" in text
    assert not list(home.iterdir())
    assert socket.getdefaulttimeout() is None


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_cache_folder_that_cannot_be_written(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = publish(publisher, B0, as_published(B0), tmp_path, monkeypatch)
    with TemporaryDirectory() as scratch:  # pytest's own folders are closed to others
        home = Path(scratch, "hub", "checkpoints")
        home.mkdir(parents=True)
        for folder in (Path(scratch), home.parent, home):
            folder.chmod(0o555)
        monkeypatch.setenv("TORCH_HOME", scratch)
        network = light(B0)
        with nobody():
            text = refusal()
        assert f"cannot be kept in {home} ([Errno 13] Permission denied" in text and "let TORCH_HOME name" in text
        home.chmod(0o755)
        (home / file).write_bytes(publisher.content)
        home.chmod(0o555)
        with nobody():
            load_weights(network, B0, "imagenet", S3Config())
        home.chmod(0o755)


def test_a_full_disk(publisher: Publisher, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(publisher, B0, as_published(B0), tmp_path, monkeypatch)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.hub.download_url_to_file", full)
    assert f"cannot be kept in {home} ([Errno 28] No space left on device)" in refusal()


@pytest.mark.parametrize("content", ["page", "cut", "list", "another backbone"])
def test_a_wrong_file_in_the_cache_folder_is_named(
    content: str, publisher: Publisher, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = publish(publisher, B0, as_published(B0), tmp_path, monkeypatch)
    home.mkdir(parents=True)
    match content:
        case "page":
            (home / file).write_bytes(PAGE)
        case "cut":
            (home / file).write_bytes(publisher.content[:10_000])
        case "list":
            torch.save([1], home / file)
        case _:
            torch.save(as_published("efficientnet_b1"), home / file)
    with pytest.raises(UserError) as caught:
        load_weights(light(B0), B0, "imagenet", S3Config())
    assert str(home / file) in str(caught.value)
    assert ("delete the file" in str(caught.value)) == (content in ("page", "cut"))
