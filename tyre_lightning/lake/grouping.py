"""Which images show the same tyre, over all usages of a lake: by their names, and by what looks the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.texts import Texts, column, one_after_other
from tyre_lightning.lake.tyres import Ints, Shown, group_names, groups_of

Pair = tuple[str, str]
_COLUMNS = ("key", "tyre", "group")
FindCopies = Callable[[Reader, Sequence[Entry], int], tuple[Ints, Ints]]  # the number: of images to be read at most


@dataclass(frozen=True)
class Grouping:
    """What no split may divide.

    Args:
        pattern: what names a tyre, see :func:`tyre_lightning.lake.tyres.find_tyre`.
        copies: the keys of each pair of images that show the same tyre, since they look the same.
        conflicts: those pairs that lie in different classes.
        joined: the group of every image in such a pair, by its key.
    """

    pattern: str | None = None
    copies: Sequence[Pair] = ()
    conflicts: Sequence[Pair] = ()
    joined: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, catalogs: Sequence[Catalog], pattern: str | None, pairs: tuple[Ints, Ints]) -> Grouping:
        """Group the images of some catalogs.

        Args:
            catalogs: one after the other.
            pattern: see :class:`Grouping`.
            pairs: two arrays [M] of places in them: images that show the same tyre.
        """
        keys = [key for catalog in catalogs for key in catalog.keys()]
        shows = np.concatenate([catalog.truth(catalogs[0].classes) for catalog in catalogs])
        groups = groups_of(keys, pattern, pairs)
        places = [*zip(*pairs, strict=True)]
        copies = [(keys[one], keys[other]) for one, other in places]
        conflicts = [*compress(copies, (shows[pairs[0]] != shows[pairs[1]]).any(axis=1))]
        bound = {groups[one] for one, _ in places}
        joined = {key: group for key, group in zip(keys, groups, strict=True) if group in bound}
        return cls(pattern, copies, conflicts, joined)

    @property
    def trivial(self) -> bool:
        """Whether every image is a tyre and a group of its own, so that nothing need be kept of any."""
        return self.pattern is None and not self.joined

    def groups(self, catalog: Catalog) -> pa.ChunkedArray:
        """The group of every image of a catalog, a column."""
        keys = catalog.table["key"]
        names = group_names(keys, catalog.tyres(self.pattern))
        bound = self._bound(keys)
        if not pc.any(bound).as_py():
            return names
        groups = pa.array([self.joined[key] for key in keys.filter(bound).to_pylist()], names.type)
        return pa.chunked_array([pc.replace_with_mask(names.combine_chunks(), bound.combine_chunks(), groups)])

    def _bound(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """Which images are near-copies of others."""
        return pc.is_in(keys, value_set=pa.array([*self.joined], keys.type))

    def shown(self, catalog: Catalog) -> Shown:
        """Which tyres the images show, and which tyres cannot be told apart, as near-copies were found."""
        keys = catalog.table["key"]
        if self.pattern is None:
            bound = keys.filter(self._bound(keys)).to_pylist()
            groups = {key: self.joined[key] for key in bound}
            groups |= {copy: groups.get(key, key) for key, copy in catalog.copies()}
            return Shown({copy: key for key, copy in catalog.copies()}, groups)
        found = {name: [column] for name, column in zip(
            _COLUMNS, (keys, catalog.tyres(self.pattern), self.groups(catalog)), strict=True
        )}  # fmt: skip
        if copies := [*catalog.copies()]:
            first, others = zip(*copies, strict=True)
            places = pc.index_in(pa.array(first, keys.type), value_set=keys.combine_chunks())
            found["key"].append(column(others))
            for name in _COLUMNS[1:]:
                found[name].append(found[name][0].take(places))
        key, tyre, group = (one_after_other(found[name]) for name in _COLUMNS)
        return Shown(Texts(key, tyre), Texts(key, group))

    def count(self, catalog: Catalog) -> int:
        """How many tyres the images show."""
        return len(catalog) if self.pattern is None else int(pc.count_distinct(catalog.tyres(self.pattern)).as_py())

    def shared(self, catalog: Catalog, others: Iterable[Catalog]) -> list[str]:
        """Keys of images of tyres of which other catalogs have other images, sorted."""
        if self.trivial:
            return []
        groups, keys = self.groups(catalog), catalog.table["key"]
        there = np.zeros(len(catalog), bool)
        for other in others:
            there |= pc.is_in(groups, value_set=self.groups(other).unique()).to_numpy()
        return sorted(keys.filter(pa.array(there)).to_pylist())
