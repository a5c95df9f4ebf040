"""The networks to choose from: EfficientNet B0 to B7 and V2-S as torchvision has them, Lite0 to Lite2, and timm's.

EfficientNet: Tan and Le, arXiv:1905.11946; V2: arXiv:2104.00298. Lite is the same family without squeeze-and-excitation
and with ReLU6, made by its authors for phones; on a CPU it is the fastest of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torchvision.models import get_model, get_model_weights
from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig

from tyre_lightning.config import BACKBONES, backbone_choices
from tyre_lightning.data.transforms import Preset
from tyre_lightning.errors import UserError
from tyre_lightning.model import from_timm


@dataclass(frozen=True)
class _Lite:
    """Scaling and preset of one EfficientNet-Lite."""

    width: float
    depth: float
    size: int
    dropout: float


_LITE = {
    "efficientnet_lite0": _Lite(1.0, 1.0, 224, 0.2),
    "efficientnet_lite1": _Lite(1.0, 1.1, 240, 0.2),
    "efficientnet_lite2": _Lite(1.1, 1.2, 260, 0.3),
}
# expand ratio, kernel, stride, channels in and out, layers: table 1 of the EfficientNet paper
_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


_SMALLER = 4  # times is a picture's side at a glance
_MIRRORED: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))  # dimensions in which each view is mirrored


class Network(nn.Module):
    """A backbone with its normalisation in front and a linear head behind: pixels in, logits out.

    Args:
        name: one of :data:`tyre_lightning.config.BACKBONES`, or ``timm/`` and one of timm's.
        num_classes: width of the head.
        mean: per-channel mean, in units of the full scale.
        std: per-channel standard deviation, likewise.
        dropout: before the head; None for the backbone's own.
        channels_last: keep weights and activations in the layout that CPUs and tensor cores convolve fastest.
        views: mirrored views of an image whose logits evaluation averages (Krizhevsky et al., NIPS 2012): 1, 2 or 4.
        size: of the images' side in pixels, for networks that take only one; None for their own.

    Raises:
        UserError: no backbone has that name, or it does not take images of that size.
    """

    mean: Tensor
    std: Tensor
    backbone: Any  # an EfficientNet or a network of timm, without its head

    def __init__(
        self,
        name: str,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dropout: float | None = None,
        channels_last: bool = True,
        views: int = 1,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone, own_dropout, width = _headless(name, size)
        self.head = nn.Sequential(
            nn.Dropout(own_dropout if dropout is None else dropout), nn.Linear(width, num_classes)
        )
        self.glance: Network | None = None  # beside it, of :func:`tyre_lightning.model.glance.open_glance`
        self.size = size
        self._views = _MIRRORED[:views]
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        _follow_quickly(self.backbone)
        self.to(memory_format=self._layout)
        # Not in the state dict: they are part of the preprocessing, which is saved beside the weights.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W] with values from 0 to 255 (uint8 or float)."""
        views = self._views[:1] if self.training else self._views
        found = [self.head(self.features(image.flip(axes) if axes else image)) for axes in views]
        return torch.stack(found).mean(0)

    def look(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits as :meth:`forward` gives them, and in the same pass what novelty is told by.

        That is for each image [N, D] the means and the spreads of the maps whose cells are 8 and 16 pixels wide, where
        the backbone has such, and the head's input, each of unit length: pictures of something else differ in the
        former, defects that nobody has shown in the latter. Where there is a glance, its head's input is the last part.
        """
        with self._watched() as maps:
            inputs = self.features(image)
        found = [self.head(inputs), *(self.head(self.features(image.flip(axes))) for axes in self._views[1:])]
        parts = [_unit(part) for part in (*chain(*map(_moments, maps)), inputs)]
        if self.glance is not None:
            parts.append(_unit(self.glance.features(avg_pool2d(image.to(self.mean.dtype), _SMALLER))))
        return torch.stack(found).mean(0), torch.cat(parts, 1)

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        """Meanwhile the maps of some stages, [N, channels, height, width], are gathered."""
        maps: list[Tensor] = []
        last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"

        def gather(stage: nn.Module, given: Any, made: Tensor) -> None:
            maps.append(made.permute(0, 3, 1, 2) if last else made)

        stages = [stage for pixels in (8, 16) if (stage := self.stage_of_cells(pixels)) is not None]
        hooks = [stage.register_forward_hook(gather) for stage in stages]
        try:
            yield maps
        finally:
            for hook in hooks:
                hook.remove()

    def features(self, image: Tensor) -> Tensor:
        """What the backbone makes of images, as :meth:`forward` takes them: [N, width of the head's input]."""
        found: Tensor = self.backbone(self.normalize(image))
        return found

    def normalize(self, image: Tensor) -> Tensor:
        """Images as :meth:`forward` takes them, as the backbone takes them: float [N, 3, H, W]."""
        pixels = (image.to(self.mean.dtype) - self.mean) / self.std
        return pixels.contiguous(memory_format=self._layout)

    def stages(self) -> list[list[nn.Parameter]]:
        """The backbone's parameters from the stem on, stage by stage."""
        if isinstance(self.backbone, EfficientNet):
            return [[*stage.parameters()] for stage in self.backbone.features]
        return from_timm.stages(self.backbone)

    def stage_of_cells(self, pixels: int) -> nn.Module | None:
        """The last stage whose cells are so many pixels wide, 8 or 16; None where the backbone has no such stages."""
        if isinstance(self.backbone, EfficientNet):
            stage: nn.Module = self.backbone.features[{8: 3, 16: 5}[pixels]]
            return stage
        return from_timm.stage_of_cells(self.backbone, pixels)


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the spread of each channel over all places, each [N, channels]."""
    mean = maps.mean((2, 3), keepdim=True)
    return mean[:, :, 0, 0], (maps - mean).square().mean((2, 3)).sqrt()


def _unit(part: Tensor) -> Tensor:
    return part / part.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)


def _headless(name: str, size: int | None) -> tuple[nn.Module, float, int]:
    """A backbone that ends in its pooled features, the dropout that it has after them, and how many they are."""
    if from_timm.is_timm(name):
        model: Any = from_timm.build(name, size)
        return model, float(getattr(model, "drop_rate", 0.0)), int(model.head_hidden_size)
    backbone = build_backbone(name)
    drop, linear = backbone.classifier
    backbone.classifier = nn.Identity()
    return backbone, drop.p, linear.in_features


def _follow_quickly(module: nn.Module) -> None:
    """Let BatchNorm's statistics follow the weights within some ten steps.

    EfficientNet's own momentum, 0.01, is made for ImageNet's hundred thousands of steps: in a fine-tuning of some
    hundred the statistics would be epochs behind the weights, and evaluation worse than training.
    """
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = 0.1


def check_name(name: str) -> None:
    """Raise a :class:`UserError` that lists the choices, unless the name is one of them."""
    if name not in BACKBONES:
        raise UserError(f"the backbone '{name}' is not known: {backbone_choices()}")


def build_backbone(name: str) -> EfficientNet:
    """An EfficientNet with random weights and its ImageNet head.

    Raises:
        UserError: no backbone has that name.
    """
    check_name(name)
    if name in _LITE:
        return _build_lite(_LITE[name])
    model: EfficientNet = get_model(name)
    return model


def preset(name: str) -> Preset:
    """What the backbone's ImageNet weights were evaluated with.

    Raises:
        UserError: no backbone has that name.
    """
    if from_timm.is_timm(name):
        return from_timm.timm_preset(name)
    check_name(name)
    if name in _LITE:
        size = _LITE[name].size
        mean, std = 127 / 255, 128 / 255
        return Preset(size + 32, size, "bicubic", (mean, mean, mean), (std, std, std))
    transform = get_model_weights(name).DEFAULT.transforms()
    return Preset(
        resize=transform.resize_size[0],
        crop=transform.crop_size[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def _build_lite(lite: _Lite) -> EfficientNet:
    last = len(_STAGES) - 1
    stages = [
        # The first and the last stage keep their depth in the Lite family.
        MBConvConfig(*stage, width_mult=lite.width, depth_mult=1.0 if i in (0, last) else lite.depth, block=_lite_block)
        for i, stage in enumerate(_STAGES)
    ]
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    model = EfficientNet(stages, dropout=lite.dropout, norm_layer=norm, last_channel=1280)
    _relu6(model)
    return model


def _lite_block(*args: Any, **kwargs: Any) -> MBConv:
    return MBConv(*args, **kwargs, se_layer=_no_squeeze)


def _no_squeeze(*_: Any, **__: Any) -> nn.Module:
    return nn.Identity()


def _relu6(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.SiLU):
            setattr(module, name, nn.ReLU6(inplace=True))
        else:
            _relu6(child)
