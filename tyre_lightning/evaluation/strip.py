"""A strip below a picture: the training pictures that look most alike to the model."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as F

from tyre_lightning.data.decoding import decode
from tyre_lightning.model.examples import SIDE, Example

_CAPTION = "Most alike in training"
_GAP = 8  # pixels
_LINE = 15
_FONT = 11
_LONGEST = 100  # characters of a text, before it is measured


def with_strip(picture: Image.Image, nearest: Sequence[Example]) -> Image.Image:
    """A picture with some examples below it, each with its class and its file's name; itself where there are none.

    It is made wider where they need that.

    Raises:
        UnreadableImage: an example's bytes are damaged.
    """
    if not nearest:
        return picture
    width = max(picture.width, len(nearest) * (SIDE + _GAP) + _GAP)
    top = picture.height + _GAP
    sheet = Image.new("RGB", (width, top + 3 * _LINE + SIDE + _GAP), "white")
    sheet.paste(picture)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    pen.text((_GAP, top), _fit(_CAPTION, font, width - 2 * _GAP), "black", font)
    cell = (width - _GAP) // len(nearest)
    for number, example in enumerate(nearest):
        left, upper = _GAP + number * cell, top + _LINE
        small = F.to_pil_image(decode(example.thumbnail, example.key)).resize((SIDE, SIDE))
        sheet.paste(small, (left, upper))
        below = upper + SIDE + 2
        pen.text((left, below), _fit(example.class_name, font, cell - _GAP), "black", font)
        name = example.key.rpartition("/")[2]
        pen.text((left, below + _LINE), _fit(name, font, cell - _GAP, end=True), "dimgrey", font)
    return sheet


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, *, end: bool = False) -> str:
    """A text on one line that is no wider; what is cut off is its end, or its beginning where the end tells more."""
    plain = "".join(one if one.isprintable() else "_" for one in text)
    for length in range(min(len(plain), _LONGEST), 0, -1):
        cut = plain if length == len(plain) else f"…{plain[-length:]}" if end else f"{plain[:length]}…"
        if font.getlength(cut) <= width:
            return cut
    return ""
