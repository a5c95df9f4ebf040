"""Which tyre a picture shows: what a pattern finds in its file name, or else it is a tyre of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tyre_lightning.errors import UserError
from tyre_lightning.names import one_form

Ints = NDArray[np.int64]
Names = NDArray[np.object_]


@dataclass(frozen=True)
class Shown:
    """Which tyres images show, by their keys; one that is missing shows a tyre of its own."""

    tyres: Mapping[str, str] = field(default_factory=dict)  # names
    groups: Mapping[str, str] = field(default_factory=dict)  # of tyres that cannot be told apart

    def tyre(self, key: str) -> str:
        """The name of the tyre on an image."""
        return self.tyres.get(key, key)

    def names(self, keys: Sequence[str]) -> tuple[Names, Names]:
        """Of N images the names of the tyres, shape (N,), and of their groups, shape (N,)."""
        tyres = np.array([self.tyre(key) for key in keys], dtype=object)
        return tyres, np.array(
            [self.groups.get(key, tyre) for key, tyre in zip(keys, tyres, strict=True)], dtype=object
        )

    def columns(self, keys: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """:meth:`names` of a column of keys, as columns; where nothing is known of any, that column itself, twice."""
        if not self.tyres and not self.groups:
            return keys, keys
        tyres, groups = self.names(keys.to_pylist())
        return pa.chunked_array([pa.array(tyres, keys.type)]), pa.chunked_array([pa.array(groups, keys.type)])


def find_tyre(key: str, pattern: str | None) -> str | None:
    """The tyre that a picture's file name tells, or None.

    Args:
        key: of the picture.
        pattern: a regular expression. Its first pair of parentheses that takes part in the match (of those on two
            sides of a ``|`` only one does) is the tyre's name; without any, all that it matches. No name is empty.
    """
    match = None if pattern is None else re.search(one_form(pattern), one_form(key.rpartition("/")[2]))
    if match is None:
        return None
    return next(filter(None, match.groups() if match.re.groups else (match[0],)), None)


def tyre_of(key: str, pattern: str | None) -> str:
    """The name of the tyre that a picture shows: the found one, or the picture's key."""
    found = find_tyre(key, pattern)
    return key if found is None else found


def count_tyres(keys: Iterable[str], pattern: str) -> int:
    """How many tyres a pattern tells apart.

    Args:
        keys: of at least one picture.
        pattern: a regular expression.

    Raises:
        UserError: it finds nothing in any file name, or the same wherever it finds something.
    """
    tyres: set[str] = set()
    named = unnamed = 0
    example = other = ""
    for key in keys:
        if (name := find_tyre(key, pattern)) is None:
            unnamed, other = unnamed + 1, key
        else:
            named, example = named + 1, key
            tyres.add(name)
    if not named:
        raise UserError(
            f"data.group_pattern='{pattern}' finds nothing in any of {unnamed} file names, such as '{_file(other)}': "
            "write one that finds the tyre's name there, or leave it out"
        )
    if len(tyres) == 1 and named > 1:
        raise UserError(
            f"data.group_pattern='{pattern}' finds the same in all {named} file names"
            f"{' in which it finds something' if unnamed else ''}, such as '{min(tyres)}' in '{_file(example)}': put "
            "parentheses round what tells one tyre from another"
        )
    return len(tyres) + unnamed


def _file(key: str) -> str:
    return key.rpartition("/")[2]


def groups_of(keys: Sequence[str], pattern: str | None, pairs: tuple[Ints, Ints] | None = None) -> list[str]:
    """The group of every image, which no split may divide: its tyre's pictures, and what looks the same.

    Args:
        keys: of the images.
        pattern: as for :func:`find_tyre`.
        pairs: two arrays [M] of places in ``keys``: images that show the same tyre. Groups that share one become one,
            under the name that comes first.
    """
    names = [_group(key, pattern) for key in keys]
    if pairs is None or not len(pairs[0]):
        return names
    found, place = np.unique(np.array(names, dtype=object), return_inverse=True)
    joined = coo_array((np.ones(len(pairs[0]), bool), (place[pairs[0]], place[pairs[1]])), shape=(len(found),) * 2)
    _, component = connected_components(joined, directed=False)
    _, first = np.unique(component, return_index=True)
    return [*found[first[component[place]]]]


def _group(key: str, pattern: str | None) -> str:
    found = find_tyre(key, pattern)
    return key if found is None else f"id {found}"  # a key may be called as a tyre is
