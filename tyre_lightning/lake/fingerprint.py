"""What identifies a set of images: a digest of their keys, labels, sizes and contents, in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b, md5
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tyre_lightning.cores import cores
from tyre_lightning.errors import Unwritable
from tyre_lightning.files import whole
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.store import Entry, Store
from tyre_lightning.lake.trust import distrust, trusted

_MADE_AS = b"tyre_lightning_format"
_FORMAT = 1  # of what is kept; another is made anew
_BATCH = 1024  # files hashed before the next are asked for


def fingerprint(catalogs: Sequence[Catalog]) -> str:
    """32 hexadecimal digits, the same for the same images whatever their order: BLAKE2b over the sorted rows.

    Catalogs are to have content tags (see :func:`with_content_tags`), so that a bucket and its copy on a disk agree.
    An image that lies in several class folders counts as it was listed, once for each.
    """
    chunks = [chunk for catalog in catalogs for chunk in _rows(catalog.apart()).chunks]
    rows = pa.chunked_array(chunks, pa.large_string()).combine_chunks()
    del chunks  # as much as the rows
    order = pc.sort_indices(rows)
    digest = blake2b(digest_size=16)
    for start in range(0, len(rows), _BATCH):  # all of them in order would be as much memory again
        digest.update("".join(rows.take(order[start : start + _BATCH]).to_pylist()).encode())
    return digest.hexdigest()


def with_content_tags(store: Store, catalog: Catalog, memory: Path) -> Catalog:
    """The catalog with tags that follow from the contents alone.

    S3's ETags do: for an object uploaded in one part, the MD5 of its content. A folder's tags hold the file's time, so
    its files are read and hashed with MD5, once: ``memory`` is a folder that keeps what was found.

    Raises:
        UserError: a file cannot be read.
    """
    if store.remote:
        return catalog
    known = _load(path := memory / f"{md5(store.address.encode(), usedforsecurity=False).hexdigest()}.parquet")
    entries = [*catalog.entries()]
    new = [entry for entry in entries if (entry.key, entry.etag) not in known]
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            known.update(pool.map(lambda entry: ((entry.key, entry.etag), _hash(store, entry)), batch))
    if new:
        _save(path, known)
    tags = pa.chunked_array([pa.array([known[entry.key, entry.etag] for entry in entries], pa.string())])
    place = catalog.table.schema.get_field_index("etag")
    return Catalog(catalog.table.set_column(place, "etag", tags), catalog.classes, catalog.ignored)


def _rows(catalog: Catalog) -> pa.ChunkedArray:
    """A line of text for each image."""
    text = pa.large_string()
    columns = [catalog.table[name].cast(text) for name in ("key", "label", "size", "etag")]
    return pc.binary_join_element_wise(*columns, pa.scalar("\n", text), pa.scalar("\t", text))


def _hash(store: Store, entry: Entry) -> str:
    return md5(store.get(entry.key).data, usedforsecurity=False).hexdigest()


def _load(path: Path) -> dict[tuple[str, str], str]:
    if not trusted(path):
        return {}
    try:
        read = pq.read_table(path)
        if int((read.schema.metadata or {}).get(_MADE_AS, b"1")) > _FORMAT:
            return {}
        table = read.to_pydict()
        return dict(zip(zip(table["key"], table["tag"], strict=True), table["md5"], strict=True))
    except (OSError, ValueError, KeyError, pa.ArrowException):  # not there yet, or not whole: then it is made anew
        return {}


def _save(path: Path, known: dict[tuple[str, str], str]) -> None:
    keys, tags = zip(*known, strict=True)
    table = pa.table({"key": keys, "tag": tags, "md5": [*known.values()]}, metadata={_MADE_AS: str(_FORMAT)})
    with suppress(OSError, Unwritable):  # the next run hashes again
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if distrust(path.parent):
            return
        with whole(path) as unfinished:
            pq.write_table(table, unfinished)
