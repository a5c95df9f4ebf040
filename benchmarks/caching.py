"""What the caches on the disk are worth, against plain local files: ``python benchmarks/caching.py``.

Drawn tyres of 640 x 640 pixels through the data module with two workers: from local files, from S3 with the files
in the cache (a warm epoch), and from local files with their pixels in the cache. Prints images a second and ratios, and
what a first epoch costs that also fills the cache.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from fetching import BATCH, WORKERS, epoch, row, write

from tyre_lightning.config import Cache, DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.demo.server import S3Server
from tyre_lightning.model.backbones import preset

ROUNDS = 5


def loader(root: str, cache: Cache, folder: str, *, train: bool) -> Any:
    """A loader over the test images, for evaluation or as for training."""
    config = DataConfig(root=root, batch_size=BATCH, num_workers=WORKERS, image_size=320, cache=cache, cache_dir=folder)
    data = TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))
    if train:
        assert data.test is not None
        data.train = data.test
        return data.train_dataloader()
    return data.test_dataloader()


def compare(lake: Path, scratch: str, *, train: bool) -> None:
    """Print the table for training's or evaluation's transform."""
    print("training's transform:" if train else "evaluation's transform:")
    loaders = {
        "local files": loader(str(lake), Cache.none, scratch, train=train),
        "S3, files in the cache": loader("s3://bucket/v1", Cache.files, f"{scratch}/{train}", train=train),
        "local files, pixels in the cache": loader(str(lake), Cache.resized, f"{scratch}/{train}", train=train),
    }
    first = {name: epoch(images) for name, images in loaders.items()}
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):  # in turns: all meet the same weather
        for name, images in loaders.items():
            rates[name].append(epoch(images))
    base = max(rates["local files"])
    for name in loaders:
        row(f"  {name}", max(rates[name]), base)
    for name in list(loaders)[1:]:
        row(f"  {name}: the epoch that fills it", first[name], base)


def main() -> None:
    """Set the stage."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        lake = write(Path(scratch))
        with S3Server(scratch, static=True) as server:
            os.environ.update(server.client_environment())
            for train in (False, True):
                compare(lake, scratch, train=train)


if __name__ == "__main__":
    main()
