"""How a command imports the heavy libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_loaded = False  # what is frozen could be counted, but that takes as long as a search


@contextmanager
def unsearched() -> Iterator[None]:
    """Import without the garbage collector, which would search all that is there again and again while more comes."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """Import what stays as long as the process does, which the garbage collector is never to search.

    Only the first time, and not in a user's own process: other garbage that is there by then stays too.
    """
    global _loaded
    if _loaded:
        yield
        return
    with unsearched():
        yield
        gc.freeze()
    _loaded = True
