"""What a GPU makes of this package, in some minutes: ``python benchmarks/gpu.py [--small] [--parts NAME ...]``.

Needs nothing but the package, and draws its own pictures. Every figure is said with the card's name. ``--small`` is the
form for a machine without a GPU, which shows that the script runs. The parts, in order:

- ``step``: pictures a second of a bare training step on pictures that lie in the GPU's memory: as it is, in PyTorch's
  own layout, with a fused AdamW, compiled, as a CUDA graph; and EfficientNet-B0 at 224 pixels, for which NVIDIA
  publishes 2,489 on an A100 of 80 GB (DeepLearningExamples, mixed precision).
- ``time``: where the time of such a step goes.
- ``train``: what ``train.py`` makes, by Lightning with all that belongs to it: of pictures in memory, of the resized
  cache, of JPEG files, and from S3; as shares of the first; memory.
- ``predict``: what ``predict.py`` makes of JPEG files, beside the bare forward pass; memory.
- ``decode``: nvJPEG, by torchvision, beside this package's decoding on the CPU.
- ``scores``: whether training, predict.py on the GPU and the engine on the CPU say the same.
- ``devices``: a training on two GPUs, where there are two.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

import tyre_lightning as tl
from tyre_lightning.config import S3Config, TrainConfig, to_train_config
from tyre_lightning.cores import cores
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.decoding import decode
from tyre_lightning.data.transforms import recolour
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.demo.server import S3Server
from tyre_lightning.lake.source import open_source
from tyre_lightning.messages import quiet
from tyre_lightning.model.averaging import Average
from tyre_lightning.model.graph import Graph
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.opening import open_data
from tyre_lightning.prediction import predict_batches
from tyre_lightning.tracking.runs import tracked_run
from tyre_lightning.trainer import build_trainer
from tyre_lightning.training import build_model

LITE, B0 = "efficientnet_lite0", "efficientnet_b0"
PUBLISHED = 2489  # pictures a second, B0 at 224 pixels


@dataclass(frozen=True)
class Size:
    """How much is done."""

    pixels: int  # of a drawn picture's side
    drawn: int  # of each class
    copies: int  # of each, under other names
    image: int | None  # pixels that the network sees; None: the default
    batches: tuple[int, ...]
    epochs: int
    steps: int  # that are timed of a bare step

    def overrides(self, lake: Path | str, batch: int = 0) -> list[str]:
        """The config of a training."""
        size = [] if self.image is None else [f"data.image_size={self.image}"]
        return [
            f"data.root={lake}", f"data.batch_size={batch or self.batches[0]}", f"trainer.max_epochs={self.epochs}",
            f"data.cache_dir={Path(tempfile.gettempdir(), 'gpu-cache')}", "data.near_copies=false",
            "trainer.enable_progress_bar=false", "logger.system_metrics=false", *size,
            "logger.tracking_uri=sqlite:///mlflow.db",
        ]  # fmt: skip


LARGE = Size(pixels=640, drawn=48, copies=16, image=None, batches=(32, 128), epochs=3, steps=40)
SMALL = Size(pixels=96, drawn=6, copies=2, image=64, batches=(8,), epochs=2, steps=2)


def cuda() -> bool:
    """Whether there is a GPU."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Where it runs."""
    return torch.device("cuda" if cuda() else "cpu")


def card() -> str:
    """What it runs on."""
    return torch.cuda.get_device_name() if cuda() else f"CPU ({platform.machine()}), threads: {torch.get_num_threads()}"


def wait() -> None:
    """Until the GPU has done what it was given."""
    if cuda():
        torch.cuda.synchronize()


def row(name: str, value: str) -> None:
    """Print a figure."""
    print(f"  {name:<62} {value}", flush=True)


def peak() -> str:
    """The GPU's memory since this was asked last, in words."""
    if not cuda():
        return ""
    held = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f", {held:.1f} GiB"


def rate(call: Callable[[], object], images: int, times: int) -> float:
    """Pictures a second of calls, each of which does ``images``."""
    for _ in range(max(1, times // 8)):
        call()
    wait()
    started = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return images * times / (time.perf_counter() - started)


def pinned(size: Size, lake: Path | str, *more: str, batch: int = 0) -> TrainConfig:
    """A checked config."""
    return to_train_config(tl.compose(*size.overrides(lake, batch), *more))


class Bare:
    """A training step without Lightning: forward, loss, backward, clipping, AdamW, moving average.

    Args:
        config: of the training.
        data: its images.
        batch: which are learnt from; already on the GPU.
    """

    def __init__(self, config: TrainConfig, data: TyreDataModule, batch: Batch, *, fused: bool = False) -> None:
        self.model = build_model(config, data, pretrained=False).to(device())
        self.model._freeze()
        self.model.train()
        self.batch = batch
        learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=fused)
        self.average = Average(0.98, self.model.network, device())
        self.network: Any = self.model.network

    def __call__(self) -> None:
        """Make a step."""
        images = recolour(self.batch.image, self.batch.colour)
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda(), cache_enabled=False):
            loss = self.model._cross_entropy(self.network(images).float(), self.batch.label)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model.network)

    def compile(self, mode: str | None) -> None:
        """Have PyTorch compile the network."""
        self.network = torch.compile(self.model.network, mode=mode)

    def graph(self) -> None:
        """Have the GPU repeat both passes as a whole, without a word from Python to each kernel."""
        images = recolour(self.batch.image, self.batch.colour)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            self.network = Graph(self.model.network, images)


def on_device(batch: Batch) -> Batch:
    """Moved to the GPU."""
    return batch._replace(**{name: getattr(batch, name).to(device()) for name in ("image", "label", "colour")})


def first_batch(data: TyreDataModule) -> Batch:
    """One of training."""
    return next(iter(data.train_dataloader()))


def part_step(size: Size, lake: Path) -> None:
    """Bare steps."""
    ways: dict[str, tuple[list[str], dict[str, Any], Callable[[Bare], None] | None]] = {
        "as it is": ([], {}, None),
        "PyTorch's own layout": (["model.channels_last=false"], {}, None),
        "fused AdamW": ([], {"fused": True}, None),
        "CUDA graph": ([], {}, Bare.graph),
        "CUDA graph, fused AdamW": ([], {"fused": True}, Bare.graph),
        "compiled": ([], {}, lambda step: step.compile(None)),
    }
    for batch_size in size.batches:
        base = 0.0
        for name, (more, options, prepare) in ways.items():
            if (prepare is not None and not cuda()) or (name == "compiled" and batch_size != size.batches[0]):
                continue
            config = pinned(size, lake, "data.num_workers=0", *more, batch=batch_size)
            data = open_data(config)
            step = Bare(config, data, on_device(first_batch(data)), **options)
            started = time.perf_counter()
            if prepare:
                prepare(step)
            step()
            wait()
            ready = time.perf_counter() - started
            found = rate(step, batch_size, size.steps)
            base = base or found
            row(f"{LITE}, {data.preprocessing.train_size} pixels, {batch_size} at a time, {name}",
                f"{found:,.0f} a second, {found / base:.2f}; the first step {ready:.1f} s{peak()}")  # fmt: skip
            del step
    other = f"model.name={B0}", "model.freeze_stages=0", f"data.image_size={size.image or 224}", "data.eval_crop=center"
    config = pinned(size, lake, "data.num_workers=0", *other, batch=4 * size.batches[-1])
    data = open_data(config)
    batch = on_device(first_batch(data))
    found = rate(Bare(config, data, batch), len(batch.label), max(2, size.steps // 2))
    row(f"{B0}, {batch.image.shape[-1]} pixels, {len(batch.label)} at a time, nothing frozen",
        f"{found:,.0f} a second (NVIDIA's on one A100: {PUBLISHED:,}){peak()}")  # fmt: skip


def part_time(size: Size, lake: Path) -> None:
    """The kernels of a bare step, and how busy the GPU is."""
    from torch.profiler import ProfilerActivity, profile

    for batch_size in size.batches:
        config = pinned(size, lake, "data.num_workers=0", batch=batch_size)
        data = open_data(config)
        step = Bare(config, data, on_device(first_batch(data)))
        per_step = batch_size / rate(step, batch_size, size.steps)
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda() else [])]) as found:
            for _ in range(4):
                step()
            wait()
        key = "self_device_time_total" if cuda() else "self_cpu_time_total"
        events = [event for event in found.key_averages() if getattr(event, key)]
        total = sum(getattr(event, key) for event in events) / 4e6
        launches = sum(event.count for event in events if cuda()) / 4
        busy = f"{1000 * total:.1f} ({total / per_step:.0%}), {launches:.0f} of them"
        row(f"{batch_size} at a time: a step takes", f"{1000 * per_step:.1f} ms, of which the kernels {busy}")
        for event in sorted(events, key=lambda event: -getattr(event, key))[:6]:
            row(f"    {event.key[:50]}", f"{getattr(event, key) / 4e6 / total:.0%}, {event.count // 4} times")


def identity(given: Any) -> Any:
    """What is given."""
    return given


class Speed(L.Callback):
    """Pictures a second of training steps, without the first epoch and the first steps of each."""

    def __init__(self) -> None:
        self.images, self.seconds = 0, 0.0
        self._started = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count."""
        skipped = min(4, int(trainer.num_training_batches) // 2) - 1
        if trainer.current_epoch == 0 or batch_idx < skipped:
            return
        if batch_idx == skipped:
            wait()
            self._started = time.perf_counter()
            return
        self.images += len(batch.label)
        if trainer.is_last_batch:
            wait()
            self.seconds += time.perf_counter() - self._started


class Again:
    """A batch, as often as an epoch has batches."""

    def __init__(self, batch: Batch, times: int) -> None:
        self._batch, self._times = batch, times

    def __len__(self) -> int:
        return self._times

    def __iter__(self) -> Iterator[Batch]:
        return repeat(self._batch, self._times)


def trained(config: TrainConfig, data: TyreDataModule, folder: Path) -> float:
    """Pictures a second of a training as train.py makes it."""
    speed = Speed()
    quiet()
    L.seed_everything(0, verbose=False)
    with tracked_run(config.logger, folder, folder.name, {}) as run:
        trainer = build_trainer(config, run, folder, new=True, callbacks=[speed])
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(build_model(config, data, pretrained=False), data)
    return speed.images / speed.seconds


def loaded(data: TyreDataModule) -> float:
    """Pictures a second that the loader has ready where nobody learns from them, without the first epoch."""
    loader = data.train_dataloader()
    for _ in loader:
        pass
    started = time.perf_counter()
    count = sum(len(batch.label) for batch in loader)
    return count / (time.perf_counter() - started)


def part_train(size: Size, lake: Path) -> None:
    """Trainings of pictures from different places."""
    with s3(lake) as address:
        places: dict[str, tuple[Path | str, str]] = {
            "in memory": (lake, "data.cache=none"),
            "resized cache": (lake, "data.cache=resized"),
            "JPEG files": (lake, "data.cache=none"),
            "S3": (address, "data.cache=none"),
        }
        for batch_size in size.batches:
            base = 0.0
            for name, (root, cache) in places.items():
                config = pinned(size, root, cache, "trainer.limit_val_batches=2", batch=batch_size)
                data = open_data(config)
                if name == "in memory":
                    again = Again(on_device(first_batch(data)), len(data.train) // batch_size)
                    data.train_dataloader = partial(identity, again)  # type: ignore[method-assign]
                with tempfile.TemporaryDirectory(dir=".") as folder:
                    found = trained(config, data, Path(folder, "run"))
                base = base or found
                alone = "" if name == "in memory" else f"; the loader alone {loaded(data):,.0f}"
                row(f"{LITE}, {batch_size} at a time, {name}",
                    f"{found:,.0f} a second, {found / base:.2f}{peak()}{alone}")  # fmt: skip


@contextlib.contextmanager
def s3(lake: Path) -> Iterator[str]:
    """The lake by an S3 server on this machine."""
    before = dict(os.environ)
    with S3Server(lake.parent.parent, static=True) as server:
        os.environ.update(server.client_environment())
        try:
            yield f"s3://{lake.parent.name}/{lake.name}"
        finally:
            os.environ.clear()
            os.environ.update(before)


def part_predict(size: Size, lake: Path) -> None:
    """Prediction end to end."""
    config = pinned(size, lake, "data.num_workers=0")
    data = open_data(config)
    for batch_size in size.batches:
        inspector = Inspector.from_classifier(build_model(config, data, pretrained=False))
        inspector.network.to(device())
        source = open_source(str(lake), S3Config())
        images = [*(first_batch_views(inspector, lake, batch_size))]
        bare = rate(lambda inspector=inspector, images=images: inspector.look(images), len(images), size.steps)  # type: ignore[misc]
        peak()
        started = time.perf_counter()
        count = sum(len(rows) for rows in predict_batches(inspector, source.store, source.entries(), batch_size))
        found = count / (time.perf_counter() - started)
        row(f"{LITE}, {inspector.preprocessing.size} pixels, {batch_size} at a time",
            f"{found:,.0f} a second, {found / bare:.2f} of the bare pass ({bare:,.0f}){peak()}")  # fmt: skip


def first_batch_views(inspector: Inspector, lake: Path, count: int) -> Iterator[Tensor]:
    """What the network is given of some pictures."""
    for path in sorted(lake.glob("train/*/*"))[:count]:
        yield inspector.read(path.read_bytes(), path.name)


def part_decode(size: Size, lake: Path) -> None:
    """Decoding of JPEG files."""
    files = [path.read_bytes() for path in sorted(lake.glob("train/*/*"))[: 8 * size.batches[-1]]]
    with ThreadPoolExecutor(cores()) as pool:
        ours = rate(lambda: [*pool.map(lambda data: decode(data, ""), files)], len(files), 2)
    row(f"{size.pixels} x {size.pixels}, on {cores()} cores", f"{ours:,.0f} a second")
    if not cuda():
        return
    raw = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]

    def on_gpu() -> list[Tensor]:
        return [
            image
            for start in range(0, len(raw), 32)
            for image in decode_jpeg(raw[start : start + 32], ImageReadMode.RGB, device="cuda")
        ]

    try:
        found = rate(on_gpu, len(files), 2)
    except RuntimeError as error:
        row("nvJPEG, 32 at a time", f"cannot be used: {str(error).splitlines()[0]}")
        return
    pairs = zip(on_gpu()[:64], (decode(data, "") for data in files[:64]), strict=True)
    apart = max(int((one.cpu().int() - other.int()).abs().max()) for one, other in pairs)
    row("nvJPEG, 32 at a time", f"{found:,.0f} a second, {found / ours:.2f}; pixels differ by up to {apart} of 255")


def part_scores(size: Size, lake: Path) -> None:
    """A whole training, and its model on both processors."""
    with contextlib.redirect_stdout(io.StringIO()):
        result = tl.train(
        *size.overrides(lake), "model.weights=none", "operating_point.max_escape_rate=0.5",
        "operating_point.confidence=0.5", "operating_point.max_novel_rate=null",
    )  # fmt: skip
    recorded = by_name(result.scores("test"))
    numbers = [name for name in recorded if name.startswith("p_")]
    for place in ("cuda", "cpu") if cuda() else ("cpu",):
        model = result.model
        model.inspector.network.to(place)
        said = by_name(model.predict(str(lake / "test")))
        same = [(said[name] == recorded[name]).mean() for name in ("class", "decision")]
        apart = (said[numbers] - recorded[numbers]).abs().to_numpy().max()
        alike = f"{same[0]:.1%} the same class, {same[1]:.1%} the same decision"
        row(f"{len(said)} pictures, recorded by training and said on {place}", f"P within {apart:.1e}; {alike}")


def by_name(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by their files' names, which are unique in a drawn lake."""
    return rows.set_index(rows["key"].str.rpartition("/")[2]).sort_index()


def part_devices(size: Size, lake: Path) -> None:
    """Two GPUs."""
    if torch.cuda.device_count() < 2:
        row("two GPUs", "not measured: there are none")
        return
    for count in (1, 2):
        config = pinned(size, lake, "data.cache=resized", f"trainer.devices={count}", batch=size.batches[-1])
        with tempfile.TemporaryDirectory(dir=".") as folder:
            started = time.perf_counter()
            trained(config, open_data(config), Path(folder, "run"))
        row(f"{count} GPUs, a training", f"{time.perf_counter() - started:.0f} s")


PARTS = {name.removeprefix("part_"): call for name, call in globals().items() if name.startswith("part_")}


def draw(folder: Path, size: Size) -> Path:
    """A lake of drawn tyres."""
    lake = folder / "bucket" / "v1"
    write_lake(lake, {"train": size.drawn, "test": max(2, size.drawn // 4)}, size=size.pixels)
    for path in [*(lake / "train").rglob("*.jpg")]:
        for copy in range(1, size.copies):
            shutil.copyfile(path, path.with_name(f"{path.stem}-{copy}.jpg"))
    return lake


def main(given: list[str] | None = None) -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few small pictures")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    options = parser.parse_args(given)
    size = SMALL if options.small else LARGE
    print(f"{card()}; {cores()} cores; PyTorch {torch.__version__}", flush=True)
    torch.backends.cudnn.deterministic = True  # as in training
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        lake = draw(Path(scratch), size)
        for name in options.parts:
            started = time.perf_counter()
            print(f"{name}: {PARTS[name].__doc__}", flush=True)
            PARTS[name](size, lake)
            print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
