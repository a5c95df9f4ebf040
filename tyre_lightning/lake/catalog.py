"""Which images there are and what they show: a columnar table of keys and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tyre_lightning.lake.store import Entry


@dataclass(frozen=True)
class Catalog:
    """Labelled images, as columns, so that ten million fit and forked processes share them.

    Args:
        table: columns key (string), label (dictionary of ``classes``), size (int64, bytes) and etag (string).
        classes: all class names, in the order of the model's outputs; a class may have no image.
        ignored: how many stored objects are not images (text, folder markers, hidden files).
    """

    table: pa.Table
    classes: tuple[str, ...]
    ignored: int = 0

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def key(self, index: int) -> str:
        """The key of image ``index``."""
        return str(self.table["key"][index])

    def label(self, index: int) -> str:
        """The class of image ``index``."""
        return str(self.table["label"][index])

    def entry(self, index: int) -> Entry:
        """What was listed of image ``index``."""
        return Entry(self.key(index), self.table["size"][index].as_py(), str(self.table["etag"][index]))

    def entries(self) -> Iterator[Entry]:
        """What was listed, image by image."""
        return map(self.entry, range(len(self)))

    def keys(self) -> list[str]:
        """All keys, as Python strings."""
        return [*self.table["key"].to_pylist()]

    def labels(self) -> list[str]:
        """All labels, as Python strings."""
        return [*self.table["label"].to_pylist()]

    def codes(self, class_to_idx: Mapping[str, int]) -> NDArray[np.int64]:
        """The class index of every image, shape (N,)."""
        lookup = np.array([class_to_idx[name] for name in self.classes], dtype=np.int64)
        return np.asarray(lookup[self._positions()])

    def counts(self) -> dict[str, int]:
        """Images per class, in class order; classes without images count 0."""
        numbers = np.bincount(self._positions(), minlength=len(self.classes))
        return {name: int(number) for name, number in zip(self.classes, numbers, strict=True)}

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Catalog:
        """The images at ``indices``, in that order; what the listing ignored stays with the whole catalog."""
        return Catalog(self.table.take(pa.array(indices, pa.int64())), self.classes)

    def _positions(self) -> NDArray[np.int64]:
        """The position in ``classes`` of every image, shape (N,)."""
        chunks = [chunk.indices.to_numpy() for chunk in self.table["label"].chunks]
        return np.concatenate([np.empty(0, np.int64), *chunks]).astype(np.int64)


@dataclass(frozen=True)
class Lake:
    """The catalogs of the three usages, all with the classes of the training split."""

    classes: tuple[str, ...]
    train: Catalog
    val: Catalog | None
    test: Catalog | None
