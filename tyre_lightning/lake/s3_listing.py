"""A folder of a bucket, listed again in less time: what it listed last time is kept on this disk as parquet.

S3 cannot be asked whether a bucket has changed; only a listing tells. But where last time's keys are known, its pages
can be asked for at the same time, and a page that answers as it did then (byte by byte: the same keys, sizes, tags and
times) need not be parsed again. So a listing is never old, and an unchanged one costs little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tyre_lightning.errors import Unwritable, UserError
from tyre_lightning.files import whole
from tyre_lightning.lake.s3_pages import Page
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.trust import distrust, trusted

PAGE = 1000  # keys; S3 gives no more at once
_THREADS = 4  # for each folder: several are listed side by side
_WINDOW = 16  # pages that wait in memory
_FULL = 0.6  # of its keys, a page has on average where it is worth asking for by itself
_BLOCKS = b"tyre_lightning.blocks"

Pages = Callable[[str], Iterator[Page]]  # all pages of what follows a key


class Block(NamedTuple):
    """The keys of one page."""

    table: pa.Table  # columns key, size and etag
    digest: str  # of the page
    after: str  # what follows this key belongs to the block, until the next one's begins


def list_again(pages: Pages, memory: Path) -> Iterator[Entry]:
    """All entries of a folder, sorted by key.

    Args:
        pages: asks the server.
        memory: the file that keeps what was listed; written when all of it is.

    Raises:
        UserError: the server does not keep its keys in order any more.
    """
    blocks = _load(memory)
    ends = [*(block.after for block in blocks[1:]), None]
    listed: list[Block] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(blocks), _WINDOW):
            window = blocks[start : start + _WINDOW]
            begun = pool.map(lambda block: _begin(pages(block.after)), window)
            for block, until, found in zip(window, ends[start:], begun, strict=False):
                for now in _read(block, until, found):
                    listed.append(now)
                    yield from _entries(now.table)
    if [block[1:] for block in listed] != [block[1:] for block in blocks]:
        _save(memory, listed, pages)


def _begin(pages: Iterator[Page]) -> Iterator[Page]:
    """The same pages, the first of which is there already."""
    first = next(pages)

    def all_pages() -> Iterator[Page]:
        yield first
        yield from pages

    return all_pages()


def _read(block: Block, until: str | None, pages: Iterator[Page]) -> Iterator[Block]:
    """What lies between a block's ends now, page by page."""
    after = block.after
    for page in pages:
        digest = page.digest().hex()
        same = digest == block.digest and after == block.after
        table = block.table if same else _table(page.entries())
        if not len(table):
            return
        first, last = str(table["key"][0]), str(table["key"][-1])
        if after and first <= after:
            raise UserError(f"the server lists '{first}' after '{after}', though it kept its keys in order: try again")
        if until is None or first <= until:
            yield Block(table if until is None else table.filter(pc.less_equal(table["key"], until)), digest, after)
        if until is not None and last >= until:
            return
        after = last


def _entries(table: pa.Table) -> Iterator[Entry]:
    columns = (table[name].to_pylist() for name in ("key", "size", "etag"))
    return map(Entry, *columns)


def _table(entries: Sequence[Entry]) -> pa.Table:
    keys, sizes, etags = zip(*entries, strict=True) if entries else ((), (), ())
    return pa.table(
        {"key": pa.array(keys, pa.string()), "size": pa.array(sizes, pa.int64()), "etag": pa.array(etags, pa.string())}
    )


def _load(memory: Path) -> list[Block]:
    """Last time's blocks; a single one without keys where there was no last time."""
    none = [Block(_table(()), "", "")]
    if not trusted(memory):
        return none
    try:
        table = pq.read_table(memory)
        blocks, start = [], 0
        for count, digest, after in json.loads(table.schema.metadata[_BLOCKS]):
            blocks.append(Block(table.slice(start, count), digest, after))
            start += count
        return blocks
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):  # none yet, or not whole: it is made anew
        return none


def _save(memory: Path, blocks: Sequence[Block], pages: Pages) -> None:
    """Keep a listing of several pages, if its server lists in order and from any key on, as Amazon's does."""
    table = pa.concat_tables(block.table for block in blocks) if blocks else _table(())
    with suppress(OSError, Unwritable):  # the next listing takes longer
        memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if distrust(memory.parent):
            return
        memory.unlink(missing_ok=True)
        if len(blocks) < 2 or len(table) < _FULL * PAGE * (len(blocks) - 1) or not _in_order(table, blocks, pages):
            return
        about = json.dumps([(len(block.table), block.digest, block.after) for block in blocks])
        with whole(memory) as unfinished:
            pq.write_table(table.replace_schema_metadata({_BLOCKS: about}), unfinished, compression="zstd")


def _in_order(table: pa.Table, blocks: Sequence[Block], pages: Pages) -> bool:
    keys = table["key"]
    if not pc.all(pc.less(keys[:-1], keys[1:])).as_py():
        return False
    second = next(pages(blocks[1].after)).entries()
    return bool(second) and second[0].key == str(blocks[1].table["key"][0])
