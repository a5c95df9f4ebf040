"""Files of every kind become correct RGB, or an error that names them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tests.images import encode, picture
from tyre_lightning.data.decoding import decode
from tyre_lightning.errors import UnreadableImage


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
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_decoded_names_its_key(kind: str) -> None:
    with pytest.raises(UnreadableImage, match=r"cannot decode image 'v1/train/a/x\.jpg': \w"):
        decode(BAD[kind], "v1/train/a/x.jpg")
