"""What a model says of every validation and test image: asked of the inspector, as predict.py asks it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tyre_lightning.errors import UnreadableImage
from tyre_lightning.evaluation.scoring import look_at
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.model.inspector import Inspector

_BATCH = 32  # images in memory at one time; as many again are being fetched


@dataclass(frozen=True)
class Scores:
    """Images in the order of their keys."""

    keys: list[str]
    labels: NDArray[np.int64]  # class indices, shape (N,)
    logits: NDArray[np.float64]  # [N, classes]
    tyres: NDArray[np.int64]  # a number for the tyre that an image shows, shape (N,)
    unreadable: int = 0  # images that are not among them

    @classmethod
    def of(
        cls,
        inspector: Inspector,
        reader: Reader,
        catalog: Catalog,
        tyres: Mapping[str, str],
        fail: Callable[[UnreadableImage], None],
        advance: Callable[[int], None] = lambda images: None,
    ) -> Scores:
        """Let an inspector look at every image of a catalog.

        Args:
            inspector: the model.
            reader: fetches.
            catalog: which images.
            tyres: the name of the tyre that an image shows, by key; those that are missing show one of their own.
            fail: told of each image that cannot be decoded; may raise.
            advance: told how many more are done.

        Raises:
            UserError: an object cannot be fetched.
        """
        codes = catalog.codes({name: index for index, name in enumerate(inspector.classes)})
        label = dict(zip(catalog.keys(), codes.tolist(), strict=True))
        keys: list[str] = []
        logits = [np.empty((0, len(inspector.classes)))]
        for seen in look_at(inspector, reader, catalog.entries(), _BATCH):
            for entry, image in zip(seen.entries, seen.images, strict=True):
                if isinstance(image, UnreadableImage):
                    fail(image)
                else:
                    keys.append(entry.key)
            logits.append(seen.logits)
            advance(len(seen.entries))
        order = sorted(range(len(keys)), key=keys.__getitem__)
        keys = [keys[place] for place in order]
        labels = np.array([label[key] for key in keys], np.int64)
        return cls(keys, labels, np.concatenate(logits)[order], _numbers(keys, tyres), len(catalog) - len(keys))

    def save(self, path: Path) -> None:
        """Write keys, labels and logits as parquet."""
        path.parent.mkdir(parents=True, exist_ok=True)
        logits = pa.array(self.logits.tolist(), pa.list_(pa.float64()))
        pq.write_table(
            pa.table({"key": pa.array(self.keys, pa.string()), "label": self.labels, "logits": logits}), path
        )

    @classmethod
    def read(cls, path: Path, tyres: Mapping[str, str]) -> Scores:
        """What :meth:`save` wrote; ``tyres`` as for :meth:`of`."""
        table = pq.read_table(path)
        keys, logits = table["key"].to_pylist(), np.array(table["logits"].to_pylist(), np.float64)
        return cls(keys, table["label"].to_numpy().astype(np.int64), logits, _numbers(keys, tyres))

    def without(self, keys: Collection[str]) -> Scores:
        """The scores of all other images."""
        kept = np.array([key not in keys for key in self.keys], bool)
        rest = [key for key in self.keys if key not in keys]
        return Scores(rest, self.labels[kept], self.logits[kept], self.tyres[kept])


def _numbers(keys: list[str], tyres: Mapping[str, str]) -> NDArray[np.int64]:
    names = np.array([tyres.get(key, key) for key in keys], dtype=object)
    return np.asarray(np.unique(names, return_inverse=True)[1], np.int64)
