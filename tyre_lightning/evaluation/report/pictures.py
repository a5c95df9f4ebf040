"""The galleries' pictures: small JPEGs, as many as a page can carry, and what the model looked at on the worst."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import Any, NamedTuple

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


class Picture(NamedTuple):
    """One of a gallery, as base64 JPEG; ``picture`` is empty where there is none, for the reason given."""

    picture: str
    overlay: str = ""  # what the model looked at, if that was asked for
    reason: str = ""

    def size(self) -> int:
        """Bytes of base64."""
        return len(self.picture) + len(self.overlay)


def gallery(
    inspector: Inspector,
    keys: Sequence[str],
    read: Read,
    advance: Callable[[int], None],
    known: Mapping[str, Picture] = MappingProxyType({}),
) -> list[Picture]:
    """Pictures of the first of ``keys``: at most ``PICTURES``, fewer where they would make the page too large.

    Args:
        inspector: explains the first ``OVERLAYS``, if it can.
        keys: of images, those that matter most first.
        read: the files of some keys, in order.
        advance: told how many are done.
        known: pictures of another gallery, by key, which need not be made again.

    Raises:
        UserError: the store cannot be read.
    """
    found: list[Picture] = []
    wanted, size = keys[:PICTURES], 0
    fresh = _made(inspector, [key for key in wanted if key not in known], read)
    with closing(fresh):
        for key in wanted:
            found.append(known[key] if key in known else next(fresh))
            advance(1)
            if (size := size + found[-1].size()) >= _BYTES:
                break
    advance(len(wanted) - len(found))  # those that the page cannot carry
    return found


def columns(pictures: Sequence[Picture]) -> dict[str, list[str]]:
    """Plain values, as the page takes them."""
    return {f"{name}s": [getattr(picture, name) for picture in pictures] for name in Picture._fields}


def _made(inspector: Inspector, keys: Sequence[str], read: Read) -> Generator[Picture]:
    explains, count = is_explainable(inspector), 0
    for _, images in stream(read, keys, try_decode, _BATCH):
        yield from _shown(images, inspector, explains and count < OVERLAYS)
        count += len(images)


def _shown(images: Sequence[Tensor | UnreadableImage], inspector: Inspector, explained: bool) -> Iterator[Picture]:
    read = inspector.preprocessing
    views = [read(image) for image in images if isinstance(image, Tensor)] if explained else []
    heats: Iterator[Any] = iter(explain(inspector, views) if explained else [])
    for image in images:
        if isinstance(image, UnreadableImage):
            yield Picture("", reason=image.reason)
            continue
        small = _small(F.to_pil_image(image))
        yield Picture(small, _small(overlay(image, next(heats), read, _SIDE)) if explained else "")


def _small(picture: Image.Image) -> str:
    picture.thumbnail((_SIDE, _SIDE))
    return jpeg(picture)
