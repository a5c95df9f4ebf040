"""Pictures as points: near-copies lie close together, turned and mirrored ones too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tyre_lightning.config import S3Config
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.weights import load_weights

VIEW = 96  # pixels: enough to tell one tyre from another, at a sixth of the work that classifying takes
WIDTH = 1280

_BACKBONE = "efficientnet_lite0"  # its weights come with the installation


class Embedder:
    """An ImageNet backbone's features, the mean over an image's four quarter turns.

    The mean is the same whichever way up a picture is; and the backbone, which learned on mirrored pictures, hardly
    minds a mirror.
    """

    def __init__(self) -> None:
        values = preset(_BACKBONE)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = Network(_BACKBONE, 2, values.mean, values.std)
        load_weights(network, _BACKBONE, "imagenet", S3Config())
        self._network = network.eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, views: Sequence[Tensor]) -> NDArray[np.float16]:
        """Embeddings [N, ``WIDTH``] of N images, each uint8 [3, ``VIEW``, ``VIEW``]."""
        if not views:
            return np.zeros((0, WIDTH), np.float16)
        images = torch.stack([*views]).to(self._device)
        turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
        features = self._network.features(turned).float()
        mean: NDArray[np.float16] = features.view(4, len(views), WIDTH).mean(0).cpu().numpy().astype(np.float16)
        return mean
