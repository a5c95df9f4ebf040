"""What the good tyres of training look like to a trained network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from tyre_lightning.decision.novelty import Reference
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.evaluation.scoring import look_at
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.model.inspector import Inspector

LEARNT = 4000  # images of the training set, drawn at random where it has more
_BATCH = 32  # images in memory at one time


def draw(catalog: Catalog, count: int, seed: int) -> Catalog:
    """At most so many images of a catalog, and at most :data:`LEARNT`, drawn at random."""
    count = min(count, LEARNT, len(catalog))
    return catalog.take(np.sort(np.random.default_rng(seed).permutation(len(catalog))[:count]))


def learn_reference(
    inspector: Inspector,
    reader: Reader,
    catalog: Catalog,
    advance: Callable[[int], None] = lambda images: None,
    devices: Sequence[torch.device] = (),
) -> Reference | None:
    """See :meth:`Reference.fit`; what cannot be read is left out.

    Args:
        inspector: the model.
        reader: fetches.
        catalog: training images.
        advance: told how many more are done.
        devices: that share the images; none: where the inspector is.

    Raises:
        UserError: an object cannot be fetched.
    """
    known = {name: index for index, name in enumerate(inspector.classes)}
    label = dict(zip(catalog.keys(), catalog.codes(known).tolist(), strict=True))
    features, labels = [], []
    for seen in look_at(inspector.on(devices), reader, catalog.entries(), _BATCH):
        pairs = zip(seen.entries, seen.images, strict=True)
        labels += [label[entry.key] for entry, image in pairs if not isinstance(image, UnreadableImage)]
        if len(seen.look.features):
            features.append(seen.look.features)
        advance(len(seen.entries))
    if not features:
        return None
    good = inspector.classes.index(str(inspector.good_class))
    return Reference.fit(np.concatenate(features), np.array(labels, np.int64), good)
