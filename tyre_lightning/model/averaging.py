"""A moving average of the weights, which generalises better than the last step's (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from itertools import chain

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Averaging(WeightAveraging):
    """Validation and the saved model use the average over about the last ``1 / (1 - decay)`` steps.

    Args:
        decay: from 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay = decay

    @property
    def state_key(self) -> str:
        """As older versions' checkpoints have it."""
        return WeightAveraging.__qualname__

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin on the device that is trained on; Lightning's own would be on the CPU, where the model comes from."""
        if stage == "fit":
            self._average_model = Average(self._decay, pl_module, trainer.strategy.root_device)


class Average(AveragedModel):
    """The average of a model's weights and statistics.

    The first steps count less, with a decay of ``(1 + n) / (10 + n)`` after ``n`` of them (the rule of TensorFlow's
    ``ExponentialMovingAverage``), so that a short training does not end with the weights that it began with.

    Args:
        decay: from 0 to 1.
        model: to begin with.
        device: where the average is kept.
    """

    n_averaged: torch.Tensor

    def __init__(self, decay: float, model: nn.Module, device: torch.device) -> None:
        super().__init__(model, device, use_buffers=True)
        self._decay = decay
        self.n_averaged = torch.tensor(0)  # on the CPU: to know it, nobody waits for a GPU

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move all averages at once towards the model's values; what is counted is copied."""
        count = int(self.n_averaged)
        rate = min(self._decay, (1 + count) / (10 + count)) if count else 0.0
        averages = [*chain(self.module.parameters(), self.module.buffers())]
        values = [*chain(model.parameters(), model.buffers())]
        for kept in {one.dtype for one in averages}:
            here = [one for one in averages if one.dtype == kept]
            there = [one for one in values if one.dtype == kept]
            if kept.is_floating_point:
                torch._foreach_lerp_(here, there, 1 - rate)
            else:
                torch._foreach_copy_(here, there)
        self.n_averaged += 1
