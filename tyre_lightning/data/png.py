"""PNG files: Pillow checks no checksum of the pixels and misses no end; here both are errors."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from PIL import ImageFile
from PIL.PngImagePlugin import PngImageFile

_BLOCK = 1 << 16  # bytes that are unpacked at a time
_DEPTH = 24  # where a file says how many bits a sample has


def whole_png(data: bytes) -> bytes:
    """A file up to its end, without parts that matter to no pixel and have a wrong checksum.

    Raises:
        ValueError: it is cut off, or what matters is damaged.
    """
    parts: list[bytes | memoryview] = [data[:8]]
    pixels: list[memoryview] = []
    place, name = 8, b""
    while name != b"IEND":
        if place + 12 > len(data):
            raise ValueError("the file is truncated")
        length, name = struct.unpack_from(">I4s", data, place)
        chunk = memoryview(data)[place : place + 12 + length]
        place += len(chunk)
        if zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"):
            parts.append(chunk)
            pixels += [chunk[8:-4]] if name == b"IDAT" else []
        elif len(chunk) < 12 + length:
            raise ValueError("the file is truncated")
        elif name[0] < ord("a") or name == b"tRNS":  # a capital: it matters
            raise ValueError("the file is damaged: a checksum is wrong")
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # set by another library; Pillow then keeps silent about wrong data
        unpack(pixels)
    return data if sum(map(len, parts)) == len(data) else b"".join(parts)


def unpack(parts: Iterable[bytes | memoryview]) -> None:
    """Unpack zlib's data, to see whether it is whole and has its checksum; nothing is kept.

    Raises:
        ValueError: it is not.
    """
    unpacker = zlib.decompressobj()
    try:
        for part in parts:
            rest: bytes | memoryview = part
            while rest and not unpacker.eof:
                unpacker.decompress(rest, _BLOCK)
                rest = unpacker.unconsumed_tail
    except zlib.error as error:
        raise ValueError("the file is damaged: a checksum is wrong") from error
    if not unpacker.eof:
        raise ValueError("the file is truncated")


def scaled_transparency(image: PngImageFile, data: bytes) -> None:
    """Give the colour that is transparent in the units of Pillow's pixels, not of the file's samples.

    Raises:
        ValueError: Pillow's pixels have no such unit.
    """
    depth = data[_DEPTH]
    clear = image.info.get("transparency")
    if isinstance(clear, int) and image.mode in ("1", "L"):
        image.info["transparency"] = clear * 255 // (2**depth - 1)
    if isinstance(clear, tuple) and depth == 16:
        raise ValueError("one of its 16-bit colours is transparent; save it with 8 bits or an alpha channel")
