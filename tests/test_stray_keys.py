"""Keys that no folder on a disk can have: with two slashes in a row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.demo.server import S3Server
from tyre_lightning.lake.listing import read_lake
from tyre_lightning.lake.reader import open_store


class Keys(BaseHTTPRequestHandler):
    """Lists keys that no folder on a disk can have, as Amazon does."""

    keys: ClassVar[tuple[str, ...]] = ()

    def do_GET(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, split = asked.get("prefix", ""), asked.get("delimiter")
        found, folders = [], set()
        for key in sorted(key for key in self.keys if key.startswith(prefix)):
            rest = key.removeprefix(prefix)
            if split and split in rest:
                folders.add(prefix + rest.partition(split)[0] + split)
            else:
                found.append(f'<Contents><Key>{key}</Key><ETag>"1"</ETag><Size>1</Size></Contents>')
        more = [f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        body = f"<ListBucketResult>{''.join(found)}{''.join(more)}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def keys(aws_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Keys]]:
    """An S3 server of the keys that a test gives it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield Keys
        server.shutdown()


IMAGES = ("v1/train/good/1.jpg", "v1/train/crack/1.jpg", "v1/train/crack/deep/2.jpg", "v1/test/good/3.jpg")


@pytest.mark.parametrize(
    ("stray", "ignored"),
    [
        (("v1/train//loose.jpg",), 1),
        (("v1/train///loose.jpg", "v1/train//good/x.jpg", "v1/train/note.txt"), 3),
        (("v1//train/good/x.jpg", "v1//loose.jpg", "//loose.jpg", "/v1/train/good/x.jpg"), 0),
        (("v1/train/crack//2.txt",), 1),
    ],
)
def test_parts_of_a_key_without_a_name_are_no_folders(keys: type[Keys], stray: tuple[str, ...], ignored: int) -> None:
    keys.keys = (*IMAGES, *stray)
    lake = read_lake(open_store("s3://bucket/v1", S3Config()), DataConfig())
    assert lake.classes == ("crack", "good")
    assert lake.train.keys() == ["v1/train/crack/1.jpg", "v1/train/crack/deep/2.jpg", "v1/train/good/1.jpg"]
    assert lake.train.ignored == ignored


def test_an_image_of_a_class_may_have_two_slashes_in_its_key(keys: type[Keys]) -> None:
    keys.keys = (*IMAGES, "v1/train/crack//2.jpg")
    lake = read_lake(open_store("s3://bucket/v1", S3Config()), DataConfig())
    assert "v1/train/crack//2.jpg" in lake.train.keys()
