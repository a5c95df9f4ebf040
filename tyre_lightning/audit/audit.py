"""The audit, top to bottom: list, look, find copies, test for shortcuts, doubt labels, write tables and a page."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig

from tyre_lightning.audit.copies import Pairs, find_copies
from tyre_lightning.audit.embedding import COPIES, LABELS
from tyre_lightning.audit.findings import COLUMNS, FINDINGS, IMAGES, PAGE, Audit
from tyre_lightning.audit.labels import Suspects, shortcut, suspects
from tyre_lightning.audit.looks import Looks, look
from tyre_lightning.audit.memory import open_memory
from tyre_lightning.audit.page import render
from tyre_lightning.config import DataConfig, S3Config, to_audit_config
from tyre_lightning.data.traits import TRAITS
from tyre_lightning.errors import UserError
from tyre_lightning.files import disk_errors, write_whole
from tyre_lightning.lake.cache import cache_folder
from tyre_lightning.lake.catalog import Catalog, Lake
from tyre_lightning.lake.fingerprint import with_content_tags
from tyre_lightning.lake.listing import needed_good_class, read_lake
from tyre_lightning.lake.manifest import shard_of
from tyre_lightning.lake.reader import open_cache, open_lake, open_reader
from tyre_lightning.lake.several import merged
from tyre_lightning.lake.store import Store
from tyre_lightning.lake.texts import column
from tyre_lightning.lake.tyres import count_tyres, groups_of, tyre_names
from tyre_lightning.names import csv_text

log = logging.getLogger(__name__)


@disk_errors()
def audit(cfg: DictConfig) -> Audit:
    """Audit the lake of a composed config and write the findings to its ``output``.

    Raises:
        UserError: the lake or the output folder cannot be used.
    """
    config = to_audit_config(cfg)
    output = Path(os.path.expanduser(config.output))
    new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={config.output} cannot be made: {error.strerror}") from error
    try:
        found = examine(config.data, config.s3)
    except BaseException:
        if new:
            with suppress(OSError):  # somebody else has put something there
                output.rmdir()
        raise
    found.images.to_parquet(output / IMAGES, index=False)
    write_whole(output / FINDINGS, csv_text(found.findings))
    write_whole(output / PAGE, render(found))
    return found


@disk_errors()
def look_ahead(cfg: DictConfig) -> int:
    """Look at the images of one shard of a composed config, and keep what was seen where all find it; how many.

    Raises:
        UserError: the lake cannot be used, or what was seen cannot be kept there.
    """
    config = to_audit_config(cfg)
    assert config.shard is not None and config.data.looks is not None
    store, lake = _open(config.data, config.s3)
    reader = open_reader(store, open_cache(store, config.data), config.data)
    listed = (catalog for catalog in (lake.train, lake.val, lake.test) if catalog is not None)
    entries = [
        entry for catalog in listed for entry in catalog.entries()
        if shard_of(entry.key, config.shards) == config.shard
    ]  # fmt: skip
    memory = open_memory(config.data, config.s3)
    for sight in (COPIES, LABELS):
        look(reader, entries, memory, sight)
    memory.check()
    for problem in reader.problems:
        log.warning("%s", problem)
    return len(entries)


def examine(data: DataConfig, s3: S3Config) -> Audit:
    """Look at every image of a lake, and find what may spoil a training or its test.

    Raises:
        UserError: there is no such lake, or an object in it cannot be read.
    """
    store, lake = _open(data, s3)
    reader = open_reader(store, open_cache(store, data), data)
    usages = {"train": lake.train, "val": lake.val, "test": lake.test}
    catalogs = {usage: catalog for usage, catalog in usages.items() if catalog is not None}
    if data.multi_label:
        good, folder = needed_good_class(lake.classes, data.good_class), cache_folder(data.cache_dir) / "contents"
        catalogs = {usage: merged(one, with_content_tags(store, one, folder), good) for usage, one in catalogs.items()}
    images = _listed(catalogs)
    entries = [entry for catalog in catalogs.values() for entry in catalog.entries()]
    if data.group_pattern is not None:
        keys = column(entry.key for entry in entries)
        count_tyres(keys, tyre_names(keys, data.group_pattern), data.group_pattern)
    memory = open_memory(data, s3)
    looks = look(reader, entries, memory, COPIES)
    pairs = find_copies(looks)
    close = look(reader, entries, memory, LABELS)
    for problem in reader.problems:
        log.warning("%s", problem)
    return conclude(store, lake.classes, images, looks, close, pairs, data.group_pattern)


def _open(data: DataConfig, s3: S3Config) -> tuple[Store, Lake]:
    store = open_lake(str(data.root), data, s3)
    return store, read_lake(store, data)


def conclude(
    store: Store,
    classes: tuple[str, ...],
    images: pd.DataFrame,
    looks: Looks,
    close: Looks,
    pairs: Pairs,
    pattern: str | None,
) -> Audit:
    """Put together what was seen of N images (``looks`` from afar, ``close`` for their labels)."""
    names = groups_of(images["key"].tolist(), pattern, (pairs.left, pairs.right))
    group = np.unique(np.array(names, dtype=object), return_inverse=True)[1]
    traits = looks.traits()
    images = images.assign(error=looks.table["error"].to_pandas(), group=group)
    images[list(TRAITS)] = traits
    known = np.flatnonzero(looks.readable)
    first = images["shows"].str[0] if "shows" in images else images["label"]
    codes = first.map({name: place for place, name in enumerate(classes)}).to_numpy()
    trivial = shortcut(traits[known], codes[known], group[known])
    doubted = suspects(close.embeddings()[known].astype(np.float32), codes[known], group[known])
    findings = [_unreadable(images), _copies(images, pairs), _labels(images, classes, known, doubted)]
    table = pd.concat([part for part in findings if len(part)] or findings[:1], ignore_index=True)
    table = table.reindex(columns=COLUMNS)  # a lake without copies, say, lacks none of their columns
    return Audit(store, classes, images, table, trivial, None if doubted is None else doubted.agreement)


def _listed(catalogs: dict[str, Catalog]) -> pd.DataFrame:
    tables = [
        pd.DataFrame({"key": one.keys(), "usage": usage, "label": one.labels(), "size": one.table["size"].to_numpy()})
        for usage, one in catalogs.items()
    ]
    whole = pd.concat(tables, ignore_index=True)
    if any(one.several() for one in catalogs.values()):
        whole["shows"] = [shown for one in catalogs.values() for shown in _shown(one)]
        whole["label"] = whole["shows"].str.join(", ")
    return whole.astype({"label": "str"})


def _shown(catalog: Catalog) -> list[list[str]]:
    """The classes that each image shows."""
    names = np.array(catalog.classes, dtype=object)
    return [names[row].tolist() for row in catalog.truth(catalog.classes)]


def _unreadable(images: pd.DataFrame) -> pd.DataFrame:
    broken = images[images["error"].notna()]
    return broken[["key", "usage", "label", "error"]].assign(kind="unreadable")


def _copies(images: pd.DataFrame, pairs: Pairs) -> pd.DataFrame:
    """Conflicts first, then leaks, then the rest; the most alike first."""
    left, right = (_place(images, places) for places in (pairs.left, pairs.right))
    table = pd.concat([left, right.add_prefix("other_")], axis=1).assign(distance=pairs.distance)
    table["kind"] = np.where(pairs.exact, "exact copy", "near-copy")
    agree = table["label"] == table["other_label"]
    alone = table["usage"] == table["other_usage"]
    ranked = table.assign(agree=agree, alone=alone).sort_values(["agree", "alone", "distance"], kind="stable")
    return ranked.drop(columns=["agree", "alone"])


def _labels(
    images: pd.DataFrame, classes: Sequence[str], known: NDArray[np.int64], doubted: Suspects | None
) -> pd.DataFrame:
    if doubted is None:
        return _place(images, np.empty(0, np.int64))
    suggested = [classes[code] for code in doubted.suggested]
    table = _place(images, known[doubted.place])
    table = table.assign(kind="label", suggested=suggested, confidence=doubted.confidence)
    if "shows" not in images:
        return table
    shows = images["shows"].iloc[known[doubted.place]]
    return table[[name not in shown for name, shown in zip(suggested, shows, strict=True)]]


def _place(images: pd.DataFrame, places: NDArray[np.int64]) -> pd.DataFrame:
    return images[["key", "usage", "label"]].iloc[places].reset_index(drop=True)
