"""Which test images are new to every model that is compared: no other picture of their tyre was learnt from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tyre_lightning.audit.copies import find_copies
from tyre_lightning.audit.embedding import COPIES
from tyre_lightning.audit.looks import Looks, look
from tyre_lightning.audit.memory import Memory
from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.lake.cache import cache_folder
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.pinned import Pinned
from tyre_lightning.lake.reader import Reader, open_cache, open_lake, open_reader
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.texts import are_among, numbered, one_after_other
from tyre_lightning.lake.tyres import Shown, tyre_names

Bools = NDArray[np.bool_]

LEARNT = ("train", "val")  # from the one the weights, from the other the best epoch and the threshold

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Past:
    """What a model's run saw, and how it told tyres apart.

    Args:
        pinned: its images.
        pattern: what names a tyre, as its run was told.
        near_copies: whether its run looked for them.
    """

    pinned: Pinned
    pattern: str | None
    near_copies: bool

    @classmethod
    def of(cls, pinned: Pinned, params: Mapping[str, str]) -> Past:
        """By the parameters of the run, where MLflow has None for what is not set."""
        pattern = params.get("data.group_pattern", "None")
        looked = all(params.get(name, "True") == "True" for name in ("data.near_copies", "found.near_copies"))
        return cls(pinned, None if pattern == "None" else pattern, looked)


def unseen(
    reader: Reader,
    catalogs: tuple[Catalog, Catalog],
    shown: Shown,
    pattern: str | None,
    pasts: Mapping[str, Past],
    s3: S3Config,
    usage: str = "test",
) -> list[int]:
    """Places of the test images that no model has learnt from, nor from another picture of their tyre.

    Args:
        reader: of the test images.
        catalogs: the test images as listed, and the same with content tags.
        shown: which tyres they show.
        pattern: what names a tyre.
        pasts: of the models, by who they are.
        s3: where the S3 service is.
        usage: of the images, for people.
    """  # fmt: skip
    listed, tagged = catalogs
    seen, place = np.zeros(len(listed), bool), numbered(shown.columns(listed.table["key"])[0])[1]
    for name, past in pasts.items():
        one = past.pinned
        found = _same_file(tagged, one) | _same_group(tagged, one)
        for names in filter(None, {pattern, past.pattern}):
            found |= _same_tyre(tagged, names, one)
        if not (past.near_copies and _knows(tagged, one)):
            found |= _near_copies(reader, listed, one, s3)
        tyres = np.unique(place[found])
        found = np.isin(place, tyres)
        if len(tyres):
            log.warning("%d of %d %s images, of %d tyres, are left out: the %s learnt from pictures of these tyres",
                        found.sum(), len(listed), usage, len(tyres), name)  # fmt: skip
        seen |= found
    return [*np.flatnonzero(~seen).tolist()]


def _learnt(one: Pinned) -> Iterator[tuple[str, Catalog]]:
    return ((usage, one.catalogs[usage]) for usage in LEARNT if usage in one.catalogs)


def _same_file(tagged: Catalog, one: Pinned) -> Bools:
    return are_among(tagged.table["etag"], one_after_other(catalog.table["etag"] for _, catalog in _learnt(one)))


def _same_tyre(tagged: Catalog, pattern: str, one: Pinned) -> Bools:
    """By what the file names tell."""

    def named(catalog: Catalog) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        keys = catalog.table["key"]
        tyres = tyre_names(keys, pattern)
        return tyres, pc.not_equal(keys, tyres)

    learnt = one_after_other(tyres.filter(told) for tyres, told in (named(catalog) for _, catalog in _learnt(one)))
    tyres, told = named(tagged)
    return np.asarray(are_among(tyres, learnt) & told.to_numpy(), bool)


def _same_group(tagged: Catalog, one: Pinned) -> Bools:
    """By the near-copies that the model's own run found, where it had these images as test images.

    They are found by their contents, since another version of the lake has them under other keys.
    """

    def groups(usage: str, catalog: Catalog) -> pa.ChunkedArray:
        return one.shown.get(usage, Shown()).columns(catalog.table["key"])[1]

    own = one.catalogs.get("test")
    if own is None:
        return np.zeros(len(tagged), bool)
    bound = are_among(groups("test", own), one_after_other(groups(*learnt) for learnt in _learnt(one)))
    return are_among(tagged.table["etag"], own.table["etag"].filter(pa.array(bound)))


def _knows(tagged: Catalog, one: Pinned) -> bool:
    """Whether the model's run looked for near-copies between these images and those that it learnt from."""
    own = one.catalogs.get("test")
    if "test" not in one.shown or own is None:
        return False
    return bool(are_among(tagged.table["etag"], own.table["etag"]).all())


def _near_copies(reader: Reader, listed: Catalog, one: Pinned, s3: S3Config) -> Bools:
    """By what images look like; of those that were looked at before, on this machine, none is read again."""
    data = DataConfig(root=one.root)
    try:
        store = open_lake(one.root, data, s3)
        keys = {key for _, catalog in _learnt(one) for key in catalog.keys()}
        base = store.key("")
        folders = sorted({key.removeprefix(base).partition("/")[0] for key in keys})
        there = [read_catalog(store, folder, one.classes, strict=False) for folder in folders]
        entries = [entry for catalog in there for entry in catalog.entries() if entry.key in keys]
        theirs = _look(open_reader(store, open_cache(store, data), data), entries)
    except UserError as error:
        log.warning("near-copies among the images that a model learnt from cannot be looked for: %s", error)
        return np.zeros(len(listed), bool)
    ours = _look(reader, [*listed.entries()])
    pairs = find_copies(Looks(pa.concat_tables([ours.table, theirs.table])))
    across = (pairs.left < len(ours)) & (pairs.right >= len(ours))
    return np.isin(np.arange(len(listed)), pairs.left[across])


def _look(reader: Reader, entries: Sequence[Entry]) -> Looks:
    return look(reader, entries, Memory(cache_folder(None)), COPIES)
