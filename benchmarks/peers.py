"""Other ways to train the same network from the same weights on the same folds as ``benchmarks/ablation.py``.

``python benchmarks/peers.py LAKE [peer ...]``: fastai's ``fine_tune``, a recipe of timm's parts, one as torchvision's
reference script has it, and a logistic regression on frozen features. All see the images that this project's recipe
trains on, none sees its validation images, and all are judged after their last epoch. Results are kept and printed as
there. Wants ``pip install fastai timm scikit-learn`` in an environment of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import folds as shared
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.decoding import decode
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.texts import column
from tyre_lightning.memory import keep_freed_memory
from tyre_lightning.model.averaging import Average
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.weights import load_weights

NAME = "efficientnet_lite0"
EPOCHS, BATCH, SMOOTHING = 12, 32, 0.1
STAGES = 3  # that fastai's lowest rate goes to


@dataclass(frozen=True)
class Part:
    """Images of one usage in memory, uint8 [N, 3, side, side], and their classes."""

    keys: list[str]
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Fold:
    """What a peer gets."""

    train: Part
    test: Part
    classes: list[str]
    preprocessing: Preprocessing


def read_fold(root: Path, regime: str, size: int, fold: int) -> Fold:
    """The images of a fold: to train on, with half as many pixels again to a side, and to be judged by."""
    config = DataConfig(
        root=str(root), group_pattern=shared.GROUP_PATTERN, folds=shared.FOLDS, fold=fold, image_size=size
    )
    with shared.regime_in_use(regime):
        data = TyreDataModule(config, S3Config(), preset(NAME), seed=fold)
    assert data.test is not None
    classes = list(data.classes)
    train = _read(root, data.train, classes, size * 3 // 2)
    return Fold(train, _read(root, data.test, classes, size), classes, data.preprocessing)


def _read(root: Path, catalog: Catalog, classes: list[str], side: int) -> Part:
    images = []
    for key in catalog.keys():
        image = decode((root.parent / key).read_bytes(), key)
        images.append(F.resize(image, [side, side], F.InterpolationMode.BICUBIC))
    codes = catalog.codes({name: index for index, name in enumerate(classes)})
    return Part(catalog.keys(), torch.stack(images), torch.from_numpy(codes))


def network(fold: Fold) -> Network:
    """The project's own network with its ImageNet weights and a new head."""
    found = Network(NAME, len(fold.classes), fold.preprocessing.mean, fold.preprocessing.std)
    load_weights(found, NAME, "imagenet", S3Config())
    return found


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """What a model says of uint8 images."""
    model.eval()
    return torch.cat([model(part) for part in torch.split(images, BATCH)]).double().numpy()


# fastai


class Pixels(nn.Module):
    """The network's normalisation and features, for images from 0 to 1, in two parts for two learning rates."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.width = net.head[1].in_features
        self.stem, self.rest = net.backbone.features[:STAGES], net.backbone.features[STAGES:]
        self.register_buffer("mean", net.mean / 255)
        self.register_buffer("std", net.std / 255)

    def forward(self, image: Tensor) -> Tensor:
        """Features [N, 1280, H, W]."""
        found: Tensor = self.rest(self.stem((image - self.mean) / self.std))
        return found


def fastai(fold: Fold, rate: float | None) -> NDArray[np.float64]:
    """fastai's head and ``fine_tune``: one epoch for the head alone. ``rate`` None: by ``lr_find``."""
    import fastai.vision.all as fv

    size = fold.preprocessing.size
    block = fv.DataBlock(
        blocks=(fv.ImageBlock, fv.CategoryBlock(vocab=fold.classes, sort=False)),
        get_x=lambda i: fold.train.images[i].permute(1, 2, 0).numpy(),
        get_y=lambda i: fold.classes[int(fold.train.labels[i])],
        splitter=fv.IndexSplitter([0]),  # nothing is chosen by these, and fastai wants one
        batch_tfms=fv.aug_transforms(size=size, min_scale=0.75, flip_vert=True),
    )
    loaders = block.dataloaders(
        [0, *range(len(fold.train.labels))], bs=BATCH, num_workers=0, device=torch.device("cpu")
    )
    body = Pixels(network(fold))
    learner = fv.Learner(  # as vision_learner makes it, which does not pass its own argument ``cut`` on
        loaders,
        fv.add_head(body, body.width, len(fold.classes)),
        splitter=lambda m: [fv.params(part) for part in (m[0].stem, m[0].rest, m[1])],
        loss_func=fv.LabelSmoothingCrossEntropyFlat(eps=SMOOTHING),
    )
    learner.freeze()
    learner.model.to(memory_format=torch.channels_last)
    with learner.no_bar(), learner.no_logging():
        chosen = rate or learner.lr_find(num_it=60, show_plot=False).valley
        print(f"fastai's rate: {chosen:.2g}", flush=True)
        learner.fine_tune(EPOCHS - 1, chosen)
    return logits(nn.Sequential(_Unit(), learner.model), fold.test.images)


class _Unit(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float() / 255


# Plain PyTorch


@dataclass(frozen=True)
class Plain:
    """A recipe in plain PyTorch."""

    augment: Callable[[int], Callable[[Tensor], Tensor]]  # by the size of a crop
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    decay: float = 0.98  # of the moving average


def timm_augment(size: int) -> Callable[[Tensor], Tensor]:
    """timm's default for training, with crops that suit a fine-tuning better and mirrored top-bottom too."""
    from timm.data import create_transform

    change = create_transform(
        size, is_training=True, scale=(0.35, 1.0), vflip=0.5, auto_augment="rand-m9-mstd0.5", re_prob=0.25,
        re_mode="const", interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    return lambda image: 255 * change(F.to_pil_image(image))


def timm_optimizer(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    """timm's AdamW, without decay of biases and normalisation."""
    from timm.optim import create_optimizer_v2

    found: torch.optim.Optimizer = create_optimizer_v2(model, "adamw", lr=rate, weight_decay=0.05)
    return found


def torchvision_augment(size: int) -> Callable[[Tensor], Tensor]:
    """As torchvision's newer weights were trained with, and mirrored top-bottom too."""
    found: Callable[[Tensor], Tensor] = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.35, 1.0), interpolation=F.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.TrivialAugmentWide(),
            v2.ToDtype(torch.float32),
            v2.RandomErasing(0.1),
        ]
    )
    return found


def torchvision_optimizer(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum; no decay of normalisation."""
    wide = [p for p in model.parameters() if p.ndim > 1]
    flat = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": wide, "weight_decay": 2e-5}, {"params": flat, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def plain(fold: Fold, recipe: Plain) -> NDArray[np.float64]:
    """Warm-up for an epoch, a cosine, label smoothing, a moving average of the weights."""
    model = network(fold)
    size = fold.preprocessing.train_size
    optimizer = recipe.optimizer(model)
    average = Average(recipe.decay, model, torch.device("cpu"))
    steps = -(-len(fold.train.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        EPOCHS * steps,
        pct_start=1 / EPOCHS,
        cycle_momentum=False,
        final_div_factor=1e4,
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    for _ in range(EPOCHS):
        model.train()
        for images, labels in batches(fold.train, recipe.augment(size)):
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
    return logits(average, fold.test.images)


def batches(part: Part, augment: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch."""
    for chosen in torch.split(torch.randperm(len(part.labels)), BATCH):
        yield torch.stack([augment(part.images[i]) for i in chosen]), part.labels[chosen]


# Frozen features


def regression(fold: Fold) -> NDArray[np.float64]:
    """Logistic regression on what the ImageNet network makes of whole images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    net = network(fold)
    net.head = nn.Sequential()
    size = [fold.preprocessing.size] * 2
    small = F.resize(fold.train.images, size, F.InterpolationMode.BICUBIC)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    fitted.fit(logits(net, small), fold.train.labels.numpy())
    found: NDArray[np.float64] = fitted.predict_log_proba(logits(net, fold.test.images))
    return found


PEERS: dict[str, Callable[[Fold], NDArray[np.float64]]] = {
    "logistic regression on frozen features": regression,
    "fastai, fine_tune(2e-3)": partial(fastai, rate=2e-3),
    "fastai, fine_tune by lr_find": partial(fastai, rate=None),
    "fastai, fine_tune(1e-2)": partial(fastai, rate=1e-2),
    "timm's parts, AdamW 5e-4": partial(plain, recipe=Plain(timm_augment, partial(timm_optimizer, 5e-4))),
    "timm's parts, AdamW 1e-3": partial(plain, recipe=Plain(timm_augment, partial(timm_optimizer, 1e-3))),
    "torchvision's reference, SGD 0.02": partial(
        plain, recipe=Plain(torchvision_augment, partial(torchvision_optimizer, 0.02))
    ),
    "torchvision's reference, SGD 0.05": partial(
        plain, recipe=Plain(torchvision_augment, partial(torchvision_optimizer, 0.05))
    ),
}


def run(root: Path, name: str, regime: str, size: int, fold: int) -> shared.Result:
    """Train a peer once."""
    torch.manual_seed(fold)
    np.random.seed(fold)
    data = read_fold(root, regime, size, fold)
    started = time.monotonic()
    found = PEERS[name](data)
    minutes = (time.monotonic() - started) / 60
    names = column(data.test.keys)
    scores = Scores(names, data.test.labels.numpy(), found, names, names)
    return shared.Result(name, regime, size, fold, shared.measure(scores, data.classes), minutes)


def main() -> None:
    """Train what is missing and print the table."""
    parser = shared.parser("peer", [*PEERS], __doc__)
    parser.set_defaults(size=320)  # a peer has no size of its own
    options = parser.parse_intermixed_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        root = shared.link_lake(options.lake, Path(folder))
        for key in shared.missing(parser, options, [*PEERS]):
            result = run(root, *key)
            shared.append(options.results, result)
            print(result, flush=True)
    print("\n".join(shared.table(shared.read(options.results, shared.Result))))


if __name__ == "__main__":
    main()
