"""Which images show the same: files with the same bytes, and near-copies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.audit.embedding import COPIES
from tyre_lightning.audit.looks import Looks, look
from tyre_lightning.audit.memory import Memory
from tyre_lightning.decision.novelty import principal
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import Entry

NEAR = 0.25  # cosine distance of two near-copies, at most; see benchmarks/README.md for what that finds
SURE = 0.1  # from here on down it is proof enough, however many images there are
FEWEST = 40  # images; among fewer it cannot be told what is usual and what is a copy

_DIMENSIONS = 128
_SHRINKAGE = 0.1  # of the mean variance
_SAMPLE = 20_000  # images from which the usual is learned
_NEIGHBOURS = 16  # looked at for each image; larger groups hang together through them
_FEW = 2000  # images; among so few two that differ are hardly ever within NEAR
_USUAL = 64  # neighbours that tell how close others come to an image
_OWN = 8  # of these, the nearest, may be copies
_CHANCE = 1e-4  # expected number of others that come as close to an image as a near-copy does, at most
_EXACT_SEARCH = 20_000  # images; above, an index with cells
_CELLS = 4  # times the square root of the number of images
_PROBED = 32  # cells for each image

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Pairs(NamedTuple):
    """M pairs of images that show the same, each once; ``left`` is the earlier of the two in the order of the looks."""

    left: Ints  # [M]
    right: Ints  # [M]
    distance: Floats  # [M]: 0 for files with the same bytes, up to NEAR for near-copies
    exact: NDArray[np.bool_]  # [M]: the files have the same bytes


def read_copies(memory: Memory, reader: Reader, entries: Sequence[Entry], most: int | None = None) -> tuple[Ints, Ints]:
    """Places [M] and [M] in ``entries`` of images that show the same tyre; what was seen of them stays in ``memory``.

    Raises:
        TooManyUnseen: more than ``most`` are to be read for it.
        UserError: an object cannot be read.
    """
    pairs = find_copies(look(reader, entries, memory, COPIES, most=most))
    return pairs.left, pairs.right


def find_copies(looks: Looks) -> Pairs:
    """All pairs of near-copies, and enough pairs of exact copies to hold each set of them together.

    Memory and time grow with the number of images, not with its square: an index (FAISS, arXiv:2401.08281) gives each
    image's nearest neighbours.
    """
    left, right = _same_bytes(looks)
    places = np.flatnonzero(looks.readable)
    near_left, near_right, near = near_copies(looks.embeddings()[places])
    one = np.concatenate([left, places[near_left]])
    other = np.concatenate([right, places[near_right]])
    distance = np.concatenate([np.zeros(len(left), np.float32), near])
    low, high = np.minimum(one, other), np.maximum(one, other)
    _, first = np.unique(low * len(looks) + high, return_index=True)  # exact copies come first and stay
    return Pairs(low[first], high[first], distance[first], first < len(left))


def near_copies(embeddings: NDArray[np.float16]) -> tuple[Ints, Ints, Floats]:
    """The pairs at most ``NEAR`` apart, and how far; none among fewer than ``FEWEST`` images.

    The more tyres there are, the closer come two that differ, and a distance alone would in the end call most of them
    copies. So among many images a pair counts only if it is closer than others of the lake come by chance: how many
    would be as close is told by the 64 nearest to each of both, whose number grows by a power of the distance.

    Args:
        embeddings: [N, D].

    Returns:
        Places [M] and [M], and cosine distances [M]; a pair may be there twice.
    """
    count = len(embeddings)
    if count < FEWEST:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    points = whiten(embeddings)
    index, wanted = _index(points), min(_USUAL + 1, count)
    parts = [_neighbours(index, points, start, wanted) for start in range(0, count, _SAMPLE)]
    left, right, distance, reach, rise = (np.concatenate(part) for part in zip(*parts, strict=True))
    if count > _FEW:
        closer = np.log(distance[:, None] / np.stack([reach[left], reach[right]], 1)).max(1)
        kept = (distance <= SURE) | (np.log(_USUAL) + np.median(rise) * closer <= np.log(_CHANCE))
        left, right, distance = left[kept], right[kept], distance[kept]
    return left, right, distance


def _neighbours(index: Any, points: Floats, start: int, wanted: int) -> tuple[Ints, Ints, Floats, Floats, Floats]:
    """Of some of the images: pairs at most ``NEAR`` apart, how far the last of the wanted neighbours is, and how fast
    their number rises with the distance: by which power, as dimensions would have it (Hill, Annals of Statistics 1975;
    Levina and Bickel, NIPS 2004).
    """
    similarity, found = index.search(points[start : start + _SAMPLE], wanted)
    distance = (1 - similarity).clip(1e-6, 2)
    reach = distance[:, -1]
    rise = 1 / np.log(reach[:, None] / distance[:, _OWN:-1]).mean(1).clip(1e-6)
    own = np.arange(start, start + len(found))[:, None]
    near = ((found >= 0) & (found != own) & (distance <= NEAR))[:, : _NEIGHBOURS + 1]
    left, place = np.nonzero(near)
    return left + start, found[left, place].astype(np.int64), distance[left, place], reach, rise


def whiten(embeddings: NDArray[np.float16]) -> Floats:
    """Unit vectors in which what sets the images of this lake apart counts, not what they have in common.

    Tyres before one camera are all alike to a network that was trained on everything. Principal components, each
    divided by its spread, take that away (Jegou and Chum, ECCV 2012, "Negative evidences and co-occurences"); the
    spread has a tenth of the mean variance added, so that noise is not blown up.

    Args:
        embeddings: [N, D].

    Returns:
        [N, at most 128], of length 1 (0 for an image that is just the mean).
    """
    mean, turn = _components(embeddings)
    points = np.empty((len(embeddings), turn.shape[1]), np.float32)
    for start in range(0, len(embeddings), _SAMPLE):  # the whole in float32 would take twice its memory
        points[start : start + _SAMPLE] = (_unit(embeddings[start : start + _SAMPLE]) - mean) @ turn
    return _unit(points)


def _components(embeddings: NDArray[np.float16]) -> tuple[Floats, Floats]:
    """The mean [D], and the matrix [D, d] that whitens."""
    chosen = np.random.default_rng(0).permutation(len(embeddings))[:_SAMPLE]
    sample = _unit(embeddings[np.sort(chosen)])
    mean = sample.mean(0)
    values, directions = principal((sample - mean).astype(np.float64))
    variance, kept = values / len(sample), min(_DIMENSIONS, len(embeddings) // 2)
    spread = np.sqrt(variance + _SHRINKAGE * variance.mean() + 1e-12)
    return mean, (directions[:kept] / spread[:kept, None]).T.astype(np.float32)


def _unit(vectors: NDArray[np.floating]) -> Floats:
    values = vectors.astype(np.float32)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6))


def _index(points: Floats) -> Any:
    count, dimensions = points.shape
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it says that it loads
    import faiss

    # By the square root, so that neither to make the cells nor to search a few of them grows with the square.
    cells = f"IVF{round(_CELLS * count**0.5)},Flat" if count > _EXACT_SEARCH else "Flat"
    index: Any = faiss.index_factory(dimensions, cells, faiss.METRIC_INNER_PRODUCT)
    if count > _EXACT_SEARCH:
        index.nprobe = _PROBED
        index.train(points)
    index.add(points)
    return index


def _same_bytes(looks: Looks) -> tuple[Ints, Ints]:
    """Each copy with the first of its kind; files that cannot be read are often alike, and show no tyre."""
    places = np.flatnonzero(looks.readable)
    _, first, kind = np.unique(looks.digests()[places].astype(str), return_index=True, return_inverse=True)
    copies = np.flatnonzero(first[kind] != np.arange(len(places)))
    return places[first[kind[copies]]], places[copies]
