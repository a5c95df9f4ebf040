"""What each part of the default recipe is worth, and what it lacks.

``python benchmarks/ablation.py LAKE [variant ...]``, where LAKE is a folder with ``manifest.csv``, whose ``group`` is
the tyre. Every variant is trained once for each of three folds, with a seed of its own, on the other folds' images;
``--regime few`` leaves 200 of them, ``rare`` five of each defect. A line for each training is added to ``--results``;
what is there already is not done again. Prints mean and standard deviation, and those of the paired differences to the
default recipe.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import chdir
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import folds as shared
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, one_hot
from torchvision.transforms import v2

import tyre_lightning.model.classifier as classifier
from tyre_lightning.config import CONF, register_schemas
from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.transforms import Augmentation, Colour, recolour
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.training import train

MIRRORED = {"2 mirrored views averaged": 2, "4 mirrored views averaged": 4}


@dataclass(frozen=True)
class Variant:
    """A change to the default recipe: options that it has, or a patch of the package for what it has not."""

    overrides: tuple[str, ...] = ()
    patch: Callable[[], object] | None = None


@dataclass(frozen=True)
class Job:
    """One training."""

    variant: str
    regime: str
    size: int
    fold: int
    root: Path
    cache: Path
    threads: int


def replace(owner: object, name: str, value: object) -> None:
    """Put ``value`` in the place of an attribute for the rest of this process, which makes one training only."""
    mock.patch.object(owner, name, value).start()


# Changes of a batch


def rotate(images: Tensor, degrees: float = 15.0) -> Tensor:
    """Each image turned by a random angle; what comes from outside is mirrored."""
    angle = (torch.rand(len(images)) * 2 - 1) * degrees * torch.pi / 180
    zero = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def erase(images: Tensor) -> Tensor:
    """A random rectangle of a quarter of the images made noise (Zhong et al., arXiv:1708.04896)."""
    erasing = v2.RandomErasing(p=0.25, value=[127.0, 127.0, 127.0])
    return torch.stack([erasing(image) for image in images])


def use_on_batches(change: Callable[[Tensor], Tensor]) -> None:
    """Change training's batches after their colours."""
    replace(classifier, "recolour", lambda images, colours: change(recolour(images, colours)))


def mixing_step(mix: Any) -> Callable[[TyreClassifier, Batch, int], Tensor]:
    """A training step on mixed images and labels."""

    def step(self: TyreClassifier, batch: Batch, batch_idx: int) -> Tensor:
        images, target = mix(recolour(batch.image, batch.colour), batch.label)
        loss = self._cross_entropy(self(images), target)
        self.log("train/loss", loss, batch_size=len(batch.label))
        return loss

    return step


def use_mixing(kind: type, alpha: float) -> None:
    """Mixup (Zhang et al., arXiv:1710.09412) or CutMix (Yun et al., arXiv:1905.04899), of the four classes."""
    replace(TyreClassifier, "training_step", mixing_step(kind(num_classes=4, alpha=alpha)))


def focal_loss(logits: Tensor, label: Tensor, label_smoothing: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """Focal loss with a gamma of 2 (Lin et al., arXiv:1708.02002) on smoothed labels."""
    classes = logits.shape[1]
    target = one_hot(label, classes) * (1 - label_smoothing) + label_smoothing / classes
    log_p = logits.log_softmax(1)
    return -(target * (1 - log_p.exp()) ** 2 * log_p).sum(1).mean()


# Changes of single images


def use_trivial_augment() -> None:
    """TrivialAugment (Müller and Hutter, arXiv:2103.10158) after the random crop."""
    original, change = Augmentation.__call__, v2.TrivialAugmentWide(fill=127)

    def augment(self: Augmentation, image: Tensor, seed: int) -> tuple[Tensor, Colour]:
        view, colour = original(self, image, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return change(view.contiguous()), colour

    replace(Augmentation, "__call__", augment)


# Optimiser


def use_layer_decay(decay: float = 0.7) -> None:
    """A learning rate that shrinks from stage to stage towards the stem (Howard and Ruder, arXiv:1801.06146)."""
    original = classifier._decayed

    def grouped(module: Any, lr: float, weight_decay: float, name: str) -> list[dict[str, Any]]:
        if name != "backbone":
            return original(module, lr, weight_decay, name)
        stages = module.features
        parts = [
            original(part, lr * decay**depth, weight_decay, f"{name}{depth}") for depth, part in enumerate(stages[::-1])
        ]
        return [group for part in parts for group in part]

    replace(classifier, "_decayed", grouped)


VARIANTS = {
    shared.BASELINE: Variant(),
    "320 pixels": Variant(("data.image_size=320",)),
    "no quarter turns": Variant(("data.augment.turn=false",)),
    "no logit adjustment": Variant(("model.logit_adjustment=0",)),
    "12 epochs": Variant(("trainer.max_epochs=12",)),
    "no moving average": Variant(("callbacks.ema.decay=null",)),
    "moving average 0.99": Variant(("callbacks.ema.decay=0.99",)),
    "no label smoothing": Variant(("model.label_smoothing=0",)),
    "balanced class weights": Variant(("model.class_weights=balanced",)),
    "balanced sampling": Variant(("data.sampling=balanced",)),
    "focal loss": Variant(patch=lambda: replace(classifier, "cross_entropy", focal_loss)),
    "no frozen stages": Variant(("model.freeze_stages=0",)),
    "head first for an epoch": Variant(("model.freeze_epochs=1",)),
    "half the backbone's rate": Variant(("model.optimizer.backbone_lr=2.5e-4",)),
    "twice the backbone's rate": Variant(("model.optimizer.backbone_lr=1e-3",)),
    "layer-wise rates": Variant(("model.freeze_stages=0",), use_layer_decay),
    "dropout 0.4": Variant(("model.dropout=0.4",)),
    "crops from 0.3": Variant(("data.augment.min_scale=0.3",)),
    "colours by 0.4": Variant(tuple(f"data.augment.{name}=0.4" for name in ("brightness", "contrast", "saturation"))),
    "rotation by 15 degrees": Variant(patch=lambda: use_on_batches(rotate)),
    "random erasing": Variant(patch=lambda: use_on_batches(erase)),
    "mixup 0.2": Variant(patch=lambda: use_mixing(v2.MixUp, 0.2)),
    "CutMix 1.0": Variant(patch=lambda: use_mixing(v2.CutMix, 1.0)),
    "TrivialAugment": Variant(patch=use_trivial_augment),
    "20 epochs": Variant(("trainer.max_epochs=20",)),
    "40 epochs": Variant(("trainer.max_epochs=40",)),
}


def overrides(job: Job, folder: str) -> list[str]:
    """The options of a training."""
    return [
        f"data.root={job.root}",
        f"data.group_pattern='{shared.GROUP_PATTERN}'",
        "data.near_copies=false",  # the manifest knows the groups, and the peers have the same
        f"data.folds={shared.FOLDS}",
        f"data.fold={job.fold}",
        f"seed={job.fold}",
        *([] if job.size == shared.OWN else [f"data.image_size={job.size}"]),
        "data.cache=resized",
        f"data.cache_dir={job.cache}",
        "data.num_workers=0",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "logger.registered_model=null",
        "logger.system_metrics=false",
        f"logger.tracking_uri=sqlite:///{folder}/mlflow.db",
        f"paths.output_dir={folder}/out",
        *VARIANTS[job.variant].overrides,
    ]


def run(job: Job) -> list[shared.Result]:
    """Train once, in a process of its own; the baseline is evaluated on mirrored views too."""
    started = time.monotonic()
    torch.set_num_threads(job.threads)
    variant = VARIANTS[job.variant]
    if variant.patch:
        variant.patch()
    register_schemas()
    with tempfile.TemporaryDirectory() as folder:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", overrides=overrides(job, folder))
        with chdir(folder), shared.regime_in_use(job.regime):  # MLflow keeps artifacts where it is
            train(config)
        minutes = (time.monotonic() - started) / 60
        (done,) = Path(folder, "out", "train").iterdir()
        inspector = Inspector.from_checkpoint(done / "checkpoints" / "best.ckpt")
        scores = Scores.read(done / "scores" / "test.parquet")
        assert scores is not None
        found = {job.variant: scores}
        if job.variant == shared.BASELINE:
            found |= {name: mirrored(inspector, scores, job.root, views) for name, views in MIRRORED.items()}
    return [
        shared.Result(name, job.regime, job.size, job.fold, shared.measure(part, inspector.classes), minutes)
        for name, part in found.items()
    ]


@torch.inference_mode()
def mirrored(inspector: Inspector, scores: Scores, root: Path, views: int) -> Scores:
    """What the same weights say with ``data.eval_views``."""
    preprocessing = inspector.preprocessing
    network = Network(inspector.name, len(inspector.classes), preprocessing.mean, preprocessing.std, views=views)
    network.glance = inspector.network.glance  # it is among the weights
    network.load_state_dict(inspector.network.state_dict())
    images = [inspector.read((root.parent / key).read_bytes(), key) for key in scores.keys.to_pylist()]
    logits = [network.eval()(torch.stack(part)).double().numpy() for part in batched(images, 32)]
    return dataclasses.replace(scores, logits=np.concatenate(logits) + inspector.offsets)


def batched(images: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """Parts of a list."""
    return [[*images[start : start + size]] for start in range(0, len(images), size)]


def main() -> None:
    """Train what is missing and print the table."""
    parser = shared.parser("variant", [*VARIANTS], __doc__)
    parser.add_argument("--scratch", type=Path, help="where links and caches go, to be used again; default: nowhere")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    options = parser.parse_intermixed_args()
    wanted = shared.missing(parser, options, [*VARIANTS])
    threads = max(1, torch.get_num_threads() // options.jobs)
    with tempfile.TemporaryDirectory() as folder:
        scratch = (options.scratch or Path(folder)).resolve()
        root = shared.link_lake(options.lake, scratch)
        jobs = [Job(*key, root, scratch / "cache", threads) for key in wanted]
        with ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
            for future in as_completed([pool.submit(run, job) for job in jobs]):
                for result in future.result():
                    shared.append(options.results, result)
                    print(result, flush=True)
    print("\n".join(shared.table(shared.read(options.results, shared.Result))))


if __name__ == "__main__":
    main()
