"""How this process keeps memory that it has used, and what it says where there is not enough."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tyre_lightning.errors import UserError

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
# What CUDA, its libraries, PyTorch on a CPU, numpy and the system say, to the end of the line; also in the traceback of
# a process that a training has started.
_FULL = re.compile(
    r"(?:(?:CUDA|HIP) (?:error: )?)?"
    r"(?:out of memory|(?:can't|cannot|unable to) allocate|not enough memory|\w+_ALLOC_FAILED).*",
    re.IGNORECASE,
)
_SENTENCES = 3  # of PyTorch, which say how much was wanted and how much there is; its others are for its developers


@contextmanager
def memory_errors(keys: str) -> Iterator[None]:
    """Inside, memory that is not enough is one sentence; also for a whole function, as its decorator.

    Args:
        keys: of the config, on which it depends how much is taken.

    Raises:
        UserError: names them, and says how much was wanted where the library does.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # PyTorch has several kinds for it
        found = _FULL.search(str(error))
        if found is None and not isinstance(error, MemoryError):
            raise
        said = ". ".join(found[0].split(". ")[:_SENTENCES]) if found else "out of memory"
        raise UserError(f"the memory is not enough ({said}): give a smaller {keys}") from error


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
