"""Pictures with several defects: the same content in several class folders is one picture that shows all of them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tyre_lightning.lake.catalog import ALSO, COPIES, Catalog

_Rows = dict[tuple[str, int], list[int]]


def merged(catalog: Catalog, tagged: Catalog, good: str) -> Catalog:
    """A row for each picture: of the same content in several folders of defects, the row whose key comes first.

    Content is told by tag and size. What lies among the good tyres too is left as it is: its labels contradict each
    other. So is what lies twice in one folder, unless it lies in another too, and what is empty.

    Args:
        catalog: a row for each stored object.
        tagged: the same rows with content tags, see :func:`tyre_lightning.lake.fingerprint.with_content_tags`.
        good: the class of tyres without a defect.
    """
    sets = sorted(sorted(rows, key=catalog.key) for rows in _in_several_folders(catalog, tagged, good).values())
    if not sets:
        return catalog
    copies = [row for _, *others in sets for row in others]
    kept, counts = np.ones(len(catalog), bool), np.zeros(len(catalog), np.int32)
    kept[copies] = False
    counts[[first for first, *_ in sets]] = [len(others) for _, *others in sets]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts[kept])]), pa.int32())
    further = catalog.take(copies).table
    labels = pc.cast(further["label"].combine_chunks().indices, pa.int32())
    keys = further["key"].combine_chunks()
    table = catalog.take(np.flatnonzero(kept)).table
    table = table.append_column(ALSO, pa.ListArray.from_arrays(offsets, labels))
    table = table.append_column(COPIES, pa.ListArray.from_arrays(offsets, keys))
    return Catalog(table, catalog.classes, catalog.ignored)


def count_several(catalog: Catalog, tagged: Catalog, good: str) -> int:
    """How many pictures :func:`merged` would find to show several defects."""
    return len(_in_several_folders(catalog, tagged, good))


def _in_several_folders(catalog: Catalog, tagged: Catalog, good: str) -> _Rows:
    """The rows of each content that lies in several folders of defects and in none of good tyres, by tag and size.

    Empty files have the same content too, and are each a damaged picture of its own.
    """
    codes = catalog.codes({name: index for index, name in enumerate(catalog.classes)})
    tags = tagged.table["etag"]
    spread = pa.table({"tag": tags, "code": codes}).group_by("tag").aggregate([("code", "min"), ("code", "max")])
    spread = spread.filter(
        pc.and_(pc.not_equal(spread["code_min"], spread["code_max"]), pc.not_equal(spread["tag"], ""))
    )
    shared = pc.and_(pc.is_in(tags, value_set=spread["tag"]), pc.greater(tagged.table["size"], 0))
    rows = np.flatnonzero(shared.to_numpy())
    found: _Rows = defaultdict(list)
    for row in rows.tolist():
        found[str(tags[row]), catalog.table["size"][row].as_py()].append(row)
    classes = {content: {catalog.label(row) for row in members} for content, members in found.items()}
    return {
        content: members
        for content, members in found.items()
        if len(classes[content]) > 1 and good not in classes[content]
    }
