"""Seconds from a process's start to its first training batch: ``python benchmarks/starting.py [--latency 0.02]``.

Drawn tyres of 640 x 640 pixels through the data module with two workers, each time in a new process: from local files,
and from S3 behind a proxy that lets every request wait, with nothing or with all files in the cache, listed or pinned
by ``data.catalog``. Prints the seconds of the imports, of the data module's construction (which lists the images) and
from there to the first batch, and ratios to local files. The system's own file cache is warm throughout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tyre_lightning.data.datamodule import TyreDataModule

ROUNDS = 5
LOCAL = "local files"
WARM = "warm"  # the folder of the full cache


def data_module(options: dict[str, Any]) -> TyreDataModule:
    """The data module whose training images are the lake's test images, the larger part."""
    from tyre_lightning.config import DataConfig, S3Config, UsageConfig
    from tyre_lightning.data.datamodule import TyreDataModule
    from tyre_lightning.model.backbones import preset

    config = DataConfig(usage=UsageConfig(train="test", val="train", test="none"), image_size=320, **options)
    return TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))


def child(started: float, options: dict[str, Any]) -> None:
    """Print the seconds of each stage since ``started``."""
    import tyre_lightning.data.datamodule
    import tyre_lightning.model.backbones  # noqa: F401 (what data_module imports, so that it is not counted as listing)

    times = [started, time.time()]
    data = data_module(options)
    times.append(time.time())
    next(iter(data.train_dataloader()))
    times.append(time.time())
    print(json.dumps([after - before for before, after in pairwise(times)]))


def measure(options: dict[str, Any], scratch: str) -> list[float]:
    """The seconds of each stage in a new process; without a folder for the cache, in a new one."""
    with tempfile.TemporaryDirectory(dir=scratch) as empty:
        arguments = json.dumps({"cache_dir": empty, **options})
        command = [sys.executable, __file__, "--child", str(time.time()), arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(seconds) for seconds in json.loads(done.stdout)]


def fill(scratch: str, common: dict[str, Any]) -> str:
    """Fill the cache with an epoch, and write a catalog of its images; gives the catalog's path."""
    from fetching import epoch

    from tyre_lightning.lake.pinned import save

    data = data_module({**common, "root": "s3://bucket/v1", "cache_dir": f"{scratch}/{WARM}"})
    epoch(data.train_dataloader())
    path = Path(scratch) / "catalog.parquet"
    save(path, data.store.root, data.tagged())
    return str(path)


def compare(lake: Path, scratch: str, common: dict[str, Any]) -> None:
    """Print the table."""
    full = {"cache_dir": f"{scratch}/{WARM}"}
    listed, pinned = {**common, "root": "s3://bucket/v1"}, {**common, "catalog": fill(scratch, common)}
    cases = {
        LOCAL: {**common, "root": str(lake)},
        "S3, nothing in the cache": listed,
        "S3, all in the cache": {**listed, **full},
        "S3 by data.catalog, nothing in the cache": pinned,
        "S3 by data.catalog, all in the cache": {**pinned, **full},
    }
    found: dict[str, list[list[float]]] = {name: [] for name in cases}
    for _ in range(ROUNDS):  # in turns: all meet the same weather
        for name, options in cases.items():
            found[name].append(measure(options, scratch))
    best = {name: min(rounds, key=sum) for name, rounds in found.items()}
    for name, stages in best.items():
        total, later = (sum(stages[skip:]) / sum(best[LOCAL][skip:]) for skip in (0, 1))
        parts = "imports {:.2f}, listing {:.2f}, first batch {:.2f}".format(*stages)
        print(f"{name:42} {sum(stages):5.2f} s ({parts})  ratio {total:.2f}, without imports {later:.2f}")


def main() -> None:
    """Set the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that each request waits")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(float(arguments.child[0]), json.loads(arguments.child[1]))
        return
    from fetching import BATCH, WORKERS, write  # here: these are not the child's imports
    from slow_link import SlowLink

    from tyre_lightning.demo.server import S3Server

    with tempfile.TemporaryDirectory() as scratch:
        lake = write(Path(scratch))
        with S3Server(scratch, static=True) as server, SlowLink(server.endpoint, arguments.latency) as link:
            os.environ.update({**server.client_environment(), "AWS_ENDPOINT_URL": link.endpoint})
            compare(lake, scratch, {"batch_size": BATCH, "num_workers": WORKERS})


if __name__ == "__main__":
    main()
