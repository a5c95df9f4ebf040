"""What finding new pictures takes in a folder that holds a full day: ``python benchmarks/inbox.py``.

Pictures with their verdicts (100,000, or ``--pictures N``) lie in one folder; then one more comes, again and again.
Prints what the first look takes (after a restart), a look while nothing comes, a look just after something came, and
the longest time from a picture's last byte until it is given to be looked at, with the pauses that the inbox makes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tyre_lightning.config import S3Config
from tyre_lightning.serving.folder_arrivals import FolderArrivals
from tyre_lightning.serving.inbox import open_arrivals


def timed(place: FolderArrivals) -> tuple[float, list[str]]:
    """A look: seconds, and what was found."""
    begun = time.perf_counter()
    found = [*place.ready()]
    return time.perf_counter() - begun, found


def main() -> None:
    """Measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.pictures):
            Path(folder, f"T{number // 4}_{number}.jpg").touch()
            Path(folder, f"T{number // 4}_{number}.jpg.json").touch()
        place = open_arrivals(folder, None, S3Config())
        assert isinstance(place, FolderArrivals)
        first, found = timed(place)
        assert not found and len(place.take_done()) == options.pictures
        time.sleep(4)
        timed(place)
        idle = statistics.median(timed(place)[0] for _ in range(options.rounds))
        busy, waits = [], []
        for number in range(options.rounds):
            Path(folder, f"new{number}.jpg").write_bytes(b"x")
            begun, found = time.perf_counter(), []
            while not found:
                time.sleep(place.pause)
                took, found = timed(place)
                busy.append(took)
            waits.append(time.perf_counter() - begun)
            assert place.counts(found[0], readable=True)
    print(
        f"{options.pictures:,} pictures and as many verdicts in a folder: first look {first:.2f} s, a look "
        f"{1000 * idle:.2f} ms where nothing came, {1000 * max(busy):.0f} ms at most else; a picture is given "
        f"{max(waits):.2f} s after its last byte at the latest, {statistics.median(waits):.2f} s in the median"
    )


if __name__ == "__main__":
    main()
