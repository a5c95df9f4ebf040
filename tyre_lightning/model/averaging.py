"""A moving average of the weights, which generalises better than the last step's (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from functools import partial

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def weight_average(decay: float) -> WeightAveraging:
    """The callback: validation and the saved model use the average over about the last ``1 / (1 - decay)`` steps.

    The first steps count less, with a decay of ``(1 + n) / (10 + n)`` after ``n`` of them (the rule of TensorFlow's
    ``ExponentialMovingAverage``), so that a short training does not end with the weights that it began with.
    """
    return WeightAveraging(avg_fn=partial(move, decay))  # not a closure: it must pickle, for processes that are spawned


def move(decay: float, average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """An average, moved towards a new value after ``count`` others, as torch's ``AveragedModel`` calls it."""
    rate = min(decay, float((1 + count) / (10 + count)))
    return torch.lerp(value.to(torch.float32), average.to(torch.float32), rate)
