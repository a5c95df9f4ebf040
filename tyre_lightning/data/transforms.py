"""What happens to pixels before the network sees them: one way for evaluation, another for training.

Both end in uint8; the network itself scales and normalises (see :mod:`tyre_lightning.model.backbones`), so that a batch
travels between processes at a quarter of the size and no caller can forget it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tyre_lightning.config import AugmentConfig, DataConfig, EvalCrop
from tyre_lightning.data.decoding import decode


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


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation's way from a file to the network's input; it travels with the model.

    With ``eval_crop`` whole, the whole picture is resized to a square of ``size`` pixels; with center, its shorter side
    is resized to ``resize`` pixels and the middle ``size`` x ``size`` is cut out, as in the backbone's own preset.
    Training crops are ``train_size`` pixels, the preset's crop for the preset's size before it: a random crop shows
    things larger than the whole picture does, so it is made smaller (Touvron et al., arXiv:1906.06423).
    """

    size: int
    train_size: int
    resize: int
    eval_crop: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, preset: Preset, data: DataConfig) -> Preprocessing:
        """The preprocessing that a backbone's preset and the config ask for.

        ``whole`` takes the preset's size *before* its crop, so that a tyre is as large in pixels as the preset
        would make it and nothing at the edge is lost.
        """
        whole = data.eval_crop is EvalCrop.whole
        size = data.image_size or (preset.resize if whole else preset.crop)
        resize = size if whole else round(size * preset.resize / preset.crop)
        train_size = round(size * preset.crop / preset.resize) if whole else size
        return cls(size, train_size, resize, data.eval_crop.value, preset.interpolation, preset.mean, preset.std)

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


class Augmentation:
    """Training's random way from an image to uint8 [3, train_size, train_size].

    What is drawn depends on the seed given with each image and on nothing else: not on the worker, its process or the
    number of devices. Colours change a little only, since a defect may be a matter of colour.
    """

    def __init__(self, config: AugmentConfig, preprocessing: Preprocessing) -> None:
        flips: list[Any] = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()] if config.flip else []
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    preprocessing.train_size,
                    scale=(config.min_scale, 1.0),
                    interpolation=F.InterpolationMode(preprocessing.interpolation),
                ),
                *flips,
                v2.ColorJitter(config.brightness, config.contrast, config.saturation),
            ]
        )

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """One random view of an image (uint8 [3, height, width]), the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            view: Tensor = self._transform(image)
        return view
