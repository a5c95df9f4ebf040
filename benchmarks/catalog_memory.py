"""Memory of a loader over a large catalog: ``python benchmarks/catalog_memory.py [--rows 1000000]``.

A store that lists made-up keys and has the same small picture for each goes through the data module with four workers:
once with many training images and once with 1,000, each in a new process, for each way to start workers. Prints what
the many take more: in the main process before the workers start (the catalog) and in an epoch (the catalog and the
order), in each worker alone (USS) and in all processes together (PSS: shared pages count once), at the end and at most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice, repeat
from unittest.mock import patch

import psutil

from tyre_lightning.config import Cache, DataConfig, S3Config, WorkerStart
from tyre_lightning.lake.store import Content, Entry, Store

CLASSES = ("bead", "bulge", "cracks", "cut", "flat_spot", "good", "puncture", "worn")
FEW = 1000
WORKERS, BATCH = 4, 32
BATCHES = 48  # read before memory is measured: 384 images of each worker
SIDE = 64  # pixels: batches in flight are to be small beside a catalog
MB = 1e6


class MadeUp(Store):
    """So many training images, evenly of all classes, and a validation image of each."""

    root = address = "made-up/v1"
    remote = True

    def __init__(self, rows: int, picture: bytes) -> None:
        self._rows, self._picture = rows, picture

    def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
        count = self._rows // len(CLASSES) if prefix.startswith("train/") else 1
        for _ in range(count if deep else 0):
            key, etag = (secrets.token_hex(16) for _ in range(2))
            yield Entry(f"v1/{prefix}/{key}.jpg", len(self._picture), etag)

    def prefixes(self, prefix: str = "") -> tuple[str, ...]:
        return CLASSES if prefix in ("train", "val") else ()

    def key(self, path: str) -> str:
        return f"v1/{path}"

    def get(self, key: str, largest: int | None = None) -> Content:
        return Content(self._picture, "")

    def find(self, key: str) -> None:
        return None


def memory(process: int) -> dict[str, int]:
    """RSS, USS and PSS in bytes."""
    found = psutil.Process(process).memory_full_info()
    return {kind: getattr(found, kind) for kind in ("rss", "uss", "pss")}


def child(rows: int, start: str) -> None:
    """Print the memory of this process before there are workers, and then of it and of each worker."""
    from decoding import drawn  # here, as in train.py: a spawned worker imports what stands above

    from tyre_lightning.data import datamodule
    from tyre_lightning.model.backbones import preset

    config = DataConfig(root="made-up/v1", batch_size=BATCH, num_workers=WORKERS, image_size=SIDE, cache=Cache.none)
    config.worker_start = WorkerStart(start)
    with patch.object(datamodule, "open_lake", lambda *_: MadeUp(rows, drawn((SIDE, SIDE))[0])):
        data = datamodule.TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))
    loader = data.train_dataloader()
    before = memory(os.getpid())
    started = time.perf_counter()
    batches = chain.from_iterable(repeat(loader))
    next(batches)
    seconds = time.perf_counter() - started
    for _ in islice(batches, BATCHES):
        pass
    time.sleep(2)  # until the workers have nothing to do
    workers = [memory(process.pid or 0) for process in multiprocessing.active_children()]
    print(json.dumps({"before": before, "main": memory(os.getpid()), "workers": workers, "seconds": seconds}))


def total(process: psutil.Process) -> int:
    """Bytes of PSS of a process and its descendants."""
    found = 0
    with suppress(psutil.Error):  # one may end meanwhile
        for one in [process, *process.children(recursive=True)]:
            found += one.memory_full_info().pss
    return found


def measure(rows: int, start: str) -> tuple[dict[str, float], float]:
    """MB of :func:`child` in a new process by what they are of, with ``peak``; and the seconds to its first batch."""
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, __file__, "--child", str(rows), start]
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}  # PyTorch says what it thinks of more workers than cores
        process = subprocess.Popen(command, stdout=output, env=quiet)
        watched, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak = max(peak, total(watched))
            time.sleep(0.5)  # looking stops the process looked at
        output.seek(0)
        found = json.loads(output.read())
    workers = found["workers"]
    sizes = {
        "before": found["before"]["rss"],
        "main": found["main"]["rss"],
        "worker": statistics.mean(worker["uss"] for worker in workers),
        "all": sum(one["pss"] for one in [found["main"], *workers]),
        "peak": peak,
    }
    return {name: value / MB for name, value in sizes.items()}, found["seconds"]


def compare(start: str, rows: int) -> None:
    """Print what ``rows`` take more than few."""
    (many, seconds), (few, short) = measure(rows, start), measure(FEW, start)
    more = {name: many[name] - few[name] for name in many}
    each = {name: more[name] * MB / (rows - FEW) for name in ("before", "main")}
    print(f"{start}: main process {each['before']:.0f} bytes a row before the workers, {each['main']:.0f} in an epoch;")
    print(
        f"  each worker {more['worker']:+.0f} MB (to {many['worker']:.0f}), all together {more['all']:+.0f} MB ", end=""
    )
    print(f"(to {many['all']:.0f}), peak {many['peak']:.0f} MB ({more['peak']:+.0f})")
    print(f"  seconds to the first batch: {seconds:.1f}, with {FEW} rows {short:.1f}", flush=True)


def main() -> None:
    """Compare for each way to start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--start", nargs="+", default=["fork", "forkserver", "spawn"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(int(options.child[0]), options.child[1])
        return
    for start in options.start:
        compare(start, options.rows)


if __name__ == "__main__":
    main()
