"""What notebooks and pages show of images: thumbnails and contact sheets, streamed from a store."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw
from torchvision.transforms.v2 import functional as F

from tyre_lightning.data.decoding import decode
from tyre_lightning.data.stream import stream
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.lake.store import Store
from tyre_lightning.names import figure_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH = 64  # files in memory at one time
_TILE = 200  # pixels
_QUALITY = 75
_DPI = 80
_TITLE = 28  # characters of a line above a tile


def thumbnails(store: Store, keys: Iterable[str]) -> Iterator[Image.Image]:
    """Small copies of some images, in order.

    Raises:
        UserError: an object is missing or cannot be read.
    """

    def read(batch: list[str]) -> list[bytes]:
        return [content.data for content in store.get_many(batch)]

    for _, tiles in stream(read, keys, _thumbnail, _BATCH):
        yield from tiles


def _thumbnail(data: bytes, key: str) -> Image.Image:
    """A small copy of an image; a grey tile where it is unreadable."""
    try:
        tile: Image.Image = F.to_pil_image(decode(data, key))
    except UnreadableImage:
        tile = Image.new("RGB", (_TILE, _TILE), "lightgrey")
        ImageDraw.Draw(tile).text((_TILE / 2, _TILE / 2), "unreadable", fill="black", anchor="mm")
        return tile
    tile.thumbnail((_TILE, _TILE))
    return tile


def jpeg(picture: Image.Image) -> str:
    """A picture as base64 JPEG, for a page."""
    return b64encode(jpeg_bytes(picture)).decode()


def jpeg_bytes(picture: Image.Image) -> bytes:
    """A picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def contact_sheet(tiles: Sequence[Image.Image], titles: Sequence[str], heading: str, columns: int = 6) -> Image.Image:
    """Thumbnails in rows, each with a title, all under a heading; long lines of titles lose their beginning."""
    from matplotlib.figure import Figure

    rows = max(1, -(-len(tiles) // columns))
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    figure = Figure(figsize=(1.9 * columns, (1.75 + 0.16 * lines) * rows + 0.4))
    figure.suptitle(heading.replace("$", r"\$"))
    figure.set_layout_engine("constrained", h_pad=0.08)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, tile, title in zip(grid, tiles, titles, strict=False):
        axes.imshow(tile)
        axes.set_title("\n".join(figure_text(_short(line)) for line in title.splitlines()), fontsize=8)
    return as_picture(figure)


def as_picture(figure: Figure) -> Image.Image:
    """A figure as a picture: a notebook shows that by itself, and a figure only where pyplot is loaded."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return Image.open(buffer)


def _short(line: str) -> str:
    return line if len(line) <= _TITLE else "…" + line[1 - _TITLE :]
