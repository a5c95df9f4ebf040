"""The images by which two models are compared: fetched anew, and the very ones that the challenger was tested on."""

from __future__ import annotations

from collections.abc import Mapping

from tyre_lightning.audit.copies import read_copies
from tyre_lightning.audit.memory import Memory
from tyre_lightning.config import DataConfig, PromoteConfig
from tyre_lightning.errors import UserError
from tyre_lightning.lake.cache import cache_folder
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.fingerprint import fingerprint, with_content_tags
from tyre_lightning.lake.grouping import Grouping
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.reader import Reader, open_cache, open_lake, open_reader
from tyre_lightning.lake.several import merged
from tyre_lightning.lake.tyres import Shown
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.promote.comparison import TestSet
from tyre_lightning.promote.unseen import Past, unseen


def fetch_test_images(
    config: PromoteConfig,
    challenger: str,
    params: Mapping[str, str],
    pasts: Mapping[str, Past],
    inspector: Inspector,
) -> tuple[TestSet, str]:
    """List the test images, without those of tyres that a model has learnt from; gives the fingerprint of all too.

    Args:
        config: says where, if they are not where the challenger's were.
        challenger: its version.
        params: of its run.
        pasts: what each model was trained and tested on, by who they are; the challenger first.
        inspector: the challenger, with an operating point.

    Raises:
        UserError: the challenger had no test images, or they are not those that there are now.
    """
    past = next(iter(pasts.values()))
    own = past.pinned
    if "test" not in own.catalogs:
        raise UserError(f"version {challenger} was trained without test images, by which to compare it")
    data = DataConfig(root=config.root or own.root)
    store = open_lake(str(data.root), data, config.s3)
    listed = read_catalog(store, params.get("data.usage.test", data.usage.test), own.classes, strict=False)
    tagged = with_content_tags(store, listed, cache_folder(data.cache_dir) / "contents")
    then, now = fingerprint([own.catalogs["test"]]), fingerprint([tagged])
    if then != now:
        raise UserError(
            f"the test images in {data.root} are not those that version {challenger} was tested on (fingerprint {now}, "
            f"then {then}): train a challenger on this data version, or give root=... of the other"
        )
    reader = open_reader(store, open_cache(store, data), data)
    pattern = inspector.group_pattern or past.pattern  # models of format 1 do not know it
    shown = own.shown.get("test") or _look_for_tyres(reader, listed, pattern)
    places = unseen(reader, (listed, tagged), shown, pattern, pasts, config.s3)
    good, catalog = str(inspector.good_class), listed.take(places)
    if inspector.multi_label:  # as its own run counted them
        catalog = merged(catalog, tagged.take(places), good)
    return TestSet(reader, catalog, shown, good), now


def _look_for_tyres(reader: Reader, catalog: Catalog, pattern: str | None) -> Shown:
    """Where a run of format 1 recorded none."""
    pairs = read_copies(Memory(cache_folder(None)), reader, [*catalog.entries()])
    return Grouping.of([catalog], pattern, pairs).shown(catalog)
