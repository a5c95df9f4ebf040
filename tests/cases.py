"""Of cases that differ in a setting only, the first are always tried, and ``make test-all`` tries the others."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import pytest


def first_of(cases: Iterable[Any], often: int = 1) -> list[Any]:
    """What ``parametrize`` takes: so many of some cases as they are, the others marked as slow."""
    left = iter(cases)
    kept = [*islice(left, often)]
    return kept + [pytest.param(*case if isinstance(case, tuple) else (case,), marks=pytest.mark.slow) for case in left]
