"""Which images show the same tyre, over all usages of a lake: by their names, and by what looks the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np

from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.tyres import Ints, Shown, groups_of, tyre_of

Pair = tuple[str, str]
FindCopies = Callable[[Reader, Sequence[Entry], Path], tuple[Ints, Ints]]


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

    def groups(self, catalog: Catalog) -> list[str]:
        """The group of every image of a catalog."""
        names = groups_of(catalog.keys(), self.pattern)
        return [self.joined.get(key, name) for key, name in zip(catalog.keys(), names, strict=True)]

    def shown(self, catalog: Catalog) -> Shown:
        """Which tyres the images show, and which tyres cannot be told apart, as near-copies were found."""
        tyres: dict[str, str] = {}
        groups: dict[str, str] = {}
        if not self.trivial:
            for key, group in zip(catalog.keys(), self.groups(catalog), strict=True):
                tyres[key], groups[key] = tyre_of(key, self.pattern), group
        for key, copy in catalog.copies():
            tyres[copy], groups[copy] = tyres.get(key, key), groups.get(key, key)
        return Shown(tyres, groups)

    def count(self, catalog: Catalog) -> int:
        """How many tyres the images show."""
        return len(catalog) if self.pattern is None else len({tyre_of(key, self.pattern) for key in catalog.keys()})

    def shared(self, catalog: Catalog, others: Iterable[Catalog]) -> list[str]:
        """Keys of images of tyres of which other catalogs have other images, sorted."""
        if self.trivial:
            return []
        seen = {group for other in others for group in self.groups(other)}
        return sorted(key for key, group in zip(catalog.keys(), self.groups(catalog), strict=True) if group in seen)
