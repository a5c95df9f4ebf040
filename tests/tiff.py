"""TIFF files of any layout, written by hand for what Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RAW, DEFLATE = 1, 8


def tiff(
    values: NDArray[np.generic],
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    sample_format: int | None = None,
    compression: int = RAW,
    planar: int = 1,
    rows: int | None = None,
    tile: int | None = None,
    tags: dict[int, tuple[str, Sequence[int]]] | None = None,
) -> bytes:
    """A TIFF file of the samples [height, width, channels], ``rows`` of them in each strip, or in square tiles.

    ``tags`` are further ones, or others in place of those: number -> (B, H or I, values).
    """
    height, width, channels = values.shape
    rows = rows or height
    planes = [values] if planar == 1 else [values[..., [channel]] for channel in range(channels)]
    if tile:
        parts = [part for plane in planes for part in _tiles(plane, tile)]
    else:
        parts = [plane[top : top + rows] for plane in planes for top in range(0, height, rows)]
    pack = zlib.compress if compression == DEFLATE else bytes
    strips = [pack(b"".join(packed(row, bits, order) for row in part)) for part in parts]
    entries: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * channels), 259: ("H", [compression]),
        262: ("H", [photometric]), 273: ("I", [0] * len(strips)), 277: ("H", [channels]), 278: ("I", [rows]),
        279: ("I", [len(strip) for strip in strips]), 284: ("H", [planar]),
    }  # fmt: skip
    if sample_format is not None:
        entries[339] = ("H", [sample_format] * channels)
    offsets = 273
    if tile:
        offsets = 324
        entries |= {322: ("H", [tile]), 323: ("H", [tile]), 324: entries.pop(273), 325: entries.pop(279)}
        del entries[278]
    entries |= tags or {}
    size = 8 + 2 + 12 * len(entries) + 4
    places = np.cumsum([size, *map(len, strips)])[:-1].tolist()
    if offsets not in (tags or {}):
        entries[offsets] = ("I", places)
    behind = size + sum(map(len, strips))
    directory, rest = struct.pack(f"{order}H", len(entries)), b""
    for number, (kind, content) in sorted(entries.items()):
        field = struct.pack(f"{order}{len(content)}{kind}", *content)
        if len(field) > 4:
            field, rest = struct.pack(f"{order}I", behind + len(rest)), rest + field + b"\0" * (len(field) % 2)
        code = {"B": 1, "H": 3, "I": 4}[kind]
        directory += struct.pack(f"{order}HHI", number, code, len(content)) + field.ljust(4, b"\0")
    magic = b"II" if order == "<" else b"MM"
    header = magic + struct.pack(f"{order}HI", 42, 8)
    return b"".join([header, directory, bytes(4), *strips, rest])


def _tiles(plane: NDArray[np.generic], side: int) -> list[NDArray[np.generic]]:
    height, width, _ = plane.shape
    whole = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
    return [
        whole[top : top + side, left : left + side] for top in range(0, height, side) for left in range(0, width, side)
    ]


def packed(row: NDArray[np.generic], bits: int, order: str) -> bytes:
    """A row [width, channels] as it lies in the file."""
    if bits % 8 == 0:
        kind = {8: "u1", 16: "u2", 32: "u4", 64: "u8"}[bits]
        unsigned = row.view(kind) if row.dtype.itemsize * 8 == bits else row.astype(kind)
        return unsigned.astype(order + kind).tobytes()
    numbers = row.reshape(-1).astype(np.uint32)
    places = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    return np.packbits((numbers[:, None] >> places) & 1).tobytes()
