"""Whether maps of what the model looked at point at the defect: the demo's recipe on drawn tyres.

Trains on as many pictures as the demo, and plays the pointing game (Zhang et al., arXiv:1608.00507) on others, whose
defects are known: the share of maps whose highest place is at most 15 of 224 pixels away from the defect. Beside it the
score of Grad-CAM (Selvaraju et al., arXiv:1610.02391) on the last stage, and of guessing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from tyre_lightning.demo.__main__ import COUNTS
from tyre_lightning.demo.drawing import CLASSES, draw, write_lake
from tyre_lightning.evaluation.saliency import Heat, explain, place
from tyre_lightning.model.inspector import Inspector

TRAIN = Path(__file__).parents[1] / "train.py"
UNSEEN = 1_000_000  # seeds of the test pictures start here
SIZE = 224
BATCH = 20
_TOLERANCE = 15 / 224  # of the longer side

Method = Callable[[Inspector, Sequence[Tensor]], Heat]


def points_at(heat: Heat, mask: NDArray[np.bool_]) -> tuple[bool, float]:
    """The pointing game (Zhang et al., arXiv:1608.00507): whether the highest place is at most 15/224 away from a mask.

    Args:
        heat: shape (H, W).
        mask: what is to be found, shape (H, W).

    Returns:
        Whether it is, and the share of all places that would be.
    """
    near = distance_transform_edt(~mask) <= _TOLERANCE * max(mask.shape)
    return bool(near[np.unravel_index(heat.argmax(), heat.shape)]), float(near.mean())


def train(folder: Path) -> Inspector:
    """The demo's model."""
    write_lake(folder / "lake" / "v1", COUNTS, size=SIZE)
    options = ["experiment=demo", "data.root=lake/v1", "logger.registered_model=null"]
    done = subprocess.run(
        [sys.executable, str(TRAIN), *options], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return Inspector.from_checkpoint(next(folder.glob("outputs/train/*/checkpoints/best.ckpt")))


def grad_cam(inspector: Inspector, images: Sequence[Tensor]) -> Heat:
    """Grad-CAM on the last stage."""
    network, good = inspector.network, inspector.classes.index("good")
    values = network.backbone.features(network.normalize(torch.stack(list(images)))).detach().requires_grad_()
    logits = network.head(network.backbone.avgpool(values).flatten(1))
    defects = [index for index in range(len(inspector.classes)) if index != good]
    (gradient,) = torch.autograd.grad((logits[:, defects].logsumexp(1) - logits[:, good]).sum(), values)
    maps = (gradient.mean((2, 3), keepdim=True) * values.detach()).sum(1, keepdim=True).relu()
    return np.asarray(interpolate(maps, images[0].shape[1:], mode="bilinear")[:, 0].numpy())


def play(inspector: Inspector, method: Method, label: str, count: int) -> tuple[float, float]:
    """The score on one defect, and that of guessing."""
    games = []
    for start in range(UNSEEN, UNSEEN + count, BATCH):
        drawn = [draw(label, seed, SIZE) for seed in range(start, min(start + BATCH, UNSEEN + count))]
        heats = method(inspector, [inspector.preprocessing(F.pil_to_tensor(image)) for image, _ in drawn])
        placed = [place(heat, inspector.preprocessing, SIZE, SIZE) for heat in heats]
        games += [points_at(heat, mask) for heat, (_, mask) in zip(placed, drawn, strict=True)]
    hits, chances = zip(*games, strict=True)
    return float(np.mean(hits)), float(np.mean(chances))


def main() -> None:
    """Print a row for each defect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100, help="pictures of each defect")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inspector = train(Path(folder))
    rows = []
    for label in CLASSES[1:]:
        started = time.monotonic()
        score, chance = play(inspector, explain, label, options.images)
        each = (time.monotonic() - started) / options.images
        other, _ = play(inspector, grad_cam, label, options.images)
        rows.append((score, other, chance))
        print(f"{label}: {score:.2f}, Grad-CAM {other:.2f}, chance {chance:.2f}, {1000 * each:.0f} ms each", flush=True)
    print("all: {:.2f}, Grad-CAM {:.2f}, chance {:.2f}".format(*np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
