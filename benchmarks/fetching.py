"""Streaming from S3 over a slow link, against the plain loop over boto3 and against local files.

``python benchmarks/fetching.py [--latency 0.02]``: drawn tyres on ``rclone serve s3`` behind a proxy that lets every
request wait. Prints images a second and ratios for fetching alone and for the whole way to the network's input, each
with two DataLoader workers but for the plain loop, and the CPU time that server and proxy take from the same cores.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from slow_link import SlowLink
from torch.utils.data import DataLoader, Dataset
from torchvision.models import EfficientNet_B0_Weights

from tyre_lightning.config import Cache, DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.dataset import BatchLoader
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.demo.server import S3Server
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import Store
from tyre_lightning.model.backbones import preset

BATCH = 32
WORKERS = 2
DRAWN = 64  # different pictures of each class
COPIES = 4  # of each, under other names
LOOP = 128  # images that the plain loop fetches; it is too slow for all
ROUNDS = 3


class Bytes(Dataset[int]):
    """Objects' sizes, fetched a batch at a time by ``get_many`` or, one after another, by ``get``."""

    def __init__(self, store: Store, keys: Sequence[str], *, at_once: bool) -> None:
        self._store, self._keys, self._at_once = store, keys, at_once

    def __len__(self) -> int:
        return len(self._keys)

    def __getitems__(self, indices: Sequence[int]) -> list[int]:
        keys = [self._keys[index] for index in indices]
        found = self._store.get_many(keys) if self._at_once else [self._store.get(key) for key in keys]
        return [len(content.data) for content in found]


def rate(loader: Iterable[Any], count: int) -> float:
    """Images a second over an epoch, without the start of the workers: the second of two passes."""
    for _ in loader:
        pass
    started = time.perf_counter()
    for _ in loader:
        pass
    return count / (time.perf_counter() - started)


def epoch(loader: BatchLoader) -> float:
    """Images a second over one epoch of a loader of ours."""
    started = time.perf_counter()
    count = sum(len(batch.label) for batch in loader)
    return count / (time.perf_counter() - started)


def fetching(store: Store, keys: Sequence[str], *, at_once: bool, workers: int) -> float:
    """Images a second, bytes only."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    return rate(DataLoader(Bytes(store, keys, at_once=at_once), BATCH, collate_fn=len, **options), len(keys))


def pipeline(root: str, workers: int = WORKERS) -> float:
    """Images a second through the data module, evaluation's transform, with nothing kept on the disk."""
    config = DataConfig(root=root, batch_size=BATCH, num_workers=workers, image_size=320, cache=Cache.none)
    data = TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))
    return rate(data.test_dataloader(), 0 if data.test is None else len(data.test))


def plain_pipeline(store: Store, keys: Sequence[str]) -> float:
    """Images a second of the loop that everybody writes first: get, open with Pillow, apply the preset."""
    transform = EfficientNet_B0_Weights.DEFAULT.transforms()
    started = time.perf_counter()
    for key in keys:
        transform(Image.open(io.BytesIO(store.get(key).data)).convert("RGB"))
    return len(keys) / (time.perf_counter() - started)


def best(measure: Callable[[], float]) -> float:
    """The fastest of some rounds: the others were disturbed."""
    return max(measure() for _ in range(ROUNDS))


def write(folder: Path) -> Path:
    """A lake of JPEG files of 640 x 640 pixels, all in test."""
    lake = folder / "bucket" / "v1"
    write_lake(lake, {"train": 2, "test": DRAWN}, size=640)
    for path in [*(lake / "test").rglob("*.jpg")]:
        for copy in range(1, COPIES):
            shutil.copyfile(path, path.with_name(f"{path.stem}-{copy}.jpg"))
    return lake


def server_cpu() -> float:
    """CPU seconds of rclone, a child of this process, so far."""
    found = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("rclone")]
    return float(sum(sum(process.cpu_times()[:2]) for process in found))


def row(name: str, value: float, base: float) -> None:
    """Print a figure and its ratio."""
    print(f"{name:58} {value:8.0f} images/s  ratio {value / base:6.2f}", flush=True)


def compare(lake: Path, link: SlowLink) -> None:
    """Print the table."""
    store = open_store("s3://bucket/v1", S3Config())
    keys = [entry.key for entry in store.list("test")]
    base = fetching(store, keys[:LOOP], at_once=False, workers=0)
    row("fetch: one get after another", base, base)
    row(f"fetch: the same in {WORKERS} workers", fetching(store, keys, at_once=False, workers=WORKERS), base)
    before = server_cpu(), link.cpu_seconds()
    row(f"fetch: ours, {WORKERS} workers", best(lambda: fetching(store, keys, at_once=True, workers=WORKERS)), base)
    images = 2 * ROUNDS * len(keys)
    taken = [1000 * (now - then) / images for now, then in zip((server_cpu(), link.cpu_seconds()), before, strict=True)]
    print(f"  meanwhile, CPU a fetched image: server {taken[0]:.2f} ms, proxy {taken[1]:.2f} ms")
    base = plain_pipeline(store, keys[:LOOP])
    row("to the network's input: one after another, Pillow", base, base)
    ours = best(lambda: pipeline("s3://bucket/v1"))
    row(f"to the network's input: ours, {WORKERS} workers", ours, base)
    local = best(lambda: pipeline(str(lake)))
    row("to the network's input: ours, on local files", local, base)
    print(f"S3 against local files: {ours / local:.2f}")
    pairs = [(pipeline("s3://bucket/v1", 1), pipeline(str(lake), 1)) for _ in range(ROUNDS)]
    ours, local = (max(column) for column in zip(*pairs, strict=True))
    print(f"S3 against local files, one worker each, so that the server has a core: {ours / local:.2f}")


def main() -> None:
    """Set the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that each request waits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        lake = write(Path(scratch))
        with S3Server(scratch, static=True) as server, SlowLink(server.endpoint, options.latency) as link:
            os.environ.update({**server.client_environment(), "AWS_ENDPOINT_URL": link.endpoint})
            compare(lake, link)


if __name__ == "__main__":
    main()
