"""Catalogs as a parquet file: what a run trained on, and how another run trains on the same."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tyre_lightning.config import Changed, S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.lake.catalog import Catalog, compact
from tyre_lightning.lake.fingerprint import with_content_tags
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import Store
from tyre_lightning.lake.texts import Texts
from tyre_lightning.lake.tyres import Shown
from tyre_lightning.names import one_form

FORMAT = 2  # in format 1, which has no number, there are neither tyres nor groups
_COLUMNS = ("usage", "key", "label", "size", "etag")
_NAMES = ("tyre", "group")
_ABOUT = b"tyre_lightning"
_NAMED = 5  # keys in a message
_TOGETHER = 100_000  # rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pinned:
    """The images of a run, by usage as the run used them, with content tags; and the root below which they lay.

    Args:
        root: as it was given.
        classes: in the order of the model's outputs.
        catalogs: by usage.
        shown: by usage, the tyres that the images show, as the run told them apart.
    """

    root: str
    classes: tuple[str, ...]
    catalogs: dict[str, Catalog]
    shown: dict[str, Shown] = field(default_factory=dict)


@dataclass
class Difference:
    """Keys of pinned images that the store no longer has, or has with other content."""

    gone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:_NAMED])}{', ...' if len(keys) > _NAMED else ''})"
            for what, keys in (("gone", self.gone), ("changed", self.changed))
            if keys
        ]
        return " and ".join(parts)


def save(path: Path, root: str, catalogs: Mapping[str, Catalog], shown: Mapping[str, Shown] | None = None) -> None:
    """Write catalogs by usage, with content tags, and the tyres that their images show; a row for each key."""
    classes = next(iter(catalogs.values())).classes
    tables = []
    for usage, catalog in ((usage, catalog.apart()) for usage, catalog in catalogs.items()):
        table = catalog.table.add_column(0, "usage", pa.repeat(usage, len(catalog)))
        found = (shown or {}).get(usage, Shown())
        for name, values in zip(_NAMES, found.columns(catalog.table["key"]), strict=True):
            table = table.append_column(name, values)
        tables.append(table)
    about = json.dumps({"format": FORMAT, "root": root, "classes": classes})
    pq.write_table(pa.concat_tables(tables).replace_schema_metadata({_ABOUT: about}), path, compression="zstd")


def load(address: str, s3: S3Config) -> Pinned:
    """Read what :func:`save` wrote, from a path or an ``s3://`` address.

    Raises:
        UserError: it is not such a file, or cannot be read.
    """
    folder, _, name = address.rpartition("/")
    store = open_store(folder if "://" in folder else os.path.dirname(os.path.abspath(address)), s3)
    data = store.get(store.key(name)).data
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        about = json.loads(file.schema_arrow.metadata[_ABOUT])
        classes = tuple(about["classes"])  # as an older version may have spelt them
        if (made := about.get("format", 1)) > FORMAT:
            raise UserError(f"data.catalog={address} has format {made}, and this version knows up to {FORMAT}: update")
        usages = pc.unique(file.read(["usage"])["usage"]).to_pylist()
        catalogs = {usage: _catalog(file, usage, classes) for usage in usages}
        return Pinned(about["root"], tuple(map(one_form, classes)), catalogs, _shown(file))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"data.catalog={address} is not a catalog: give the catalog.parquet of a run") from error


def _shown(file: pq.ParquetFile) -> dict[str, Shown]:
    """The tyres in a catalog's file, by usage; nothing in one of format 1."""
    if any(name not in file.schema_arrow.names for name in _NAMES):
        return {}
    parts: dict[str, list[pa.RecordBatch]] = {}
    for batch in file.iter_batches(_TOGETHER, columns=["usage", "key", *_NAMES]):
        own = pc.and_(*(pc.equal(batch["key"], batch[name]) for name in _NAMES))
        for usage in batch["usage"].unique().to_pylist():
            here = batch.filter(pc.and_(pc.equal(batch["usage"], usage), pc.invert(own)))
            parts.setdefault(usage, []).append(here)
    found = {usage: pa.Table.from_batches(several) for usage, several in parts.items()}
    texts = {
        usage: [table[name].cast(pa.large_string()) for name in ("key", *_NAMES)] for usage, table in found.items()
    }
    return {usage: Shown(Texts(key, tyre), Texts(key, group)) for usage, (key, tyre, group) in texts.items()}


def check(pinned: Pinned, store: Store, changed: Changed, memory: Path) -> Pinned:
    """The pinned images that the store still has, with the tags under which it lists them now.

    Args:
        pinned: what to train on.
        store: where it should be.
        changed: whether images that have gone or changed are an error, or a warning.
        memory: see :func:`with_content_tags`.

    Raises:
        UserError: some have gone or changed and that is an error, or a usage has none left.
    """
    folders = {one_form(store_path.partition("/")[0]) for store_path in _paths(pinned, store)}
    listed = [read_catalog(store, folder, pinned.classes, strict=False) for folder in sorted(folders)]
    tagged = [with_content_tags(store, catalog, memory) for catalog in listed]
    difference = _difference(pinned, tagged)
    if difference.gone or difference.changed:
        if changed is Changed.error:
            raise UserError(f"of the images to train on, {difference}: restore them, or give data.changed=reread")
        log.warning("of the images to train on, %s; training goes on with what is there", difference)
    present = pa.concat_tables([catalog.table.select(["key", "size", "etag"]) for catalog in listed])
    catalogs = {usage: _present(catalog, present) for usage, catalog in pinned.catalogs.items()}
    for usage, catalog in catalogs.items():
        if not len(catalog):
            raise UserError(f"none of the {usage} images to train on is in '{store.root}' any more")
    return Pinned(pinned.root, pinned.classes, catalogs, pinned.shown)


def _paths(pinned: Pinned, store: Store) -> Iterator[str]:
    """Where the images lie below the root."""
    base = store.key("")
    for catalog in pinned.catalogs.values():
        for key in catalog.keys():
            yield key.removeprefix(base)


def _difference(pinned: Pinned, tagged: Sequence[Catalog]) -> Difference:
    now = {key: etag for catalog in tagged for key, etag in _tags(catalog)}
    found = Difference()
    for catalog in pinned.catalogs.values():
        for key, etag in _tags(catalog):
            if key not in now:
                found.gone.append(key)
            elif now[key] != etag:
                found.changed.append(key)
    return found


def _present(catalog: Catalog, present: pa.Table) -> Catalog:
    """The images of a catalog that are present, with their present sizes and tags."""
    place = pc.index_in(catalog.table["key"], value_set=present["key"])
    kept = catalog.table.filter(pc.is_valid(place))
    rows = present.take(place.drop_null())
    for column in ("size", "etag"):
        kept = kept.set_column(kept.schema.get_field_index(column), column, rows[column])
    return Catalog(kept.combine_chunks(), catalog.classes)


def _tags(catalog: Catalog) -> zip[tuple[str, str]]:
    return zip(catalog.keys(), catalog.table["etag"].to_pylist(), strict=True)


def _catalog(file: pq.ParquetFile, usage: str, classes: tuple[str, ...]) -> Catalog:
    """The rows of a usage; labels again as places in ``classes``, whatever way parquet keeps them."""
    names, kinds = tuple(map(one_form, classes)), pa.array(classes)
    parts = []
    for batch in file.iter_batches(_TOGETHER, columns=[*_COLUMNS]):
        own = batch.filter(pc.equal(batch["usage"], usage))
        codes = pc.index_in(own["label"].cast(pa.string()), value_set=kinds)
        parts.append(
            pa.table(
                {
                    "key": own["key"].cast(pa.large_string()),  # an older version wrote texts
                    "label": pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())),
                    "size": own["size"],
                    "etag": own["etag"].cast(pa.large_string()),
                }
            )
        )
    return Catalog(compact(pa.concat_tables(parts)), names)
