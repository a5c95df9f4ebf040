"""From the bytes of an image file to correct RGB pixels, or to an error that names the image."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from tyre_lightning.data.colours import SIXTEEN_BITS, as_rgb, turned
from tyre_lightning.data.jpeg import read_jpeg
from tyre_lightning.data.png import scaled_transparency, whole_png
from tyre_lightning.data.tiff import check_tiff
from tyre_lightning.errors import UnreadableImage, first_line
from tyre_lightning.lake.formats import IMAGE_FORMATS

MOST_PIXELS = 178_956_970  # of an image, as Pillow has it; decoding takes at most 24 bytes for each, beside the file
_PNG_BITS = 24  # the place of the byte that says how many each colour has

# How the files of each of IMAGE_FORMATS begin, and who reads their headers. Image.open would ask forty plugins more,
# one of which starts Ghostscript, and take heed of limits that other libraries set for themselves.
_OPENERS: dict[str, tuple[bytes, type[ImageFile]]] = {
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "WebP": (rb"RIFF....WEBP", WebPImageFile),
    "BMP": (rb"BM", BmpImageFile),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
}
_OTHERS = rb"GIF8|8BPS|%!PS|%PDF|\0\0\0\x0cjP|\xff\x4f\xff\x51|....ftyp(?:avif|avis|hei|mif1)"

# Pillow's notes on odd metadata, as on a damaged EXIF block. Set once: who mutes warnings for the time of a call, in
# several threads, leaves the process mute.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Png|Tiff)ImagePlugin")


def decode(data: bytes, key: str) -> Tensor:
    """Decode one image file (of a format in ``IMAGE_FORMATS``) to upright RGB: uint8 [3, height, width].

    EXIF orientation is applied; grey, palette, CMYK, 12-bit and 16-bit images are converted by value; what is
    transparent shows white, as in an image viewer; of an animation the first frame is taken. At most ``MOST_PIXELS``.

    Args:
        data: the whole file.
        key: names the image in an error.

    Raises:
        UnreadableImage: the bytes are no image, are cut off or damaged, or hold pixels that have no 8-bit meaning.
    """
    if not data:
        raise UnreadableImage(key, "the file is empty")
    try:
        return torch.from_numpy(_pixels(data)).permute(2, 0, 1)
    except Exception as error:  # Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error, ...
        raise UnreadableImage(key, _reason(error)) from error


def try_decode(data: bytes | UnreadableImage, key: str) -> Tensor | UnreadableImage:
    """:func:`decode`, giving the reason instead of raising it; a reason for which there are no bytes stays as it is."""
    if isinstance(data, UnreadableImage):
        return data
    try:
        return decode(data, key)
    except UnreadableImage as error:
        return UnreadableImage(error.key, error.reason)  # the raised one holds the file, by its traceback


def media_type(data: bytes) -> str | None:
    """What a browser is told of a file that :func:`decode` reads, and that it shows with the same values; else None."""
    kind = _format(data)
    if kind not in ("JPEG", "PNG", "WebP"):
        return None
    with _OPENERS[kind][1](io.BytesIO(data)) as image:
        other = image.mode == "CMYK" or (kind == "PNG" and data[_PNG_BITS] > 8)
    return None if other else f"image/{kind.lower()}"


def _pixels(data: bytes) -> NDArray[np.uint8]:
    """The upright pixels [height, width, 3] of a file."""
    kind = _format(data)
    if kind == "PNG":
        data = whole_png(data)
    with _OPENERS[kind][1](io.BytesIO(data)) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"an image of {image.width} x {image.height} pixels exceeds limit of {MOST_PIXELS:,}")
        if isinstance(image, JpegImageFile):
            return read_jpeg(image, data, _orientation(image))
        levels = SIXTEEN_BITS
        if isinstance(image, TiffImageFile):
            levels = check_tiff(image, data)
        if isinstance(image, BmpImageFile):
            _check_bmp(image, data)
        if isinstance(image, PngImageFile):
            scaled_transparency(image, data)
        _load(image)
        return turned(as_rgb(image, levels), image.size, _orientation(image))


def _format(data: bytes) -> str:
    """Which of IMAGE_FORMATS a file has.

    Raises:
        ValueError: none.
    """
    for kind, (begins, _) in _OPENERS.items():
        if re.match(begins, data, re.DOTALL):
            return kind
    if re.match(_OTHERS, data, re.DOTALL):
        raise ValueError(f"it is of another format than {', '.join(IMAGE_FORMATS)}: save it as one of these")
    raise ValueError("it is not an image file")


def _check_bmp(image: BmpImageFile, data: bytes) -> None:
    """Pillow reads a palette of greys as if the pixels were greys, of as many bits as the palette has.

    Raises:
        ValueError: they have other bits.
    """
    old = int.from_bytes(data[14:18], "little") == 12  # bytes of the header
    bits = int.from_bytes(data[24:26] if old else data[28:30], "little")
    if not image.info["compression"] and {"1": 1, "L": 8}.get(image.mode, bits) != bits:
        raise ValueError("its palette has few greys for many bits, which is not read; save it as PNG")


def _load(image: ImageFile) -> None:
    """Have Pillow decode the pixels; that bytes are missing is an error even where another library has set
    ``ImageFile.LOAD_TRUNCATED_IMAGES``, for all of the process.
    """
    if isinstance(image, WebPImageFile):  # decodes all of its bytes before Pillow asks for some
        image.load()
        return
    assert image.fp is not None
    read = getattr(image, "load_read", image.fp.read)

    def read_more(size: int) -> bytes:
        part: bytes = read(size)
        if not part:
            raise ValueError("the file is truncated")
        return part

    image.load_read = read_more  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        del image.load_read  # type: ignore[attr-defined]  # image and function would keep each other in memory


def _reason(error: Exception) -> str:
    if isinstance(error, OSError | ValueError | SyntaxError):  # as the decoders say it
        return first_line(error)
    return f"the file is damaged ({type(error).__name__}: {first_line(error)})"


def _orientation(image: ImageFile) -> int:
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))
