"""The images by which two models are compared: fetched anew, and the very ones that the challenger was tested on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tyre_lightning.audit.copies import read_copies
from tyre_lightning.config import DataConfig, PromoteConfig
from tyre_lightning.errors import UserError
from tyre_lightning.lake.cache import cache_folder
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.fingerprint import fingerprint, with_content_tags
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.pinned import Pinned
from tyre_lightning.lake.reader import Reader, open_cache, open_lake, open_reader
from tyre_lightning.lake.tyres import groups_of
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.promote.comparison import LabelledImages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchedImages:
    """What was listed, without the images that a model was trained on; and the fingerprint of all."""

    reader: Reader
    catalog: Catalog
    fingerprint: str


def fetch_test_images(
    config: PromoteConfig, challenger: str, params: Mapping[str, str], pinned: Sequence[Pinned]
) -> FetchedImages:
    """List the test images.

    Args:
        config: says where, if they are not where the challenger's were.
        challenger: its version.
        params: of its run.
        pinned: what the challenger was trained and tested on, and then, if there is one, the champion.

    Raises:
        UserError: the challenger had no test images, or they are not those that there are now.
    """
    if "test" not in pinned[0].catalogs:
        raise UserError(f"version {challenger} was trained without test images, by which to compare it")
    data = DataConfig(root=config.root or pinned[0].root)
    store = open_lake(str(data.root), data, config.s3)
    listed = read_catalog(store, params.get("data.usage.test", data.usage.test), pinned[0].classes, strict=False)
    tagged = with_content_tags(store, listed, cache_folder(data.cache_dir) / "contents")
    then, now = fingerprint([pinned[0].catalogs["test"]]), fingerprint([tagged])
    if then != now:
        raise UserError(
            f"the test images in {data.root} are not those that version {challenger} was tested on (fingerprint {now}, "
            f"then {then}): train a challenger on this data version, or give root=... of the other"
        )
    reader = open_reader(store, open_cache(store, data), data)
    return FetchedImages(reader, listed.take(_unseen(tagged, pinned)), now)


def _unseen(catalog: Catalog, pinned: Sequence[Pinned]) -> list[int]:
    """Places of the images whose content no model was trained or validated on."""
    usages = [one.catalogs[usage] for one in pinned for usage in ("train", "val") if usage in one.catalogs]
    seen = {tag for usage in usages for tag in usage.table["etag"].to_pylist()}
    kept = [place for place, tag in enumerate(catalog.table["etag"].to_pylist()) if tag not in seen]
    if len(kept) < len(catalog):
        log.warning("%d test images are left out: one of the models was trained on them", len(catalog) - len(kept))
    return kept


def test_set(found: FetchedImages, params: Mapping[str, str], inspector: Inspector) -> LabelledImages:
    """The images with their labels and tyres, as the challenger's training told them apart.

    Args:
        found: the images.
        params: of the challenger's run.
        inspector: the challenger, with an operating point.

    Raises:
        UserError: an image cannot be fetched.
    """
    entries = [*found.catalog.entries()]
    pattern = params.get("data.group_pattern", "None")  # as MLflow keeps what is not set
    copies = read_copies(found.reader, entries, cache_folder(None))
    names = groups_of(found.catalog.keys(), None if pattern == "None" else pattern, copies)
    tyres = np.unique(np.array(names, dtype=object), return_inverse=True)[1]
    return LabelledImages(entries, np.array(found.catalog.labels(), dtype=object), tyres, str(inspector.good_class))
