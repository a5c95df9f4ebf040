"""How the heavy libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import without the garbage collector, which would search all that is new again and again and find nothing.

    It takes a third of the seconds that torch, torchvision and Lightning need.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()
