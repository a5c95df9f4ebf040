"""The one way in which a model looks at stored images, whoever asks: training, prediction and the gate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tyre_lightning.data.decoding import try_decode
from tyre_lightning.data.stream import stream, stream_by_processes
from tyre_lightning.data.traits import measure
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry
from tyre_lightning.model.inspector import Inspector, Look


class Image(NamedTuple):
    """One image that could be read."""

    picture: Tensor | None  # uint8 [3, H, W]; None where it is not asked for, since a batch of them is large
    view: Tensor  # what the network sees of it, uint8 [3, size, size]
    traits: tuple[float, ...] | None = None  # see :mod:`tyre_lightning.data.traits`; None where not asked for


class Seen(NamedTuple):
    """A batch of N images, of which R could be read."""

    entries: list[Entry]  # N
    images: list[Image | UnreadableImage]  # N
    look: Look  # of those that could be read, in order


def look_at(
    inspectors: Sequence[Inspector],
    reader: Reader,
    entries: Iterable[Entry],
    batch_size: int,
    *,
    pictures: bool = False,
    traits: bool = False,
) -> Iterator[Seen]:
    """Fetch, decode and classify a stream of entries, a batch at a time, in order.

    While a network works on one batch, the next is fetched and decoded: for a CPU in threads, and no more are in
    memory; for a GPU, which would wait for them, in processes.

    Args:
        inspectors: the same model on each device that shares the work; each batch goes to one of them.
        reader: fetches.
        entries: any number of them.
        batch_size: images.
        pictures: whether the whole pictures are wanted too.
        traits: whether it is wanted too what the pictures look like, in numbers.

    Raises:
        UserError: an object cannot be fetched.
    """
    count, waiting = len(inspectors), deque[Future[Seen]]()
    look = partial(_read, inspectors[0].preprocessing, pictures, traits)
    quick = _is_quick(inspectors[0]) and not pictures
    batches = _by_processes(reader, look, entries, batch_size) if quick else None
    with ThreadPoolExecutor(count) as devices:
        for number, (batch, images) in enumerate(batches or stream(reader.read, entries, look, batch_size)):
            waiting.append(devices.submit(_see, inspectors[number % count], batch, images))
            if len(waiting) == count:  # each device has one; the next is being decoded meanwhile
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _see(inspector: Inspector, batch: list[Entry], images: list[Image | UnreadableImage]) -> Seen:
    return Seen(batch, images, inspector.look([one.view for one in images if isinstance(one, Image)]))


def _is_quick(inspector: Inspector) -> bool:
    """Whether it answers sooner than one process decodes."""
    return inspector.network.mean.device.type != "cpu"


Shown = Image | UnreadableImage
Packed = tuple[Tensor, list[Any], list[str]]  # all views, all else of each image, and what the user should hear of


def _by_processes(
    reader: Reader, look: Callable[[bytes | UnreadableImage, Entry], Shown], entries: Iterable[Entry], size: int
) -> Iterator[tuple[list[Entry], list[Shown]]]:
    for batch, (views, rest, problems) in stream_by_processes(partial(_packed, reader, look), entries, size):
        reader.problems += problems
        each = iter(views)
        yield batch, [one._replace(view=next(each)) if isinstance(one, Image) else one for one in rest]


def _packed(reader: Reader, look: Callable[[Any, Entry], Shown], entries: list[Entry]) -> Packed:
    images = [*map(look, reader.read(entries), entries)]
    problems, reader.problems[:] = [*reader.problems], []
    views = [one.view for one in images if isinstance(one, Image)]
    rest: list[Any] = [one._replace(view=None) if isinstance(one, Image) else one for one in images]  # type: ignore[arg-type]
    return torch.stack(views) if views else torch.zeros(0), rest, problems


def _read(
    preprocessing: Preprocessing, whole: bool, traits: bool, data: bytes | UnreadableImage, entry: Entry
) -> Shown:
    picture = try_decode(data, entry.key)
    if isinstance(picture, UnreadableImage):
        return picture
    measured = measure(picture) if traits else None
    return Image(picture if whole else None, preprocessing(picture), measured)
