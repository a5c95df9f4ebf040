"""Texts in columns: what ten million Python strings would need gigabytes for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_TOGETHER = 10_000  # texts that are Python strings at one time


def mapped(column: pa.ChunkedArray, change: Callable[[str], str]) -> pa.ChunkedArray:
    """What a function makes of each text of a column."""
    parts = [pa.array([*map(change, texts)], pa.large_string()) for texts in _strings(column)]
    return one_piece(pa.chunked_array(parts, pa.large_string()))


def each(column: pa.ChunkedArray) -> Iterator[str]:
    """The texts of a column, few of which are Python strings at one time."""
    for texts in _strings(column):
        yield from texts


def _strings(column: pa.ChunkedArray) -> Iterator[list[str]]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), _TOGETHER):
            yield chunk[start : start + _TOGETHER].to_pylist()


def one_piece(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in a single chunk, in which places are found sooner."""
    return pa.chunked_array([texts.combine_chunks()], texts.type)


def column(texts: Iterable[str]) -> pa.ChunkedArray:
    """Some texts as a column."""
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def one_after_other(columns: Iterable[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Columns one after the other, without a copy."""
    return pa.chunked_array([chunk for one in columns for chunk in one.chunks], pa.large_string())


def numbered(texts: pa.ChunkedArray) -> tuple[pa.ChunkedArray, NDArray[np.int64]]:
    """The different texts of a column in order, a column, and where among them each of the N is, shape (N,)."""
    order = pc.sort_indices(texts).to_numpy()
    ordered = texts if np.array_equal(order, np.arange(len(order))) else texts.take(pa.array(order))
    first = np.ones(len(texts), bool)  # of those that are the same
    first[1:] = pc.not_equal(ordered[1:], ordered[:-1]).to_numpy()
    place = np.empty(len(texts), np.int64)
    place[order] = np.cumsum(first) - 1
    return (ordered if first.all() else ordered.filter(pa.array(first))), place


def are_among(texts: pa.ChunkedArray, others: Iterable[str] | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which of N texts are others too, shape (N,)."""
    known = others if isinstance(others, pa.ChunkedArray) else pa.array([*others], texts.type)
    if len(known) > len(texts):  # a table of the fewer is smaller
        known = known.filter(pc.is_in(known, value_set=texts))
    return np.asarray(pc.is_in(texts, value_set=known).to_numpy(), bool)


class Texts(Mapping[str, str]):
    """Texts by key, where there are too many for a dictionary.

    Args:
        keys: column of large_string; each once.
        values: column of large_string, one for each.
    """

    def __init__(self, keys: pa.ChunkedArray, values: pa.ChunkedArray) -> None:
        self._keys, self._values = keys, values

    def __getitem__(self, key: str) -> str:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._keys)

    @cached_property
    def _found(self) -> dict[str, str]:
        """For who asks one by one."""
        return dict(zip(self._keys.to_pylist(), self._values.to_pylist(), strict=True))

    def of(self, keys: pa.ChunkedArray, otherwise: pa.ChunkedArray) -> pa.ChunkedArray:
        """The texts of a column of keys, a column; where there is none, what another column has in its place."""
        if self._keys.equals(keys):
            return self._values
        places = pc.index_in(keys, value_set=self._keys.combine_chunks())
        return pc.coalesce(self._values.take(places), otherwise)
