"""Files of every kind become correct RGB, or an error that names them."""

import gc
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from typing import Any

import decoding_memory
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from tests.cases import first_of
from tests.conftest import PROJECT
from tests.images import encode, picture, png_chunk
from tests.tiff import DEFLATE, RAW, packed, tiff
from tyre_lightning.data import decoding
from tyre_lightning.data.colours import to_rgb
from tyre_lightning.data.decoding import decode
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.lake.formats import IMAGE_FORMATS


def pixels(image: Image.Image | Tensor) -> np.ndarray:
    """Pixels [height, width, 3]."""
    if isinstance(image, Tensor):
        assert image.dtype == torch.uint8
        return image.permute(1, 2, 0).numpy().astype(int)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG"])
def test_formats_keep_their_pixels(kind: str) -> None:
    original = picture()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}
    decoded = pixels(decode(encode(original, kind, **options), "k"))
    assert np.abs(decoded - pixels(original)).max() <= (40 if kind == "JPEG" else 0)
    assert np.abs(decoded - pixels(original)).mean() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """A camera held in any of eight ways gives the upright picture, as the EXIF standard's table says."""
    upright = picture(1)
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(decode(encode(stored, "PNG", exif=exif), "k")), pixels(upright))


def test_grey_becomes_equal_channels() -> None:
    grey = picture().convert("L")
    decoded = pixels(decode(encode(grey), "k"))
    assert np.array_equal(decoded, np.repeat(np.asarray(grey).astype(int)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = pixels(decode(encode(Image.fromarray(values), kind), "k"))
    assert np.array_equal(decoded[..., 0], np.round(values / 257).astype(int))


def test_palette_and_its_transparency() -> None:
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    expected = pixels(palette.convert("RGB"))
    assert np.array_equal(pixels(decode(encode(palette), "k")), expected)
    clear = palette.getpixel((0, 0))
    decoded = pixels(decode(encode(palette, transparency=clear), "k"))
    assert tuple(decoded[0, 0]) == (255, 255, 255)


def test_what_is_transparent_shows_white() -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    decoded = pixels(decode(encode(image), "k"))
    assert decoded[0].tolist() == [[200, 0, 0], [255, 255, 255]]


def test_cmyk_jpeg() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red ink
    red, green, blue = pixels(decode(encode(cmyk, "JPEG"), "k"))[4, 4]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("orientation", [1, 6])
def test_jpegs_have_pillow_s_pixels(mode: str, subsampling: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(2, (71, 53)).convert(mode), "JPEG", subsampling=subsampling, exif=exif, progressive=True)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(pixels(decode(data, "k")), pixels(expected))


def test_a_jpeg_with_rubbish_behind_it_is_read() -> None:
    data = encode(picture(), "JPEG")
    assert torch.equal(decode(data + b"rubbish", "k"), decode(data, "k"))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert pixels(decode(data, "k"))[0, 0].tolist() == [255, 0, 0]


BAD = {
    "empty": b"",
    "html": b"<html><body>404</body></html>",
    "cut off": encode(picture(size=(200, 200)), "JPEG")[:2000],
    "float": encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
    "integers": encode(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"),
    "12-bit JPEG": encode(picture(), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_decoded_names_its_key(kind: str) -> None:
    with pytest.raises(UnreadableImage, match=r"cannot decode image 'v1/train/a/x\.jpg': \w"):
        decode(BAD[kind], "v1/train/a/x.jpg")


# Which formats are opened.


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_listed_format_is_read(kind: str) -> None:
    assert decode(encode(picture(), kind), "k").shape == (3, 32, 48)


@pytest.mark.parametrize("kind", ["GIF", "EPS", "PPM", "ICO", "TGA", "SGI", "PCX", "JPEG2000", "DIB", "PDF"])
def test_no_other_format_is_opened(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called; EPS would be run by Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", None)
    with pytest.raises(UnreadableImage, match=r"it is (not an image file|of another format than JPEG, PNG, WebP, )"):
        decode(encode(picture().convert("RGB"), kind), "v1/train/a/x.jpg")


# Values of any range: right, or an error; never dark in silence.

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, INKS, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, INKS: 4, YCBCR: 3}


def shown(values: NDArray[np.float64], photometric: int) -> NDArray[np.float64]:
    """The RGB of 0 to 255 that samples of 0 to 1 mean."""
    if photometric == INKS:
        return 255 * (1 - values[..., :3]) * (1 - values[..., 3:])
    if photometric == YCBCR:
        y, blue, red = np.moveaxis(values * 255, 2, 0) - np.array([0, 128, 128])[:, None, None]
        return np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], 2).clip(0, 255)
    return 255 * np.broadcast_to(1 - values if photometric == WHITE_IS_ZERO else values, (*values.shape[:2], 3))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16, 32, 64])
@pytest.mark.parametrize("photometric", CHANNELS)
def test_a_tiff_is_right_or_an_error(bits: int, photometric: int) -> None:
    """In both orders of bytes, raw or compressed, in strips or tiles, with the channels together or apart."""
    shape = (21, 18, CHANNELS[photometric])
    values = np.random.default_rng(bits).integers(0, 2**bits - 1, shape, dtype=np.uint64, endpoint=True)
    expected = shown(values / (2**bits - 1), photometric)
    read = 0
    for order, compression, planes, tile in itertools.product("<>", (RAW, DEFLATE), (1, 2), (None, 16)):
        data = tiff(
            values, bits, photometric, order=order, compression=compression, planar=planes, rows=5, tile=tile,
            tags={530: ("H", [1, 1])},
        )  # fmt: skip
        with suppress(UnreadableImage):
            assert np.abs(pixels(decode(data, "k")) - expected).max() <= 2.5
            read += 1
    usual = bits == 8 or (bits < 8 and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO))
    assert read >= (8 if usual or (bits == 16 and photometric in (BLACK_IS_ZERO, RGB)) else 0)


def test_twelve_bits_are_scaled() -> None:
    values = np.array([[[0], [2048], [4095]]])
    assert pixels(decode(tiff(values, 12, BLACK_IS_ZERO), "k"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("sample_format", [SIGNED, FLOAT, 5])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB])
def test_values_without_a_range_are_an_error(sample_format: int, bits: int, photometric: int) -> None:
    values = np.ones((4, 4, CHANNELS[photometric]), np.uint64)
    with pytest.raises(UnreadableImage):
        decode(tiff(values, bits, photometric, sample_format=sample_format), "k")


def test_subsampled_colours_without_jpeg_are_an_error() -> None:
    with pytest.raises(UnreadableImage, match="subsampled"):
        decode(tiff(np.zeros((4, 4, 3), np.uint8), 8, YCBCR), "k")  # the default is 2 x 2


@pytest.mark.parametrize("top", [255, 65535])
def test_a_palette_of_eight_or_sixteen_bits(top: int) -> None:
    colours = [*range(0, top + 1, top // 3)] * 3
    values = np.arange(4).reshape(1, 4, 1)
    decoded = pixels(decode(tiff(values, 2, PALETTE, tags={320: ("H", colours)}), "k"))
    assert decoded[0, :, 0].tolist() == [0, 85, 170, 255]


def test_lab() -> None:
    values = np.array([[[255, 0, 0], [128, 0, 0], [0, 0, 0], [136, 80, 67]]])
    decoded = pixels(decode(tiff(values, 8, LAB), "k"))[0]
    assert np.abs(decoded - [[255] * 3, [119] * 3, [0] * 3, [255, 0, 0]]).max() <= 12


GREYS = {"black and white": [0, 255], "white and black": [255, 0], "dark": [*range(16)], "few": [*range(0, 256, 17)]}


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("greys", GREYS)
def test_a_bmp_of_greys_is_right_or_an_error(bits: int, greys: str) -> None:
    palette = GREYS[greys][: 2**bits]
    values = np.arange(64).reshape(4, 16, 1) % len(palette)
    rows = b"".join(packed(row, bits, "<").ljust(4, b"\0") for row in values[::-1])
    colours = b"".join(bytes([grey] * 3 + [0]) for grey in palette)
    start = 54 + len(colours)
    header = struct.pack("<IHHI", start + len(rows), 0, 0, start)
    about = struct.pack("<IiiHHIIiiII", 40, 16, 4, 1, bits, 0, len(rows), 0, 0, len(palette), 0)
    with suppress(UnreadableImage):
        decoded = pixels(decode(b"BM" + header + about + colours + rows, "k"))
        assert decoded[..., 0].tolist() == np.array(palette)[values[..., 0]].tolist()


PNG_DEPTHS = [*((0, bits) for bits in (1, 2, 4, 8, 16)), *((kind, bits) for kind in (2, 4, 6) for bits in (8, 16))]


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize(("kind", "bits"), PNG_DEPTHS)
def test_a_png_is_right_or_an_error(kind: int, bits: int, clear: bool) -> None:
    """Grey, RGB, grey with alpha and RGB with alpha; ``clear``: one value is transparent."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 16, channels))
    share = values / (2**bits - 1)
    alpha = share[..., -1:] if kind in (4, 6) else np.ones((5, 16, 1))
    extra = b""
    if clear and kind in (0, 2):
        alpha = (values != values[2, 3]).any(2, keepdims=True)
        extra = png_chunk(b"tRNS", values[2, 3].astype(">u2").tobytes())
    expected = 255 * (share[..., : 3 if channels > 2 else 1] * alpha + 1 - alpha)
    rows = b"".join(b"\0" + packed(row, bits, ">") for row in values)
    header = struct.pack(">IIBBBBB", 16, 5, bits, kind, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    if extra and (kind, bits) == (2, 16):
        with pytest.raises(UnreadableImage, match="16-bit colours"):
            decode(data, "k")
    else:
        assert np.abs(pixels(decode(data, "k")) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA",
                                  "RGBa", "La", "I;16", "I;16L", "I;16B", "I;16N"])  # fmt: skip
def test_white_is_white_in_every_mode(mode: str) -> None:
    whites: dict[str, Any] = {
        "1": 1, "RGBA": (255,) * 4, "RGBX": (255,) * 4, "CMYK": (0,) * 4, "YCbCr": (255, 128, 128),
        "LAB": (255, 128, 128), "HSV": (0, 0, 255), "LA": (255, 255), "RGB": (255,) * 3,
    }  # fmt: skip
    if mode in ("La", "RGBa"):
        image = Image.new(mode.upper(), (3, 2), whites[mode.upper()]).convert(mode)
    elif mode in ("P", "PA"):
        image = Image.new("RGB", (3, 2), "white").convert("P").convert(mode)
    elif mode.startswith("I;16"):
        image = Image.frombytes(mode, (3, 2), b"\xff" * 12)
    else:
        image = Image.new(mode, (3, 2), whites.get(mode, 255))
    assert np.asarray(to_rgb(image)).min() >= 253


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_an_error(mode: str) -> None:
    with pytest.raises(ValueError, match="no fixed range"):
        to_rgb(Image.new(mode, (3, 2)))


# Memory and warnings.


PEAKS = """
import json, sys, decoding_memory as memory
found = {}
for name, data in memory.files(int(sys.argv[1])).items():
    found[name] = min(memory.peak(data) for _ in range(3))
print(json.dumps(found))
"""


@pytest.mark.parametrize(("side", "most"), first_of([(1500, 24), (3000, 20)]))
def test_the_memory_of_a_decode_is_bounded(side: int, most: int) -> None:
    """As the docstring of MOST_PIXELS says; each file would take 3 bytes a pixel at least.

    Less where an image is so large that malloc asks the system for each copy, instead of cutting it out of what it has.
    In a process of its own: what a longer one has left free, in pieces, is not there for a copy. What a decode needs it
    needs each time.
    """
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'benchmarks'}"}
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(side)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 14
    for name, peak in found.items():
        assert peak < most, name


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_no_image_stays_in_memory(kind: str) -> None:
    """Nor waits for the garbage collector, which in a worker that makes few objects comes late."""
    data = encode(picture(size=(1200, 1200)), kind)
    decode(data, "k")
    gc.disable()
    try:
        before = decoding_memory.status("VmRSS")
        for _ in range(6):
            decode(data, "k")
        assert decoding_memory.status("VmRSS") - before < 20 << 20
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_too_many_pixels_are_not_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as another library may have set it
    monkeypatch.setattr(decoding, "MOST_PIXELS", 48 * 32)
    assert decode(encode(picture(), kind), "k").shape == (3, 32, 48)
    with pytest.raises(UnreadableImage, match=r"an image of 48 x 33 pixels exceeds limit of 1,536"):
        decode(encode(picture(size=(48, 33)), kind), "k")


ODD_METADATA = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
THREADS = f"""
import threading, warnings
from tests.images import encode, picture
from tyre_lightning.data.decoding import decode
data = encode(picture(), "JPEG", exif={ODD_METADATA!r})
threads = [threading.Thread(target=lambda: [decode(data, "k") for _ in range(100)]) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
warnings.warn("from another library")
"""


def test_warnings_of_others_survive_decoding_in_threads() -> None:
    """And Pillow's notes on odd metadata are not shown."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert "from another library" in done.stderr
    assert "EXIF" not in done.stderr
