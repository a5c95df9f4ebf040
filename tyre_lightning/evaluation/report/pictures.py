"""The galleries' pictures: small JPEGs, as many as a page can carry, and what the model looked at on the worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tyre_lightning.data.decoding import try_decode
from tyre_lightning.data.stream import stream
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.evaluation.gallery import jpeg
from tyre_lightning.evaluation.saliency import explain, is_explainable, overlay
from tyre_lightning.model.inspector import Inspector

PICTURES = 400  # in each gallery
OVERLAYS = 48  # in each gallery
_BYTES = 7_000_000  # of a gallery's base64
_BATCH = 16  # files in memory at one time
_SIDE = 224  # pixels

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
        inspector: explains the first ``OVERLAYS``, if it can.
        keys: of images, those that matter most first.
        read: the files of some keys, in order.
        advance: told how many are done.

    Raises:
        UserError: the store cannot be read.
    """
    found = Gallery()
    explains = inspector if is_explainable(inspector) else None
    for batch, images in stream(read, keys[:PICTURES], try_decode, _BATCH):
        _show(found, images, explains if len(found.pictures) < OVERLAYS else None)
        advance(len(batch))
        if found.size() >= _BYTES:
            break
    advance(min(len(keys), PICTURES) - len(found.pictures))  # those that the page cannot carry
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
        found.pictures.append(_small(F.to_pil_image(image)))
        found.overlays.append(
            "" if inspector is None else _small(overlay(image, next(heats), inspector.preprocessing, _SIDE))
        )
        found.reasons.append("")


def _small(picture: Image.Image) -> str:
    picture.thumbnail((_SIDE, _SIDE))
    return jpeg(picture)
