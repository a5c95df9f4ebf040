"""The data module against other ways to stream the same images: ``python benchmarks/rivals.py [--latency 0.02]``.

Drawn tyres of 640 x 640 pixels on ``rclone serve s3`` behind a proxy that lets every request wait. Everybody decodes
and resizes with our ``Preprocessing``, in batches of 32 and two DataLoader workers, in the order of the keys. Prints
for each, measured in a process of its own with a server and a disk cache of its own: seconds of preparation (listing,
indexing, or conversion to shards), images a second over the first epoch, with the start of the workers, and over the
second, and ratios to a plain data set over boto3: the best of some rounds. Who is not installed is named and left out.

Conversion is shown from its best side: it reads with our store, and shards reach the server without a wait.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import torch
from botocore.config import Config
from fetching import BATCH, WORKERS, write
from slow_link import SlowLink
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tyre_lightning.config import Cache, DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.demo.server import S3Server
from tyre_lightning.lake.reader import open_store
from tyre_lightning.model.backbones import preset

BUCKET, ROOT, IMAGES = "bucket", "s3://bucket/v1", "s3://bucket/v1/test/"
SHARD, SHARD_BYTES = 64, 4 << 20  # of a tar file and, as many images, of an MDS file: enough files for two workers
SAMPLED = 32  # every so many pixels one is added up, to see that everybody got the same images
DIRECT = "BENCHMARK_DIRECT"  # variable: the server's address without the wait
RESULT = "result.json"


class Result(NamedTuple):
    """What one took."""

    prepared: float  # seconds
    first: float  # images a second
    second: float  # images a second
    seen: Sequence[list[int]]  # each epoch's images and the sum of some of their pixels


class Objects(Dataset[bytes]):
    """What everybody writes first: an object for each item."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._client: Any = None  # made in the worker: it must not be carried over a fork

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> bytes:
        self._client = self._client or boto3.client("s3")
        return read_all(self._client.get_object(Bucket=BUCKET, Key=self._keys[index])["Body"])


def read_all(file: Any) -> bytes:
    """An object's content."""
    content: bytes = file.read()
    return content


def decoded(preprocessing: Preprocessing, field: str | None, items: Sequence[Any]) -> Tensor:
    """A batch of files, or of dictionaries with a file in ``field``, as uint8 [N, 3, H, W]."""
    return torch.stack([preprocessing.read(item[field] if field else item, "image") for item in items])


def loader(dataset: Any, field: str | None = None) -> DataLoader[Tensor]:
    """Two workers that decode, and stay."""
    collate = partial(decoded, Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=320)), field)
    return DataLoader(dataset, BATCH, num_workers=WORKERS, collate_fn=collate, persistent_workers=True)


def plain(folder: Path) -> DataLoader[Tensor]:
    """The data set over boto3."""
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="v1/test/")
    return loader(Objects([item["Key"] for page in pages for item in page["Contents"]]))


def ours(cache: Cache, folder: Path) -> Iterable[Batch]:
    """The data module."""
    config = DataConfig(
        root=ROOT, batch_size=BATCH, num_workers=WORKERS, image_size=320, cache=cache, cache_dir=str(folder)
    )
    data = TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))
    return data.test_dataloader()


def litdata(folder: Path) -> DataLoader[Tensor]:
    """A batch's requests at once, and the next one's."""
    from litdata import StreamingRawDataset
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"  # there is no setting for a server without TLS
    return loader(StreamingRawDataset(IMAGES, str(folder), cache_files=True, max_prefetch=2 * BATCH))


def s3torchconnector(folder: Path) -> DataLoader[Tensor]:
    """Amazon's own client, an object at a time."""
    from s3torchconnector import S3ClientConfig, S3MapDataset

    client, endpoint = S3ClientConfig(force_path_style=True), os.environ["AWS_ENDPOINT_URL"]
    where = {"region": "us-east-1", "endpoint": endpoint, "s3client_config": client}
    dataset = S3MapDataset.from_prefix(IMAGES, **where, transform=read_all)
    len(dataset)  # it lists when asked
    return loader(dataset)


def webdataset(folder: Path) -> DataLoader[Tensor]:
    """Tar files, fetched by curl from signed URLs."""
    from webdataset import ShardWriter, WebDataset

    for part in ("shards", "cache"):
        (folder / part).mkdir()
    with ShardWriter(f"{folder}/shards/%05d.tar", maxcount=SHARD, verbose=0) as writer:
        for number, data in enumerate(files()):
            writer.write({"__key__": f"{number:08}", "jpg": data})
    client = boto3.client("s3", config=Config(signature_version="s3v4"))  # rclone does not know the older URLs
    keys = upload(folder / "shards")
    urls = [client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key}) for key in keys]
    return loader(WebDataset(urls, cache_dir=f"{folder}/cache", shardshuffle=False), "jpg")


def streaming(folder: Path) -> DataLoader[Tensor]:
    """MDS files, fetched by boto3 in a thread."""
    from streaming import MDSWriter, StreamingDataset

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    with MDSWriter(out=f"{folder}/shards", columns={"jpg": "bytes"}, size_limit=SHARD_BYTES) as writer:
        for data in files():
            writer.write({"jpg": data})
    upload(folder / "shards")
    dataset = StreamingDataset(remote=f"s3://{BUCKET}/shards", local=f"{folder}/cache", batch_size=BATCH)
    for stream in dataset.streams:  # else forked workers share its connection, and mistake each other's shards
        stream._downloader.clean_up()
    return loader(dataset, "jpg")


def files() -> Iterator[bytes]:
    """The images' files, fetched some at a time."""
    store = open_store(ROOT, S3Config())
    keys = [entry.key for entry in store.list("test")]
    for begin in range(0, len(keys), BATCH):
        yield from (content.data for content in store.get_many(keys[begin : begin + BATCH]))


def upload(folder: Path) -> list[str]:
    """Put a folder's files into the bucket; their keys."""
    client = boto3.client("s3", endpoint_url=os.environ[DIRECT])
    keys = {f"shards/{path.name}": str(path) for path in sorted(folder.iterdir())}
    for key, path in keys.items():
        client.upload_file(path, BUCKET, key)
    return [*keys]


class Rival(NamedTuple):
    """A way to stream images."""

    package: str
    modules: Sequence[str]  # imported before the clock starts
    keeps: str  # on the disk after the first epoch
    prepare: Callable[[Path], Iterable[Any]]  # gets an empty folder


RIVALS = {
    "plain": Rival("boto3", (), "nothing", plain),
    "ours": Rival("tyre-lightning", (), "files", partial(ours, Cache.files)),
    "ours-resized": Rival("tyre-lightning", (), "pixels", partial(ours, Cache.resized)),
    "litdata": Rival("litdata", ("litdata", "s3fs"), "files", litdata),
    "s3torchconnector": Rival("s3torchconnector", ("s3torchconnector",), "nothing", s3torchconnector),
    "webdataset": Rival("webdataset", ("webdataset",), "shards", webdataset),
    "streaming": Rival("mosaicml-streaming", ("streaming",), "shards", streaming),
}


def epoch(batches: Iterable[Any]) -> tuple[float, list[int]]:
    """Images a second over an epoch; the images' count and the sum of some of their pixels."""
    started, count, total = time.perf_counter(), 0, 0
    for batch in batches:
        images = batch.image if isinstance(batch, Batch) else batch
        count, total = count + len(images), total + int(images[:, :, ::SAMPLED, ::SAMPLED].sum())
    return count / (time.perf_counter() - started), [count, total]


def child(name: str, scratch: Path) -> None:
    """Measure in this process, into a file; no file: it is not installed."""
    torch.set_num_threads(1)
    try:
        for module in RIVALS[name].modules:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return
    (folder := scratch / "own").mkdir()
    started = time.perf_counter()
    batches = RIVALS[name].prepare(folder)
    prepared = time.perf_counter() - started
    (first, seen), (second, again) = epoch(batches), epoch(batches)
    (scratch / RESULT).write_text(json.dumps(Result(prepared, first, second, [seen, again])))


def measure(name: str, lake: Path, latency: float) -> list[Result]:
    """One round, with a bucket for it alone, since some write there; nothing where it is not installed."""
    with tempfile.TemporaryDirectory(dir=lake.parents[1]) as scratch:
        shutil.copytree(lake, f"{scratch}/served/{BUCKET}/v1", copy_function=os.link)
        with S3Server(f"{scratch}/served", static=True) as server, SlowLink(server.endpoint, latency) as link:
            environment = {**server.client_environment(), "AWS_ENDPOINT_URL": link.endpoint, DIRECT: server.endpoint}
            subprocess.run([sys.executable, __file__, "--child", name, scratch], env=environment, check=True)
        result = Path(scratch, RESULT)
        return [Result(*json.loads(result.read_text()))] if result.exists() else []


def row(name: str, results: Sequence[Result], base: Sequence[Result]) -> None:
    """Print the best figures, and ratios to those of ``base``."""
    title = f"{name} {version(RIVALS[name].package)}, keeps {RIVALS[name].keeps}"
    print(f"{title:40} {min(result.prepared for result in results):5.1f} s", end="")
    for kind in ("first", "second"):
        value, other = (max(getattr(result, kind) for result in each) for each in (results, base))
        print(f"  {kind} {value:5.0f} images/s  ratio {value / other:5.2f}", end="")
    print(flush=True)


def compare(names: Sequence[str], lake: Path, rounds: int, latency: float) -> None:
    """Print the table."""
    found: dict[str, list[Result]] = {name: [] for name in names}
    for name in [*names] * rounds:  # in turns: all meet the same weather
        found[name] += measure(name, lake, latency)
    for name, results in found.items():
        if results:
            row(name, results, found[names[0]] or results)
        else:
            print(f"{name}: not installed")
    seen = {name: [images for result in results for images in result.seen] for name, results in found.items()}
    if len({tuple(images) for each in seen.values() for images in each}) > 1:
        sys.exit(f"not everybody gave the same images: {seen}")


def main() -> None:
    """Set the stage."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that each request waits")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=[*RIVALS], help="ratios are to the first of them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        compare(options.only, write(Path(scratch)), options.rounds, options.latency)


if __name__ == "__main__":
    main()
