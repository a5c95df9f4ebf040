"""Hold out part of the training images for validation, where a lake has no validation folder."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.errors import UserError
from tyre_lightning.lake.catalog import Catalog


def split_validation(
    catalog: Catalog, fraction: float, seed: int, groups: Sequence[str] | None = None
) -> tuple[Catalog, Catalog]:
    """Divide a catalog into training and validation images, class by class.

    A group's place depends on nothing but the seed and its name, so the split is the same in any listing order, and
    few images change sides when others are added.

    Args:
        fraction: share of each class's images that is held out.
        groups: one name per image; images of one group stay together. None: every image is its own group.

    Returns:
        The training and the validation catalog, both in the order of ``catalog``.

    Raises:
        UserError: a class cannot be divided, because it has a single image or a single group.
    """
    names = np.asarray(catalog.keys() if groups is None else groups, dtype=object)
    labels = catalog.codes({name: index for index, name in enumerate(catalog.classes)})
    held_out = np.zeros(len(catalog), dtype=bool)
    for index, name in enumerate(catalog.classes):
        members = np.flatnonzero(labels == index)
        if len(members):
            held_out[members] = _choose(names[members], fraction, seed, name)
    return catalog.take(np.flatnonzero(~held_out)), catalog.take(np.flatnonzero(held_out))


def _choose(names: NDArray[np.object_], fraction: float, seed: int, label: str) -> NDArray[np.bool_]:
    """Which images of one class are held out, given the group of each; shape (N,)."""
    groups, group_of, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if len(groups) < 2:
        what = "image" if len(names) == 1 else "group of images"
        raise UserError(
            f"class '{label}' has a single {what}, which cannot be divided into train and val: "
            "add images, or a folder of validation images"
        )
    wanted = min(max(1, round(fraction * len(names))), len(names) - 1)
    # A group larger than the whole share would make the share useless; it stays in training if smaller ones exist.
    limit = max(wanted, sizes.min())
    ranked = np.argsort(_hashes(groups, seed), kind="stable")
    ranked = ranked[sizes[ranked] <= limit]
    before = np.cumsum(sizes[ranked]) - sizes[ranked]
    chosen = ranked[before < wanted][: len(groups) - 1]
    return np.asarray(np.isin(group_of, chosen))


def _hashes(groups: NDArray[np.object_], seed: int) -> NDArray[np.uint64]:
    digests = [blake2b(f"{seed}/{group}".encode(), digest_size=8).digest() for group in groups]
    return np.frombuffer(b"".join(digests), dtype="<u8")
