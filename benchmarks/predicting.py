"""What predicting on a lake takes, and what it does not lose: ``python benchmarks/predicting.py LAKE WHAT``.

LAKE is a folder of pictures, which are repeated under names of tyres with two pictures each. WHAT is

- ``kills``: ``kill -9`` at ten random times; are the rows those of an undisturbed run, and how many pictures are looked
  at twice (what is found is kept every 64 pictures here, not every 2,048);
- ``workers``: two processes of a core each, against one;
- ``engine``: one process of a core against a plain loop of read, decode, network;
- ``ray``: two processes against Ray Data, with the same decoding and network in a pool of two actors;
- ``memory``: peak of 10,000 and of a million keys; there the store is invented, and neither decoder nor network works.

Rates are of the call itself, with the model's loading, the listing and the joining, without Python's imports. Other
work on the machine disturbs wall times; so images per second of CPU time are given too. The model is lite0 with four
classes and 400 pixels, as it is before a training.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from hydra import compose, initialize_config_dir

PATTERN = r"^(T\d+)_"
IMAGES = 300
KILLS = 10
SEED = 0


def predict(model: str, source: str, output: str, *more: str) -> None:
    """predict.py's call on one thread."""
    from tyre_lightning.config import config_folder, register_schemas
    from tyre_lightning.prediction import predict

    register_schemas()
    given = [f"model={model}", f"input={source}", f"output={output}", "accelerator=cpu", *more]
    with initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
        cfg = compose("predict", overrides=given)
    predict(cfg)


def counted(log: str, *given: str) -> None:
    """The same, with a line in a file for each picture that is read, kept every 64 pictures."""
    from tyre_lightning import prediction
    from tyre_lightning.lake.reader import Reader

    read = Reader.read
    with open(log, "a", buffering=1) as file:

        def noting(self: Reader, entries: Sequence[Any]) -> Any:
            file.write("".join(f"{entry.key}\n" for entry in entries))
            return read(self, entries)

        Reader.read = noting  # type: ignore[method-assign]
        prediction._CHUNK = 64
        predict(*given)


def bare(model: str, source: str) -> None:
    """Read, decode, network, for one picture after another."""
    from tyre_lightning.model.inspector import Inspector

    inspector = Inspector.load(model)
    for path in sorted(Path(source).rglob("*.jpg")):
        inspector.answers([inspector.read(path.read_bytes(), path.name)])


def million(model: str, source: str, output: str, count: str) -> None:
    """The same on an invented store, with a decoder and a network that do nothing."""
    import numpy as np
    import torch

    from tyre_lightning import prediction
    from tyre_lightning.evaluation import scoring
    from tyre_lightning.lake.source import Source
    from tyre_lightning.lake.store import Content, Entry, FolderStore
    from tyre_lightning.model.inspector import Inspector, Look

    class Store(FolderStore):
        def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
            for number in range(int(count)):
                yield Entry(f"{self._base}T{number // 2}_{number % 2}.jpg", 1, "tag")

        def get_many(self, keys: Sequence[str], threads: int = 1) -> Sequence[Content]:
            return [Content(b"", "tag")] * len(keys)

    image = scoring.Image(None, torch.zeros(1, dtype=torch.uint8))

    def look(self: Inspector, images: Sequence[Any]) -> Look:
        return Look(np.zeros((len(images), len(self.classes))), np.zeros((len(images), 0), np.float32))

    vars(prediction)["open_source"] = lambda address, s3: Source(Store(source))
    vars(scoring)["_read"] = lambda *given: image
    Inspector.look = look  # type: ignore[method-assign]
    predict(model, source, output)


def ray(model: str, source: str, output: str) -> None:
    """The same decoding and network in Ray Data's pool of two actors; its start is not counted."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    from tyre_lightning.lake.tyres import tyre_of
    from tyre_lightning.model.inspector import Inspector

    class Actor:
        def __init__(self) -> None:
            self.inspector = Inspector.load(model)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            names = [Path(path).name for path in batch["path"]]
            views = [self.inspector.read(data, name) for data, name in zip(batch["bytes"], names, strict=True)]
            rows = self.inspector.answers(views)
            tyres = [tyre_of(name, PATTERN) for name in names]
            return {"key": names, "tyre": tyres} | {name: [row[name] for row in rows] for name in rows[0]}

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)  # two for the actors, one for its own tasks
    DataContext.get_current().enable_progress_bars = False
    start, before = time.perf_counter(), cpu_of_all()
    files = ray.data.read_binary_files(source, include_paths=True, file_extensions=["jpg"])
    files.map_batches(Actor, batch_size=32, compute=ActorPoolStrategy(size=2), num_cpus=1).write_parquet(output)
    print(json.dumps({"wall": time.perf_counter() - start, "cpu": cpu_of_all() - before}))


def cpu_of_all() -> float:
    """Seconds of CPU time of this process and those that it has started, their ended ones too."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in (me, *me.children(recursive=True)))


WAYS: dict[str, Callable[..., None]] = {f.__name__: f for f in (predict, counted, bare, million, ray)}


def start(cores: str, way: str, *given: str) -> subprocess.Popen[str]:
    """One of :data:`WAYS` in a process on some cores, of one thread."""
    command = ["taskset", "-c", cores, sys.executable, __file__, "--way", way, *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, float]:
    """What a process says of its call: seconds on the wall and of CPU time, and its peak of memory in MB."""
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(err)
    return dict(json.loads(out.strip().splitlines()[-1]))


def run(cores: str, way: str, *given: str) -> dict[str, float]:
    return ended(start(cores, way, *given))


def tell(way: str, given: Sequence[str]) -> None:
    """Run one of :data:`WAYS` here."""
    import tyre_lightning.prediction  # noqa: F401 (imports are not counted)

    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    WAYS[way](*given)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if way != "ray":
        print(json.dumps({"wall": time.perf_counter() - begun, "cpu": cpu, "peak": after.ru_maxrss / 1024}))


def make_model(folder: Path, size: int) -> str:
    from tyre_lightning.config import DataConfig
    from tyre_lightning.data.transforms import Preprocessing
    from tyre_lightning.model.backbones import preset
    from tyre_lightning.model.classifier import TyreClassifier
    from tyre_lightning.model.inspector import Inspector

    options = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=size)).to_dict()
    classes = ["bulge", "crack", "flat_spot", "good"]
    inspector = Inspector.from_classifier(TyreClassifier("efficientnet_lite0", classes, options, "good"))
    inspector.group_pattern = PATTERN
    inspector.save(folder / "model")
    return str(folder / "model")


def make_lake(lake: Path, folder: Path, count: int) -> str:
    pictures = sorted(path for path in lake.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number in range(count):
        link = folder / "lake" / f"{number % 2}" / f"T{number // 2}_{number % 2}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(pictures[number % len(pictures)].resolve())
    return str(folder / "lake")


def rows_of(output: Path) -> Any:
    import pyarrow.dataset as ds

    return ds.dataset(str(output)).to_table().to_pandas().sort_values("key").reset_index(drop=True)


def kills(model: str, source: str, folder: Path) -> None:
    given, log, chance = (model, source), folder / "looked", random.Random(SEED)
    run("0,1", "counted", str(folder / "undisturbed"), *given, str(folder / "whole"), "shards=3")
    log.touch()
    for _ in range(KILLS):
        process = start("0,1", "counted", str(log), *given, str(folder / "out"), "shards=3")
        until = len(log.read_text().splitlines()) + chance.randint(1, 200)
        while process.poll() is None and len(log.read_text().splitlines()) < until:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed with {len(log.read_text().splitlines())} pictures looked at")
    run("0,1", "counted", str(log), *given, str(folder / "out"), "shards=3")
    looked = log.read_text().splitlines()
    equal = rows_of(folder / "out").equals(rows_of(folder / "whole"))
    tyres = [rows_of(folder / name) for name in ("out-tyres", "whole-tyres")]
    tyres_equal = tyres[0].sort_values("tyre").equals(tyres[1].sort_values("tyre"))
    print(f"rows equal: {equal}, tyres equal: {tyres_equal}, pictures: {len({*looked})}")
    print(f"looked at twice: {len(looked) - len({*looked})}, for {KILLS} kills; a kill may cost 64, and 64 under way")


def workers(model: str, source: str, folder: Path) -> None:
    found = []
    for turn in range(3):
        one = run("0", "predict", model, source, str(folder / f"one-{turn}"), "shards=2")
        given = (model, source, str(folder / f"two-{turn}"), "shards=2")
        two = [start(str(shard), "predict", *given, f"shard={shard}") for shard in range(2)]
        both = [ended(process) for process in two]
        assert rows_of(folder / f"one-{turn}").equals(rows_of(folder / f"two-{turn}"))
        wall, cpu = one["wall"] / max(b["wall"] for b in both) / 2, one["cpu"] / sum(b["cpu"] for b in both)
        found.append((wall, cpu))
        seconds = ", ".join(f"{each['wall']:.1f} s" for each in both)
        print(f"one {one['wall']:.1f} s, two {seconds}; efficiency {wall:.2f}, by CPU time {cpu:.2f}", flush=True)
    print("medians", *(f"{statistics.median(values):.2f}" for values in zip(*found, strict=True)))


def engine(model: str, source: str, folder: Path) -> None:
    found = []
    for turn in range(3):
        plain = run("0", "bare", model, source)
        whole = run("0", "predict", model, source, str(folder / f"rows-{turn}.parquet"))
        found.append((plain["wall"] / whole["wall"], plain["cpu"] / whole["cpu"]))
        print(f"plain loop {IMAGES / plain['wall']:.1f} images/s ({IMAGES / plain['cpu']:.1f} of CPU time), predict "
              f"{IMAGES / whole['wall']:.1f} ({IMAGES / whole['cpu']:.1f})", flush=True)  # fmt: skip
    print("ratios, medians: wall, CPU", *(f"{statistics.median(values):.2f}" for values in zip(*found, strict=True)))


def against_ray(model: str, source: str, folder: Path) -> None:
    found = []
    for turn in range(3):
        theirs = run("0,1", "ray", model, source, str(folder / f"ray-{turn}"))
        given = (model, source, str(folder / f"ours-{turn}"), "shards=2")
        both = [ended(each) for each in [start("0,1", "predict", *given, f"shard={shard}") for shard in range(2)]]
        wall, cpu = max(each["wall"] for each in both), sum(each["cpu"] for each in both)
        found.append((theirs["wall"] / wall, theirs["cpu"] / cpu))
        print(f"Ray Data {IMAGES / theirs['wall']:.1f} images/s ({IMAGES / theirs['cpu']:.1f} of CPU time), two "
              f"processes {IMAGES / wall:.1f} ({IMAGES / cpu:.1f})", flush=True)  # fmt: skip
    print("ratios, medians: wall, CPU", *(f"{statistics.median(values):.2f}" for values in zip(*found, strict=True)))


def memory(model: str, source: str, folder: Path) -> None:
    for count in (10_000, 1_000_000):
        found = run("0,1", "million", model, source, str(folder / f"{count}.parquet"), str(count))
        print(f"{count:,} keys: peak {found['peak']:.0f} MB, {found['wall']:.0f} s", flush=True)


def main() -> None:
    global IMAGES
    if sys.argv[1] == "--way":
        tell(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    kinds = {"kills": kills, "workers": workers, "engine": engine, "ray": against_ray, "memory": memory}
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--size", type=int, default=400, help="pixels that the network sees")
    parser.add_argument("--images", type=int, default=IMAGES, help="pictures; for kills four times as many")
    given = parser.parse_args()
    IMAGES = given.images
    folder, count = Path(tempfile.mkdtemp()), IMAGES * (4 if given.what == "kills" else 1)
    try:
        kinds[given.what](make_model(folder, given.size), make_lake(given.lake, folder, count), folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
