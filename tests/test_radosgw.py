"""The S3 side against Ceph's server, the most correct one to be had: ``make test-s3``."""

from __future__ import annotations

import json
import unicodedata
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.images import encode, picture
from tests.radosgw import RadosGateway, available
from tests.test_dataset import module
from tests.test_store import in_worker
from tyre_lightning.config import S3Config
from tyre_lightning.demo.server import FOREIGN_VARIABLES
from tyre_lightning.errors import UserError
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.reader import open_store

pytestmark = [pytest.mark.radosgw, pytest.mark.skipif(not available(), reason="radosgw is not installed")]

NAMES = (
    "a b.jpg", "c+d.jpg", "50%.jpg", "%41.jpg", "%2F.jpg", "#1.jpg", "q?.jpg", "a&b=<c>.jpg", "'x\".jpg", "x//y.jpg",
    unicodedata.normalize("NFC", "Größe.jpg"), unicodedata.normalize("NFD", "Größe.jpg"), "a/../b.jpg", "./c.jpg",
    "d" * 900 + ".jpg",
)  # fmt: skip


@pytest.fixture(scope="module")
def gateway() -> Iterator[RadosGateway]:
    with RadosGateway() as started:
        yield started


@pytest.fixture
def bucket(gateway: RadosGateway, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket, as a boto3 resource; the environment leads to it."""
    for name in FOREIGN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in gateway.environment.items():
        monkeypatch.setenv(name, value)
    made = boto3.resource("s3").Bucket(f"bucket-{uuid.uuid4().hex[:12]}")
    made.create()
    return made


def fill(bucket: Any, *keys: str) -> None:
    """Make objects that hold their own keys."""
    for key in keys:
        bucket.put_object(Key=key, Body=key.encode())


def test_every_key_survives_in_workers_and_out_of_them(bucket: Any) -> None:
    fill(bucket, *(f"v1/train/good/{name}" for name in NAMES))
    store = open_store(f"s3://{bucket.name}/v1", S3Config())
    keys = [entry.key for entry in store.list("train/good")]
    assert sorted(keys) == sorted(f"v1/train/good/{name}" for name in NAMES)
    assert [content.data.decode() for content in store.get_many(keys)] == keys
    answer, fast = in_worker(store, keys)
    assert fast
    assert [content.data.decode() for content in answer] == keys


def test_tags_of_listing_and_reading_agree(bucket: Any) -> None:
    fill(bucket, "v1/a.jpg", "v1/b+c.jpg")
    store = open_store(f"s3://{bucket.name}/v1", S3Config())
    entries = [*store.list()]
    answer, _ = in_worker(store, [entry.key for entry in entries])
    for entry, here, there in zip(entries, store.get_many([e.key for e in entries]), answer, strict=True):
        assert entry.etag == here.etag == there.etag != ""


def test_thousands_of_keys_versions_and_namesakes(bucket: Any) -> None:
    keys = [f"v1/train/good/{number:05}.jpg" for number in range(2500)]
    fill(bucket, *keys, "v1/train/good_old/x.jpg", "v1/train/good/", "v2/train/good/x.jpg", "v1/train/note.txt")
    store = open_store(f"s3://{bucket.name}/v1", S3Config())
    assert store.prefixes("train") == ("good", "good_old")
    catalog = read_catalog(store, "train", ["good", "good_old"], strict=True)
    assert catalog.keys() == [*keys, "v1/train/good_old/x.jpg"]
    assert catalog.ignored == 2


def test_a_data_module_streams(bucket: Any) -> None:
    for usage, name, index in [(u, n, i) for u in ("train", "test") for n in ("bad", "good") for i in range(5)]:
        bucket.put_object(Key=f"v1/{usage}/{name}/{index}.jpg", Body=encode(picture(index), "JPEG"))
    data = module(f"s3://{bucket.name}/v1", num_workers=2)
    for _ in range(2):  # from the server, then from the cache
        assert sorted(key for batch in data.train_dataloader() for key in batch.key) == sorted(data.train.keys())


def test_a_wrong_secret_is_named(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=r"the secret key does not fit the access key.*SignatureDoesNotMatch"):
        list(open_store(f"s3://{bucket.name}/v1", S3Config()).list())


def test_an_open_bucket_needs_no_credentials(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bucket, "v1/a.jpg")
    statement = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"],
                 "Resource": [f"arn:aws:s3:::{bucket.name}", f"arn:aws:s3:::{bucket.name}/*"]}  # fmt: skip
    bucket.Policy().put(Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = open_store(f"s3://{bucket.name}/v1", S3Config(anonymous=True))
    assert [entry.key for entry in store.list()] == ["v1/a.jpg"]
    answer, fast = in_worker(store, ["v1/a.jpg"])
    assert fast
    assert answer[0].data == b"v1/a.jpg"


def test_an_assumed_role_reads(
    bucket: Any, gateway: RadosGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bucket, "v1/a.jpg")
    (tmp_path / "config").write_text(
        f"[profile reader]\nrole_arn = {gateway.role_arn}\ncredential_source = Environment\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", gateway.endpoint)
    store = open_store(f"s3://{bucket.name}/v1", S3Config(profile="reader"))
    assert store.get("v1/a.jpg").data == b"v1/a.jpg"
    answer, fast = in_worker(store, ["v1/a.jpg"])
    assert fast
    assert answer[0].data == b"v1/a.jpg"
