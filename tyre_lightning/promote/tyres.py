"""From decisions on pictures to decisions on tyres, each of which counts once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRICTER = ("accept", "review", "reject")  # one after the other

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Verdicts:
    """What becomes of T tyres.

    Args:
        decisions: accept, review or reject, None where no picture is readable; shape (T,).
        defective: whether each tyre is, shape (T,).
    """

    decisions: NDArray[np.object_]
    defective: Bools


def by_tyre(decisions: NDArray[np.object_], defective: Bools, tyres: Ints) -> Verdicts:
    """The verdict on every tyre: the strictest on its readable pictures, which is that on its highest score.

    Args:
        decisions: on pictures, None where one is unreadable, shape (N,).
        defective: whether each picture shows a defect, shape (N,); one is enough for a tyre.
        tyres: a number for the tyre that each shows, shape (N,).
    """
    found, place = np.unique(tyres, return_inverse=True)
    strictest, any_defect = np.zeros(len(found), np.int64), np.zeros(len(found), np.bool_)
    names = np.array([None, *STRICTER], dtype=object)
    ranks = np.array([0 if one is None else 1 + STRICTER.index(one) for one in decisions], dtype=np.int64)
    np.maximum.at(strictest, place, ranks)
    np.logical_or.at(any_defect, place, defective)
    return Verdicts(names[strictest], any_defect)
