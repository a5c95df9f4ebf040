"""From pixels of any mode to upright 8-bit RGB, in stripes: the whole image lies in memory twice, never more often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STRIPE = 1 << 18  # pixels that are converted at a time

_PIXEL = np.dtype("V3")  # three bytes that move together: twice as fast

# The pixels as they were stored, seen in the upright image, for every EXIF orientation.
_STORED: dict[int, Callable[[NDArray[np.void]], NDArray[np.void]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


class Levels(NamedTuple):
    """Which values of a 16-bit image are black and white."""

    black: int
    white: int


SIXTEEN_BITS = Levels(0, 65535)


def turned(stripes: Iterable[NDArray[np.uint8]], size: tuple[int, int], orientation: int) -> NDArray[np.uint8]:
    """The upright image [height, width, 3] of stripes of an image that was stored as an EXIF orientation says.

    ``size`` is the stored image's width and height.
    """
    width, height = size
    upright = np.empty((width, height, 3) if 5 <= orientation <= 8 else (height, width, 3), np.uint8)
    stored = _STORED.get(orientation, _STORED[1])(upright.view(_PIXEL)[..., 0])
    top = 0
    for stripe in stripes:
        stored[top : top + len(stripe)] = stripe.view(_PIXEL)[..., 0]
        top += len(stripe)
    return upright


def as_rgb(image: Image.Image, levels: Levels = SIXTEEN_BITS) -> Iterator[NDArray[np.uint8]]:
    """Stripes [rows, width, 3] of an image of any mode.

    Raises:
        ValueError: as :func:`to_rgb`.
    """
    rows = max(1, _STRIPE // image.width)
    for top in range(0, image.height, rows):
        stripe = image.crop((0, top, image.width, min(top + rows, image.height)))
        yield np.asarray(to_rgb(stripe, levels))


def to_rgb(image: Image.Image, levels: Levels = SIXTEEN_BITS) -> Image.Image:
    """An image of any mode as 8-bit RGB; what is transparent shows white.

    Raises:
        ValueError: a mode whose values have no fixed range (32-bit integers and float).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no fixed range; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(image, levels)
    if image.mode in ("La", "RGBa"):  # the colours are multiplied by alpha
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image, levels: Levels) -> Image.Image:
    values = np.asarray(image)
    grey = _shades(levels)[values]
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


@cache
def _shades(levels: Levels) -> NDArray[np.uint8]:
    """What each 16-bit value is of 255."""
    share = (np.arange(1 << 16) - levels.black) / (levels.white - levels.black)
    return (share * 255).round().clip(0, 255).astype(np.uint8)
