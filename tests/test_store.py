from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from tests.cases import first_of
from tests.conftest import use_server, write_files
from tyre_lightning.config import S3Config
from tyre_lightning.demo.server import S3Server
from tyre_lightning.errors import UnreadableImage, UserError
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.s3 import S3Store
from tyre_lightning.lake.store import Store

ODD_NAMES = ("a b.jpg", "c+d.jpg", "50%.jpg", "%41.jpg", "#1.jpg", "q?.jpg", "Größe 東.jpg", "a&b=<c>.jpg", "'x\".jpg")


@pytest.fixture(params=["s3", "folder"])
def lake(request: pytest.FixtureRequest, bucket: Path) -> tuple[Path, Store]:
    """A lake's folder, and a store that reads it over S3 or directly."""
    folder = bucket / "lakes" / "v1"
    folder.mkdir(parents=True)
    root = f"s3://{bucket.name}/lakes/v1" if request.param == "s3" else str(folder)
    return folder, open_store(root, S3Config())


def test_keys_begin_with_the_version_and_come_sorted(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, "train/good/2.jpg", "train/good/10.jpg", "train/good-x/1.jpg", "train/good.jpg", "notes.txt")
    keys = [entry.key for entry in store.list()]
    assert keys == [
        "v1/notes.txt",
        "v1/train/good-x/1.jpg",
        "v1/train/good.jpg",
        "v1/train/good/10.jpg",
        "v1/train/good/2.jpg",
    ]
    assert [store.get(key).data.decode() for key in keys] == [key.removeprefix("v1/") for key in keys]


def test_entries_have_size_and_a_tag_that_follows_the_content(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, "a.jpg")
    (before,) = store.list()
    (folder / "a.jpg").write_bytes(b"other content")
    (after,) = store.list()
    assert (before.size, after.size) == (5, 13)
    assert before.etag != after.etag
    assert '"' not in after.etag


def test_a_folder_is_not_its_longer_namesake(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, "train/good/1.jpg", "train/good_old/2.jpg", "train/loose.jpg")
    assert [entry.key for entry in store.list("train/good")] == ["v1/train/good/1.jpg"]
    assert [entry.key for entry in store.list("train/good/")] == ["v1/train/good/1.jpg"]
    assert [entry.key for entry in store.list("train", deep=False)] == ["v1/train/loose.jpg"]
    assert store.prefixes("train") == ("good", "good_old")
    assert store.prefixes() == ("train",)


def test_a_missing_folder_is_empty(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, "train/good/1.jpg")
    assert list(store.list("nothing")) == []
    assert store.prefixes("nothing") == ()


def test_odd_names_survive(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, *(f"train/an odd+class%/{name}" for name in ODD_NAMES))
    keys = [entry.key for entry in store.list("train/an odd+class%")]
    assert sorted(keys) == sorted(f"v1/train/an odd+class%/{name}" for name in ODD_NAMES)
    assert store.prefixes("train") == ("an odd+class%",)
    assert [content.data.decode() for content in store.get_many(keys)] == [key.removeprefix("v1/") for key in keys]


def test_get_many_keeps_the_order(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, *(f"{number}.jpg" for number in range(100)))
    keys = [f"v1/{number * 37 % 100}.jpg" for number in range(100)]
    assert [b"v1/" + content.data for content in store.get_many(keys)] == [key.encode() for key in keys]
    assert store.get_many([]) == []


def test_get_many_names_the_object_that_is_missing(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, "1.jpg", "2.jpg")
    with pytest.raises(UserError, match=r"cannot read '.*lakes/v1/lost\.jpg'"):
        store.get_many(["v1/1.jpg", "v1/lost.jpg", "v1/2.jpg"])


def test_a_file_that_is_too_large_is_not_read(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    (folder / "1.jpg").write_bytes(b"x" * 100)
    assert len(store.get("v1/1.jpg", largest=100).data) == 100
    with pytest.raises(UnreadableImage, match="100 bytes are more than the 99 that a file may have"):
        store.get("v1/1.jpg", largest=99)


def _read(store: Store, key: str) -> None:
    sys.exit(0 if store.get(key).data == b"1.jpg" else 1)


class Reading(Dataset[tuple[Any, bool]]):
    """What ``get_many`` gives for some keys, or its error, and whether obstore is loaded; read in a worker."""

    def __init__(self, store: Store, keys: list[str]) -> None:
        self.store, self.keys = store, keys

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Any, bool]:
        try:
            answer: Any = self.store.get_many(self.keys)
        except UserError as error:
            answer = str(error)
        return answer, "obstore" in sys.modules


def in_worker(store: Store, keys: list[str], method: str = "fork") -> tuple[Any, bool]:
    """What :class:`Reading` gives in a DataLoader worker."""
    loader = DataLoader(Reading(store, keys), num_workers=1, batch_size=None, multiprocessing_context=method)
    (answer,) = loader
    return answer  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", first_of(["fork", "forkserver", "spawn"], 2))
def test_workers_read_all_keys_in_order(lake: tuple[Path, Store], method: str) -> None:
    folder, store = lake
    names = [*ODD_NAMES, *(f"{number * 37 % 100}.jpg" for number in range(100))]
    write_files(folder, *names)
    keys = [f"v1/{name}" for name in names]
    assert store.get(keys[0]).data == names[0].encode()  # used in the parent first
    answer, fast = in_worker(store, keys, method)
    assert [content.data.decode() for content in answer] == names
    assert fast == isinstance(store, S3Store)
    assert store.get_many(keys[:3]) == answer[:3]


def test_a_worker_names_the_object_that_is_missing(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, "1.jpg")
    answer, _ = in_worker(store, ["v1/1.jpg", "v1/lost.jpg"])
    assert f"cannot read '{store.root}/lost.jpg'" in answer


@pytest.mark.long
@pytest.mark.parametrize("method", first_of(["fork", "forkserver", "spawn"], 2))
def test_a_used_store_works_in_other_processes(lake: tuple[Path, Store], method: str) -> None:
    folder, store = lake
    write_files(folder, "1.jpg")
    assert store.get("v1/1.jpg").data == b"1.jpg"
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=_read, args=(store, "v1/1.jpg"))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert store.get("v1/1.jpg").data == b"1.jpg"


def test_a_used_store_pickles(lake: tuple[Path, Store]) -> None:
    folder, store = lake
    write_files(folder, "1.jpg")
    store.get("v1/1.jpg")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.root == store.root
    assert copy.get("v1/1.jpg").data == b"1.jpg"


def test_a_whole_bucket_has_no_version(bucket: Path) -> None:
    write_files(bucket, "train/good/1.jpg")
    store = open_store(f"s3://{bucket.name}/", S3Config())
    assert [entry.key for entry in store.list()] == ["train/good/1.jpg"]
    assert store.get("train/good/1.jpg").data == b"train/good/1.jpg"


@pytest.mark.parametrize("total", first_of([2_500, 25_000]))
def test_thousands_of_keys_list_completely(total: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = 5
    for part in range(parts):
        folder = tmp_path / "bucket" / "v1" / "train" / "good" / str(part)
        folder.mkdir(parents=True)
        for number in range(total // parts):
            os.close(os.open(folder / f"{number}.jpg", os.O_CREAT))
    with S3Server(tmp_path, static=True) as server:
        use_server(server, monkeypatch)
        start = time.perf_counter()
        remote = read_catalog(open_store("s3://bucket/v1", S3Config()), "train", ["good"], strict=True)
        print(f"\n{total} keys over S3 in {time.perf_counter() - start:.1f} s")
    local = read_catalog(open_store(str(tmp_path / "bucket" / "v1"), S3Config()), "train", ["good"], strict=True)
    assert len(set(remote.keys())) == total
    assert remote.keys() == local.keys()
    assert remote.labels() == local.labels()


def test_links_are_followed(lake: tuple[Path, Store], tmp_path: Path) -> None:
    folder, store = lake
    write_files(tmp_path, "elsewhere/1.jpg")
    (folder / "train").mkdir()
    (folder / "train" / "good").symlink_to(tmp_path / "elsewhere")
    assert [entry.key for entry in store.list()] == ["v1/train/good/1.jpg"]
    assert store.get("v1/train/good/1.jpg").data == b"elsewhere/1.jpg"


def test_a_link_in_a_circle_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"the link '.*loop' leads back to a folder above it: remove it"):
        list(open_store(str(tmp_path), S3Config()).list())


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match=r"cannot read '.*1\.jpg': No such file or directory"):
        list(open_store(str(tmp_path), S3Config()).list())


# What goes wrong, and what the user reads.


def message_of(root: str, config: S3Config | None = None) -> str:
    """The sentence that a user reads when listing ``root`` fails; printed, so that `pytest -s` shows it."""
    with pytest.raises(UserError) as caught:
        list(open_store(root, config or S3Config()).list("train"))
    print(f"\n{caught.value}")
    return str(caught.value)


def test_wrong_secret(bucket: Path, aws_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert message_of(f"s3://{bucket.name}/v1") == (
        f"cannot list 's3://{bucket.name}/v1/train/' at {aws_env.endpoint}: "
        "the secret key does not fit the access key: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or the profile that s3.profile names (HTTP 403, SignatureDoesNotMatch)"
    )


def test_unknown_access_key(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown-key")
    message = message_of(f"s3://{bucket.name}/v1")
    assert "the access key is not known there: check AWS_ACCESS_KEY_ID" in message
    assert "unknown-key" not in message


def test_no_credentials(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert message_of(f"s3://{bucket.name}/v1").endswith(
        "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or name a profile with s3.profile"
    )


def test_half_of_the_credentials(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "the AWS credentials cannot be loaded: check AWS_ACCESS_KEY_ID" in message_of(f"s3://{bucket.name}/v1")


@pytest.mark.usefixtures("aws_env")
def test_missing_bucket() -> None:
    message = message_of("s3://no-such-bucket/v1")
    assert "'s3://no-such-bucket/v1/train/'" in message
    assert message.endswith("there is no such bucket: check its name (HTTP 404, NoSuchBucket)")


def test_missing_key(bucket: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_store(f"s3://{bucket.name}/v1", S3Config()).get("v1/lost.jpg")
    print(f"\n{caught.value}")
    assert f"cannot read 's3://{bucket.name}/v1/lost.jpg'" in str(caught.value)
    assert "there is no such object: it was deleted, or its key is misspelt (HTTP 404, NoSuchKey)" in str(caught.value)


@pytest.mark.usefixtures("aws_env")
def test_unreachable_endpoint() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    start = time.perf_counter()
    message = message_of("s3://bucket/v1", S3Config(endpoint_url=endpoint.replace("http://", "http://user:pass@")))
    assert time.perf_counter() - start < 10
    assert message == (
        f"cannot list 's3://bucket/v1/train/' at {endpoint}: the endpoint does not answer: "
        "check s3.endpoint_url, AWS_ENDPOINT_URL and the network (EndpointConnectionError)"
    )


@pytest.mark.usefixtures("aws_env")
def test_malformed_endpoint() -> None:
    message = message_of("s3://bucket/v1", S3Config(endpoint_url="minio:9000"))
    assert message == "the S3 endpoint 'minio:9000' is not a URL: write http://host:port"


@pytest.mark.usefixtures("aws_env")
def test_unknown_profile() -> None:
    message = message_of("s3://bucket/v1", S3Config(profile="factory"))
    assert message.endswith("the AWS profile 'factory' is not in the AWS config: check s3.profile and AWS_PROFILE")


@pytest.mark.usefixtures("aws_env")
@pytest.mark.parametrize("endpoint", ["ftp://minio", "http://", "http://[::1", "http://minio:port", "//x"])
def test_an_endpoint_that_is_no_address(endpoint: str) -> None:
    message = message_of("s3://bucket/v1", S3Config(endpoint_url=endpoint))
    assert message == f"the S3 endpoint '{endpoint}' is not a URL: write http://host:port"


@pytest.mark.parametrize(
    ("root", "shown"),
    [
        ("s3:/bucket/v1", "s3:/bucket/v1"),
        ("S3://bucket/v1", "S3://bucket/v1"),
        ("s3://", "s3://"),
        ("s3:///v1", "s3:///v1"),
        ("s3://key:secret@bucket/v1", "s3://bucket/v1"),
        ("https://bucket.host/v1?X-Amz-Signature=abc", "https://bucket.host/v1"),
    ],
)
def test_malformed_address(root: str, shown: str) -> None:
    message = message_of(root)
    assert message == f"'{shown}' is not an address of images: write s3://bucket/prefix or a folder"


def test_missing_folder() -> None:
    assert message_of("/no/such/folder") == "there is no folder '/no/such/folder'"


@pytest.fixture
def breaking_server() -> Iterator[tuple[str, list[int]]]:
    """An HTTP server whose first answer breaks off half-way; yields its URL and the answers it has given."""
    answers: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for body in (b"hal", b"whole!"):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                answers.append(len(body))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n" + body)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", answers
    listener.close()


@pytest.mark.usefixtures("aws_env")
def test_a_body_that_breaks_off_is_fetched_again(breaking_server: tuple[str, list[int]]) -> None:
    endpoint, answers = breaking_server
    assert open_store("s3://bucket/v1", S3Config(endpoint_url=endpoint)).get("v1/1.jpg").data == b"whole!"
    assert answers == [3, 6]


def test_boto3_is_not_loaded_for_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from tyre_lightning.lake.reader import open_store; from tyre_lightning.config import S3Config; "
        f"list(open_store({str(tmp_path)!r}, S3Config()).list()); sys.exit('boto3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_pipe_is_no_file_and_does_not_wait_for_one_who_writes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    store = open_store(str(tmp_path), S3Config())
    with pytest.raises(UserError, match=r"cannot read '.*x\.jpg': it is no file"):
        store.get(store.key("x.jpg"))


def test_a_file_that_goes_while_its_folder_is_listed_is_not_there(tmp_path: Path) -> None:
    write_files(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg")
    listing = open_store(str(tmp_path), S3Config()).list("a")
    assert next(listing).key.endswith("/1.jpg")
    (tmp_path / "a" / "2.jpg").unlink()
    assert [entry.key.rpartition("/")[2] for entry in listing] == ["3.jpg"]
    (tmp_path / "a" / "0.jpg").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read '.*0\.jpg'"):
        [*open_store(str(tmp_path), S3Config()).list("a")]
