"""From the bytes of an image file to correct RGB pixels, or to an error that names the image."""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tyre_lightning.errors import UnreadableImage, first_line

# 16 bits a pixel, in the modes under which Pillow opens grey PNG and TIFF files.
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode(data: bytes, key: str) -> Tensor:
    """Decode one image file (any format that Pillow reads) to upright RGB: uint8 [3, height, width].

    EXIF orientation is applied; grey, palette, CMYK and 16-bit images are converted by value; what is transparent shows
    white, as in an image viewer; of an animation the first frame is taken.

    Args:
        data: the whole file.
        key: names the image in an error.

    Raises:
        UnreadableImage: the bytes are no image, are cut off, or hold pixels that have no 8-bit meaning.
    """
    if not data:
        raise UnreadableImage(key, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd metadata; pixels that fail raise
            with Image.open(io.BytesIO(data)) as image:
                return torch.from_numpy(_pixels(image, data)).permute(2, 0, 1)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error, ...
        raise UnreadableImage(key, _reason(error)) from error


def try_decode(data: bytes | UnreadableImage, key: str) -> Tensor | UnreadableImage:
    """:func:`decode`, giving the reason instead of raising it; a reason for which there are no bytes stays as it is."""
    if isinstance(data, UnreadableImage):
        return data
    try:
        return decode(data, key)
    except UnreadableImage as error:
        return error


def _pixels(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """The pixels [height, width, 3] of an image of which Pillow has read the header."""
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    if image.format == "JPEG" and image.mode in ("RGB", "L") and upright:
        try:
            # The same pixels as Pillow's, sooner (benchmarks/decoding.py).
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, strict=True)
            return pixels
        except ValueError:
            pass  # anything odd about the file: whether it can be read is for Pillow to say
    image.load()
    return np.array(to_rgb(ImageOps.exif_transpose(image)))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Raises:
        ValueError: a mode whose values have no fixed range (32-bit float).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no fixed range; save it with 8 or 16 bits a channel")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image file"
    return first_line(error)
