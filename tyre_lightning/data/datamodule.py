"""The LightningDataModule: streams a lake's images to the model."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import torch

from tyre_lightning.config import DataConfig, S3Config, WorkerStart
from tyre_lightning.data.dataset import BatchLoader, BatchSampler, EpochSampler, TyreDataset, collate
from tyre_lightning.data.transforms import Augmentation, Preprocessing
from tyre_lightning.errors import UserError
from tyre_lightning.lake.catalog import Catalog, good_class, read_lake
from tyre_lightning.lake.splits import split_validation
from tyre_lightning.lake.store import open_store


class TyreDataModule(L.LightningDataModule):
    """Train, validation and test images of one data version.

    The catalogs are read on construction, in the main process: the classes must be known before there is a model, and
    processes started later get them with this object instead of listing again.

    Args:
        config: which images and how.
        s3: where the S3 service is.
        preprocessing: evaluation's transform; training's is random and ends in the same size.
        seed: fixes the validation split, the order of the images and their random changes.

    Raises:
        UserError: there is no such lake, or its folders do not make a data set.
    """

    def __init__(self, config: DataConfig, s3: S3Config, preprocessing: Preprocessing, seed: int = 0) -> None:
        super().__init__()
        if config.root is None:
            raise UserError("data.root is not set: give data.root=s3://bucket/prefix/version or data.root=folder")
        self.config = config
        self.preprocessing = preprocessing
        self.seed = seed
        self.store = open_store(config.root, s3)
        lake = read_lake(self.store, config)
        self.classes = lake.classes
        self.good_class = good_class(lake.classes, config.good_class)
        if lake.val is None:
            self.train, self.val = split_validation(lake.train, config.val_fraction, seed)
        else:
            self.train, self.val = lake.train, lake.val
        self.test = lake.test
        read = {"train": lake.train, "val": lake.val, "test": lake.test}
        self.ignored = {usage: catalog.ignored for usage, catalog in read.items() if catalog and catalog.ignored}

    def catalogs(self) -> dict[str, Catalog]:
        """The catalogs by usage; test only where the lake has one."""
        catalogs = {"train": self.train, "val": self.val}
        return catalogs if self.test is None else {**catalogs, "test": self.test}

    def train_dataloader(self) -> BatchLoader:
        """Shuffled, augmented batches."""
        return self._loader(self.train, train=True)

    def val_dataloader(self) -> BatchLoader:
        """Every validation image once, preprocessed as for prediction."""
        return self._loader(self.val, train=False)

    def test_dataloader(self) -> BatchLoader:
        """Every test image once, preprocessed as for prediction.

        Raises:
            UserError: the lake has no test images.
        """
        if self.test is None:
            raise UserError(f"{self.config.root} has no '{self.config.usage.test}/' folder to test on")
        return self._loader(self.test, train=False)

    def _loader(self, catalog: Catalog, *, train: bool) -> BatchLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(catalog) < world:
            raise UserError(f"{len(catalog)} images cannot be shared by {world} devices: give trainer.devices=1")
        augmentation = Augmentation(self.config.augment, self.preprocessing) if train else None
        dataset: Any = TyreDataset(
            self.store, catalog, self.classes, self.preprocessing, augmentation, self.config.unreadable
        )
        sampler = EpochSampler(len(catalog), seed=self.seed, train=train, rank=rank, world=world)
        batch_size = batch_per_device(self.config.batch_size, world)
        options = self._worker_options()
        return BatchLoader(
            dataset,
            batch_sampler=BatchSampler(sampler, batch_size, options.get("num_workers", 0)),
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def _worker_options(self) -> dict[str, Any]:
        count = self.config.num_workers
        count = min(8, os.cpu_count() or 1) if count is None else count
        if count == 0:
            return {}
        start = None if self.config.worker_start is WorkerStart.auto else self.config.worker_start.value
        return {"num_workers": count, "multiprocessing_context": start, "persistent_workers": True}


def batch_per_device(batch_size: int, world: int) -> int:
    """The share of one device in a batch.

    Raises:
        UserError: the batch cannot be divided evenly.
    """
    if batch_size % world:
        raise UserError(f"data.batch_size={batch_size} is shared by {world} devices: make it a multiple of {world}")
    return batch_size // world
