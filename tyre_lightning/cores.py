"""How many cores there are to work with, which are often fewer than the machine has."""

from __future__ import annotations

import os


def cores() -> int:
    """Those that this process may use: it may be bound to some (SLURM, taskset), or have a share (a container)."""
    from joblib import cpu_count

    return int(cpu_count())


def threads() -> int:
    """How many threads one computation is divided among: the cores, or fewer where ``OMP_NUM_THREADS`` says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(cores(), int(asked)) if asked.isdecimal() and int(asked) else cores()
