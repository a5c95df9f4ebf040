"""The LightningDataModule: streams a lake's images to the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from statistics import median
from typing import Any

import lightning as L
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from tyre_lightning.config import Cache, DataConfig, S3Config, Sampling, WorkerStart
from tyre_lightning.cores import cores
from tyre_lightning.data.dataset import BatchLoader, BatchSampler, EpochSampler, TyreDataset, balanced, collate
from tyre_lightning.data.detail import Detail, lost_detail
from tyre_lightning.data.images import Images, unchanged
from tyre_lightning.data.stream import begin_worker, default_start
from tyre_lightning.data.transforms import Augmentation, Preprocessing, Preset, takes_any_size
from tyre_lightning.errors import TooManyUnseen, UserError
from tyre_lightning.lake.cache import cache_folder
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.fingerprint import with_content_tags
from tyre_lightning.lake.grouping import FindCopies, Grouping
from tyre_lightning.lake.listing import good_class, needed_good_class, read_lake
from tyre_lightning.lake.pinned import Pinned, check
from tyre_lightning.lake.pinned import load as load_pinned
from tyre_lightning.lake.provenance import finished
from tyre_lightning.lake.reader import Reader, open_cache, open_lake, open_reader
from tyre_lightning.lake.several import count_several, merged
from tyre_lightning.lake.splits import split_fold, split_validation
from tyre_lightning.lake.texts import one_after_other
from tyre_lightning.lake.tyres import Shown, count_tyres
from tyre_lightning.names import one_form

_SAMPLED = 8  # images by which a cache's size is judged
_MEASURED = 32  # images by which it is judged how large they all are
_LOOKED_AT = 500_000  # images that are looked at for near-copies at most: a first look reads them all
_LOOK = 0.02  # seconds of a core for each, and
_LOOK_BYTES = 5_000  # of memory; benchmarks/copies.py

log = logging.getLogger(__name__)


class TyreDataModule(L.LightningDataModule):
    """Train, validation and test images of one data version.

    The catalogs are read on construction, in the main process: the classes must be known before there is a model, and
    processes started later get them with this object instead of listing again.

    Args:
        config: which images and how.
        s3: where the S3 service is.
        preset: of the backbone. Evaluation's transform follows from it, the config and how large the pictures are;
            training's is random.
        seed: fixes the validation split, the order of the images and their random changes.
        find_copies: reads images and says which pairs of them, by place, show the same tyre, so that no split
            divides them; see :func:`tyre_lightning.audit.copies.read_copies`.

    Raises:
        UserError: there is no such lake, or its folders do not make a data set.
    """

    def __init__(
        self,
        config: DataConfig,
        s3: S3Config,
        preset: Preset,
        seed: int = 0,
        find_copies: FindCopies | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.ignored: dict[str, int] = {}
        self.grouping = Grouping(config.group_pattern)
        self._find_copies = find_copies
        self.looked = find_copies is not None  # whether near-copies were looked for
        self._done = (-1, 0)  # an epoch that was broken off, and how many of its batches the model has learnt from
        self._folder = cache_folder(config.cache_dir)
        pinned = load_pinned(config.catalog, s3) if config.catalog else None
        root = config.root or (pinned.root if pinned else None)
        if root is None:
            raise UserError("data.root is not set: give data.root=s3://bucket/prefix/version or data.root=folder")
        self.store = open_lake(root, config, s3)
        self.provenance = finished(self.store)  # where `tyre accept` made the version
        self._cache = open_cache(self.store, config)
        self.good_class: str | None = None  # of tyres without a defect, if one is known
        self.train, self.val, self.test = self._read_pinned(pinned) if pinned else self._read_lake()
        self.classes = self.train.classes
        self._step = preset.crop if preset.fixed else 1  # multiples of its own size can be divided as that can
        chosen = takes_any_size(preset, config) and config.image_size is None
        self.preprocessing = Preprocessing.of(preset, config, self.side if chosen else None)
        if config.cache is Cache.resized:
            self._show_cost()

    def catalogs(self) -> dict[str, Catalog]:
        """The catalogs by usage; test only where the lake has one."""
        catalogs = {"train": self.train, "val": self.val}
        return catalogs if self.test is None else {**catalogs, "test": self.test}

    def state_dict(self) -> dict[str, int]:
        """How far an epoch is, for a checkpoint."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"epoch": self.trainer.current_epoch, "batches": progress.processed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on there: the training images of that epoch that are not given again."""
        self._done = state_dict["epoch"], state_dict["batches"]

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
        images = self._images(augmentation)
        several = self.config.multi_label
        dataset: Any = TyreDataset(catalog, images, self.classes, augmentation, self.config.unreadable, several)
        balance = train and self.config.sampling is Sampling.balanced
        weights = balanced(catalog.truth(self.classes)) if balance else None
        sampler = EpochSampler(len(catalog), seed=self.seed, train=train, rank=rank, world=world, weights=weights)
        batch_size = batch_per_device(self.config.batch_size, world)
        options = self._worker_options()
        return BatchLoader(
            dataset,
            batch_sampler=BatchSampler(
                sampler, batch_size, options.get("num_workers", 0), self._done if train else (-1, 0)
            ),
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def reader(self) -> Reader:
        """Reads the images' files, from the cache where that keeps files."""
        return open_reader(self.store, self._cache, self.config)

    def tagged(self) -> dict[str, Catalog]:
        """:meth:`catalogs` with tags that follow from the contents alone; a folder's files are read for that."""
        memory = self._folder / "contents"
        return {usage: with_content_tags(self.store, catalog, memory) for usage, catalog in self.catalogs().items()}

    def contradicting(self) -> int:
        """How many contents lie in several folders of defects, each under labels of its own."""
        if self.good_class is None:
            return 0
        catalogs, tagged = self.catalogs(), self.tagged()
        return sum(count_several(catalogs[usage], tagged[usage], self.good_class) for usage in catalogs)

    def _merged(self, catalog: Catalog | None) -> Catalog | None:
        """With ``data.multi_label``, pictures that lie in several folders of defects as one row each."""
        if catalog is None or not self.config.multi_label or self.good_class is None:
            return catalog
        return merged(catalog, with_content_tags(self.store, catalog, self._folder / "contents"), self.good_class)

    def _read_lake(self) -> tuple[Catalog, Catalog, Catalog | None]:
        lake = read_lake(self.store, self.config)
        self._find_good(lake.classes)
        read = {"train": lake.train, "val": lake.val, "test": lake.test}
        self.ignored = {usage: catalog.ignored for usage, catalog in read.items() if catalog and catalog.ignored}
        train, val, test = map(self._merged, (lake.train, lake.val, lake.test if self.config.folds is None else None))
        assert train is not None
        self._check_pattern([train, val, test])
        self._group([train, val, test])
        paths = set() if self.provenance is None else self.provenance.selected()
        selected = {self.store.key(path) for path in paths}
        if self.config.folds is not None and self.config.fold is not None:
            folds, groups = (self.config.folds, self.config.fold), self._groups(train)
            train, test = split_fold(train, *folds, self.seed, groups, selected)
        if val is not None:
            return train, val, test
        groups = self._groups(train)
        return *split_validation(train, self.config.val_fraction, self.seed, groups, selected), test

    def _groups(self, catalog: Catalog) -> Any:
        """What no split may divide; None where every image is a group of its own."""
        return None if self.grouping.trivial else self.grouping.groups(catalog)

    def _check_pattern(self, catalogs: Sequence[Catalog | None]) -> None:
        """Say how many tyres the pattern tells apart, before any image is looked at."""
        if self.config.group_pattern is not None:
            read = [catalog for catalog in catalogs if catalog is not None]
            keys = one_after_other(catalog.table["key"] for catalog in read)
            names = one_after_other(catalog.tyres(self.config.group_pattern) for catalog in read)
            count = count_tyres(keys, names, self.config.group_pattern)
            log.info("%s tyres in %s pictures, by data.group_pattern", f"{count:,}", f"{sum(map(len, read)):,}")
            pa.default_memory_pool().release_unused()  # as much as the names, which Arrow would keep

    def _find_good(self, classes: Sequence[str]) -> None:
        """Said before every image is looked at for copies, which may take hours."""
        find = needed_good_class if self.config.multi_label else good_class
        self.good_class = find(classes, self.config.good_class)
        if self.good_class is None:
            log.warning(
                "none of the classes %s is known to be that of good tyres, so that a model can decide nothing: give "
                "data.good_class=...", ", ".join(f"'{name}'" for name in classes),
            )  # fmt: skip

    def _group(self, catalogs: Sequence[Catalog | None]) -> None:
        """Find the images that show the same tyre, wherever they lie."""
        read = [catalog for catalog in catalogs if catalog is not None]
        count = sum(map(len, read))
        if self._find_copies is None or self._too_many(count):
            return
        reader = self.reader()
        try:
            pairs = self._find_copies(reader, [*chain(*(catalog.entries() for catalog in read))], _LOOKED_AT)
        except TooManyUnseen as error:
            self._leave_copies(count, error.count)
            return
        for problem in reader.problems:
            log.warning("%s", problem)
        self.grouping = Grouping.of(read, self.config.group_pattern, pairs)

    def _too_many(self, count: int) -> bool:
        """Whether to look for near-copies among so many images would keep a training waiting, or take its memory."""
        fits = self.config.looks is not None and count * _LOOK_BYTES < psutil.virtual_memory().available
        if count <= _LOOKED_AT or fits:
            return False
        self._leave_copies(count, count)
        return True

    def _leave_copies(self, count: int, unseen: int) -> None:
        """Say that near-copies are not looked for, and what it would take."""
        self.looked = False
        log.warning(
            "near-copies are not looked for among %s images%s, which would take about %.2g hours and %.2g GB of memory "
            "here (up to %s images they are, and more where an audit in shards has looked before, see data.looks): "
            "pictures of one tyre may lie on both sides of a split, unless data.group_pattern=... tells tyres by their "
            "file names", f"{count:,}", "" if unseen == count else f", {unseen:,} of them never seen",
            unseen * _LOOK / cores() / 3600, count * _LOOK_BYTES / 1e9, f"{_LOOKED_AT:,}",
        )  # fmt: skip

    def shown(self, usage: str) -> Shown:
        """Which tyres the images of a usage show."""
        return self.grouping.shown(self.catalogs()[usage])

    def shared_with_train(self, usage: str) -> list[str]:
        """Keys of ``val`` or ``test`` images of tyres of which the model sees other images, sorted.

        It sees those of train; and, for test, those of val, by which the best epoch is chosen.
        """
        catalogs = self.catalogs()
        if usage not in catalogs:
            return []
        return self.grouping.shared(catalogs[usage], [catalogs[name] for name in ("train", "val") if name != usage])

    def _read_pinned(self, pinned: Pinned) -> tuple[Catalog, Catalog, Catalog | None]:
        """A bucket is not listed for a catalog that was given as a file; a folder always is, for its files' times."""
        if self.config.classes is not None and tuple(map(one_form, self.config.classes)) != pinned.classes:
            raise UserError(f"data.classes={self.config.classes}, but the catalog to train on has {[*pinned.classes]}")
        self._find_good(pinned.classes)
        if self.config.from_run or not self.store.remote:
            pinned = check(pinned, self.store, self.config.changed, self._folder / "contents")
        found = {usage: one for usage, catalog in pinned.catalogs.items() if (one := self._merged(catalog)) is not None}
        self._check_pattern([*found.values()])
        self._group([*found.values()])
        return found["train"], found["val"], found.get("test")

    def _images(self, augmentation: Augmentation | None) -> Images:
        if self.config.cache is not Cache.resized:
            prepare = self.preprocessing if augmentation is None else unchanged
            return Images(self.reader(), prepare, None)
        shrink = self.preprocessing if augmentation is None else augmentation.shrink()
        return Images(self.reader(), shrink, self._cache)

    @cached_property
    def extents(self) -> list[tuple[int, int]]:
        """Height and width, in pixels, of a few pictures that can be read."""
        return [(height, width) for height, width in map(Tensor.tolist, self._few(_MEASURED, _extent))]

    @property
    def side(self) -> int | None:
        """Of a square with as many pixels as the pictures have, their median; None where none of a few can be read."""
        sides = [math.sqrt(height * width) for height, width in self.extents]
        return round(median(sides)) if sides else None

    @property
    def lost(self) -> Detail | None:
        """What the network does not see of the pictures; None where that is not worth a word."""
        return lost_detail(self.extents, self.preprocessing, self._step)

    def _few(self, count: int, prepare: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What is made of a few training images, evenly spread and at most so many, that can be decoded."""
        few = [self.train.entry(index) for index in range(0, len(self.train), -(-len(self.train) // count))]
        return [image for image in Images(self.reader(), prepare, None).read(few) if isinstance(image, Tensor)]

    def _show_cost(self) -> None:
        """Say what a cache of pixels will take on the disk, judged by a few images, before it is written."""
        shrink = Augmentation(self.config.augment, self.preprocessing).shrink()
        sizes = [image.numel() for image in self._few(_SAMPLED, shrink)]
        train = sum(sizes) / max(1, len(sizes)) * len(self.train)
        others = sum(len(catalog) for catalog in self.catalogs().values()) - len(self.train)
        need = (train + others * 3 * self.preprocessing.size**2) / 1e9
        files = sum(pc.sum(catalog.table["size"]).as_py() for catalog in self.catalogs().values()) / 1e9
        bound = self.config.cache_gb
        log.info("data.cache=resized takes about %.2f GB in %s (the files: %.2f GB)", need, self._folder, files)
        if need > bound:
            log.warning("that is more than data.cache_gb=%g: give it more, or data.cache=files", bound)

    def _worker_options(self) -> dict[str, Any]:
        count = self.config.num_workers
        most = 16 if torch.cuda.is_available() else 8
        count = min(most, cores()) if count is None else count
        if count == 0:
            return {}
        start = default_start() if self.config.worker_start is WorkerStart.auto else self.config.worker_start.value
        return {
            "num_workers": count, "multiprocessing_context": start, "persistent_workers": True,
            "worker_init_fn": begin_worker,
        }  # fmt: skip


def _extent(image: Tensor) -> Tensor:
    """Height and width of [3, height, width]: all that is to be remembered of an image."""
    return torch.tensor(image.shape[1:])


def batch_per_device(batch_size: int, world: int) -> int:
    """The share of one device in a batch.

    Raises:
        UserError: the batch cannot be divided evenly.
    """
    if batch_size % world:
        raise UserError(f"data.batch_size={batch_size} is shared by {world} devices: make it a multiple of {world}")
    return batch_size // world
