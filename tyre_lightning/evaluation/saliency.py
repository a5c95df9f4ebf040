"""Where on a picture the model saw a defect.

HiResCAM (Draelos and Carin, arXiv:2011.08891): the activations of a stage times the gradient of the answer, place by
place, summed over channels. Grad-CAM (Selvaraju et al., arXiv:1610.02391) averages the gradient over the picture first
and looks at the last stage, where a cell is 32 pixels wide: by benchmarks/pointing.py it finds far fewer defects. Maps
of two finer stages are added, over the four mirrored views of a picture, whose noise cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from tyre_lightning.config import EvalCrop
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.outputs import Outputs
from tyre_lightning.errors import UserError
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.inspector import Inspector

_CELLS = (8, 16)  # pixels; the last stage with each is looked at
_MIRRORS = ((), (2,), (3,), (2, 3))  # axes of [N, 3, H, W]
_BLUR = 0.045  # of the side: what is finer is noise, by the pointing game too
_TINT = (255, 176, 0)  # orange and blue are told apart by all eyes
_EDGE = (60, 160, 255)
_OPACITY = 0.5
_LEVEL = 0.5  # of the highest heat, where the outline runs

Heat = NDArray[np.float32]


def explain(inspector: Inspector, images: Sequence[Tensor]) -> Heat:
    """What made the model call tyres defective; without a good class, what made it choose the likeliest class.

    The network is left as it was found, and may be in training mode or on a GPU.

    Args:
        inspector: the model.
        images: as :meth:`Inspector.read` gives them, uint8 [3, size, size].

    Returns:
        float32 [N, size, size]: from 0 to 1, the highest of each image, or all 0 where nothing speaks for a defect.

    Raises:
        UserError: the network has no stages that can be mapped.
    """
    network = inspector.network
    check_explainable(inspector)
    if not images:
        return np.zeros((0, inspector.preprocessing.size, inspector.preprocessing.size), np.float32)
    outputs = inspector.outputs
    batch = torch.stack(list(images)).to(network.mean.device)
    with torch.inference_mode(False), _evaluating(network):
        views = [_map(network, batch.flip(axes), outputs).flip([axis - 1 for axis in axes]) for axes in _MIRRORS]
        heat = _scaled(_blurred(torch.stack(views).sum(0)))
    return np.asarray(heat.cpu().numpy(), np.float32)


def is_explainable(inspector: Inspector) -> bool:
    """Whether the network has stages that can be mapped: convolutional networks have, most transformers have not."""
    return len(_stages(inspector.network)) == len(_CELLS)


def check_explainable(inspector: Inspector) -> None:
    """Raise a :class:`UserError` where :func:`is_explainable` does not hold."""
    if not is_explainable(inspector):
        raise UserError(
            f"nothing can show what {inspector.name} looked at, which has no stages with cells of 8 and of 16 pixels, "
            "as convolutional networks have: leave out explain, or train another model.name"
        )


def place(heat: Heat, preprocessing: Preprocessing, height: int, width: int) -> Heat:
    """A map [size, size] of :func:`explain` on its picture, [height, width]; 0 where the model did not look."""
    box = _seen(preprocessing, height, width)
    # Bilinear, so that nothing overshoots.
    scaled = Image.fromarray(heat).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR)
    sheet = Image.new("F", (width, height))
    sheet.paste(scaled, box[:2])
    return np.asarray(sheet, np.float32)


def overlay(image: Tensor, heat: Heat, preprocessing: Preprocessing, limit: int = 640) -> Image.Image:
    """A picture with a tint where the model looked and an outline round what counted most.

    Args:
        image: the whole picture, uint8 [3, H, W].
        heat: its map, [size, size], of :func:`explain`.
        preprocessing: the model's.
        limit: pixels of the longer side.
    """
    picture: Image.Image = F.to_pil_image(image)
    picture.thumbnail((limit, limit))
    shown = place(heat, preprocessing, picture.height, picture.width)
    pixels = np.asarray(picture, np.float32)
    share = _OPACITY * shown[:, :, None] ** 2
    mixed = (1 - share) * pixels + share * np.array(_TINT, np.float32)
    mixed[_outline(shown >= _LEVEL)] = _EDGE
    return Image.fromarray(mixed.round().astype(np.uint8))


def _map(network: Network, batch: Tensor, outputs: Outputs) -> Tensor:
    """Maps [N, H, W] of images uint8 [N, 3, H, W]; the gradient reaches back to the first of the stages only."""
    activations: list[Tensor] = []

    def keep(module: nn.Module, given: Any, values: Tensor) -> Tensor:
        activations.append(values if activations else values.requires_grad_())
        return values.clone()  # what follows may work in place

    hooks = [stage.register_forward_hook(keep) for stage in _stages(network)]
    try:
        with torch.enable_grad():
            logits = network.head(network.features(batch))
            gradients = torch.autograd.grad(_answer(logits.float(), outputs).sum(), activations)
    finally:
        for hook in hooks:
            hook.remove()
    channels = -1 if getattr(network.backbone, "output_fmt", "NCHW") == "NHWC" else 1
    maps = [(a.detach() * g).sum(channels).relu().float() for a, g in zip(activations, gradients, strict=True)]
    size = list(batch.shape[2:])
    return torch.stack([_scaled(interpolate(one[:, None], size, mode="bilinear")[:, 0]) for one in maps]).sum(0)


def _stages(network: Network) -> list[nn.Module]:
    found = [network.stage_of_cells(pixels) for pixels in _CELLS]
    return [stage for stage in found if stage is not None]


def _answer(logits: Tensor, outputs: Outputs) -> Tensor:
    """Log odds of defective against good, or the highest logit, shape (N,), of logits [N, classes]."""
    good = outputs.good
    if good is None:
        return logits.amax(1)
    if outputs.multi_label:
        return -logits[:, good]
    defects = [index for index in range(logits.shape[1]) if index != good]
    return logits[:, defects].logsumexp(1) - logits[:, good]


def _blurred(maps: Tensor) -> Tensor:
    sigma = _BLUR * maps.shape[2]
    blurred: Tensor = F.gaussian_blur(maps, [2 * round(2.5 * sigma) + 1] * 2, [sigma] * 2)
    return blurred


def _scaled(maps: Tensor) -> Tensor:
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode, and without gradients of the weights, which nobody asks for."""
    modes = {module: module.training for module in network.modules()}
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_()
        for module, mode in modes.items():
            module.training = mode


def _seen(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what the network is shown of a picture."""
    if preprocessing.eval_crop == EvalCrop.whole.value:
        return 0, 0, width, height
    side = round(min(height, width) * preprocessing.size / preprocessing.resize)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels inside that touch one outside; the picture's own edge counts as inside."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core
