"""How this process keeps memory that it has used."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Have glibc keep what was freed instead of giving it back to the kernel; nothing happens with another C library.

    A training step on a CPU allocates gigabytes of activations and frees them again. By default every large block comes
    fresh from the kernel, page by page, and those page faults cost as much as the arithmetic
    (``benchmarks/memory.py``). See mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library without it, as Alpine's
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
