"""JPEG files: libjpeg takes a damaged one and fills in grey; here it is an error, while odd metadata is none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tyre_lightning.data.colours import as_rgb, turned

_SCAN, _END = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_METADATA = {*range(0xE0, 0xF0), 0xFE}
_ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # no length follows
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"  # tells libjpeg the colour space, as does Adobe's
_ADOBE = re.compile(rb"\xff\xee..Adobe.{6}[\0-\2]", re.DOTALL)
_ALL = b"\0\x3f\0"  # coefficients
_BEHIND_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the next marker that is not part of the compressed data


class Segment(NamedTuple):
    """A marker and the bytes that belong to it: ``start`` is the marker's place."""

    marker: int
    start: int
    end: int


def read_jpeg(image: JpegImageFile, data: bytes, orientation: int) -> NDArray[np.uint8]:
    """The upright pixels [height, width, 3] of a file of which Pillow has read the header.

    Raises:
        ValueError: the file is cut off or damaged.
    """
    if image.mode != "CMYK":
        pixels = _decode(data, "RGB")  # the same pixels as Pillow's, sooner (benchmarks/decoding.py)
        return pixels if orientation == 1 else turned([pixels], image.size, orientation)
    inks = _decode(data, "CMYK")
    page = Image.frombuffer("CMYK", image.size, inks, "raw", "CMYK;I", 0, 1)  # Adobe's way: 255 is no ink
    return turned(as_rgb(page), image.size, orientation)


def check_jpeg(data: bytes, most: int) -> None:
    """Decode a file that lies in another, for the error alone.

    Raises:
        ValueError: it is cut off or damaged, or has more than ``most`` pixels.
    """
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    if height * width > most:
        raise ValueError(f"the file is damaged: a part of {width} x {height} pixels is larger than the image has room")
    _decode(data, "CMYK" if colours in ("CMYK", "YCCK") else "RGB")


def _decode(data: bytes, colours: str) -> NDArray[np.uint8]:
    """What libjpeg makes of a file without a warning, or with one about what is no matter of the pixels."""
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, strict=True)
    except ValueError:
        try:
            pixels = simplejpeg.decode_jpeg(_plain(data), colours, strict=True)
        except ValueError as error:
            if "subsampling" in str(error):
                raise ValueError("its colours are subsampled in a way that is not read; save it again") from error
            raise ValueError(f"the file is truncated or damaged ({str(error).strip()})") from error
    _check_scans(data)
    return pixels


def _check_scans(data: bytes) -> None:
    """Of a picture that was sent in several scans, libjpeg does not miss those that were cut off.

    Raises:
        ValueError: there are coefficients of which no scan sent all bits.
    """
    missing: dict[int, list[int]] = {}
    progressive = False
    for segment in _segments(data):
        if segment.marker in _FRAMES:
            progressive = segment.marker in _PROGRESSIVE
            content = data[segment.start + 10 : segment.end]
            missing = {component: [1] * 64 for component in content[::3]}
        elif segment.marker == _SCAN:
            count, content = data[segment.start + 4], data[segment.start + 5 : segment.end]
            first, last, bits = content[2 * count :] if progressive else (0, 63, 0)
            for component in content[: 2 * count : 2]:
                missing[component][first : last + 1] = [bits & 15] * (last + 1 - first)
            if not progressive and count == len(missing):
                return
    if any(map(any, missing.values())):
        raise ValueError("the file is truncated: its last scans are missing")


def _plain(data: bytes) -> bytes:
    """The file with nothing but its picture: no metadata, and nothing between its parts."""
    parts, frame = [data[:2]], 0
    for segment in _segments(data):
        content = data[segment.start : segment.end]
        if segment.marker in _FRAMES:
            frame = segment.marker
        if content[4:9] == b"JFIF\0":
            parts.append(_JFIF)
        elif segment.marker == _SCAN:
            complete = content if frame in _PROGRESSIVE else content[:-3] + _ALL  # a sequential scan cannot have less
            return b"".join([*parts, complete, data[segment.end :]])
        elif segment.marker not in _METADATA or _ADOBE.match(content):
            parts.append(content)
    return data


def _segments(data: bytes) -> Iterator[Segment]:
    """The segments of a file, up to its end."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xFF or marker in _ALONE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == _END:
            return
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        yield Segment(marker, place, end)
        if marker == _SCAN:
            behind = _BEHIND_SCAN.search(data, end)
            end = behind.start() if behind else len(data)
        place = end
