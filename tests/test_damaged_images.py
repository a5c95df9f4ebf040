"""A damaged image file gives the right pixels or an error: cut at any place, closed again, or with wrong bits."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch import Tensor

from tests.images import encode, picture, png_chunk
from tests.tiff import DEFLATE, tiff
from tyre_lightning.data.decoding import decode
from tyre_lightning.errors import UnreadableImage


def photo() -> Image.Image:
    """A picture with noise, so that its file is not all header."""
    noise = np.random.default_rng(0).integers(-12, 12, (90, 120, 3))
    return Image.fromarray((np.asarray(picture(3, (120, 90))).astype(int) + noise).clip(0, 255).astype(np.uint8))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PHOTO = photo()
GREY = PHOTO.convert("L")
JPEGS = {
    "baseline": encode(PHOTO, "JPEG"),
    "best codes": encode(PHOTO, "JPEG", optimize=True),
    "restarts": encode(PHOTO, "JPEG", restart_marker_rows=1),
    "progressive": encode(PHOTO, "JPEG", progressive=True),
    "inks": encode(PHOTO.convert("CMYK"), "JPEG"),
    "inks, progressive": encode(PHOTO.convert("CMYK"), "JPEG", progressive=True),
    "grey": encode(GREY, "JPEG"),
    "turned": encode(PHOTO, "JPEG", exif=turned()),
}
WITH_CHECKSUM = {
    "PNG": encode(PHOTO),
    "PNG, palette": encode(PHOTO.convert("P")),
    "PNG, 16 bits": encode(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)),
    "TIFF, deflate": encode(PHOTO, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, deflate in strips": tiff(np.asarray(PHOTO), 8, 2, compression=DEFLATE, rows=20),
}
WITHOUT = {
    "WebP": encode(PHOTO, "WEBP"),
    "WebP, lossless": encode(PHOTO, "WEBP", lossless=True),
    "TIFF": encode(PHOTO, "TIFF"),
    "TIFF, strips": tiff(np.asarray(PHOTO), 8, 2, rows=7),
    "TIFF, LZW": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "TIFF, JPEG": encode(PHOTO, "TIFF", compression="jpeg"),
    "TIFF, PackBits": encode(PHOTO, "TIFF", compression="packbits"),
    "BMP": encode(PHOTO, "BMP"),
}
FILES = {**{f"JPEG, {name}": data for name, data in JPEGS.items()}, **WITH_CHECKSUM, **WITHOUT}


def read(data: bytes) -> Tensor | str:
    try:
        return decode(data, "k")
    except UnreadableImage as error:
        return error.reason


def closed(data: bytes, name: str) -> bytes:
    """What was cut, as if it were whole: with its format's end, and its size where it says that."""
    if name.startswith("JPEG"):
        return data + b"\xff\xd9"
    if name.startswith("PNG"):
        return data + png_chunk(b"IEND", b"")
    if name.startswith("WebP"):
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    return data[:2] + struct.pack("<I", len(data)) + data[6:] if name == "BMP" else data


@pytest.mark.parametrize("lenient", [False, True], ids=["", "Pillow was told to be lenient"])
@pytest.mark.parametrize("name", FILES)
def test_what_was_cut_is_not_read(name: str, lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # as other libraries do, for the whole process
    data = FILES[name]
    assert isinstance(read(data), Tensor)
    for part in range(1, 20):
        cut = data[: len(data) * part // 20]
        for damaged in (cut, closed(cut, name)):
            reason = read(damaged)
            assert isinstance(reason, str) and reason, (name, part)


@pytest.mark.parametrize("lenient", [False, True], ids=["", "Pillow was told to be lenient"])
def test_png_pixels_that_were_cut_and_closed(lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program that wrote right checksums."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = WITH_CHECKSUM["PNG"]
    start = data.index(b"IDAT") + 4
    pixels = data[start : start + int.from_bytes(data[start - 8 : start - 4], "big")]
    for damaged in (pixels[: len(pixels) // 2], pixels[:5000] + bytes(500) + pixels[5500:]):
        assert isinstance(read(data[: start - 8] + png_chunk(b"IDAT", damaged) + png_chunk(b"IEND", b"")), str)


def flipped(data: bytes, count: int = 100) -> Iterator[bytes]:
    """Copies with one wrong bit each, in the latter half, where there are only pixels."""
    draw = random.Random(1)
    for _ in range(count):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data) // 2, len(data) - 2)] ^= 1 << draw.randrange(8)
        yield bytes(damaged)


@pytest.mark.parametrize("name", WITH_CHECKSUM)
def test_a_wrong_bit_is_seen_where_there_is_a_checksum(name: str) -> None:
    whole = read(WITH_CHECKSUM[name])
    assert isinstance(whole, Tensor)
    for damaged in flipped(WITH_CHECKSUM[name]):
        found = read(damaged)
        assert isinstance(found, str) or torch.equal(found, whole)


@pytest.mark.parametrize("name", JPEGS)
def test_what_libjpeg_warns_of_is_an_error(name: str) -> None:
    """Most wrong bits in a JPEG make other valid codes, which nobody can tell; the others are errors."""
    assert sum(isinstance(read(damaged), str) for damaged in flipped(JPEGS[name], 200)) >= 5


def scans(data: bytes) -> list[int]:
    """Where the scans of a JPEG begin."""
    return [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]


@pytest.mark.parametrize("name", ["progressive", "inks, progressive"])
def test_missing_scans_are_missed(name: str) -> None:
    """Each scan is whole, and the file has its end: libjpeg is content."""
    data = JPEGS[name]
    for place in scans(data)[1:]:
        assert read(data[:place] + b"\xff\xd9") == "the file is truncated: its last scans are missing"


def in_three_scans() -> bytes:
    """A baseline JPEG that has its channels one after the other."""
    files = [encode(channel, "JPEG", quality=90) for channel in PHOTO.convert("YCbCr").split()]
    frame, scan = files[0].index(b"\xff\xc0"), files[0].index(b"\xff\xda")
    size = files[0][frame + 5 : frame + 9]
    head = b"\xff\xc0\0\x11\x08" + size + b"\x03" + b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    parts = [
        b"\xff\xda\0\x08\x01" + bytes([number, 0, 0, 63, 0]) + file[scan + 10 : -2]
        for number, file in zip((1, 2, 3), files, strict=True)
    ]
    return files[0][:frame] + head + files[0][frame + 13 : scan] + b"".join(parts) + b"\xff\xd9"


def test_missing_channels_are_missed() -> None:
    data = in_three_scans()
    whole = read(data)
    assert isinstance(whole, Tensor)
    assert (whole.permute(1, 2, 0).numpy().astype(int) - np.asarray(PHOTO)).std() < 10
    for place in scans(data)[1:]:
        assert isinstance(read(data[:place] + b"\xff\xd9"), str)


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


BASE, SCAN = JPEGS["baseline"], JPEGS["baseline"].index(b"\xff\xda")
HARMLESS = {
    "bytes behind the end": BASE + b"rubbish" * 100,
    "another picture behind the end": BASE + JPEGS["grey"],
    "fill bytes before the end": BASE[:-2] + b"\xff" * 9 + BASE[-2:],
    "unknown version of JFIF": BASE.replace(b"JFIF\0\x01", b"JFIF\0\x09"),
    "bytes between the parts": BASE[:20] + b"junk" + BASE[20:],
    "a sequential scan that tells of coefficients": BASE[: SCAN + 11] + b"\0\0\0" + BASE[SCAN + 14 :],
    "unknown transform of Adobe's": with_segment(BASE, 0xEE, b"Adobe\0\x64\0\0\0\0\x07"),
    "damaged EXIF": with_segment(BASE, 0xE1, b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"),
    "no EXIF in EXIF": with_segment(BASE, 0xE1, b"Exif\0\0nonsense"),
    "damaged colour profile": with_segment(BASE, 0xE2, b"ICC_PROFILE\0\x05\x01nonsense"),
    "damaged list of pictures": with_segment(BASE, 0xE2, b"MPF\0nonsense"),
    "a comment": with_segment(BASE, 0xFE, b"\xff\xda\xff\xd9"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_and_not_of_the_pixels_is_no_damage(name: str) -> None:
    found, whole = read(HARMLESS[name]), read(BASE)
    assert isinstance(found, Tensor) and isinstance(whole, Tensor)
    assert torch.equal(found, whole)


@pytest.mark.parametrize("name", ["PNG", "PNG, palette"])
def test_odd_parts_of_a_png_are_no_damage(name: str) -> None:
    data = WITH_CHECKSUM[name]
    whole = read(data)
    note = png_chunk(b"tEXt", b"Comment\0none")
    for odd in (data[:33] + note[:-1] + b"?" + data[33:], data + b"rubbish", data[:33] + note + data[33:]):
        found = read(odd)
        assert isinstance(found, Tensor) and isinstance(whole, Tensor) and torch.equal(found, whole)


def test_a_jpeg_of_rare_subsampling_is_refused() -> None:
    """Its damage could not be told."""
    data = BASE.replace(b"\x01\x22\0\x02\x11\x01", b"\x01\x42\0\x02\x11\x01")
    assert read(data) == "its colours are subsampled in a way that is not read; save it again"


@pytest.mark.parametrize("number", [273, 279])
def test_a_tiff_whose_strips_are_elsewhere_or_short(number: int) -> None:
    values = np.asarray(PHOTO)
    for content in ([0] * 13, [1] * 13, [1 << 30] * 13, [500]):
        assert isinstance(read(tiff(values, 8, 2, rows=7, tags={number: ("I", content)})), str)


def test_a_tiff_whose_jpeg_is_larger_than_itself() -> None:
    """It would be unpacked before anybody sees that it does not fit."""
    data = WITHOUT["TIFF, JPEG"]
    size = data.index(b"\xff\xc0") + 5
    assert "is larger than the image has room" in str(read(data[:size] + b"\xff\0\xff\0" + data[size + 4 :]))


def test_a_tiff_of_another_compression_is_refused() -> None:
    """Of fax and LZMA, Pillow does not hear what is damaged."""
    for compression in ("group3", "group4", "lzma"):
        assert "compression" in str(read(encode(GREY.convert("1"), "TIFF", compression=compression)))


@pytest.mark.parametrize("pixels", [b"", b"nonsense", zlib.compress(b"")])
def test_a_png_without_pixels(pixels: bytes) -> None:
    header = WITH_CHECKSUM["PNG"][:33]
    assert isinstance(read(header + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")), str)
    assert isinstance(read(header + png_chunk(b"IEND", b"")), str)
