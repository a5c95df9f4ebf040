"""What the network, the service, the credentials and the files themselves may do while images stream from S3."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from torch import Tensor

from tests import warm
from tests.conftest import PROJECT, SMALL, run_script, subprocess_environment, write_images
from tests.fault_proxy import Fault, FaultProxy
from tests.images import encode, picture
from tests.test_dataset import module
from tyre_lightning.config import Cache, Changed, S3Config
from tyre_lightning.data import dataset
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.dataset import Batch, BatchLoader
from tyre_lightning.demo.server import S3Server
from tyre_lightning.errors import StoreUnavailable, UserError
from tyre_lightning.lake import fetch, reader, s3
from tyre_lightning.lake.reader import open_store

CLASSES = ("bulge", "good")
KEY = "v1/test/good/3.jpg"
WORKERS = pytest.mark.parametrize("workers", [0, 1])  # boto3 in threads; obstore in a worker


@pytest.fixture
def proxy(aws_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that the AWS chain leads to."""
    with FaultProxy(aws_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def folder(bucket: Path) -> Path:
    """The folder of an S3 lake of 2 classes with 12 train and 12 test images each."""
    write_images(bucket / "v1", {"train": 12, "test": 12}, CLASSES)
    return bucket / "v1"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is given up after a second, also in forked workers."""
    monkeypatch.setattr(s3, "PATIENCE_SECONDS", 1)


class Epoch(NamedTuple):
    """All batches of a loader, put together."""

    images: dict[str, Tensor]
    unreadable: dict[str, str]  # key and reason
    notes: list[str]


def open_module(folder: Path, **options: object) -> TyreDataModule:
    """The data module of a lake in a bucket's folder; nothing is kept on the disk, so every image is fetched."""
    return module(f"s3://{folder.parent.name}/{folder.name}", **{"cache": Cache.none, **options})


def read(loader: BatchLoader) -> Epoch:
    """Read an epoch, in which every key stands once."""
    return put_together([*loader])


def put_together(batches: list[Batch]) -> Epoch:
    keys = [key for batch in batches for key in batch.key]
    images = dict(zip(keys, [image for batch in batches for image in batch.image], strict=True))
    unreadable = [error for batch in batches for error in batch.unreadable]
    assert len(images) == len(keys)
    return Epoch(
        images, {error.key: error.reason for error in unreadable}, [note for batch in batches for note in batch.notes]
    )


def assert_whole(epoch: Epoch, folder: Path, usage: str = "test") -> None:
    """The epoch has every image, as the folder on the disk has it, and nothing to report."""
    data = module(str(folder))
    expected = read(data.train_dataloader() if usage == "train" else data.test_dataloader())
    assert list(epoch.images) == list(expected.images)
    assert all(torch.equal(epoch.images[key], image) for key, image in expected.images.items())
    assert epoch.unreadable == {}
    assert epoch.notes == []


def error_of(loader: BatchLoader) -> str:
    """The sentence that a user reads when an epoch fails; printed, so that `pytest -s` shows it."""
    try:
        read(loader)
    except UserError as error:
        error.__traceback__ = None  # it would keep the loader and its workers for later tests
        print(f"\n{error}")
        return str(error)
    pytest.fail("the epoch is whole")


# The network and the service fail, and recover.

PASSING = {
    "silence": [Fault("stall"), Fault("slow", seconds=4)],
    "broken bodies": [Fault("reset", times=5), Fault("truncate", times=5)],
    "a storm": [Fault("status", times=14), Fault("status", status=500, code="InternalError", times=6)],
    "some of everything": [
        Fault("status", share=0.1, times=None),
        Fault("status", status=500, code="InternalError", share=0.1, times=None),
        Fault("reset", share=0.05, times=None),
        Fault("truncate", share=0.05, times=None),
        Fault("slow", share=0.1, seconds=0.2, times=None),
    ],
}


@WORKERS
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_waited_for(
    proxy: FaultProxy, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, workers: int
) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", 2)
    data = open_module(folder, num_workers=workers)
    proxy.add(*(replace(fault) for fault in PASSING[name]))  # they count
    assert_whole(read(data.test_dataloader()), folder)
    assert proxy.injected >= 5 or proxy.injected == sum(fault.times or 0 for fault in PASSING[name])


def test_images_are_asked_for_once_and_in_the_order_of_the_epoch(
    proxy: FaultProxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first batch on, before the connection is there."""
    monkeypatch.setattr(fetch, "_CONCURRENT", 1)
    loader = open_module(folder, num_workers=1).train_dataloader()
    for _ in range(2):
        proxy.requests.clear()
        keys = [key for batch in loader for key in batch.key]
        assert proxy.reads() == [f"/{folder.parent.name}/{key}" for key in keys]


def test_training_images_stay_the_same_whatever_happens(proxy: FaultProxy, folder: Path) -> None:
    """Two workers, and the random changes of each image."""
    data = open_module(folder, num_workers=2)
    proxy.add(Fault("reset", share=0.1, times=None), Fault("status", share=0.1, times=None))
    assert_whole(read(data.train_dataloader()), folder, "train")
    assert proxy.injected > 0


def test_listing_survives_a_storm(proxy: FaultProxy, folder: Path) -> None:
    proxy.add(Fault("status", operation="list"), Fault("reset", operation="list", skip=2))
    assert_whole(read(open_module(folder).test_dataloader()), folder)
    assert proxy.injected == 2


# The network and the service fail for good: one sentence that names the object and what to check.

LASTING = {
    "denied": (Fault("status", status=403, code="AccessDenied"), "access is denied: the credentials need", "HTTP 403"),
    "expired": (Fault("status", status=400, code="ExpiredToken"), "the credentials have expired: renew", "HTTP 400"),
    "busy": (Fault("status"), "the service asks for fewer requests", "HTTP 503, SlowDown"),
    "failing": (Fault("status", status=500, code="InternalError"), "", "HTTP 500, InternalError"),
    "reset": (Fault("reset"), "check s3.endpoint_url", "Error)"),
    "cut off": (Fault("truncate"), "check s3.endpoint_url", "Error)"),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("name", "workers"), [*((name, 0) for name in LASTING), ("denied", 1), ("busy", 1)])
def test_what_lasts_is_one_sentence(proxy: FaultProxy, folder: Path, name: str, workers: int) -> None:
    fault, advice, status = LASTING[name]
    data = open_module(folder, num_workers=workers)
    proxy.add(replace(fault, match=KEY, times=None))
    start = time.monotonic()
    message = error_of(data.test_dataloader())
    assert time.monotonic() - start < 15
    assert message.startswith(f"cannot read 's3://{folder.parent.name}/{KEY}' at {proxy.endpoint}: ")
    assert advice in message
    assert status in message
    assert "\n" not in message
    if fault.status in (400, 403):
        assert len(proxy.reads(KEY)) <= 4  # asking again is of no use


def test_a_refusal_that_breaks_off_passes(proxy: FaultProxy, folder: Path) -> None:
    """It is the network that fails, and not what was asked: of a missing object its absence is known the next time."""
    store = open_store(f"s3://{folder.parent.name}/{folder.name}", S3Config())
    proxy.add(Fault("reset", "nothing.jpg"))
    with pytest.raises(StoreUnavailable, match=r"the endpoint does not answer: check s3\.endpoint_url"):
        store.find("v1/nothing.jpg")
    assert store.find("v1/nothing.jpg") is None


@WORKERS
def test_an_object_deleted_after_listing_is_named(proxy: FaultProxy, folder: Path, workers: int) -> None:
    data = open_module(folder, num_workers=workers)
    (folder.parent / KEY).unlink()
    message = error_of(data.test_dataloader())
    assert f"'s3://{folder.parent.name}/{KEY}'" in message
    assert "there is no such object: it was deleted, or its key is misspelt (HTTP 404, NoSuchKey)" in message


@pytest.mark.usefixtures("impatient")
def test_a_service_that_goes_away_is_named(proxy: FaultProxy, folder: Path) -> None:
    data = open_module(folder, num_workers=1)
    proxy.stop()
    message = error_of(data.test_dataloader())
    assert "the endpoint does not answer: check s3.endpoint_url, AWS_ENDPOINT_URL and the network" in message
    assert f"'s3://{folder.parent.name}/v1/test/" in message


# Credentials expire in the middle of an epoch.


class Renewable:
    """A profile whose credentials come from a process, as those of an SSO or a vault do.

    Only the session token changes: the server behind the proxy knows one key pair.
    """

    def __init__(self, folder: Path, server: S3Server) -> None:
        self._path = folder / "credentials.py"
        self._keys = {
            "AccessKeyId": server.environment["AWS_ACCESS_KEY_ID"],
            "SecretAccessKey": server.environment["AWS_SECRET_ACCESS_KEY"],
        }
        (folder / "config").write_text(f"[default]\ncredential_process = {sys.executable} -S {self._path}\n")
        self.config = str(folder / "config")

    def set(self, token: str, seconds: float = 3600) -> None:
        """What the process prints from now on; the time begins when it is asked."""
        values = {"Version": 1, **self._keys, "SessionToken": token}
        until = f"time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(time.time() + {seconds}))"
        self._path.write_text(f"import json, time\nprint(json.dumps({values} | {{'Expiration': {until}}}))\n")


@pytest.fixture
def renewable(tmp_path: Path, aws_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Renewable:
    """The AWS chain finds nothing but a credential process."""
    renewable = Renewable(tmp_path, aws_env)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", renewable.config)
    return renewable


@WORKERS
@pytest.mark.parametrize(("status", "seconds"), [(400, 3600), (403, 5)])
def test_credentials_are_read_again_when_they_expire(
    proxy: FaultProxy,
    bucket: Path,
    renewable: Renewable,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    status: int,
    seconds: float,
) -> None:
    """AWS answers 400, others 403. Those of a few seconds are also read again before they end."""
    monkeypatch.setattr(dataset, "AHEAD_IMAGES", 8)  # so that the epoch is not fetched as soon as it begins
    write_images(bucket / "v1", {"train": 2, "test": 30}, CLASSES)
    renewable.set("old", seconds)
    data = open_module(bucket / "v1", num_workers=workers, batch_size=2)
    batches: list[Batch] = []
    for batch in data.test_dataloader():
        if not batches:  # most of the epoch is not fetched yet
            renewable.set("new")
            proxy.add(Fault("status", status=status, code="ExpiredToken", signed_by="old", times=None))
        batches.append(batch)
    assert_whole(put_together(batches), bucket / "v1")
    assert proxy.injected or seconds < 600
    assert proxy.injected < 30  # what was under way, not every image that is left


def test_credentials_that_stay_expired_are_named(proxy: FaultProxy, folder: Path, renewable: Renewable) -> None:
    renewable.set("old")
    data = open_module(folder)
    proxy.add(Fault("status", status=403, code="ExpiredToken", signed_by="old", times=None))
    message = error_of(data.test_dataloader())
    assert "the credentials have expired: renew them (HTTP 403, ExpiredToken)" in message


# An object is another one than was listed.


@WORKERS
def test_a_replaced_image_is_used_and_reported(proxy: FaultProxy, folder: Path, workers: int) -> None:
    data = open_module(folder, num_workers=workers)
    (folder.parent / KEY).write_bytes(encode(picture(99, (40, 40)), "JPEG"))
    epoch = read(data.test_dataloader())
    (note,) = epoch.notes
    assert f"'{KEY}'" in note
    assert_whole(epoch._replace(notes=[]), folder)


def test_a_replaced_image_is_an_error_where_the_config_says_so(proxy: FaultProxy, folder: Path) -> None:
    path = folder.parent / KEY
    tags = [hashlib.md5(path.read_bytes()).hexdigest()]
    data = open_module(folder, num_workers=1, changed=Changed.error)
    path.write_bytes(encode(picture(99, (40, 40)), "JPEG"))
    tags.append(hashlib.md5(path.read_bytes()).hexdigest())
    message = error_of(data.test_dataloader())
    assert all(text in message for text in (f"'{KEY}'", *tags))


# Files that are not what their names say.


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG file of rows that each begin with their filter's number."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


SIDE = 30_000
UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "the file is empty"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "it is not an image file"),
    "cut.jpg": (lambda: encode(picture(1, (400, 400)), "JPEG")[:2000], "truncated"),
    "bomb.png": (lambda: png(SIDE, SIDE, 1, 0, bytes(SIDE * (1 + SIDE // 8))), "exceeds limit"),
}


@WORKERS
def test_what_cannot_be_read_is_left_out_with_its_reason(proxy: FaultProxy, folder: Path, workers: int) -> None:
    for name, (content, _) in UNREADABLE.items():
        (folder / "test" / "good" / name).write_bytes(content())
    epoch = read(open_module(folder, num_workers=workers).test_dataloader())
    assert set(epoch.unreadable) == {f"v1/test/good/{name}" for name in UNREADABLE}
    for name, (_, reason) in UNREADABLE.items():
        assert reason in epoch.unreadable[f"v1/test/good/{name}"]
        (folder / "test" / "good" / name).unlink()
    assert_whole(epoch._replace(unreadable={}), folder)


@WORKERS
def test_what_is_too_large_is_not_even_fetched(
    proxy: FaultProxy, folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The limit is lowered: the server would read gigabytes for the listing's tag."""
    monkeypatch.setattr(reader, "LARGEST", 1 << 20)
    large = folder / "test" / "bulge" / "large.jpg"
    with large.open("wb") as file:
        file.truncate((1 << 20) + 1)
    epoch = read(open_module(folder, num_workers=workers).test_dataloader())
    large.unlink()
    assert "GB" in epoch.unreadable["v1/test/bulge/large.jpg"]
    assert proxy.reads("large.jpg") == []
    assert_whole(epoch._replace(unreadable={}), folder)


def flat_sixteen_bits(value: int) -> bytes:
    return encode(Image.fromarray(np.full((40, 40), value, np.uint16)))


def sixteen_bits_a_channel(*values: int) -> bytes:
    return png(40, 40, 16, 2, (b"\0" + struct.pack(">HHH", *values) * 40) * 40)


def animation() -> bytes:
    frames = [Image.new("RGB", (40, 40), color) for color in ((250, 0, 0), (0, 0, 250))]
    return encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


@pytest.mark.parametrize(
    ("name", "content", "colour"),
    [
        ("grey.png", flat_sixteen_bits(12_850), [50, 50, 50]),
        ("dark.png", flat_sixteen_bits(200), [1, 1, 1]),
        ("colours.png", sixteen_bits_a_channel(0, 25_700, 65_535), [0, 100, 255]),
        ("moving.webp", animation(), [250, 0, 0]),
    ],
    ids=["grey", "dark", "colours", "moving"],
)
def test_rare_formats_have_their_right_colours(folder: Path, name: str, content: bytes, colour: list[int]) -> None:
    (folder / "test" / "good" / name).write_bytes(content)
    epoch = read(open_module(folder).test_dataloader())
    assert epoch.images[f"v1/test/good/{name}"].amin((1, 2)).tolist() == colour
    assert epoch.images[f"v1/test/good/{name}"].amax((1, 2)).tolist() == colour


# Keys that other programs get wrong. (The server makes a file of a folder marker, so there is none here.)

WORD = "Größe é"
NAMES = (
    *("a b.jpg", " a.jpg", "a+b.jpg", "a%20b.jpg", "100%.jpg", "%2F.jpg", "#1.jpg", "a#b c.jpg", "a=b&c;d?e.jpg"),
    *("~(a)!'*,$@:.jpg", "back\\slash.jpg", '"x" <y>.jpg', "a..b.jpg", "東京🛞.jpg"),
    *(f"{unicodedata.normalize(form, WORD)}.jpg" for form in ("NFC", "NFD")),
    "/".join([*(letter * 195 for letter in "abcde"), "long.jpg"]),
)


@WORKERS
def test_any_key_is_read(proxy: FaultProxy, bucket: Path, workers: int) -> None:
    folder = bucket / "v1"
    write_images(folder, {"train": 2}, CLASSES)
    for number, name in enumerate(NAMES):
        path = folder / "test" / "good" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(number, (40, 40)), "JPEG"))
    assert 970 < max(len(f"v1/test/good/{name}".encode()) for name in NAMES) <= 1024
    epoch = read(open_module(folder, num_workers=workers).test_dataloader())
    assert sorted(epoch.images) == sorted(f"v1/test/good/{name}" for name in NAMES)
    assert_whole(epoch, folder)


def test_namesakes_are_kept_apart(proxy: FaultProxy, bucket: Path) -> None:
    """Versions v1, v10 and v2 with the same names, and the class good beside good_old."""
    for version in ("v1", "v10", "v2"):
        write_images(bucket / version, {"train": 3, "test": 3}, ("good", "good_old"))
    path = bucket / "v2" / "test" / "good" / "0.jpg"
    path.write_bytes(encode(picture(99, (40, 40)), "JPEG"))
    for version in ("v1", "v2"):
        data = open_module(bucket / version, num_workers=1)
        assert data.train.counts() == {"good": 2, "good_old": 2}
        epoch = read(data.test_dataloader())
        assert {key.split("/")[0] for key in epoch.images} == {version}
        assert_whole(epoch, bucket / version)
    assert not [path for _, path in proxy.requests if "v10" in path]


# Whole runs.

OPTIONS = (
    *(
        "experiment=demo",
        *SMALL,
        "data.image_size=32",
        "data.batch_size=4",
        "data.cache=none",
        "trainer=cpu",
        "data.near_copies=false",
    ),
    *("trainer.enable_progress_bar=false", "logger.registered_model=null", "logger.system_metrics=false"),
)


TRAINED = 20  # of the 24 images; the others are for validation
MEASURED = TRAINED  # before, to say how large they are


def run_of(folder: Path) -> Run:
    """The only run that MLflow has in a folder."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tyre-demo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def errors_in(output: str) -> list[str]:
    """The sentences about errors; there must be no traceback."""
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.startswith("error: ")]


def test_a_run_that_loses_an_image_ends_in_one_sentence(
    proxy: FaultProxy, folder: Path, aws_env: S3Server, tmp_path: Path
) -> None:
    """In its second epoch."""
    environment = {**subprocess_environment(aws_env), "AWS_ENDPOINT_URL": proxy.endpoint}
    key = max(open_module(folder).train.keys())  # the first one is also read before training, as a sample
    measured = 1  # all are, to say how large they are
    proxy.add(Fault("status", match=key, status=404, code="NoSuchKey", times=None, skip=measured + 1))
    root = f"data.root=s3://{folder.parent.name}/v1"
    done = run_script("train.py", root, *OPTIONS, cwd=tmp_path, environment=environment)
    assert done.returncode == 1, done.stderr
    (message,) = errors_in(done.stderr)
    assert done.stderr.strip().endswith(message)
    assert f"cannot read 's3://{folder.parent.name}/{key}'" in message
    assert "(HTTP 404, NoSuchKey)" in message
    assert run_of(tmp_path).info.status == "FAILED"
    (last,) = tmp_path.glob("outputs/train/*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["epoch"] == 1


def test_an_image_that_is_gone_when_copies_are_looked_for(
    proxy: FaultProxy, folder: Path, aws_env: S3Server, tmp_path: Path
) -> None:
    environment = {**subprocess_environment(aws_env), "AWS_ENDPOINT_URL": proxy.endpoint}
    key = min(open_module(folder).train.keys())
    proxy.add(Fault("status", match=key, status=404, code="NoSuchKey", times=None))
    root = f"data.root=s3://{folder.parent.name}/v1"
    done = run_script("train.py", root, *OPTIONS, "data.near_copies=true", cwd=tmp_path, environment=environment)
    assert done.returncode == 1
    (message,) = errors_in(done.stderr)
    assert f"cannot read 's3://{folder.parent.name}/{key}'" in message


@dataclass(frozen=True)
class Training:
    """One that runs."""

    process: warm.Process
    errors: Path  # where it writes what goes wrong

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)

    def end(self) -> str:
        """What it has written when it has ended."""
        self.process.wait(60)
        return self.errors.read_text()

    def children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def workers(self) -> list[psutil.Process]:
        """Those that are forks of it."""
        command = psutil.Process(self.process.pid).cmdline()
        return [child for child in self.children() if child.cmdline() == command]


@contextmanager
def training(root: str, folder: Path, endpoint: str, server: S3Server, *options: str) -> Iterator[Training]:
    """train.py in a session of its own, all of which has ended when the block has."""
    environment = {**subprocess_environment(server), "AWS_ENDPOINT_URL": endpoint}
    command = [str(PROJECT / "train.py"), f"data.root={root}", *OPTIONS, *options]
    with warm.running(command, folder, environment, folder / "said", folder / "errors") as process:
        yield Training(process, folder / "errors")


@pytest.mark.long
def test_ctrl_c_while_images_come_slowly(proxy: FaultProxy, folder: Path, aws_env: S3Server, tmp_path: Path) -> None:
    """A terminal sends SIGINT to all processes of the run."""
    proxy.add(Fault("slow", seconds=2, times=None))
    root = f"s3://{folder.parent.name}/v1"
    with training(root, tmp_path, proxy.endpoint, aws_env, "data.num_workers=2") as run:
        run.wait_until(lambda: len(proxy.reads("train")) >= MEASURED + TRAINED)  # both workers have begun
        children = run.children()
        start = time.monotonic()
        os.killpg(run.process.pid, signal.SIGINT)
        errors = run.end()
        assert time.monotonic() - start < 10
        assert run.process.returncode == 130
        assert errors_in(errors) == []
        assert errors.strip().splitlines()[-1].startswith("interrupted")
        assert not psutil.wait_procs(children, timeout=3)[1]
    assert run_of(tmp_path).info.status == "KILLED"


@pytest.mark.long
def test_a_killed_worker_ends_the_run(proxy: FaultProxy, folder: Path, aws_env: S3Server, tmp_path: Path) -> None:
    """As the system does when memory runs out."""
    proxy.add(Fault("slow", seconds=1, times=None))
    root = f"s3://{folder.parent.name}/v1"
    with training(root, tmp_path, proxy.endpoint, aws_env, "data.num_workers=2") as run:
        run.wait_until(lambda: len(proxy.reads("train")) >= MEASURED + TRAINED)  # both workers have begun
        children = run.children()
        start = time.monotonic()
        run.workers()[0].kill()
        errors = run.end()
        assert time.monotonic() - start < 20
        assert run.process.returncode == 1
        assert "killed" in errors.lower()
        assert not psutil.wait_procs(children, timeout=3)[1]
    assert run_of(tmp_path).info.status == "FAILED"
