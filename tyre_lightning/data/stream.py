"""The one way in which stored images are gone through: while a batch is used, the next is fetched and decoded."""

from __future__ import annotations

import gc
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from tyre_lightning.cores import cores
from tyre_lightning.errors import UserError

MOST_PROCESSES = 16

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
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(cores()) as decoders:

        def load(batch: list[Item]) -> tuple[list[Item], list[Found]]:
            return batch, list(decoders.map(look, read(batch), batch))

        waiting = deque(ahead.submit(load, batch) for batch in islice(batches, 1))
        while waiting:
            loaded = waiting.popleft().result()
            waiting.extend(ahead.submit(load, batch) for batch in islice(batches, 1))
            yield loaded


def stream_by_processes(
    load: Callable[[list[Item]], Found], items: Iterable[Item], size: int
) -> Iterator[tuple[list[Item], Found]]:
    """Batches in order, with what other processes made of each; as many are in memory as there are processes.

    For what is used sooner than one process can decode: its threads wait for each other whenever they are in Python.

    Args:
        load: fetches and decodes a batch; runs in as many processes as there are cores, at most 16. Many tensors are
            better handed over as one, since each takes an open file.
        items: what to read, any number.
        size: of a batch.

    Raises:
        UserError: what ``load`` raises.
    """
    processes = min(cores(), MOST_PROCESSES)
    loader: DataLoader[Any] = DataLoader(
        _Batches(load), batch_sampler=batched(items, size), num_workers=processes, prefetch_factor=1,
        multiprocessing_context=default_start(), collate_fn=_as_it_is, worker_init_fn=begin_worker,
    )  # fmt: skip
    for batch, found in loader:
        if isinstance(found, UserError):
            raise found
        yield batch, found


class _Batches(Dataset[Any]):
    """What is made of batches, which DataLoader takes for lists of places."""

    def __init__(self, load: Callable[[Any], Any]) -> None:
        self._load = load

    def __getitems__(self, batch: list[Any]) -> tuple[list[Any], Any]:
        try:
            return batch, self._load(batch)
        except UserError as error:  # DataLoader would make a traceback of it
            return batch, error


def _as_it_is(found: Any) -> Any:
    return found


def begin_worker(number: int) -> None:
    """Begin a loading process, which never searches for garbage in what it was forked with.

    An earlier training of the same process, as those of a sweep are, leaves garbage that holds CUDA's objects. Whoever
    deletes one in a forked process, where there is no CUDA, is ended.
    """
    gc.freeze()


def default_start() -> str | None:
    """How workers are started: as Python does (None), also where joblib has set its own way, which only it can use.

    A process that was itself spawned, as each of several that train is, would spawn its workers too, and each of them
    would load PyTorch anew: they are started as they are anywhere else.
    """
    chosen, usual = multiprocessing.get_start_method(allow_none=True), multiprocessing.get_all_start_methods()
    own = multiprocessing.parent_process() is None and chosen in (None, *usual)
    return None if own else usual[0]


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """A stream in lists of ``size``; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
