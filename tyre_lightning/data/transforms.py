"""What happens to pixels before the network sees them: one way for evaluation, another for training.

Both end in uint8; the network itself scales and normalises (see :mod:`tyre_lightning.model.backbones`), so that a batch
travels between processes at a quarter of the size and no caller can forget it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tyre_lightning.config import AugmentConfig, DataConfig, EvalCrop
from tyre_lightning.data.decoding import decode
from tyre_lightning.parts import apply, make_transforms

FINE = 400  # pixels
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Colour(NamedTuple):
    """Factors on an image's colours; 1 leaves them alone."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


@dataclass(frozen=True)
class Preset:
    """What a backbone's ImageNet weights were evaluated with.

    ``mean`` and ``std`` are in units of the full scale (1.0 is white).
    """

    resize: int  # pixels of the shorter side before the centre crop
    crop: int  # pixels of the centre crop
    interpolation: str  # bilinear or bicubic
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fixed: bool = False  # the network takes pictures of one size only, in training too
    least: int = FINE  # pixels of the whole picture's side, where it has as many


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation's way from a file to the network's input; it travels with the model.

    With ``eval_crop`` whole, the whole picture is resized to a square of ``size`` pixels; with center, its shorter side
    is resized to ``resize`` pixels and the middle ``size`` x ``size`` is cut out, as in the backbone's own preset.
    Training crops are ``train_size`` pixels, the preset's crop for the preset's size before it: a random crop shows
    things larger than the whole picture does, so it is made smaller (Touvron et al., arXiv:1906.06423).
    The network averages over ``views``: the picture, its mirror image left-right, and both of them top-bottom.
    """

    size: int
    train_size: int
    resize: int
    eval_crop: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    views: int = field(default=1, repr=False)  # changes no pixel that a cache keeps

    @classmethod
    def of(cls, preset: Preset, data: DataConfig, side: int | None = None) -> Preprocessing:
        """The preprocessing that a backbone's preset and the config ask for.

        ``whole`` takes the preset's size *before* its crop, so that a tyre is as large in pixels as the preset
        would make it and nothing at the edge is lost; and at least ``preset.least`` pixels, since cracks are finer than
        what ImageNet is of, but no more of these than the pictures have: others would show nothing. A network of a
        fixed size has all its pictures in that size.

        Args:
            preset: of the backbone.
            data: the config.
            side: of the pictures, in pixels, see :func:`takes_any_size`; None: as many as may be wanted.
        """
        whole = data.eval_crop is EvalCrop.whole
        before = whole and not preset.fixed
        least = preset.least if side is None else min(preset.least, side)
        size = data.image_size or (max(preset.resize, least) if before else preset.crop)
        resize = size if whole else round(size * preset.resize / preset.crop)
        train_size = round(size * preset.crop / preset.resize) if before else size
        crop, how = data.eval_crop.value, preset.interpolation
        return cls(size, train_size, resize, crop, how, preset.mean, preset.std, data.eval_views)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for checkpoints."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    def __call__(self, image: Tensor) -> Tensor:
        """An RGB image, uint8 [3, height, width], as uint8 [3, size, size]."""
        how = F.InterpolationMode(self.interpolation)
        size = [self.size, self.size]
        whole = self.eval_crop == EvalCrop.whole.value
        view: Tensor = F.resize(image, size, how) if whole else F.center_crop(F.resize(image, [self.resize], how), size)
        return view

    def read(self, data: bytes, key: str) -> Tensor:
        """The bytes of an image file as uint8 [3, size, size].

        Raises:
            UnreadableImage: the bytes cannot be decoded.
        """
        return self(decode(data, key))


def takes_any_size(preset: Preset, data: DataConfig) -> bool:
    """Whether the network may see the whole picture in any size."""
    return data.eval_crop is EvalCrop.whole and not preset.fixed


@dataclass(frozen=True)
class Shrink:
    """Makes an image no larger than training needs, for a cache of pixels; a small one stays as it is."""

    side: int  # pixels of the shorter side
    interpolation: str

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 [3, height, width] as uint8 [3, smaller, smaller]."""
        if min(image.shape[1:]) <= self.side:
            return image
        small: Tensor = F.resize(image, [self.side], F.InterpolationMode(self.interpolation))
        return small.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # crops are cut sooner where colours lie together


class Augmentation:
    """Training's random way from an image to uint8 [3, train_size, train_size].

    What is drawn depends on the seed given with each image and on nothing else: not on the worker, its process or the
    number of devices. A random part of the image at a random aspect (as in Szegedy et al., arXiv:1409.4842), mirrored
    and turned by a quarter at random; then the user's own transforms. Colours are changed later, a batch at a time (see
    :func:`recolour`), and only a little, since a defect may be a matter of colour.

    Raises:
        UserError: a transform of ``config.extra`` cannot be made.
    """

    def __init__(self, config: AugmentConfig, preprocessing: Preprocessing) -> None:
        self._config = config
        self._size = preprocessing.train_size
        self._interpolation = F.InterpolationMode(preprocessing.interpolation)
        self._extra = make_transforms(config.extra)

    def __call__(self, image: Tensor, seed: int) -> tuple[Tensor, Colour]:
        """One random view of an image (uint8 [3, height, width]) and its colours, the same for the same seed.

        Raises:
            UserError: a transform of the user's own fails, or does not keep size and type.
        """
        draw = random.Random(seed)
        top, left, height, width = random_crop(draw, image.shape[1], image.shape[2], self._config.min_scale)
        square = [self._size, self._size]
        view: Tensor = F.resized_crop(image, top, left, height, width, square, self._interpolation)
        mirrored = [dim for dim in (1, 2) if self._config.flip and draw.random() < 0.5]
        changes = (self._config.brightness, self._config.contrast, self._config.saturation)
        colour = Colour(*(draw.uniform(max(0.0, 1 - change), 1 + change) for change in changes))
        view = view.flip(mirrored) if mirrored else view
        if self._config.turn and draw.random() < 0.5:  # drawn last: without it everything else is as it would be
            view = _transposed(view)
        return self._changed(view, seed) if self._extra else view, colour

    def _changed(self, view: Tensor, seed: int) -> Tensor:
        with _drawn_by(seed):
            for name, transform in self._extra.items():
                view = apply(name, transform, view)
        return view

    def shrink(self) -> Shrink:
        """What a cache may keep of an image: the smallest crop still has pixels enough."""
        return Shrink(math.ceil(self._size / math.sqrt(self._config.min_scale)), self._interpolation.value)


def _transposed(view: Tensor) -> Tensor:
    """A square view with rows for columns, in the memory layout that it had: a batch of one layout is stacked sooner.

    Mirrored in one direction as well it is turned by a quarter.
    """
    return torch.empty_like(view).copy_(view.transpose(1, 2))


@contextmanager
def _drawn_by(seed: int) -> Iterator[None]:
    """What Python, NumPy and torch draw meanwhile follows from the seed, and what they draw later is as it would be."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def recolour(images: Tensor, colours: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, in this order, as torchvision's ``adjust_`` functions do.

    Values are not clipped in between, nor at the end: the network takes any.

    Args:
        images: uint8 [N, 3, H, W].
        colours: float32 [N, 3], a row of factors for each image, see :class:`Colour`.

    Returns:
        float32 [N, 3, H, W].
    """
    brightness, contrast, saturation = colours[:, :, None, None, None].unbind(1)
    pixels = images.float()
    grey = (pixels * _luma(pixels.device)).sum(1, keepdim=True)
    level = grey.mean((2, 3), keepdim=True)
    mixed = torch.lerp(grey, pixels, saturation)
    return torch.addcmul(brightness * (1 - contrast) * level, brightness * contrast, mixed)


@cache
def _luma(device: torch.device) -> Tensor:
    """The weights of red, green and blue, float32 [3, 1, 1]; sent to a GPU once, since it is waited for."""
    return torch.tensor(_LUMA, device=device)[:, None, None]


def random_crop(draw: random.Random, height: int, width: int, min_scale: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part: ``min_scale`` to all of the area, sides 3:4 to 4:3."""
    for _ in range(10):
        area = height * width * draw.uniform(min_scale, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return draw.randint(0, height - h), draw.randint(0, width - w), h, w
    return 0, 0, height, width
