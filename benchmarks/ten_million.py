"""What so many pictures cost before the first step: ``python benchmarks/ten_million.py [--rows 10000000]``.

A store that lists made-up keys in eight classes, of about 50 characters as plants have them, and has the same small
picture for each, goes through what a training does before its first step, room by room: from a listing, and again from
the catalog that the first left. Prints the seconds of each room and the highest memory while it works; at the end, that
of the main process and its four workers together (PSS: shared pages count once). The store takes no time to answer:
what listing waits for is in ``listing.py``. Copies are not looked for, as where a first look would take days.

With ``--after`` what comes after the last step, for one in twenty of them: see ``after_training.py``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa
from after_training import after
from catalog_memory import CLASSES, MadeUp

from tyre_lightning.config import Cache, DataConfig, S3Config, WorkerStart
from tyre_lightning.lake.store import Entry

WORKERS, BATCH, SIDE = 4, 32, 64
GB = 1e9

Found = TypeVar("Found")


class Lines(MadeUp):
    """So many training images, evenly of all classes, and one in twenty as many to test on."""

    def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
        usage, name = prefix.strip("/").split("/") if "/" in prefix.strip("/") else (prefix.strip("/"), "")
        count = (self._rows if usage == "train" else self._rows // 20) // len(CLASSES) if deep and name else 0
        seed = CLASSES.index(name) + len(CLASSES) * (usage == "test") if name else 0
        rng = np.random.default_rng(seed)
        for start in range(0, count, 10_000):
            names = rng.bytes(32 * min(10_000, count - start)).hex()
            for place in range(0, len(names), 64):
                key = (
                    f"v1/{usage}/{name}/line2_20250{1 + start % 9}_{names[place : place + 12]}_{start + place // 64:08}"
                )
                yield Entry(f"{key}.jpg", len(self._picture), names[place : place + 32])

    def prefixes(self, prefix: str = "") -> tuple[str, ...]:
        return CLASSES if prefix in ("train", "test") else ()


class Watch:
    """Says what a piece of work took.

    Args:
        rows: by which bytes are divided.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __call__(self, name: str, work: Callable[[], Found]) -> Found:
        """Do it."""
        Path("/proc/self/clear_refs").write_text("5")  # the highest memory is counted anew
        before, started = psutil.Process().memory_info().rss, time.perf_counter()
        found = work()
        seconds, highest = time.perf_counter() - started, self._highest()
        more = (highest - before) / self._rows
        print(f"  {name:<34} {seconds:7.1f} s   {highest / GB:5.2f} GB, {more:+6.0f} bytes a row", flush=True)
        return found

    @staticmethod
    def _highest() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def start(rows: int, start_by: str, pattern: str | None) -> None:
    """All of it."""
    from decoding import drawn  # here, as in train.py: a spawned worker imports what stands above

    from tyre_lightning.data import datamodule
    from tyre_lightning.judging import find_shared
    from tyre_lightning.lake.fingerprint import fingerprint
    from tyre_lightning.lake.pinned import save
    from tyre_lightning.model.backbones import preset

    watch, picture = Watch(rows), drawn((SIDE, SIDE))[0]
    config = DataConfig(root="made-up/v1", batch_size=BATCH, num_workers=WORKERS, image_size=SIDE, cache=Cache.none)
    config.worker_start, config.group_pattern = WorkerStart(start_by), pattern
    chosen = preset("efficientnet_lite0")

    def opened(**more: Any) -> datamodule.TyreDataModule:
        for name, value in more.items():
            setattr(config, name, value)
        with patch.object(datamodule, "open_lake", lambda *_: Lines(rows, picture)):
            return datamodule.TyreDataModule(config, S3Config(), chosen)

    with tempfile.TemporaryDirectory() as folder:
        pinned, began = Path(folder, "catalog.parquet"), time.perf_counter()
        for name, more in (("listed", {}), ("pinned", {"catalog": str(pinned)})):
            print(f"{name}:")
            data = watch("catalogs, tyres and split", lambda more=more: opened(**more))  # type: ignore[misc]
            catalogs = data.tagged()
            watch("fingerprint", lambda data=catalogs: fingerprint([*data.values()]))  # type: ignore[misc]
            watch("counts", lambda data=data: [data.grouping.count(one) for one in data.catalogs().values()])  # type: ignore[misc]
            shown = watch("which tyres are shown", lambda data=data: {one: data.shown(one) for one in data.catalogs()})  # type: ignore[misc]
            watch("catalog written", lambda data=data, shown=shown: save(pinned, "made-up/v1", data.catalogs(), shown))  # type: ignore[misc]
            del shown
            watch("shared tyres", lambda data=data: find_shared(data))  # type: ignore[misc]
            batches = watch("first batch", lambda data=data: first(data))  # type: ignore[misc]
            seconds = time.perf_counter() - began
            print(f"  with {WORKERS} workers: {together() / GB:.2f} GB; {seconds:.0f} s from the start", flush=True)
            del batches, data, catalogs
            pa.default_memory_pool().release_unused()
            began = time.perf_counter()


def first(data: Any) -> Any:
    """The loader's iterator after a batch of each worker."""
    batches = iter(data.train_dataloader())
    for _ in range(2 * WORKERS):
        next(batches)
    return batches


def together() -> int:
    """Bytes of PSS of this process and its workers."""
    every = [os.getpid(), *(one.pid or 0 for one in multiprocessing.active_children())]
    return sum(int(psutil.Process(one).memory_full_info().pss) for one in every)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--start", default="fork", choices=["fork", "forkserver", "spawn"])
    parser.add_argument("--named", action="store_true", help="file names tell tyres, of one picture each")
    parser.add_argument("--after", action="store_true", help="what comes after the training")
    options = parser.parse_args()
    if options.after:
        with tempfile.TemporaryDirectory() as folder:
            after(Watch(options.rows // 20), Path(folder), options.rows // 20, named=options.named)
        return
    start(options.rows, options.start, "_([0-9a-f]{12})_" if options.named else None)


if __name__ == "__main__":
    main()
