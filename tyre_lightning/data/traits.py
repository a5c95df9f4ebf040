"""What a picture looks like, whatever it shows, in numbers: size, light, contrast, colour, sharpness and border."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

SIDES = tuple(
    f"{side}_{what}" for side in ("top", "bottom", "left", "right") for what in ("red", "green", "blue", "spread")
)
TRAITS = ("width", "height", "brightness", "contrast", "colour", "sharpness", *SIDES)

_SMALL = 64  # pixels of the side on which colours are measured
_BORDER = 3  # of them
_SHARPNESS_SIDE = 512  # pixels: sharpness is measured in the middle, at the camera's own resolution


def measure(image: Tensor) -> tuple[float, ...]:
    """The measurements of uint8 [3, H, W] that :data:`TRAITS` names; all but the size are on a scale of 0 to 255."""
    _, height, width = image.shape
    small = F.resize(image, [_SMALL, _SMALL]).float()
    grey = small.mean(0)
    colour = (small.amax(0) - small.amin(0)).mean()
    borders = (small[:, :_BORDER], small[:, -_BORDER:], small[:, :, :_BORDER], small[:, :, -_BORDER:])
    sides = [value for border in borders for value in (*border.mean((1, 2)), border.mean(0).std())]
    middle = F.center_crop(image, [min(height, _SHARPNESS_SIDE), min(width, _SHARPNESS_SIDE)])
    measured = (grey.mean(), grey.std(), colour, _sharpness(middle), *sides)
    return float(width), float(height), *map(float, measured)


def _sharpness(image: Tensor) -> Tensor:
    """The mean absolute Laplacian of the green channel."""
    pixels = image[1].to(torch.int16)
    middle = pixels[1:-1, 1:-1]
    if not middle.numel():
        return torch.zeros(())
    sides = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return (sides - 4 * middle).abs().float().mean()
