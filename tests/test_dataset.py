"""Images stream in order, once each, from S3 and folders, in every kind of worker."""

import gc
import multiprocessing
import os
import re
import shutil
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tests.cases import first_of
from tests.conftest import write_images
from tests.images import encode, picture
from tyre_lightning.config import AugmentConfig, Cache, Changed, DataConfig, S3Config, Unreadable, WorkerStart
from tyre_lightning.data.datamodule import TyreDataModule, batch_per_device
from tyre_lightning.data.dataset import AHEAD_IMAGES, BatchSampler, EpochSampler, balanced
from tyre_lightning.data.images import Images, unchanged
from tyre_lightning.data.stream import default_start, stream_by_processes
from tyre_lightning.errors import UnreadableImage, UserError
from tyre_lightning.lake.cache import DiskCache
from tyre_lightning.lake.reader import Reader, open_store
from tyre_lightning.model.backbones import preset

CLASSES = ("bulge", "good")


@pytest.fixture
def lake(bucket: Path) -> str:
    """An S3 lake of 2 classes with 6 train and 3 test images each; every image is one flat colour of its own."""
    write_images(bucket / "v1", {"train": 6, "test": 3}, CLASSES)
    return f"s3://{bucket.name}/v1"


def module(root: str, **options: object) -> TyreDataModule:
    config = DataConfig(**{"root": root, "image_size": 32, "batch_size": 4, "num_workers": 0, **options})  # type: ignore[arg-type]
    return TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))


@pytest.mark.parametrize("start", first_of(["fork", "forkserver", "spawn"], 2))
def test_workers_of_every_kind_give_the_same_batches(lake: str, start: str) -> None:
    alone = list(module(lake).train_dataloader())
    workers = list(module(lake, num_workers=2, worker_start=WorkerStart(start)).train_dataloader())
    assert [batch.key for batch in workers] == [batch.key for batch in alone]
    for ours, theirs in zip(alone, workers, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.label, theirs.label)


class Held:
    """It holds itself, as what a training leaves does, and notes which process deletes it."""

    def __init__(self, notes: Path) -> None:
        self.me = self
        self.notes = notes

    def __del__(self) -> None:
        with self.notes.open("a") as file:
            file.write(f"{os.getpid()}\n")


def search(given: Any) -> Any:
    gc.collect()
    return given


def searching() -> Any:
    return search


@pytest.mark.parametrize("way", ["training", "prediction"])
def test_loading_processes_do_not_delete_what_an_earlier_training_has_left(lake: str, tmp_path: Path, way: str) -> None:
    notes = tmp_path / "notes"
    gc.disable()
    try:
        Held(notes)
        if way == "training":
            target = {"_target_": f"{__name__}.searching"}
            assert list(module(lake, num_workers=1, augment=AugmentConfig(extra={"search": target})).train_dataloader())
        else:
            assert list(stream_by_processes(search, range(4), 2))
    finally:
        gc.enable()
    gc.collect()
    assert notes.read_text().split() == [str(os.getpid())]


def test_a_spawned_process_starts_its_workers_as_any_other_does() -> None:
    """It would spawn them, as several processes that train are, and each worker would load PyTorch anew."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(default_start) == multiprocessing.get_all_start_methods()[0]
    assert default_start() is None


def test_labels_are_the_folders(lake: str) -> None:
    data = module(lake)
    assert data.classes == CLASSES
    assert data.good_class == "good"
    for batch in data.test_dataloader():
        assert [key.split("/")[2] for key in batch.key] == [CLASSES[int(label)] for label in batch.label]


def test_every_epoch_shows_every_image_once_in_another_order(lake: str) -> None:
    loader = module(lake).train_dataloader()
    batches: Any = loader.batch_sampler
    orders = []
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        orders.append([key for batch in loader for key in batch.key])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(module(lake).train.keys())
    assert orders[0] != orders[1]


def test_s3_and_its_local_copy_give_the_same_tensors(lake: str, bucket: Path) -> None:
    for ours, theirs in zip(module(lake).test_dataloader(), module(str(bucket / "v1")).test_dataloader(), strict=True):
        assert ours.key == theirs.key
        assert torch.equal(ours.image, theirs.image)


@pytest.mark.parametrize(("size", "batches"), [(3, 43), (50, 3), (200, 1)])
def test_a_batch_knows_what_its_worker_loads_next(size: int, batches: int) -> None:
    """Enough images for a slow network, whatever the batches' size."""
    assert size * batches >= AHEAD_IMAGES
    sampler = EpochSampler(100 * size + 1, seed=3, train=True)
    plans = list(BatchSampler(sampler, size, workers=2))
    assert [item for plan in plans for item in plan] == list(sampler)
    assert [len(plan) for plan in plans] == [size] * 100 + [1]
    assert [plan.first for plan in plans] == [True] * 2 + [False] * 99
    for worker in range(2):
        own = [[index for index, _ in plan] for plan in plans[worker::2]]
        told = [list(plan.ahead) for plan in plans[worker::2]]
        assert told[0] == own[1 : 1 + batches]
        assert [batch for batches in told for batch in batches] == own[1:]  # each once, in order
        assert all(len(batches) <= 1 for batches in told[1:])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch_and_count_no_test_image_twice(world: int) -> None:
    whole = [index for index, _ in EpochSampler(10, seed=3, train=True)]
    parts = [[i for i, _ in EpochSampler(10, seed=3, train=True, rank=r, world=world)] for r in range(world)]
    assert len({len(part) for part in parts}) == 1  # all processes take the same number of steps
    for step in range(10 // world):
        assert [part[step] for part in parts] == whole[step * world : (step + 1) * world]
    tested = [[i for i, _ in EpochSampler(10, seed=3, train=False, rank=r, world=world)] for r in range(world)]
    assert sorted(index for part in tested for index in part) == list(range(10))
    assert [len(part) for part in tested] == [
        len(EpochSampler(10, seed=3, train=False, rank=r, world=world)) for r in range(world)
    ]


def test_balanced_sampling_draws_all_classes_alike_and_no_view_twice() -> None:
    codes = [0] * 900 + [1] * 90 + [2] * 10
    weights = balanced(np.eye(3, dtype=bool)[codes])
    whole = [*EpochSampler(1000, seed=3, train=True, weights=weights)]
    assert len(whole) == 1000
    counts = Counter(codes[index] for index, _ in whole)
    assert all(280 < counts[label] < 390 for label in (0, 1, 2))
    assert len({seed for _, seed in whole}) == 1000
    parts = [[*EpochSampler(1000, seed=3, train=True, rank=r, world=2, weights=weights)] for r in range(2)]
    assert [item for pair in zip(*parts, strict=True) for item in pair] == whole
    tested = EpochSampler(1000, seed=3, train=False, weights=weights)
    assert [index for index, _ in tested] == list(range(1000))


def test_batches_must_divide_over_the_devices() -> None:
    assert batch_per_device(32, 4) == 8
    with pytest.raises(UserError, match=r"data\.batch_size=33 is shared by 2 devices: make it a multiple of 2"):
        batch_per_device(33, 2)


def test_an_unreadable_image_is_left_out_and_listed(lake: str, bucket: Path) -> None:
    (bucket / "v1" / "test" / "good" / "zz.jpg").write_bytes(b"<html>")
    batches = list(module(lake).test_dataloader())
    assert sum(len(batch.label) for batch in batches) == 6
    (error,) = [error for batch in batches for error in batch.unreadable]
    assert error.key == "v1/test/good/zz.jpg"
    assert str(error) == "cannot decode image 'v1/test/good/zz.jpg': it is not an image file"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_an_error_where_the_config_says_so(lake: str, bucket: Path, workers: int) -> None:
    (bucket / "v1" / "test" / "good" / "zz.jpg").write_bytes(b"")
    data = module(lake, unreadable=Unreadable.error, num_workers=workers)
    with pytest.raises(UnreadableImage, match=r"v1/test/good/zz\.jpg': the file is empty"):
        list(data.test_dataloader())


def test_a_batch_of_unreadable_images_only(bucket: Path) -> None:
    write_images(bucket / "v1", {"train": 4}, CLASSES)
    for name in CLASSES:
        (bucket / "v1" / "test" / name).mkdir(parents=True)
        (bucket / "v1" / "test" / name / "x.jpg").write_bytes(b"no")
    (batch,) = module(f"s3://{bucket.name}/v1").test_dataloader()
    assert len(batch.label) == 0
    assert len(batch.unreadable) == 2


def test_val_folder_is_used_where_there_is_one(bucket: Path) -> None:
    write_images(bucket / "v1", {"train": 6, "val": 2}, CLASSES)
    data = module(f"s3://{bucket.name}/v1")
    assert len(data.train) == 12
    assert {key.split("/")[1] for key in data.val.keys()} == {"val"}
    with pytest.raises(UserError, match="has no 'test/' folder to test on"):
        data.test_dataloader()


def test_any_format_streams(bucket: Path) -> None:
    for index, (suffix, kind) in enumerate(
        [("JPG", "JPEG"), ("png", "PNG"), ("TiFf", "TIFF"), ("webp", "WEBP"), ("bmp", "BMP")]
    ):
        for name in CLASSES:
            path = bucket / "v1" / "train" / name / "deep" / "er" / f"{index}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(index), kind))
    (bucket / "v1" / "train" / "good" / "readme.txt").write_text("no image")
    data = module(f"s3://{bucket.name}/v1")
    assert len(data.train) + len(data.val) == 10
    assert data.ignored == {"train": 1}


def test_orientation_is_right_at_the_network_s_door(bucket: Path) -> None:
    """A picture that is red on top, stored lying on its side with the EXIF tag that says so."""
    write_images(bucket / "v1", {"train": 2}, CLASSES)
    upright = Image.new("RGB", (40, 40), "blue")
    upright.paste("red", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = bucket / "v1" / "test" / "good" / "a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif))
    (batch,) = module(f"s3://{bucket.name}/v1").test_dataloader()
    assert batch.image[0, :, 4, 16].tolist() == [255, 0, 0]
    assert batch.image[0, :, 28, 16].tolist() == [0, 0, 255]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [Cache.files, Cache.resized])
def test_later_epochs_come_from_the_disk(lake: str, bucket: Path, tmp_path: Path, cache: Cache, workers: int) -> None:
    """The bucket is gone by then."""
    data = module(lake, cache=cache, cache_dir=str(tmp_path), num_workers=workers)
    loaders = data.train_dataloader(), data.test_dataloader()
    first = [[*loader] for loader in loaders]
    shutil.rmtree(bucket / "v1")
    for before, loader in zip(first, loaders, strict=True):
        for ours, theirs in zip(before, loader, strict=True):
            assert ours.key == theirs.key
            assert torch.equal(ours.image, theirs.image)


class AsAnotherRunGoesAhead(Dataset[int]):
    """What a worker holds in the end, in bytes, whose images another process has put into the cache meanwhile."""

    def __init__(self, images: Images, reader: Reader, cache: DiskCache, form: str) -> None:
        self.images, self.reader, self.cache, self.form = images, reader, cache, form

    def __getitem__(self, index: int) -> int:
        entries = sorted(self.reader.store.list())
        batches = [entries[start : start + 4] for start in range(0, len(entries), 4)]
        tracemalloc.start()
        self.images.prefetch(batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            self.images.prefetch(following)
            value = np.array([1, 1, 1], "<u4").tobytes() + b"abc" if self.form == "pixels" else NO_IMAGE
            self.cache.put({self.reader.name(entry, self._form()): value for entry in batch})
            self.images.read(batch)
            time.sleep(0.05)  # what was begun is there
        time.sleep(0.2)
        return tracemalloc.get_traced_memory()[0]

    def _form(self) -> str:
        return self.images._form if self.form == "pixels" else "file"


NO_IMAGE = bytes(1 << 20)


@pytest.mark.parametrize("form", ["files", "pixels"])
def test_what_another_run_has_put_into_the_cache_is_not_held(bucket: Path, tmp_path: Path, form: str) -> None:
    for number in range(40):
        (bucket / f"{number:02}.jpg").write_bytes(NO_IMAGE)
    cache = DiskCache(tmp_path, 1 << 30)
    reader = Reader(open_store(f"s3://{bucket.name}", S3Config()), cache if form == "files" else None, Changed.reread)
    images = Images(reader, unchanged, cache if form == "pixels" else None)
    worker = DataLoader(AsAnotherRunGoesAhead(images, reader, cache, form), sampler=[0], batch_size=None, num_workers=1)
    (held,) = worker
    assert held < 4 << 20


def test_pixels_of_a_folder_are_kept_too(bucket: Path, tmp_path: Path) -> None:
    write_images(bucket / "v1", {"train": 6, "test": 3}, CLASSES)
    plain = [*module(str(bucket / "v1")).test_dataloader()]
    for _ in range(2):
        data = module(str(bucket / "v1"), cache=Cache.resized, cache_dir=str(tmp_path))
        for ours, theirs in zip(data.test_dataloader(), plain, strict=True):
            assert torch.equal(ours.image, theirs.image)
    assert sum(path.is_file() for path in (tmp_path / "images").glob("??/*")) == 6


def test_pixels_that_an_earlier_version_kept_of_a_damaged_image_are_not_used(bucket: Path, tmp_path: Path) -> None:
    data = encode(picture(1, (200, 200)), "JPEG")
    (bucket / "0.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    cache = DiskCache(tmp_path, 1 << 20)
    reader = Reader(open_store(str(bucket), S3Config()), None, Changed.reread)
    (entry,) = reader.store.list()
    value = np.array([1, 1, 1], "<u4").tobytes() + b"abc"
    cache.put({reader.name(entry, f"pixels 1 {unchanged!r}"): value})
    assert isinstance(Images(reader, unchanged, cache).read([entry])[0], UnreadableImage)


def test_the_size_of_a_cache_of_pixels_is_said_before_it_is_written(
    lake: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        module(lake, cache=Cache.resized, cache_dir=str(tmp_path), cache_gb=1e-6)
    cost, warning = caplog.messages
    assert re.match(rf"data.cache=resized takes about 0\.00 GB in {tmp_path} \(the files: 0\.00 GB\)", cost)
    assert warning == "that is more than data.cache_gb=1e-06: give it more, or data.cache=files"


def test_a_cache_that_cannot_be_used_is_said_once_and_done_without(
    lake: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    data = module(lake, cache_dir=str(tmp_path / "file"))
    assert sum(len(batch.label) for batch in data.test_dataloader()) == 6
    assert caplog.messages == [
        f"the cache in '{tmp_path}/file/images' cannot be used (Not a directory); going on without it"
    ]
