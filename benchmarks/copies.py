"""Near-copies among very many images: how long the search takes, how much memory, and what it misses.

``python benchmarks/copies.py [--images 100000] [--copies 2000]``: random embeddings in clusters of all sizes, as tyres
of one type are, with planted near-copies; against all pairs compared one by one.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from tyre_lightning.audit.copies import NEAR, near_copies, whiten
from tyre_lightning.audit.embedding import WIDTH


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


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--copies", type=int, default=2_000)
    options = parser.parse_args()
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
