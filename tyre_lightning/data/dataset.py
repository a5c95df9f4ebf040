"""A catalog's images as a map-style dataset that fetches a whole batch at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tyre_lightning.config import Unreadable
from tyre_lightning.data.images import Images
from tyre_lightning.data.transforms import Augmentation, Colour
from tyre_lightning.errors import UnreadableImage, UserError
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.store import Entry

# What a worker's coming batches may have under way while it decodes: enough for a network that answers after 0.25 s.
AHEAD_IMAGES = 128
AHEAD_BYTES = 64 << 20

_CHUNK = 10_000  # items of an epoch that are Python objects at one time


class Batch(NamedTuple):
    """What a training or evaluation step gets."""

    image: Tensor  # uint8 [N, 3, H, W]
    label: Tensor  # int64 [N]; where images may show several defects [N, classes], of 0 and 1
    colour: Tensor  # float32 [N, 3]: what training makes of the colours, see recolour
    key: list[str]  # N keys
    unreadable: list[UnreadableImage]  # images of this batch that are not in it
    notes: list[str]  # what the user should hear of
    failure: UserError | None = None  # what ends the epoch; see BatchLoader


class Plan(list[tuple[int, int]]):
    """The (index, seed) pairs of a batch, and what its worker will load later and has not been told of yet."""

    ahead: Sequence[Sequence[int]] = ()  # the indices of each batch
    first: bool = False  # of an epoch, for its worker


class Failure(NamedTuple):
    """An error on its way out of a DataLoader worker."""

    error: UserError


class Note(NamedTuple):
    """What the user should hear of, on its way out of a DataLoader worker."""

    text: str


class Sample(NamedTuple):
    """One decoded image: uint8 [3, H, W], its class index (or a 0 or 1 for each class) and its key."""

    image: Tensor
    label: int | list[int]
    key: str
    colour: Colour = Colour()


Item = Sample | UnreadableImage | Failure | Note


class TyreDataset(Dataset[Item]):
    """The images of one catalog, fetched when asked for.

    Args:
        catalog: which images.
        images: reads them.
        classes: class names in index order.
        augmentation: training's transform; None for evaluation.
        unreadable: ``skip`` returns an :class:`UnreadableImage` in place of a sample; ``error`` raises it.
        several: whether an image may show several defects, so that its label is a 0 or 1 for each class.
    """

    def __init__(
        self,
        catalog: Catalog,
        images: Images,
        classes: Sequence[str],
        augmentation: Augmentation | None = None,
        unreadable: Unreadable = Unreadable.skip,
        several: bool = False,
    ) -> None:
        self._catalog = catalog
        self._images = images
        self._class_to_idx = {name: index for index, name in enumerate(classes)}
        self._shows = catalog.truth(classes).astype(np.uint8) if several else None
        self._augmentation = augmentation
        self._unreadable = unreadable

    def __len__(self) -> int:
        return len(self._catalog)

    def __getitem__(self, item: tuple[int, int]) -> Item:
        """The sample of an (index, seed) pair, as an :class:`EpochSampler` gives them."""
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Sequence[Item]:
        """A batch at once, so that its images are fetched concurrently."""
        try:
            return self._samples(items)
        except UserError as error:
            # PyTorch would wrap a worker's exception in its traceback; a user's mistake is to stay one sentence.
            return [Failure(error)]

    def _samples(self, items: Sequence[tuple[int, int]]) -> list[Item]:
        entries = [self._catalog.entry(index) for index, _ in items]
        if isinstance(items, Plan):
            now = entries if items.first else []  # else their requests would wait behind those for later
            self._images.prefetch([*now, *self._soon(items.ahead)], fresh=items.first)
        images = self._images.read(entries)
        samples: list[Item] = [
            self._sample(image, index, seed) for image, (index, seed) in zip(images, items, strict=True)
        ]
        return [*samples, *map(Note, self._images.problems())]

    def _soon(self, ahead: Sequence[Sequence[int]]) -> list[Entry]:
        """The coming entries, as many of each batch as may wait in memory."""
        found = []
        for batch in ahead:
            entries = [self._catalog.entry(index) for index in batch]
            sizes = accumulate(entry.size for entry in entries)
            share = AHEAD_BYTES * min(len(batch), AHEAD_IMAGES) // AHEAD_IMAGES
            found += [entry for entry, total in zip(entries, sizes, strict=True) if total <= share]
        return found

    def _sample(self, image: Tensor | UnreadableImage, index: int, seed: int) -> Sample | UnreadableImage:
        if isinstance(image, UnreadableImage):
            if self._unreadable is Unreadable.error:
                raise image
            return image
        view, colour = self._augmentation(image, seed) if self._augmentation else (image, Colour())
        return Sample(view, self._label(index), self._catalog.key(index), colour)

    def _label(self, index: int) -> int | list[int]:
        if self._shows is None:
            return self._class_to_idx[self._catalog.label(index)]
        return [*self._shows[index].tolist()]


def collate(samples: Sequence[Item]) -> Batch:
    """Stack samples; what could not be read is listed beside them. An empty batch has images [0, 3, 0, 0]."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    bad = [sample for sample in samples if isinstance(sample, UnreadableImage)]
    images = torch.stack([s.image for s in good]) if good else torch.zeros(0, 3, 0, 0, dtype=torch.uint8)
    labels = torch.tensor([sample.label for sample in good], dtype=torch.int64)
    colours = torch.tensor([sample.colour for sample in good]).reshape(-1, 3)
    notes = [sample.text for sample in samples if isinstance(sample, Note)]
    failure = next((sample.error for sample in samples if isinstance(sample, Failure)), None)
    return Batch(images, labels, colours, [sample.key for sample in good], bad, notes, failure)


class BatchLoader(DataLoader[Batch]):
    """A DataLoader that raises what its workers could not.

    Raises:
        UserError: while iterating; an object cannot be fetched, or not decoded where that is an error.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if batch.failure is not None:
                raise batch.failure
            yield batch


class EpochSampler(Sampler[tuple[int, int]]):
    """Gives (index, seed) pairs: an epoch's order and every image's random draw follow from ``seed`` and the epoch.

    Over several processes, taken together, a global batch is the same as in one process. In training every process
    gets the same number of images (at most ``world - 1`` are repeated); in evaluation no image is repeated, so that
    none is counted twice.

    Args:
        length: how many images there are, and how many an epoch has.
        weights: how likely each is drawn in training, with replacement; None: each comes once.
    """

    def __init__(
        self, length: int, *, seed: int, train: bool, rank: int = 0, world: int = 1, weights: Tensor | None = None
    ) -> None:
        self._length = length
        self._seed = seed
        self._train = train
        self._rank = rank
        self._world = world
        self._weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        share = self._length - self._rank
        if self._train:
            share = self._length
        return max(0, -(-share // self._world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        order = self._order(generator)
        draws = torch.randint(2**62, (self._length,), generator=generator)
        padding = -self._length % self._world if self._train else 0
        places = torch.cat([order, order[:padding]])[self._rank :: self._world]
        for start in range(0, len(places), _CHUNK):  # a million Python numbers take as much room as the catalog
            part = places[start : start + _CHUNK]
            yield from zip(part.tolist(), draws[self._own(part, start)].tolist(), strict=True)

    def _order(self, generator: torch.Generator) -> Tensor:
        if not self._train:
            return torch.arange(self._length)
        if self._weights is None:
            return torch.randperm(self._length, generator=generator)
        return torch.multinomial(self._weights, self._length, replacement=True, generator=generator)

    def _own(self, part: Tensor, start: int) -> Tensor:
        """Which draws are those of some images: what comes twice in an epoch is to look different each time."""
        if self._weights is None:
            return part
        return (torch.arange(start, start + len(part)) * self._world + self._rank) % self._length


def balanced(shows: NDArray[np.bool_]) -> Tensor:
    """Weights by which every class is drawn equally often, float64 [N], of what images show, [N, classes].

    One that shows several is drawn as those of the rarest of them.
    """
    weights = np.zeros(len(shows))
    for shown in shows.T:
        weights[shown] = np.maximum(weights[shown], 1 / max(1, shown.sum()))
    return torch.from_numpy(weights)


class BatchSampler(Sampler[Plan]):
    """Cuts a sampler's items into batches, each of which knows what its worker will load next.

    Args:
        sampler: gives the items.
        batch_size: items in a batch; the last may have fewer.
        workers: DataLoader gives them the batches in turn.
        done: an epoch, and how many of its batches are not given again.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, workers: int, done: tuple[int, int] = (-1, 0)) -> None:
        self.sampler = sampler  # Lightning tells it the epoch
        self._batch_size = batch_size
        self._workers = max(1, workers)
        self._ahead = -(-AHEAD_IMAGES // batch_size)  # batches of each worker
        self._done = done

    def __len__(self) -> int:
        return -(-len(self.sampler) // self._batch_size)

    def __iter__(self) -> Iterator[Plan]:
        items = iter(self.sampler)
        waiting: deque[Plan] = deque()
        begun = 0
        epoch, done = self._done
        plans = islice(self._plans(items), done if self.sampler.epoch == epoch else 0, None)
        for plan in chain(plans, [None] * (self._ahead * self._workers)):
            if plan is not None:
                waiting.append(plan)
            if len(waiting) > self._ahead * self._workers or (plan is None and waiting):
                due = waiting.popleft()
                due.first = begun < self._workers
                later = [*islice(waiting, self._workers - 1, self._ahead * self._workers, self._workers)]
                new = later if due.first else later[self._ahead - 1 :]
                due.ahead = [[index for index, _ in batch] for batch in new]
                begun += 1
                yield due

    def _plans(self, items: Iterator[tuple[int, int]]) -> Iterator[Plan]:
        while plan := Plan(islice(items, self._batch_size)):
            yield plan
