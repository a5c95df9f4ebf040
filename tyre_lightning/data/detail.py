"""What pictures show that a network does not see, since they are made smaller for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tyre_lightning.config import EvalCrop
from tyre_lightning.data.transforms import Preprocessing

_WORTH = 1.1  # times as many pixels along a side as the network sees are worth a word


class Detail(NamedTuple):
    """Pictures that are larger than what the network sees of them."""

    larger: int  # of those looked at
    looked: int
    height: int  # of the middle one among them
    width: int
    size: int  # the ``data.image_size`` that would make it no smaller
    times: float  # as many pixels, and about as much time
    more: bool  # time, where the network compares every place with every other
    whole: bool  # pictures are seen, or their middle


def lost_detail(extents: Sequence[tuple[int, int]], preprocessing: Preprocessing, step: int = 1) -> Detail | None:
    """What some pictures lose; None where it is not worth a word.

    A whole picture becomes a square, so that its longer side loses most; of one whose middle is cut out the shorter.

    Args:
        extents: height and width of each, in pixels.
        preprocessing: evaluation's.
        step: what sizes must be multiples of, where the network takes one size only.
    """
    whole = preprocessing.eval_crop == EvalCrop.whole.value
    side, sees = (max, preprocessing.size) if whole else (min, preprocessing.resize)
    larger = sorted((side(extent), extent) for extent in extents if side(extent) >= _WORTH * sees)
    if not larger:
        return None
    pixels, (height, width) = larger[len(larger) // 2]
    size = math.ceil(pixels * preprocessing.size / sees / step) * step
    return Detail(len(larger), len(extents), height, width, size, (size / preprocessing.size) ** 2, step > 1, whole)
