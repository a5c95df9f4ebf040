"""The galleries' pictures: small JPEGs, as many as a page can carry, and what the model looked at on the worst."""

from __future__ import annotations

import io
import os
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tyre_lightning.data.decoding import decode
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.evaluation.saliency import explain, overlay
from tyre_lightning.model.inspector import Inspector

PICTURES = 400  # in each gallery
OVERLAYS = 48  # in each gallery
_BYTES = 7_000_000  # of a gallery's base64
_BATCH = 16  # files in memory at one time
_SIDE = 224  # pixels
_QUALITY = 75

Read = Callable[[Sequence[str]], Sequence[bytes | UnreadableImage]]


@dataclass
class Gallery:
    """The first pictures of a list of images, as base64 JPEG; empty where there is none, for the reason given."""

    pictures: list[str] = field(default_factory=list)
    overlays: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, list[str]]:
        """Plain values."""
        return {"pictures": self.pictures, "overlays": self.overlays, "reasons": self.reasons}

    def size(self) -> int:
        """Bytes of base64."""
        return sum(map(len, self.pictures)) + sum(map(len, self.overlays))


def gallery(inspector: Inspector, keys: Sequence[str], read: Read, advance: Callable[[int], None]) -> Gallery:
    """Pictures of the first of ``keys``: at most ``PICTURES``, fewer where they would make the page too large.

    Args:
        inspector: explains the first ``OVERLAYS``.
        keys: of images, those that matter most first.
        read: the files of some keys, in order.
        advance: told how many are done.

    Raises:
        UserError: the store cannot be read.
    """
    found = Gallery()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, min(len(keys), PICTURES), _BATCH):
            batch = keys[start : min(start + _BATCH, PICTURES)]
            if found.size() < _BYTES:
                images = list(pool.map(_decoded, read(batch), batch))
                _show(found, images, inspector if start < OVERLAYS else None)
            advance(len(batch))
    return found


def _show(found: Gallery, images: Sequence[Tensor | UnreadableImage], inspector: Inspector | None) -> None:
    readable = [image for image in images if isinstance(image, Tensor)]
    views = [] if inspector is None else [inspector.preprocessing(image) for image in readable]
    heats = iter([] if inspector is None else explain(inspector, views))
    for image in images:
        if isinstance(image, UnreadableImage):
            found.pictures.append("")
            found.overlays.append("")
            found.reasons.append(image.reason)
            continue
        found.pictures.append(_jpeg(F.to_pil_image(image)))
        found.overlays.append(
            "" if inspector is None else _jpeg(overlay(image, next(heats), inspector.preprocessing, _SIDE))
        )
        found.reasons.append("")


def _decoded(data: bytes | UnreadableImage, key: str) -> Tensor | UnreadableImage:
    try:
        return data if isinstance(data, UnreadableImage) else decode(data, key)
    except UnreadableImage as error:
        return error


def _jpeg(picture: Image.Image) -> str:
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return b64encode(buffer.getvalue()).decode()
