"""What every image looks like, in numbers: read once, then kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import md5
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tyre_lightning.audit.embedding import WIDTH, Embedder, Sight
from tyre_lightning.audit.memory import Memory
from tyre_lightning.data.decoding import try_decode
from tyre_lightning.data.stream import batched, stream
from tyre_lightning.data.traits import TRAITS, measure
from tyre_lightning.errors import TooManyUnseen, UnreadableImage
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry
from tyre_lightning.progress import progress_bar

_FORM = "looks 2"  # what is kept (1: of damaged images too); another form is made anew
_BATCH = 64  # images in memory at one time; as many again are being fetched
_PART = 4096  # images in one file of what is kept

Floats = NDArray[np.float32]


class _Seen(NamedTuple):
    """One image as it was read: a hash of its bytes, and the rest where it could be decoded."""

    digest: str
    error: str | None
    traits: tuple[float, ...] | None
    view: Tensor | None  # uint8 [3, size, size] of the sight


class Looks:
    """Measurements of N images, in order.

    Args:
        table: columns key, etag, digest (of the file's bytes), error (null where the image was decoded), one column
            for each of :data:`TRAITS` (float32, nan where it was not), and embedding (float16, ``WIDTH`` numbers).
            Brightness, contrast (a standard deviation), colour, sharpness and the four sides' colours and spread are
            on a scale of 0 to 255.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images could be decoded, shape (N,)."""
        return np.asarray(pc.is_null(self.table["error"]))

    def digests(self) -> NDArray[np.object_]:
        """A hash of each file's bytes, shape (N,)."""
        return np.asarray(self.table["digest"].to_numpy(zero_copy_only=False))

    def traits(self) -> Floats:
        """The measurements that :data:`TRAITS` names, shape (N, 22); nan where an image was not decoded."""
        return np.stack([self.table[name].to_numpy() for name in TRAITS], axis=1)

    def embeddings(self) -> NDArray[np.float16]:
        """What :class:`Embedder` saw, shape (N, ``WIDTH``); zeros where an image was not decoded."""
        chunks = [chunk.values.to_numpy().reshape(-1, WIDTH) for chunk in self.table["embedding"].chunks]
        return np.concatenate([np.empty((0, WIDTH), np.float16), *chunks])


def look(
    reader: Reader, entries: Sequence[Entry], memory: Memory, sight: Sight, show: bool = True, most: int | None = None
) -> Looks:
    """Measure images; those that ``memory`` knows are not read again.

    It knows an image of a folder by key and tag, and one on S3, whose tags follow from the contents, by its tag: in
    another data version or bucket too.

    Args:
        reader: reads them.
        entries: which; any number, of which a small batch is in memory at one time.
        memory: of what was seen before.
        sight: how closely they are looked at.
        show: a progress bar, while images are read.
        most: to be read; None: any number.

    Raises:
        TooManyUnseen: it would be more.
        UserError: an object, or what is shared of the memory, cannot be read.
    """
    remote = reader.store.remote
    scope = "s3" if remote else reader.store.address
    name = md5(f"{_FORM} {sight}\n{scope}".encode(), usedforsecurity=False).hexdigest()
    shared, own = memory.load(name, _schema())
    known = pa.concat_tables([shared, own])
    places = _places(known, entries, remote)
    for part in batched(sorted({place for place in places if place is not None and place >= len(shared)}), _PART):
        memory.share(name, known.take(pa.array(part, pa.int64())))  # of a run that shared nothing, or was killed
    missing = [entry for entry, place in zip(entries, places, strict=True) if place is None]
    if most is not None and len(missing) > most:
        raise TooManyUnseen(len(missing))
    with progress_bar(show and bool(missing)) as progress:
        task = progress.add_task("looking at images", total=len(missing))
        for unseen in batched(missing, _PART):
            tables = []
            for table in _tables(Embedder(sight), reader, unseen):
                tables.append(table)
                progress.advance(task, len(table))
            new = pa.concat_tables(tables)
            memory.save(name, new)
            known = pa.concat_tables([known, new])
    found = known.take(pa.array(_places(known, entries, remote), pa.int64()))
    return Looks(found.set_column(0, "key", pa.array([entry.key for entry in entries], pa.string())))


def _places(known: pa.Table, entries: Sequence[Entry], remote: bool) -> list[int | None]:
    """Where each entry is in a table; None where it is not."""
    keys, tags = [entry.key for entry in entries], [entry.etag for entry in entries]
    wanted = _called(pa.array(keys, pa.string()), pa.array(tags, pa.string()), remote)
    return [*pc.index_in(wanted, value_set=_called(known["key"], known["etag"], remote)).to_pylist()]


def _called(keys: Any, tags: Any, remote: bool) -> Any:
    """What images are known by; a server that gives no tags tells nothing by them."""
    both = pc.binary_join_element_wise(keys, tags, "\n")
    return pc.if_else(pc.not_equal(tags, ""), tags, both) if remote else both


def _tables(embedder: Embedder, reader: Reader, entries: Sequence[Entry]) -> Iterator[pa.Table]:
    """A table for each batch of entries."""
    for batch, seen in stream(reader.read, entries, partial(_see, embedder.sight), _BATCH):
        yield _rows(embedder, batch, seen)


def _see(sight: Sight, file: bytes | UnreadableImage, entry: Entry) -> _Seen:
    digest = "" if isinstance(file, UnreadableImage) else xxhash.xxh3_128_hexdigest(file)
    image = try_decode(file, entry.key)
    if isinstance(image, UnreadableImage):
        return _Seen(digest, image.reason, None, None)
    return _Seen(digest, None, measure(image), F.resize(image, [sight.size, sight.size], F.InterpolationMode.BICUBIC))


def _rows(embedder: Embedder, entries: Sequence[Entry], seen: Sequence[_Seen]) -> pa.Table:
    views = [one.view for one in seen if one.view is not None]
    embeddings = np.zeros((len(seen), WIDTH), np.float16)
    embeddings[[one.view is not None for one in seen]] = embedder(views)
    nothing = (float("nan"),) * len(TRAITS)
    traits = np.array([one.traits or nothing for one in seen], np.float32).reshape(-1, len(TRAITS))
    return pa.table(
        {
            "key": pa.array([entry.key for entry in entries], pa.string()),
            "etag": pa.array([entry.etag for entry in entries], pa.string()),
            "digest": pa.array([one.digest for one in seen], pa.string()),
            "error": pa.array([one.error for one in seen], pa.string()),
            **{name: pa.array(traits[:, place]) for place, name in enumerate(TRAITS)},
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), WIDTH),
        }
    )


def _schema() -> pa.Schema:
    numbers = {name: pa.float32() for name in TRAITS}
    texts = {name: pa.string() for name in ("key", "etag", "digest", "error")}
    return pa.schema({**texts, **numbers, "embedding": pa.list_(pa.float16(), WIDTH)})
