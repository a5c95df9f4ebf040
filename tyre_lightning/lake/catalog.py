"""Which images there are and what they show: a columnar table of keys and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tyre_lightning.lake.mapped import receive, share
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.tyres import tyre_names

ALSO, COPIES = "also", "copies"  # columns of a catalog with pictures that lie in several class folders
_TYRES = "_tyres"  # the attribute that keeps a pattern and what it found


@dataclass(frozen=True)
class Catalog:
    """Labelled images, as columns, so that ten million fit and forked processes share them.

    Args:
        table: columns key (large_string, since those of ten million are more than 2 GiB), label (dictionary of
            ``classes``), size (int64, bytes) and etag (large_string). Where pictures lie in several class folders
            (:func:`tyre_lightning.lake.several.merged`), also (list of int32, places in ``classes``) and copies (list
            of large_string, keys): the other folders, one for each of its copies.
        classes: all class names, in the order of the model's outputs; a class may have no image.
        ignored: how many stored objects are not images (text, folder markers, hidden files).
    """

    table: pa.Table
    classes: tuple[str, ...]
    ignored: int = 0

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process, see :mod:`tyre_lightning.lake.mapped`."""
        return _received, (share(self, self.table), self.classes, self.ignored)

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

    def places(self, keys: Sequence[str] | pa.ChunkedArray) -> NDArray[np.int64]:
        """Where N of its keys are, shape (N,)."""
        asked = keys if isinstance(keys, pa.ChunkedArray) else pa.array(keys, self.table["key"].type)
        return np.asarray(pc.index_in(asked, value_set=self.table["key"]).to_numpy(), np.int64)

    def labels(self) -> list[str]:
        """All labels, as Python strings."""
        return [*self.table["label"].to_pylist()]

    def codes(self, class_to_idx: Mapping[str, int]) -> NDArray[np.int64]:
        """The class index of every image, shape (N,); of one that lies in several folders, that of its key."""
        lookup = np.array([class_to_idx[name] for name in self.classes], dtype=np.int64)
        return np.asarray(lookup[self._positions()])

    def truth(self, classes: Sequence[str]) -> NDArray[np.bool_]:
        """Which of some classes every image shows, shape (N, classes); a class that is not among them shows nowhere."""
        own = np.zeros((len(self), len(self.classes)), bool)
        own[np.arange(len(self)), self._positions()] = True
        own[self.further()] = True
        shows = np.zeros((len(self), len(classes)), bool)
        for place, name in enumerate(classes):
            if name in self.classes:
                shows[:, place] = own[:, self.classes.index(name)]
        return shows

    def counts(self) -> dict[str, int]:
        """Images per class, in class order; classes without images count 0, and one with several counts for each."""
        numbers = np.bincount(self._positions(), minlength=len(self.classes))
        numbers += np.bincount(self.further()[1], minlength=len(self.classes))
        return {name: int(number) for name, number in zip(self.classes, numbers, strict=True)}

    def further(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and positions in ``classes`` of what they show beside their labels, each once."""
        if ALSO not in self.table.column_names:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        also = self.table[ALSO].combine_chunks()
        pairs = np.stack([pc.list_parent_indices(also).to_numpy(), also.flatten().to_numpy()], axis=1)
        rows, positions = np.unique(pairs.astype(np.int64), axis=0).T
        other = positions != self._positions()[rows]
        return rows[other], positions[other]

    def rarest(self) -> NDArray[np.int64]:
        """The place in ``classes`` of every image's class, shape (N,); of several, that with the fewest images."""
        numbers, found = [*self.counts().values()], self._positions()
        for row, position in zip(*self.further(), strict=True):
            if numbers[position] < numbers[found[row]]:
                found[row] = position
        return found

    def several(self) -> int:
        """How many images show several classes."""
        return len(np.unique(self.further()[0]))

    def copies(self) -> Iterator[tuple[str, str]]:
        """The keys of an image and of one of its copies in other class folders, pair by pair."""
        if COPIES in self.table.column_names:
            copies = self.table[COPIES].combine_chunks()
            keys = self.table["key"].take(pc.list_parent_indices(copies))
            yield from zip(keys.to_pylist(), copies.flatten().to_pylist(), strict=True)

    def apart(self) -> Catalog:
        """A row for each stored object, as it was listed: an image that lies in several class folders has several."""
        if COPIES not in self.table.column_names:
            return self
        alone = self.table.drop_columns([ALSO, COPIES])
        also, copies = (self.table[name].combine_chunks() for name in (ALSO, COPIES))
        rows = alone.take(pc.list_parent_indices(copies))
        label = pa.DictionaryArray.from_arrays(also.flatten(), pa.array(self.classes, pa.string()))
        for name, values in (("key", copies.flatten()), ("label", label)):
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        return Catalog(pa.concat_tables([alone, rows]).combine_chunks(), self.classes, self.ignored)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Catalog:
        """The images at ``indices``, in that order; what the listing ignored stays with the whole catalog."""
        places = pa.array(indices, pa.int64())
        taken = Catalog(self.table.take(places), self.classes)
        if _TYRES in self.__dict__:
            pattern, names = self.__dict__[_TYRES]
            taken.__dict__[_TYRES] = pattern, names.take(places)
        return taken

    def tyres(self, pattern: str | None) -> pa.ChunkedArray:
        """The names of the tyres on the images, a column; what is found is kept, since that takes long.

        Args:
            pattern: see :func:`tyre_lightning.lake.tyres.find_tyre`.
        """
        if self.__dict__.get(_TYRES, (None,))[0] != pattern:
            self.__dict__[_TYRES] = pattern, tyre_names(self.table["key"], pattern)
        return self.table["key"] if pattern is None else self.__dict__[_TYRES][1]

    def _positions(self) -> NDArray[np.int64]:
        """The position in ``classes`` of every image, shape (N,)."""
        chunks = [chunk.indices.to_numpy() for chunk in self.table["label"].chunks]
        return np.concatenate([np.empty(0, np.int64), *chunks]).astype(np.int64)


def _received(table: pa.Table | Path, classes: tuple[str, ...], ignored: int) -> Catalog:
    return Catalog(receive(table), classes, ignored)


def compact(table: pa.Table) -> pa.Table:
    """A table whose columns lie in one piece each, made column by column: all at once would be twice the memory."""
    for place, name in enumerate(table.column_names):
        table = table.set_column(place, name, pa.chunked_array([table[name].combine_chunks()], table[name].type))
    return table


@dataclass(frozen=True)
class Lake:
    """The catalogs of the three usages, all with the classes of the training split."""

    classes: tuple[str, ...]
    train: Catalog
    val: Catalog | None
    test: Catalog | None
