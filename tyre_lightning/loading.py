"""How a command imports the heavy libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import what stays as long as the process does, which the garbage collector is never to search.

    It would search all of it again and again while more is imported: for 1.3 of the 8 s of a command that trains for
    one. Only the first time, and not in a user's own process: other garbage that is there by then stays too.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
