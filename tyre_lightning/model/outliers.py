"""Pictures that show no tyre, made while a network learns, so that it does not take for good what it has never seen.

A network that learns from tyres alone calls a solar cell or a lens cap good, if it lacks what its defects have. Shown
pictures of other things, it learns where tyres end, and that reaches beyond what it is shown (outlier exposure,
Hendrycks et al., arXiv:1812.04606). No other pictures are needed: half of these are training pictures out of order,
the others are drawn, like those from which networks learn to see without photographs (Baradad et al.,
arXiv:2106.05963). What the network is to say of them is that they are not good, and nothing more.

Random numbers are PyTorch's, so that a seed repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, softplus

_GREY = 0.4  # of what is drawn: in shades of grey, as most cameras of a line see

Make = Callable[[Tensor], Tensor]


def add_outliers(images: Tensor, share: float) -> Tensor:
    """Training images, float [N, 3, H, H] from 0 to 255, and as many outliers as the share says, rounded down."""
    count = outliers_in(len(images), share)
    if not count:
        return images
    sources = images[torch.randint(len(images), (count,)).tolist()]
    made = [_KINDS[_below(len(_KINDS))](image).clamp(0, 255) for image in sources.float()]
    return torch.cat([images, torch.stack(made).to(images.dtype)])


def outliers_in(images: int, share: float) -> int:
    """How many outliers are added to so many images."""
    return int(images * share)


def not_good(logits: Tensor, good: int, *, multi_label: bool) -> Tensor:
    """-log P(defective) of outliers, shape (N,), by logits [N, classes], as :class:`Outputs` reads them."""
    if multi_label:
        return softplus(logits[:, good])
    others = torch.cat([logits[:, :good], logits[:, good + 1 :]], 1)
    return logits.logsumexp(1) - others.logsumexp(1)


def _shuffled(image: Tensor) -> Tensor:
    """Its tiles in random order, each turned."""
    side, count = image.shape[-1], (3, 4, 5, 8)[_below(4)]
    edge = side // count
    tiles = image[:, : edge * count, : edge * count].reshape(3, count, edge, count, edge).permute(1, 3, 0, 2, 4)
    mixed = tiles.flatten(0, 1)[torch.randperm(count * count).tolist()]
    turned = torch.stack([torch.rot90(tile, _below(4), (1, 2)) for tile in mixed])
    whole = turned.reshape(count, count, 3, edge, edge).permute(2, 0, 3, 1, 4).reshape(1, 3, edge * count, -1)
    return _resized(whole, side)


def _scrambled(image: Tensor) -> Tensor:
    """Noise that has the picture's frequencies: no edge is left."""
    mean = image.mean((1, 2), keepdim=True)
    noise = torch.fft.rfft2(torch.randn(image.shape[1:], device=image.device))
    phase = noise / noise.abs().clamp_min(1e-12)
    mixed: Tensor = torch.fft.irfft2(torch.fft.rfft2(image - mean) * phase, s=image.shape[1:])
    return mixed + mean


def _enlarged(image: Tensor) -> Tensor:
    """Five to twenty times as near."""
    side = image.shape[-1]
    edge = max(2, int(side * _between(0.05, 0.2)))
    x, y = _below(side - edge + 1), _below(side - edge + 1)
    return _resized(image[None, :, y : y + edge, x : x + edge], side)


def _inverted(image: Tensor) -> Tensor:
    """A negative, its colours exchanged."""
    return 255 - image[torch.randperm(3).tolist()]


def _clouded(image: Tensor) -> Tensor:
    """Noise whose spectrum falls as a power of the frequency, from fine grain to clouds."""
    side = image.shape[-1]
    steps = torch.fft.fftfreq(side, device=image.device)[:, None], torch.fft.rfftfreq(side, device=image.device)
    frequency = torch.hypot(*steps).clamp_min(1 / side)
    noise = torch.randn(1 if _is_grey() else 3, side, side, device=image.device)
    clouds: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency ** _between(0.3, 2.2), s=(side, side))
    clouds = (clouds - clouds.mean()) / clouds.std().clamp_min(1e-12)
    return (clouds * _between(10, 70) + _colour(image)).expand(3, -1, -1)


def _striped(image: Tensor) -> Tensor:
    """Waves and bars, up to three across each other, between two colours."""
    x, y = _places(image)
    waves = torch.zeros_like(x)
    for _ in range(1 + _below(3)):
        angle, count, phase = _between(0, math.pi), _between(1, 60), _between(0, 1)
        wave = torch.sin(2 * math.pi * (count * (x * math.cos(angle) + y * math.sin(angle)) + phase))
        waves = waves + (torch.sign(wave - _between(-0.9, 0.9)) if _below(2) else wave)
    low, high = waves.min(), waves.max()
    start, end = _colour(image), _colour(image)
    return _grained(start + (end - start) * (waves - low) / (high - low).clamp_min(1e-6), _between(0, 10))


def _plain(image: Tensor) -> Tensor:
    """One colour, or one that grows lighter to a side; with grain or without."""
    x, y = _places(image)
    angle = _between(0, 2 * math.pi)
    slope = (x * math.cos(angle) + y * math.sin(angle)) * (0, 50, 150)[_below(3)]
    return _grained(_colour(image) + slope, (0, 2, 8, 20)[_below(4)])


def _littered(image: Tensor) -> Tensor:
    """Ellipses and bars of any size, one on another."""
    x, y = _places(image)
    made, grey = _colour(image).expand_as(image), _is_grey()
    for _ in range((3, 8, 20)[_below(3)]):
        left, top, angle = _between(-0.1, 1.1), _between(-0.1, 1.1), _between(0, math.pi)
        long = 0.01 - 0.125 * math.log(_between(1e-3, 1))
        along = ((x - left) * math.cos(angle) + (y - top) * math.sin(angle)) / long
        beside = ((y - top) * math.cos(angle) - (x - left) * math.sin(angle)) / (long * _between(0.1, 1))
        inside = along.square() + beside.square() < 1 if _below(2) else torch.maximum(along.abs(), beside.abs()) < 1
        made = torch.where(inside, _colour(image, grey), made)
    return made


_KINDS: tuple[Make, ...] = (_shuffled, _scrambled, _enlarged, _inverted, _clouded, _striped, _plain, _littered)


def _below(count: int) -> int:
    return int(torch.randint(count, ()))


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _is_grey() -> bool:
    return _between(0, 1) < _GREY


def _colour(image: Tensor, grey: bool | None = None) -> Tensor:
    """Any, [3, 1, 1]."""
    made = 255 * torch.rand(3, 1, 1)
    shade = made.mean().expand_as(made) if (_is_grey() if grey is None else grey) else made
    return shade.to(image.device)


def _places(image: Tensor) -> tuple[Tensor, Tensor]:
    """How far from the left and from the top each pixel is, from 0 to 1, each [H, H]."""
    steps = torch.linspace(0, 1, image.shape[-1], device=image.device)
    return steps.expand(len(steps), -1), steps[:, None].expand(-1, len(steps))


def _grained(image: Tensor, spread: float) -> Tensor:
    return image + spread * torch.randn(1, *image.shape[1:], device=image.device)


def _resized(images: Tensor, side: int) -> Tensor:
    return interpolate(images, size=(side, side), mode="bilinear")[0]
