"""Near-copies among very many images: how long the search takes, how much memory, and what it misses.

``python benchmarks/copies.py [--images 100000] [--copies 2000]``: random embeddings in clusters of all sizes, as tyres
of one type are, with planted near-copies; against all pairs compared one by one. ``--drawn FOLDER [--images ...]``:
drawn tyres that all differ, and copies of some (turned, mirrored, brighter or darker, cropped); how many pairs are
right, as the lake grows. FOLDER keeps what was seen of them, 17 ms of a core for each.
"""

from __future__ import annotations

import argparse
import io
import itertools
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from rich.progress import track
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torchvision.transforms.v2 import functional as F

from tyre_lightning.audit.copies import NEAR, near_copies, whiten
from tyre_lightning.audit.embedding import COPIES, WIDTH, Embedder
from tyre_lightning.data.decoding import decode
from tyre_lightning.demo.drawing import CLASSES, draw

PART, SIDE, SMALLEST = 500, 160, 1000  # images of a file, pixels, images of the smallest lake


def embeddings(images: int, copies: int, seed: int = 0) -> np.ndarray:
    """float16 [images, WIDTH]; the last ``copies`` rows are near-copies of the first."""
    rng = np.random.default_rng(seed)
    clusters = rng.normal(0, 1, (200, WIDTH)).astype(np.float32)
    spectrum = (1 / np.sqrt(1 + np.arange(WIDTH))).astype(np.float32)  # few directions hold most of the spread
    found = np.empty((images, WIDTH), np.float16)
    kinds = rng.zipf(1.3, images) % len(clusters)
    for start in range(0, images, 10_000):
        part = slice(start, min(start + 10_000, images))
        own = rng.normal(0, 1, (part.stop - part.start, WIDTH)).astype(np.float32)
        found[part] = (5 + spectrum * (2 * clusters[kinds[part]] + 3 * own)).astype(np.float16)
    noise = rng.normal(0, 0.35, (copies, WIDTH)).astype(np.float32) * spectrum
    found[images - copies :] = (found[:copies] + noise).astype(np.float16)
    return found


def all_pairs(points: np.ndarray) -> tuple[set[tuple[int, int]], float]:
    """Every near pair, and the seconds it took."""
    started = time.monotonic()
    found = set()
    for start in range(0, len(points), 1000):
        left, right = np.nonzero(points[start : start + 1000] @ points.T >= 1 - NEAR)
        found |= {(a, b) for a, b in zip((left + start).tolist(), right.tolist(), strict=True) if a < b}
    return found, time.monotonic() - started


def picture(number: int, copied: bool) -> Image.Image:
    """A drawn tyre, or a copy of it."""
    image = draw(CLASSES[number % len(CLASSES)], number, SIDE)[0]
    if not copied:
        return image
    rng = np.random.default_rng([7, number])
    image = image.rotate(90 * int(rng.integers(4)))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))
    if rng.random() < 0.5:
        edge = int(rng.integers(0, int(0.08 * SIDE)))
        image = image.crop((edge, edge, SIDE, SIDE)).resize((SIDE, SIDE))
    return image


def see(embedder: Embedder, number: int, copied: bool, folder: Path) -> np.ndarray:
    """Embeddings [PART, WIDTH] of a file's images, as they would be looked at in a lake."""
    path = folder / f"{'copy' if copied else 'base'}_{number:07}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    views = []
    for one in range(number, number + PART):
        picture(one, copied).save(file := io.BytesIO(), "JPEG", quality=85)
        views.append(seen(file.getvalue()))
    found = np.concatenate([embedder(views[start : start + 32]) for start in range(0, PART, 32)])
    np.save(path, found)
    return found


def seen(file: bytes) -> torch.Tensor:
    """An image as the look from afar has it."""
    view: torch.Tensor = F.resize(decode(file, "drawn"), [COPIES.size, COPIES.size], F.InterpolationMode.BICUBIC)
    return view


def drawn(folder: Path, images: int) -> None:
    """Print what is right of lakes of all sizes; one image in ten is there twice, but no more than 2,000."""
    folder.mkdir(parents=True, exist_ok=True)
    embedder = Embedder(COPIES)
    base = np.concatenate([see(embedder, number, False, folder) for number in track(range(0, images, PART), "drawing")])
    copies = np.concatenate([see(embedder, number, True, folder) for number in range(0, 2000, PART)])
    for size in [*itertools.takewhile(images.__gt__, (SMALLEST * 2**step for step in itertools.count())), images]:
        planted = min(2000, size // 10)
        tyre = np.concatenate([np.arange(size), np.arange(planted)])
        left, right, _ = near_copies(np.concatenate([base[:size], copies[:planted]]))
        pairs = np.unique(np.stack([np.minimum(left, right), np.maximum(left, right)]), axis=1)
        right_ones = int((tyre[pairs[0]] == tyre[pairs[1]]).sum())
        joined = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(len(tyre),) * 2)
        largest = int(np.bincount(connected_components(joined, directed=False)[1]).max())
        wrong = pairs.shape[1] - right_ones
        print(f"{size} tyres: {right_ones} of {planted} copies found ({right_ones / planted:.3f}); {wrong} other "
              f"pairs, {1000 * wrong / len(tyre):.1f} for 1,000 images; the largest group has {largest}",
              flush=True)  # fmt: skip


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--copies", type=int, default=2_000)
    parser.add_argument("--drawn", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.drawn:
        drawn(options.drawn, options.images)
        return
    data = embeddings(options.images, options.copies)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    left, right, _ = near_copies(data)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {(min(a, b), max(a, b)) for a, b in zip(left.tolist(), right.tolist(), strict=True)}
    planted = {(place, options.images - options.copies + place) for place in range(options.copies)}
    truth, exhaustive = all_pairs(whiten(data))
    print(f"{options.images} images: {seconds:.1f} s, {peak * 1024 / options.images / 1e3:.1f} kB an image more than "
          f"the embeddings' {2 * WIDTH / 1e3:.1f} kB")  # fmt: skip
    print(f"planted pairs found: {len(found & planted)} of {len(planted)}")
    print(f"all near pairs found: {len(found & truth)} of {len(truth)}; comparing all pairs took {exhaustive:.0f} s, "
          f"{exhaustive / seconds:.1f} times as long")  # fmt: skip


if __name__ == "__main__":
    main()
