"""The one way in which stored images are gone through: while a batch is used, the next is fetched and decoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
File = TypeVar("File")
Found = TypeVar("Found")


def stream(
    read: Callable[[list[Item]], Sequence[File]],
    items: Iterable[Item],
    look: Callable[[File, Item], Found],
    size: int,
) -> Iterator[tuple[list[Item], list[Found]]]:
    """Batches in order, with what was found in each; two are in memory at one time.

    Args:
        read: fetches the files of a batch; runs in a thread of its own.
        items: what to read, any number.
        look: decodes one file; runs in as many threads as there are cores.
        size: of a batch.

    Raises:
        Exception: what ``read`` or ``look`` raises.
    """
    batches = batched(items, size)
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(os.cpu_count()) as decoders:

        def load(batch: list[Item]) -> tuple[list[Item], list[Found]]:
            return batch, list(decoders.map(look, read(batch), batch))

        waiting = deque(ahead.submit(load, batch) for batch in islice(batches, 1))
        while waiting:
            loaded = waiting.popleft().result()
            waiting.extend(ahead.submit(load, batch) for batch in islice(batches, 1))
            yield loaded


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """A stream in lists of ``size``; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
