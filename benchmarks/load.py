"""Servers under load on this CPU, against the bare work: MLflow's and ``tyre serve``, 32 clients at once.

``python benchmarks/load.py LAKE [--model NAME-OR-FILE]``, as benchmarks/serving.py. The bare work is from bytes to
answers in as many threads as there are cores, without any server. Clients run in a process of their own, on the same
cores: what they take is told, and counted off the time. Rounds of all take turns, and medians are told. The ratio of
processor time for a picture, bare to served, hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from serving import SIZES, ask, free_port, server, untrained

from tyre_lightning.model.inspector import Inspector
from tyre_lightning.tracking.asked import open_workers, warmed
from tyre_lightning.tracking.registry import load_inspector

Requests = list[tuple[str, str, bytes]]  # paths, kinds and bodies


@dataclass(frozen=True)
class Measured:
    """What a round came to.

    Args:
        pictures: answered.
        wall: seconds.
        own: seconds of processor time of the bare work or the server.
        clients: of the clients.
        times: of the requests, in seconds.
    """

    pictures: int
    wall: float
    own: float
    clients: float
    times: list[float]

    @property
    def rate(self) -> float:
        """Pictures a second, without the time that the clients took of all cores."""
        return self.pictures / (self.wall - self.clients / (os.cpu_count() or 1))


def bare(inspector: Inspector, files: Sequence[bytes], seconds: float) -> Measured:
    """From bytes to answers, in as many threads as there are cores."""

    def work(data: bytes) -> None:
        inspector.answers([inspector.read(data, "")])

    count, begun, own = 0, time.perf_counter(), time.process_time()
    with open_workers() as pool:
        while time.perf_counter() - begun < seconds:
            [*pool.map(work, files)]
            count += len(files)
    return Measured(count, time.perf_counter() - begun, time.process_time() - own, 0.0, [])


def as_json(files: Sequence[bytes], size: int) -> Requests:
    """MLflow's form."""
    groups = [[files[(start + more) % len(files)] for more in range(size)] for start in range(0, len(files), size)]
    bodies = [{"columns": ["image"], "data": [[base64.b64encode(one).decode()] for one in group]} for group in groups]
    return [("/invocations", "application/json", json.dumps({"dataframe_split": body}).encode()) for body in bodies]


def as_files(files: Sequence[bytes], size: int) -> Requests:
    """Image files as they are."""
    if size == 1:
        return [("/predict", "image/jpeg", data) for data in files]
    found = []
    for start in range(0, len(files), size):
        group = [files[(start + more) % len(files)] for more in range(size)]
        parts = [b'--b-o-u-n-d\r\nContent-Disposition: form-data; name="f"; filename="x.jpg"\r\n\r\n' + data + b"\r\n"
                 for data in group]  # fmt: skip
        found.append(("/predict", "multipart/form-data; boundary=b-o-u-n-d", b"".join(parts) + b"--b-o-u-n-d--\r\n"))
    return found


def _clients(address: str, requests: Requests, count: int, seconds: float, results: object) -> None:
    """What the process of the clients does."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    def one(number: int) -> None:
        parts = urlsplit(address)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
        while time.perf_counter() < end:
            path, kind, body = requests[number % len(requests)]
            begun = time.perf_counter()
            connection.request("POST", path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"status {answer.status}")
            times.append(time.perf_counter() - begun)
            number += count

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((times, time.process_time()))  # type: ignore[attr-defined]


def processor_time(process: psutil.Process) -> float:
    """Seconds of a process and those that it has started."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:2])
    return total


def loaded(
    address: str, process: psutil.Process, requests: Requests, size: int, clients: int, seconds: float
) -> Measured:
    """A round of a server."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    before, begun = processor_time(process), time.perf_counter()
    child = context.Process(target=_clients, args=(address, requests, clients, seconds, results))
    child.start()
    times, theirs = results.get()
    wall, own = time.perf_counter() - begun, processor_time(process) - before
    child.join()
    return Measured(size * len(times), wall, own, theirs, times)


@contextlib.contextmanager
def slim(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """``tyre serve``; gives the address."""
    port = free_port()
    command = ["-m", "tyre_lightning.serve", f"model={folder / 'inspector'}", f"port={port}", "queue=4096"]
    process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def tell(name: str, rounds: Sequence[Measured], bare_rounds: Sequence[Measured]) -> None:
    """A line."""
    rate = statistics.median(one.rate for one in rounds)
    own = statistics.median(1000 * one.own / one.pictures for one in rounds)
    if not rounds[0].times:
        print(f"{name}: {rate:.1f} pictures a second, {own:.1f} ms of processor time each", flush=True)
        return
    raw = statistics.median(one.pictures / one.wall for one in rounds)
    theirs = statistics.median(1000 * one.clients / one.pictures for one in rounds)
    shares = [one.rate / base.rate for one, base in zip(rounds, bare_rounds, strict=True)]
    costs = [(base.own / base.pictures) / (one.own / one.pictures)
             for one, base in zip(rounds, bare_rounds, strict=True)]  # fmt: skip
    times = np.concatenate([one.times for one in rounds])
    print(
        f"{name}: {raw:.1f} pictures a second, {rate:.1f} without the clients ({statistics.median(shares):.2f} of "
        f"bare), {own:.1f} ms of processor time each ({statistics.median(costs):.2f} of bare), "
        f"clients {theirs:.1f} ms; "
        f"p50 {1000 * np.median(times):.0f} ms, p99 {1000 * np.quantile(times, 0.99):.0f} ms ({len(times)} requests)",
        flush=True,
    )


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a round")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--without-mlflow", action="store_true", help="do not measure MLflow's server")
    options = parser.parse_args()
    inspector = warmed(load_inspector(options.model, options.tracking_uri) if options.model else untrained())
    paths = sorted(options.lake.glob("test/*/*"))
    files = [path.read_bytes() for path in paths[:: max(1, len(paths) // options.images)]]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        inspector.save(folder / "inspector")
        servers: dict[str, tuple[str, psutil.Process, Callable[[Sequence[bytes], int], Requests]]] = {}
        if not options.without_mlflow:
            address = stack.enter_context(server(inspector, folder))
            (found,) = [one for one in psutil.Process().children() if "mlflow" in " ".join(one.cmdline())]
            servers["mlflow models serve"] = (address, found, as_json)
        address, found = stack.enter_context(slim(folder))
        servers |= {"tyre serve, JSON": (address, found, as_json), "tyre serve, files": (address, found, as_files)}
        for address, _, _ in servers.values():
            _wait(address, files)
        for size in SIZES:
            rounds: dict[str, list[Measured]] = {}
            for _ in range(options.rounds):
                rounds.setdefault("bare", []).append(bare(inspector, files, options.seconds))
                for name, (address, process, form) in servers.items():
                    given = form(files, size)
                    rounds.setdefault(name, []).append(
                        loaded(address, process, given, size, options.clients, options.seconds)
                    )
            print(f"{options.clients} clients, requests of {size}:")
            for name, measured in rounds.items():
                tell(f"  {name}", measured, rounds["bare"])


def _wait(address: str, files: Sequence[bytes]) -> None:
    """Until a server answers."""
    for _ in range(120):
        with contextlib.suppress(OSError):
            ask(address, files[:1])
            with ThreadPoolExecutor(8) as pool:
                [*pool.map(lambda data: ask(address, [data]), files[:16])]
            return
        time.sleep(1)


if __name__ == "__main__":
    main()
