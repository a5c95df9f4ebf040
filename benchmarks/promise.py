"""What it costs that the same validation images choose the epoch, fit offsets and temperature, and set the threshold.

Trains on few drawn tyres by this project's own training, and keeps what the averaged weights of every epoch say of a
large pool of others. Validation sets are then drawn from the pool 2,000 times, the whole choice is made on each, and
the pool says how many tyres escape, and how many good ones are rejected, in truth. Prints how often each promise was
possible and how often it is broken, which should be at most 1 - confidence: where the images choose everything, where
the epoch is the last, and where offsets are 0 and the temperature is 1 too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from redraw import WAYS, Broken, Floats, Population, macro_f1, redraw
from torch import Tensor

import tyre_lightning.training as training
from tyre_lightning.config import CONF, OperatingPointConfig, register_schemas
from tyre_lightning.demo.drawing import CLASSES, write_lake
from tyre_lightning.trainer import build_trainer

PROMISES = (OperatingPointConfig(0.05, 0.95), OperatingPointConfig(0.1, 0.9))
SIZES = (60, 100, 200, 400)


class PoolScores(L.Callback):
    """Scores the test images with the weights that validation sees, at the end of each epoch's validation."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels = torch.empty(0, dtype=torch.int64)
        self._images: list[Tensor] = []  # uint8, a batch each

    @torch.inference_mode()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs before that of the moving average, which then puts the last step's weights back."""
        if not self._images:
            batches = [*trainer.datamodule.test_dataloader()]  # type: ignore[attr-defined]
            self._images = [batch.image for batch in batches]
            self.labels = torch.cat([batch.label for batch in batches])
        self.logits.append(torch.cat([pl_module(images.to(pl_module.device)).cpu() for images in self._images]))

    def population(self) -> Population:
        """All epochs."""
        logits = torch.stack(self.logits).double().numpy()
        return Population(logits, self.labels.numpy(), sorted(CLASSES).index("good"))


def overrides(root: Path, seed: int, size: int, epochs: int) -> list[str]:
    """The options of a training."""
    return [
        f"data.root={root}",
        f"data.image_size={size}",
        f"seed={seed}",
        "data.augment.min_scale=0.7",
        "data.batch_size=16",
        "data.near_copies=false",
        "data.num_workers=0",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        f"trainer.max_epochs={epochs}",
        "trainer.limit_test_batches=1",  # the pool is scored while training, not after it
        "logger.registered_model=null",
        "logger.system_metrics=false",
    ]


def train(root: Path, seed: int, size: int, epochs: int) -> Population:
    """Train once; gives what every epoch's averaged weights say of the pool."""
    pool = PoolScores()

    def build_with_pool(*arguments: Any, **options: Any) -> L.Trainer:
        trainer = build_trainer(*arguments, **options)
        trainer.callbacks.insert(0, pool)  # type: ignore[attr-defined]
        return trainer

    register_schemas()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        paths = [f"paths.output_dir={folder}/out", f"logger.tracking_uri=sqlite:///{folder}/mlflow.db"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", overrides=[*overrides(root, seed, size, epochs), *paths])
        with mock.patch.object(training, "build_trainer", build_with_pool):
            training.train(config)
    return pool.population()


def describe(population: Population) -> str:
    """Macro F1 of each epoch on the pool."""
    scores = macro_f1(population.confusions().sum(axis=0))
    return "macro F1 by epoch " + " ".join(f"{score:.3f}" for score in scores)


def table(populations: Sequence[Population], sizes: Sequence[int], draws: int) -> Iterator[str]:
    """A row for each size, promise and way: shares of broken promises, of each training and of all."""
    yield "| tyres | promise | they choose | possible | escape | overkill | broken, each training | all | allowed |"
    yield "| --- " * 9 + "|"
    for size in sizes:
        found = [redraw(each, PROMISES, size, draws, seed) for seed, each in enumerate(populations)]
        for place, promise in enumerate(PROMISES):
            for way in WAYS:
                yield _row(promise, size, way, [part[way][:, place] for part in found])
        yield f"| {size} | they choose another epoch than the last in {_others(found):.0%} of the draws |"


def _others(found: Sequence[dict[str, Floats]]) -> float:
    """In how many draws the choice of an epoch changed the rates of what can be promised."""
    pairs = [(part[WAYS[0]], part[WAYS[1]]) for part in found]
    return float(np.mean([~np.isclose(chosen, last, equal_nan=True).all(axis=(1, 2)) for chosen, last in pairs]))


def _row(promise: OperatingPointConfig, size: int, way: str, rates: Sequence[Floats]) -> str:
    name = f"{100 * promise.max_escape_rate:g} %@{100 * promise.confidence:g} %"
    together = np.concatenate(rates)
    everything = Broken.of(together[:, 0], promise)
    each = ", ".join(f"{Broken.of(part[:, 0], promise).share:.3f}" for part in rates)
    possible = everything.possible / len(together)
    escape, overkill = np.nanmean(together, axis=0) if everything.possible else (np.nan, np.nan)
    share = f"{everything.share:.3f} ± {everything.error:.3f}"
    return (
        f"| {size} | {name} | {way} | {possible:.0%} | {escape:.3f} | {overkill:.3f} | {each} | {share} "
        f"| {1 - promise.confidence:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--train", type=int, default=160, help="pictures of each class to train on, a fifth to validate"
    )
    parser.add_argument("--pool", type=int, default=520, help="pictures of each class in the pool")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        write_lake(root := Path(folder, "lake"), {"train": options.train, "test": options.pool}, size=options.size)
        populations = [train(root, seed, options.size, options.epochs) for seed in options.seeds]
    for seed, population in zip(options.seeds, populations, strict=True):
        print(f"seed {seed}: {describe(population)}", flush=True)
    for row in table(populations, SIZES, options.draws):
        print(row, flush=True)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
