"""Texts in columns: what ten million Python strings would need gigabytes for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

_TOGETHER = 10_000  # texts that are Python strings at one time


def mapped(column: pa.ChunkedArray, change: Callable[[str], str]) -> pa.ChunkedArray:
    """What a function makes of each text of a column."""
    parts = [
        pa.array([change(text) for text in chunk[start : start + _TOGETHER].to_pylist()], pa.large_string())
        for chunk in column.chunks
        for start in range(0, len(chunk), _TOGETHER)
    ]
    return one_piece(pa.chunked_array(parts, pa.large_string()))


def one_piece(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in a single chunk, in which places are found sooner."""
    return pa.chunked_array([texts.combine_chunks()], texts.type)


def column(texts: Iterable[str]) -> pa.ChunkedArray:
    """Some texts as a column."""
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def one_after_other(columns: Iterable[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Columns one after the other, without a copy."""
    return pa.chunked_array([chunk for one in columns for chunk in one.chunks], pa.large_string())


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

    def of(self, keys: Sequence[str]) -> list[str | None]:
        """The texts of some keys; None where there is none."""
        places = pc.index_in(pa.array(keys, pa.large_string()), value_set=self._keys.combine_chunks())
        return [*self._values.take(places).to_pylist()]

    def along(self, keys: pa.ChunkedArray) -> pa.ChunkedArray | None:
        """All texts, where a column has the very keys of this in the same order."""
        return self._values if self._keys.equals(keys) else None
