"""TIFF files: which of their many kinds Pillow reads right, and whether all of their pixels are there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from PIL import ImagePalette
from PIL.TiffImagePlugin import TiffImageFile

from tyre_lightning.data.colours import Levels
from tyre_lightning.data.jpeg import check_jpeg
from tyre_lightning.data.png import unpack

# The tags of what is asked here.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_SAMPLES, _PLANES, _COLOURS, _SAMPLE_FORMAT, _JPEG_TABLES, _SUBSAMPLING = 277, 284, 320, 339, 347, 530
_STRIPS, _ROWS, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325

_WHITE_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR = 0, 2, 3, 5, 6
_RAW, _LZW, _JPEG, _PACKBITS, _ZSTD, _DEFLATE = 1, 5, 7, 32773, 50000, (8, 32946)
_COMPRESSIONS = {_RAW, _LZW, _JPEG, _PACKBITS, _ZSTD, *_DEFLATE}  # of others Pillow hides what it finds damaged
_UNSIGNED = 1
_SEPARATE = 2
_HEADER = 8  # bytes before which no pixels lie
_NO_TABLES = b"\xff\xd8\xff\xd9"


def check_tiff(image: TiffImageFile, data: bytes) -> Levels:
    """Which 16-bit values are black and white in a file of which Pillow has read the header.

    Raises:
        ValueError: Pillow would read it wrong, or it is cut off or damaged.
    """
    _check_kind(image)
    _check_parts(image, data)
    tags = image.tag_v2
    if tags.get(_PHOTOMETRIC) == _PALETTE and max(tags[_COLOURS]) < 256:  # 8-bit colours where 16-bit ones belong
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOURS]))
    white = 2 ** tags.get(_BITS, (1,))[0] - 1
    return Levels(white, 0) if tags.get(_PHOTOMETRIC, 0) == _WHITE_IS_ZERO else Levels(0, white)


def _check_kind(image: TiffImageFile) -> None:
    tags = image.tag_v2
    bits, photometric = tags.get(_BITS, (1,)), tags.get(_PHOTOMETRIC, 0)
    compression = tags.get(_COMPRESSION, _RAW)
    raw = compression == _RAW
    if compression not in _COMPRESSIONS:
        raise ValueError(f"its compression (number {compression}) is not read; save it with another, as LZW")
    if any(kind != _UNSIGNED for kind in tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))):
        raise ValueError("signed and float pixels have no fixed range; save it with 8 or 16 bits a channel, unsigned")
    if tags.get(_PLANES) == _SEPARATE and (
        photometric not in (_RGB, _INKS, _YCBCR) or (raw and any(number != 8 for number in bits))
    ):
        raise ValueError("its channels lie apart, in a way that is not read; save it with its channels together")
    if photometric == _YCBCR and raw and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise ValueError("its colours are subsampled without JPEG, which is not read; save it as RGB")


class _Part(NamedTuple):
    """A strip or tile: where it lies, how many bytes it has, and how many its pixels have; and its pixels."""

    offset: int
    size: int
    unpacked: int
    pixels: int


def _check_parts(image: TiffImageFile, data: bytes) -> None:
    """Whether all strips or tiles are there, and are whole as far as their compression tells."""
    tags = image.tag_v2
    compression = tags.get(_COMPRESSION, _RAW)
    for part in _parts(image):
        if part.offset < _HEADER or part.offset + part.size > len(data):
            raise ValueError("the file is truncated")
        if not part.size or (compression == _RAW and part.size < part.unpacked):
            raise ValueError("the file is damaged: it has fewer bytes than pixels")
        content = data[part.offset : part.offset + part.size]
        if compression in _DEFLATE and tags.get(_FILL_ORDER, 1) == 1:
            unpack([content])
        if compression == _JPEG:
            check_jpeg(tags.get(_JPEG_TABLES, _NO_TABLES)[:-2] + content[2:], part.pixels)


def _parts(image: TiffImageFile) -> Iterator[_Part]:
    """The strips, or tiles, of all planes.

    Raises:
        ValueError: there are too few.
    """
    tags = image.tag_v2
    width, height = tags[_WIDTH], tags[_HEIGHT]
    tiled = _STRIPS not in tags
    across, down = (tags[_TILE_WIDTH], tags[_TILE_HEIGHT]) if tiled else (width, min(tags.get(_ROWS, height), height))
    bits = tags.get(_BITS, (1,))
    samples = tags.get(_SAMPLES, 1)
    planes, samples = (samples, 1) if tags.get(_PLANES) == _SEPARATE else (1, samples)
    row = (across * samples * bits[0] + 7) // 8
    offsets = tags[_TILES if tiled else _STRIPS]
    sizes = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES) or (row * down,)
    needed = -(-width // across) * -(-height // down)
    if min(len(offsets), len(sizes)) < needed * planes:
        raise ValueError("the file is damaged: it has fewer parts than pixels")
    for number, (offset, size) in enumerate(zip(offsets, sizes, strict=False)):
        last = not tiled and number % needed == needed - 1
        rows = height - down * (needed - 1) if last else down
        yield _Part(offset, size, row * rows, across * down)
