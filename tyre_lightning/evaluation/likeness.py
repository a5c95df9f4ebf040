"""What the good tyres of training look like to a trained network, how far each is from that, and some pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tyre_lightning.decision.novelty import NOBODY, Reference, left_out
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.evaluation.gallery import jpeg_bytes
from tyre_lightning.evaluation.scoring import look_at
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.texts import column
from tyre_lightning.lake.tyres import Shown
from tyre_lightning.model.examples import MOST, SIDE, Example, Examples
from tyre_lightning.model.inspector import Inspector

LEARNT = 4000  # images of the training set, drawn at random where it has more
_BATCH = 32  # images in memory at one time


class Likeness(NamedTuple):
    """What good tyres look like, how far each of training is from the others, shape (T,), and pictures to show."""

    reference: Reference | None
    distances: NDArray[np.float64]
    examples: Examples | None


UNKNOWN = Likeness(None, NOBODY, None)


def thumbnail(view: Tensor) -> bytes:
    """A small copy of what the network sees, uint8 [3, size, size], as JPEG."""
    picture = F.to_pil_image(view)
    picture.thumbnail((SIDE, SIDE))
    return jpeg_bytes(picture)


def draw(catalog: Catalog, count: int, seed: int) -> Catalog:
    """At most so many images of a catalog, and at most :data:`LEARNT`, drawn at random."""
    count = min(count, LEARNT, len(catalog))
    return catalog.take(np.sort(np.random.default_rng(seed).permutation(len(catalog))[:count]))


def learn_reference(
    inspector: Inspector,
    reader: Reader,
    catalog: Catalog,
    shown: Shown,
    advance: Callable[[int], None] = lambda images: None,
    devices: Sequence[torch.device] = (),
) -> Likeness:
    """See :meth:`Reference.fit`, :func:`left_out` and :meth:`Examples.of`; what cannot be read is left out.

    Args:
        inspector: the model.
        reader: fetches.
        catalog: training images.
        shown: which tyres they show.
        advance: told how many more are done.
        devices: that share the images; none: where the inspector is.

    Raises:
        UserError: an object cannot be fetched.
    """
    known = {name: index for index, name in enumerate(inspector.classes)}
    label = dict(zip(catalog.keys(), catalog.codes(known).tolist(), strict=True))
    chosen = np.random.default_rng(0).permutation(len(catalog))[:MOST]
    small = {catalog.key(index): b"" for index in chosen}
    features, keys = [], []
    for seen in look_at(inspector.on(devices), reader, catalog.entries(), _BATCH):
        for entry, image in zip(seen.entries, seen.images, strict=True):
            if isinstance(image, UnreadableImage):
                continue
            keys.append(entry.key)
            if entry.key in small:
                small[entry.key] = thumbnail(image.view)
        if len(seen.look.features):
            features.append(seen.look.features)
        advance(len(seen.entries))
    if not features:
        return UNKNOWN
    good = inspector.classes.index(str(inspector.good_class))
    every, labels = np.concatenate(features), np.array([label[key] for key in keys], np.int64)
    reference = Reference.fit(every, labels, good)
    distances = left_out(every, labels, good, shown.columns(column(keys))[1].to_numpy())
    if reference is None:
        return Likeness(None, distances, None)
    named = [", ".join(compress(inspector.classes, row)) for row in catalog.truth(inspector.classes)]
    shows, place = dict(zip(catalog.keys(), named, strict=True)), {key: index for index, key in enumerate(keys)}
    pictures = [Example(key, shows[key], copy) for key, copy in small.items() if copy]
    examples = Examples.of(pictures, every[[place[picture.key] for picture in pictures]], reference)
    return Likeness(reference, distances, examples)
