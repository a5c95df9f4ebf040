"""From entries of a catalog to pixels: fetch, decode, make small; the result may be kept on the local disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tyre_lightning.data.decoding import try_decode
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.lake.cache import DiskCache
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry

# Of a kept image: 0 or 1, its height and width, then its pixels as they lay in memory. 1 kept damaged images too.
_FORMAT = "pixels 2"
_HEADER = np.dtype("<u4")


def unchanged(image: Tensor) -> Tensor:
    """An image as it is."""
    return image


class Images:
    """Reads images.

    Args:
        reader: reads their files.
        prepare: a deterministic change of uint8 [3, H, W]; its ``repr`` tells it from others.
        kept: keeps what ``prepare`` gave; None: nothing is kept.
    """

    def __init__(self, reader: Reader, prepare: Callable[[Tensor], Tensor], kept: DiskCache | None) -> None:
        self._reader = reader
        self._prepare = prepare
        self._kept = kept
        self._form = f"{_FORMAT} {prepare!r}"

    def read(self, entries: Sequence[Entry]) -> list[Tensor | UnreadableImage]:
        """The prepared image of every entry, in order; or why it cannot be decoded.

        Raises:
            UserError: an object cannot be read.
        """
        found: dict[Entry, Tensor | UnreadableImage] = {
            entry: image for entry in entries if (image := self._load(entry)) is not None
        }
        self._reader.forget([*found])
        missing = [entry for entry in entries if entry not in found]
        for entry, data in zip(missing, self._reader.read(missing), strict=True):
            pixels = try_decode(data, entry.key)
            found[entry] = self._prepare(pixels) if isinstance(pixels, Tensor) else pixels
        self._keep({entry: found[entry] for entry in missing})
        return [found[entry] for entry in entries]

    def prefetch(self, entries: Sequence[Entry], *, fresh: bool = False) -> None:
        """Say which entries later calls of :meth:`read` will want; ``fresh``: and none that was named before."""
        if self._kept is not None:
            entries = [entry for entry in entries if self._reader.name(entry, self._form) not in self._kept]
        self._reader.prefetch(entries, fresh=fresh)

    def problems(self) -> list[str]:
        """What the user should hear of since the last call."""
        found: list[str] = []
        for source in (self._reader, self._kept):
            if source is not None:
                found += source.problems
                source.problems.clear()
        return found

    def _load(self, entry: Entry) -> Tensor | None:
        if self._kept is None or not entry.etag:
            return None
        value = self._kept.get(self._reader.name(entry, self._form))
        if value is None:
            return None
        planar, height, width = np.frombuffer(value, _HEADER, 3)
        pixels = torch.from_numpy(np.frombuffer(value, np.uint8, offset=3 * _HEADER.itemsize))
        return pixels.view(3, height, width) if planar else pixels.view(height, width, 3).permute(2, 0, 1)

    def _keep(self, images: dict[Entry, Tensor | UnreadableImage]) -> None:
        if self._kept is not None:
            values = {
                self._reader.name(entry, self._form): _packed(image)
                for entry, image in images.items()
                if isinstance(image, Tensor) and entry.etag
            }
            self._kept.put(values)


def _packed(image: Tensor) -> bytes:
    planar = image.is_contiguous()
    header = np.array([planar, *image.shape[1:]], _HEADER)
    return header.tobytes() + (image if planar else image.permute(1, 2, 0)).contiguous().numpy().tobytes()
