"""Divide images into training and held-out ones, so that pictures of one tyre are never on both sides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tyre_lightning.errors import UserError
from tyre_lightning.lake.catalog import Catalog

Ints = NDArray[np.int64]

_TOGETHER = 10_000  # names


def split_validation(
    catalog: Catalog,
    fraction: float,
    seed: int,
    groups: Sequence[str] | pa.ChunkedArray | None = None,
    selected: Collection[str] = (),
) -> tuple[Catalog, Catalog]:
    """Divide a catalog into training and validation images, class by class.

    A group's place depends on nothing but the seed and its name, so the split is the same in any listing order, and
    few images change sides when others are added. A group with images of several classes counts as one of the class
    that most of them have; an image that shows several, as one of the rarest of them (Sechidis et al., ECML PKDD 2011).

    Args:
        fraction: share of each class's images that is held out.
        seed: of the assignment.
        groups: one name per image; images of one group stay together. None: every image is its own group.
        selected: keys of images that were chosen, and not drawn: they stand for nothing but themselves, so that their
            groups train. The fraction is one of the others.

    Returns:
        The training and the validation catalog, both in the order of ``catalog``.

    Raises:
        UserError: a class cannot be divided, because it has a single image or a single group.
    """
    grouped = _group(catalog, groups, selected)
    held_out = np.zeros(len(grouped.names), dtype=bool)
    for index, name in enumerate(catalog.classes):
        members = grouped.of_class(index, name, 2, "train and val")
        held_out[members] = _choose(grouped.named(members), grouped.sizes[members], fraction, seed)
    return _divide(catalog, held_out[grouped.group_of])


def split_fold(
    catalog: Catalog,
    folds: int,
    fold: int,
    seed: int,
    groups: Sequence[str] | pa.ChunkedArray | None = None,
    selected: Collection[str] = (),
) -> tuple[Catalog, Catalog]:
    """One fold of a stratified, grouped cross-validation.

    Args:
        folds: how many there are; each image is held out in one of them, unless its group is selected.
        fold: which one, from 0.
        seed: of the assignment.
        groups: as for :func:`split_validation`.
        selected: likewise.

    Returns:
        The other folds' images and this fold's, both in the order of ``catalog``.

    Raises:
        UserError: a class has fewer groups than there are folds.
    """
    grouped = _group(catalog, groups, selected)
    place = np.full(len(grouped.names), -1)
    for index, name in enumerate(catalog.classes):
        members = grouped.of_class(index, name, folds, f"{folds} folds")
        ranked = members[np.argsort(_hashes(grouped.named(members), seed), kind="stable")]
        filled = np.zeros(folds, dtype=np.int64)
        for member in ranked[np.argsort(-grouped.sizes[ranked], kind="stable")]:  # the largest while all have room
            place[member] = filled.argmin()
            filled[place[member]] += grouped.sizes[member]
    return _divide(catalog, (place == fold)[grouped.group_of])


@dataclass(frozen=True)
class _Groups:
    """Groups of images."""

    names: pa.Array  # texts
    group_of: Ints  # of every image
    sizes: Ints  # images in each group
    label: Ints  # the class that most images of a group have
    has: NDArray[np.bool_]  # [groups, classes]: whether it has an image that shows a class
    trains: NDArray[np.bool_]  # which groups are never held out

    def named(self, members: Ints) -> pa.Array:
        """The names of some groups."""
        return self.names.take(pa.array(members))

    def of_class(self, index: int, name: str, least: int, into: str) -> Ints:
        """The groups that count as of a class and may be held out; others' images of it stay where their groups are."""
        count = int(self.has[:, index].sum())
        if 0 < count < least and not (self.has[:, index] & self.trains).any():
            single = count == 1
            images = int(self.sizes[self.has[:, index]].sum())
            what = ("a single image" if images == 1 else "a single group of images") if single else f"{count} groups"
            raise UserError(
                f"class '{name}' has {what}, which cannot be divided into {into}: "
                + ("add images, or a folder of validation images" if least == 2 else "add images, or ask for fewer")
            )
        return np.flatnonzero((self.label == index) & ~self.trains)


def _group(catalog: Catalog, groups: Sequence[str] | pa.ChunkedArray | None, selected: Collection[str]) -> _Groups:
    keys = catalog.table["key"].combine_chunks()
    found, group_of, labels = keys, np.arange(len(keys)), catalog.rarest()
    if groups is not None:
        column = groups if isinstance(groups, pa.ChunkedArray) else pa.chunked_array([pa.array(groups, keys.type)])
        named = column.combine_chunks().dictionary_encode()
        found, group_of = named.dictionary, named.indices.to_numpy()
    sizes = np.bincount(group_of, minlength=len(found))
    counts = np.zeros((len(found), len(catalog.classes)), dtype=np.int32)
    np.add.at(counts, (group_of, labels), 1)
    has, (rows, further) = counts > 0, catalog.further()
    has[group_of[rows], catalog.codes({name: index for index, name in enumerate(catalog.classes)})[rows]] = True
    has[group_of[rows], further] = True
    trains = np.zeros(len(found), bool)
    if selected:
        chosen = pc.is_in(keys, value_set=pa.array([*selected], keys.type))
        trains[group_of[chosen.to_numpy(zero_copy_only=False)]] = True
    return _Groups(found, group_of, sizes, counts.argmax(axis=1), has, trains)


def _divide(catalog: Catalog, held_out: NDArray[np.bool_]) -> tuple[Catalog, Catalog]:
    return catalog.take(np.flatnonzero(~held_out)), catalog.take(np.flatnonzero(held_out))


def _choose(names: pa.Array, sizes: Ints, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which groups of one class are held out; shape (groups,)."""
    chosen = np.zeros(len(names), dtype=bool)
    if len(names) < 2:
        return chosen
    total = int(sizes.sum())
    wanted = min(max(1, round(fraction * total)), total - 1)
    # A group larger than the whole share would make the share useless; it stays in training if smaller ones exist.
    limit = max(wanted, sizes.min())
    ranked = np.argsort(_hashes(names, seed), kind="stable")
    ranked = ranked[sizes[ranked] <= limit]
    before = np.cumsum(sizes[ranked]) - sizes[ranked]
    chosen[ranked[before < wanted][: len(names) - 1]] = True
    return chosen


def _hashes(names: pa.Array, seed: int) -> NDArray[np.uint64]:
    parts = []
    for start in range(0, len(names), _TOGETHER):  # of which there are Python objects at one time
        part = names[start : start + _TOGETHER].to_pylist()
        parts.append(b"".join(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in part))
    return np.frombuffer(b"".join(parts), dtype="<u8")
