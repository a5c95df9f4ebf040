"""How long a model takes for an image."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tyre_lightning.errors import UnreadableImage
from tyre_lightning.model.inspector import Inspector


def latencies_ms(inspector: Inspector, files: Iterable[bytes | UnreadableImage]) -> list[float]:
    """The times, in milliseconds, from a file's bytes to an answer, one image at a time on this machine.

    Of files that are no images there is none.
    """
    times = []
    for file in files:
        started = time.perf_counter()
        try:
            if isinstance(file, UnreadableImage):
                raise file
            inspector.answers([inspector.read(file, "")])
        except UnreadableImage:
            continue
        times.append(1000 * (time.perf_counter() - started))
    return times
