"""What failing requests cost the whole pipeline: ``python benchmarks/fault_rate.py [--share 0.02] [--latency 0.02]``.

Drawn tyres of 640 x 640 pixels from S3 to the network's input with two workers and nothing kept on the disk, through
the tests' proxy: every request waits, and in every other epoch some fail (an answer of 503, or half of the body and
then a reset or the end of the connection, equally often). Prints images a second for both kinds of epoch, their ratio,
and the proxy's CPU time. Every epoch must have each of the catalog's keys once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from fetching import BATCH, WORKERS, row, write
from slow_link import SlowLink

from tyre_lightning.config import Cache, DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.dataset import BatchLoader
from tyre_lightning.demo.server import S3Server
from tyre_lightning.model.backbones import preset

ROUNDS = 7
KINDS: tuple[Literal["status", "reset", "truncate"], ...] = ("status", "reset", "truncate")
MANY = 1_000_000_000  # counted down by each fault


class FaultyLink(SlowLink):
    """Runs the tests' proxy in a process of its own while the block lasts.

    Args:
        endpoint: where requests go in the end.
        seconds: how long each that does not fail waits.
        share: the part that fails after ``fail(True)``.
    """

    def __init__(self, endpoint: str, seconds: float, share: float) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context: Any = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_run, args=(endpoint, seconds, share, theirs), daemon=True)
        self._process.start()
        self.endpoint = self._pipe.recv()

    def fail(self, on: bool) -> int:
        """Begin or end the faults, while no requests are under way; gives how many there were so far."""
        self._pipe.send(on)
        return int(self._pipe.recv())


def _run(endpoint: str, seconds: float, share: float, pipe: Connection) -> None:
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.fault_proxy import Fault, FaultProxy

    wait = Fault("slow", seconds=seconds, times=None)
    faults = [Fault(kind, share=share / len(KINDS), times=MANY) for kind in KINDS]
    with FaultProxy(endpoint) as proxy:
        proxy.add(wait)
        pipe.send(proxy.endpoint)
        while True:
            on = pipe.recv()
            proxy.clear()
            proxy.add(*(faults if on else ()), wait)
            pipe.send(sum(MANY - (fault.times or 0) for fault in faults))


def rate(loader: BatchLoader, keys: list[str]) -> float:
    """Images a second over an epoch that must have each of the sorted keys once."""
    started = time.perf_counter()
    found = [key for batch in loader for key in batch.key]
    seconds = time.perf_counter() - started
    if sorted(found) != keys:
        raise SystemExit(
            f"an epoch had {len(found)} images, {len({*found} & {*keys})} of the {len(keys)} in the catalog"
        )
    return len(keys) / seconds


def compare(link: FaultyLink) -> None:
    """Print the table."""
    config = DataConfig(root="s3://bucket/v1", batch_size=BATCH, num_workers=WORKERS, image_size=320, cache=Cache.none)
    data = TyreDataModule(config, S3Config(), preset("efficientnet_lite0"))
    assert data.test is not None
    loader, keys = data.test_dataloader(), sorted(data.test.keys())
    rate(loader, keys)  # starts the workers
    rates: dict[bool, list[float]] = {False: [], True: []}
    before = link.cpu_seconds()
    for _ in range(ROUNDS):  # in turns: both meet the same weather
        for on in rates:
            link.fail(on)
            rates[on].append(rate(loader, keys))
    taken, faults = link.cpu_seconds() - before, link.fail(False)
    clean, faulty = (statistics.median(found) for found in rates.values())
    row("no faults (median)", clean, clean)
    row(f"{faults / ROUNDS / len(keys):.1%} of the images failing at first (median)", faulty, clean)
    row("the slowest epoch without", min(rates[False]), clean)
    row("the slowest epoch with faults", min(rates[True]), clean)
    print(f"CPU of the proxy: {1000 * taken / (2 * ROUNDS * len(keys)):.2f} ms an image")


def main() -> None:
    """Set the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.02, help="the part of the requests that fails")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that each other request waits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        with S3Server(scratch, static=True) as server:
            link = FaultyLink(server.endpoint, options.latency, options.share)
            os.environ.update({**server.client_environment(), "AWS_ENDPOINT_URL": link.endpoint})
            with link:
                compare(link)


if __name__ == "__main__":
    main()
