"""A moving average of the weights, which generalises better than the last step's (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from functools import partial

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


def weight_average(decay: float) -> WeightAveraging:
    """The callback: validation and the saved model use the average over about the last ``1 / (1 - decay)`` steps.

    The first steps count less, with a decay of ``(1 + n) / (10 + n)`` after ``n`` of them (the rule of TensorFlow's
    ``ExponentialMovingAverage``), so that a short training does not end with the weights that it began with.
    """
    return WeightAveraging(multi_avg_fn=partial(move, decay))  # not a closure: it must pickle, for spawned processes


@torch.no_grad()
def move(decay: float, averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
    """Move averages towards new values after ``count`` others, as torch's ``AveragedModel`` calls it.

    All at once, and what is to be known of ``count`` asked once: a GPU would be waited for at every tensor otherwise.
    """
    rate = min(decay, float((1 + count) / (10 + count)))
    get_ema_multi_avg_fn(rate)(averages, values, count)  # type: ignore[no-untyped-call]
