"""Listing a bucket of 200,000 keys over a slow link: ``python benchmarks/listing.py [--latency 0.02] [--keys 200000]``.

On Ceph's server (``apt-get install --no-install-recommends radosgw ceph-mon ceph-osd``) behind a proxy that lets every
request wait: one boto3 paginator over all keys against the data module's listing of eight class folders, for the first
time and again. Prints seconds, ratios, and what the catalog takes in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import obstore
from obstore.store import S3Store
from slow_link import SlowLink

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the server that the tests use

from tests.radosgw import RadosGateway
from tyre_lightning.config import S3Config
from tyre_lightning.demo.server import FOREIGN_VARIABLES
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.reader import open_store

BUCKET = "plant"
CLASSES = tuple(f"class_{number}" for number in range(8))
WRITERS = 32


def keys(count: int) -> Iterator[str]:
    """Keys of ``count`` images; their names are as long as digests."""
    for number in range(count):
        name = hashlib.md5(str(number).encode()).hexdigest()
        yield f"v1/train/{CLASSES[number % len(CLASSES)]}/{name}.jpg"


def fill(endpoint: str, count: int) -> None:
    """Make the bucket and its objects, of a byte each."""
    boto3.resource("s3").create_bucket(Bucket=BUCKET)
    store = S3Store(BUCKET, endpoint=endpoint, region="us-east-1", client_options={"allow_http": True})
    with ThreadPoolExecutor(WRITERS) as pool:
        for _ in pool.map(lambda key: obstore.put(store, key, b"x"), keys(count)):
            pass


def serial() -> int:
    """Keys that one boto3 paginator finds."""
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="v1/train/")
    return len([(item["Key"], item["Size"], item["ETag"]) for page in pages for item in page.get("Contents", ())])


def ours(memory: Path | None) -> int:
    """Keys that a catalog of ours holds."""
    catalog = read_catalog(open_store(f"s3://{BUCKET}/v1", S3Config(), memory), "train", CLASSES, strict=True)
    if memory is None:
        print(f"  {catalog.table.nbytes / len(catalog):.0f} bytes a key in memory")
    return len(catalog)


def seconds(name: str, count: int, listing: Callable[[], int], base: float = 0.0) -> float:
    """The time of a listing, which must be whole; prints it with its ratio to ``base``."""
    started, cpu = time.perf_counter(), time.process_time()
    found = listing()
    taken, cpu = time.perf_counter() - started, time.process_time() - cpu
    if found != count:
        sys.exit(f"{name} found {found} keys of {count}")
    print(f"{name:50} {taken:7.2f} s, CPU {cpu:7.2f} s, ratio {(base or taken) / taken:6.2f}", flush=True)
    return taken


def compare(count: int, memory: Path) -> None:
    """Print the table."""
    serial()  # both clients load their descriptions of S3 from the disk at first
    base = seconds("one boto3 paginator", count, serial)
    seconds("ours, nothing kept", count, lambda: ours(None), base)
    seconds("ours, for the first time", count, lambda: ours(memory), base)
    seconds("ours, again", count, lambda: ours(memory), base)
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"v1/train/{CLASSES[0]}/0.jpg", Body=b"x")
    seconds("ours, again, with a new key before all of a class", count + 1, lambda: ours(memory), base)


def main() -> None:
    """Set the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that each request waits")
    parser.add_argument("--keys", type=int, default=200_000)
    options = parser.parse_args()
    with RadosGateway() as gateway, tempfile.TemporaryDirectory() as memory:
        for name in FOREIGN_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(gateway.environment)
        fill(gateway.endpoint, options.keys)
        with SlowLink(gateway.endpoint, options.latency) as link:
            os.environ["AWS_ENDPOINT_URL"] = link.endpoint
            compare(options.keys, Path(memory))


if __name__ == "__main__":
    main()
