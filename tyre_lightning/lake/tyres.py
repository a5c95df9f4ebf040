"""Which tyre a picture shows: what a pattern finds in its file name, or else it is a tyre of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tyre_lightning.errors import UserError
from tyre_lightning.lake.texts import Texts, column, mapped
from tyre_lightning.names import one_form

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Shown:
    """Which tyres images show, by their keys; one that is missing shows a tyre of its own."""

    tyres: Mapping[str, str] = field(default_factory=dict)  # names
    groups: Mapping[str, str] = field(default_factory=dict)  # of tyres that cannot be told apart

    def columns(self, keys: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Of a column of keys the names of the tyres and of their groups, two columns.

        Where nothing is known of any, they are that column itself.
        """
        tyres = _looked_up(self.tyres, keys, keys)
        return tyres, _looked_up(self.groups, keys, tyres)


def _looked_up(found: Mapping[str, str], keys: pa.ChunkedArray, otherwise: pa.ChunkedArray) -> pa.ChunkedArray:
    """What is found of each key, or what stands beside it."""
    if not found:
        return otherwise
    texts = found if isinstance(found, Texts) else Texts(column([*found]), column([*found.values()]))
    return texts.of(keys, otherwise)


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


def tyre_names(keys: pa.ChunkedArray, pattern: str | None) -> pa.ChunkedArray:
    """:func:`tyre_of` of a column of keys."""
    return keys if pattern is None else mapped(keys, lambda key: tyre_of(key, pattern))


def group_names(keys: pa.ChunkedArray, tyres: pa.ChunkedArray) -> pa.ChunkedArray:
    """The groups that tyres are, with a mark, since the key of some picture may be called as a tyre is."""
    named = pc.binary_join_element_wise(pa.scalar("id", keys.type), tyres, pa.scalar(" ", keys.type))
    return pc.if_else(pc.equal(keys, tyres), keys, named)


def count_tyres(keys: pa.ChunkedArray, tyres: pa.ChunkedArray, pattern: str) -> int:
    """How many tyres a pattern tells apart.

    Args:
        keys: of at least one picture.
        tyres: what :func:`tyre_names` makes of them.
        pattern: a regular expression.

    Raises:
        UserError: it finds nothing in any file name, or the same wherever it finds something.
    """
    found = pc.not_equal(keys, tyres)
    named = pc.sum(found).as_py() or 0
    unnamed = len(keys) - named
    if not named:
        raise UserError(
            f"data.group_pattern='{pattern}' finds nothing in any of {unnamed} file names, such as "
            f"'{_last_file(keys, pc.invert(found))}': write one that finds the tyre's name there, or leave it out"
        )
    different = int(pc.count_distinct(tyres.filter(found) if unnamed else tyres).as_py())
    if different == 1 and named > 1:
        raise UserError(
            f"data.group_pattern='{pattern}' finds the same in all {named} file names"
            f"{' in which it finds something' if unnamed else ''}, such as '{tyres.filter(found)[0]}' in "
            f"'{_last_file(keys, found)}': put parentheses round what tells one tyre from another"
        )
    return different + unnamed


def _last_file(keys: pa.ChunkedArray, which: pa.ChunkedArray) -> str:
    return str(keys.filter(which)[-1]).rpartition("/")[2]


def groups_of(keys: Sequence[str], pattern: str | None, pairs: tuple[Ints, Ints] | None = None) -> list[str]:
    """The group of every image, which no split may divide: its tyre's pictures, and what looks the same.

    Args:
        keys: of the images.
        pattern: as for :func:`find_tyre`.
        pairs: two arrays [M] of places in ``keys``: images that show the same tyre. Groups that share one become one,
            under the name that comes first.
    """
    listed = column(keys)
    names: list[str] = group_names(listed, tyre_names(listed, pattern)).to_pylist()
    if pairs is None or not len(pairs[0]):
        return names
    found, place = np.unique(np.array(names, dtype=object), return_inverse=True)
    joined = coo_array((np.ones(len(pairs[0]), bool), (place[pairs[0]], place[pairs[1]])), shape=(len(found),) * 2)
    _, component = connected_components(joined, directed=False)
    _, first = np.unique(component, return_index=True)
    return [*found[first[component[place]]]]
