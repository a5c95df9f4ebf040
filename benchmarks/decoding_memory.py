"""How much memory the decoding of one image takes at its peak, in bytes a pixel, for each kind of file.

``python benchmarks/decoding_memory.py``: images of 4000 x 4000 pixels; Linux only.
"""

from __future__ import annotations

import ctypes
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tyre_lightning.data.decoding import decode

SIDE = 4000


def peak(data: bytes) -> float:
    """Bytes a pixel that decoding a file takes, beside the file, with what it gives."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = status("VmRSS")
    height, width = decode(data, "image").shape[1:]
    return (status("VmHWM") - before) / (height * width)


def status(name: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def files(side: int) -> dict[str, bytes]:
    """An image file of every kind that is decoded in a way of its own."""
    ramp = np.add.outer(np.arange(side), np.arange(side))
    grey = Image.fromarray((ramp >> 4).astype(np.uint8))
    colours = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    clear = Image.merge("RGBA", (*colours.split(), grey))
    sixteen = Image.fromarray((ramp * 8).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "JPEG": _file(colours, "JPEG"),
        "JPEG, progressive": _file(colours, "JPEG", progressive=True, subsampling=0),
        "JPEG, turned": _file(colours, "JPEG", exif=turned),
        "JPEG, CMYK": _file(colours.convert("CMYK"), "JPEG"),
        "PNG": _file(colours, "PNG", compress_level=1),
        "PNG, transparent": _file(clear, "PNG", compress_level=1),
        "PNG, palette": _file(grey.convert("P"), "PNG", compress_level=1),
        "PNG, 16 bits": _file(sixteen, "PNG", compress_level=1),
        "WebP": _file(colours, "WEBP", method=0),
        "BMP": _file(colours, "BMP"),
        "TIFF": _file(colours, "TIFF"),
        "TIFF, deflate, turned": _file(colours, "TIFF", compression="tiff_adobe_deflate", tiffinfo={274: 6}),
        "TIFF, one strip, 16 bits": _file(sixteen, "TIFF", compression="tiff_lzw", strip_size=1 << 30),
        "TIFF, JPEG": _file(colours, "TIFF", compression="jpeg", strip_size=1 << 30),
    }


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def main() -> None:
    """Print a line for each kind."""
    decode(_file(Image.new("RGB", (64, 64)), "JPEG"), "first")
    for name, data in files(SIDE).items():
        print(f"{name}: {peak(data):.1f} bytes a pixel, file {len(data) / SIDE**2:.2f}")


if __name__ == "__main__":
    main()
