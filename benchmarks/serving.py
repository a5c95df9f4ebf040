"""What an answer takes on this CPU: the bare network, the engine, the inspector, and a server asked over HTTP.

``python benchmarks/serving.py LAKE [--model NAME-OR-FILE]``, where LAKE has ``test/<class>/<file>``. The model is one
that ``predict.py`` takes; without one, lite0 with ImageNet weights and four classes. Prints whether the engine's
decisions and probabilities are the network's on every test image, times of an image as ratios to PyTorch's plain
network, and requests a second with the median and the 99th percentile for requests of 1, 8 and 32 images.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.calibration import softmax
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.engine import Engine
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.model.weights import load_weights
from tyre_lightning.tracking.registry import _save_pyfunc, load_inspector

LITE = "efficientnet_lite0"
SIZES = (1, 8, 32)


def untrained() -> Inspector:
    """Lite0 with ImageNet weights and a random head."""
    chosen = preset(LITE)
    torch.manual_seed(0)
    network = Network(LITE, 4, chosen.mean, chosen.std)
    load_weights(network, LITE, "imagenet", S3Config())
    preprocessing = Preprocessing.of(chosen, DataConfig(image_size=320))
    return Inspector(network.eval(), LITE, ["bulging", "cracks", "foreign", "good"], preprocessing, "good")


def plain(inspector: Inspector) -> Network:
    """The network in PyTorch's own layout."""
    prep = inspector.preprocessing
    network = Network(
        inspector.name, len(inspector.classes), prep.mean, prep.std, channels_last=False, views=prep.views
    )
    network.load_state_dict(inspector.network.state_dict())
    return network.eval()


@torch.inference_mode()
def compare(inspector: Inspector, images: Sequence[Tensor]) -> None:
    """Whether the engine says what the network says."""
    engine = Engine(inspector.network, inspector.preprocessing.size)
    temperature = inspector.temperature
    ours = softmax(np.concatenate([engine(i[None].numpy())[0] for i in images]).astype(float), temperature)
    theirs = softmax(np.concatenate([inspector.network(i[None]).numpy() for i in images]).astype(float), temperature)
    print(f"{len(images)} images: probabilities differ by at most {np.abs(ours - theirs).max():.1e}; ", end="")
    same = (ours.argmax(1) == theirs.argmax(1)).mean()
    decided = np.mean(
        [inspector._decide(a, None) == inspector._decide(b, None) for a, b in zip(ours, theirs, strict=True)]
    )
    print(f"the same class for {same:.2%}, the same decision for {decided:.2%}")


@torch.inference_mode()
def time_calls(inspector: Inspector, images: Sequence[Tensor], files: Sequence[bytes], rounds: int) -> None:
    """Milliseconds for an image, one at a time; the best of several rounds, which take turns."""
    engine = Engine(inspector.network, inspector.preprocessing.size)
    network = plain(inspector)
    calls: dict[str, Callable[[int], object]] = {
        "network, plain": lambda i: network(images[i][None]),
        "network, channels_last": lambda i: inspector.network(images[i][None]),
        "engine": lambda i: engine(images[i][None].numpy()),
        "inspector, from bytes to an answer": lambda i: inspector.answers([inspector.read(files[i], "")]),
    }
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for index in range(len(images)):
                call(index)
            best[name] = min(best.get(name, np.inf), 1000 * (time.perf_counter() - started) / len(images))
    for name, value in best.items():
        print(f"{name}: {value:.1f} ms, {best['network, plain'] / value:.2f}")


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


@contextlib.contextmanager
def server(inspector: Inspector, folder: Path) -> Iterator[str]:
    """``mlflow models serve``; gives the address."""
    inspector.save(folder / "inspector")
    _save_pyfunc(folder / "model", folder / "inspector", inspector)
    port = free_port()
    serve = ["mlflow", "models", "serve", "-m", str(folder / "model"), "--env-manager", "local", "-p", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "-m", *serve], env={**os.environ, "PATH": path}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def ask(address: str, files: Sequence[bytes]) -> list[dict[str, Any]]:
    """Post images; waits until the server is up."""
    rows = [[base64.b64encode(data).decode()] for data in files]
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                found: list[dict[str, Any]] = json.load(reply)["predictions"]
                return found
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def time_requests(address: str, files: Sequence[bytes], seconds: float) -> None:
    """One client, one request after another."""
    for size in SIZES:
        times: list[float] = []
        while sum(times) < seconds:
            start = len(times) * size % max(1, len(files) - size)
            begun = time.perf_counter()
            assert len(ask(address, files[start : start + size])) == size
            times.append(time.perf_counter() - begun)
        p50, p99 = statistics.median(times), float(np.quantile(times, 0.99))
        print(
            f"requests of {size}: {1 / np.mean(times):.1f} a second ({size / np.mean(times):.1f} images), "
            f"p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms ({len(times)} requests)"
        )


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db")
    parser.add_argument("--images", type=int, default=64, help="for the times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of requests of each size")
    options = parser.parse_args()
    inspector = load_inspector(options.model, options.tracking_uri) if options.model else untrained()
    files = [path.read_bytes() for path in sorted(options.lake.glob("test/*/*"))]
    images = [inspector.read(data, "") for data in files]
    compare(inspector, images)
    step = max(1, len(files) // options.images)
    time_calls(inspector, images[::step], files[::step], options.rounds)
    with tempfile.TemporaryDirectory() as folder, server(inspector, Path(folder)) as address:
        ask(address, files[:1])
        time_requests(address, files[::step], options.seconds)


if __name__ == "__main__":
    main()
