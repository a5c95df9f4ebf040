"""Pictures as points: near-copies lie close together, turned and mirrored ones too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tyre_lightning.config import S3Config
from tyre_lightning.kernels import check_kernels
from tyre_lightning.memory import keep_freed_memory
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.unfilled import unfilled
from tyre_lightning.model.weights import load_weights

WIDTH = 1280

_BACKBONE = "efficientnet_lite0"  # its weights come with the installation


class Sight(NamedTuple):
    """How closely an image is looked at."""

    size: int  # pixels of the square that it is made
    turns: int  # quarter turns, over which features are averaged


COPIES = Sight(96, 4)  # enough to tell one tyre from another, at half the work of classifying
LABELS = Sight(256, 1)  # fine cracks show


class Embedder:
    """An ImageNet backbone's features, the mean over an image's quarter turns.

    The mean over all four is the same whichever way up a picture is; and the backbone, which learned on mirrored
    pictures, hardly minds a mirror.
    """

    def __init__(self, sight: Sight) -> None:
        self.sight = sight
        if not torch.cuda.is_available():
            keep_freed_memory()
        values = preset(_BACKBONE)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check_kernels([self._device])
        with unfilled():  # a training to come draws the same whether or not images are looked at
            network = Network(_BACKBONE, 2, values.mean, values.std)  # whose head nobody asks
        load_weights(network, _BACKBONE, "imagenet", S3Config())
        self._network = network.eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, views: Sequence[Tensor]) -> NDArray[np.float16]:
        """Embeddings [N, ``WIDTH``] of N images, each uint8 [3, size, size]."""
        if not views:
            return np.zeros((0, WIDTH), np.float16)
        images = torch.stack([*views]).to(self._device)
        turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(self.sight.turns)])
        features = self._network.features(turned).float()
        mean: NDArray[np.float16] = (
            features.view(self.sight.turns, len(views), WIDTH).mean(0).cpu().numpy().astype(np.float16)
        )
        return mean
