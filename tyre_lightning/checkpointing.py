"""What a checkpoint of a training has beside Lightning's own, and what another training takes from it."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from tyre_lightning.errors import Diverged

GRADIENTS = "accumulated_gradients"  # a checkpoint's key


class FreshStart(Callback):
    """Lets a new run take weights and progress from another run's checkpoint, and not which of its files were best.

    With the other run's peak it might keep no checkpoint of its own, and would then judge and register the other's.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drop it before Lightning hands each callback its state."""
        judges = {callback.state_key for callback in (*trainer.checkpoint_callbacks, *trainer.early_stopping_callbacks)}
        checkpoint["callbacks"] = {key: state for key, state in checkpoint["callbacks"].items() if key not in judges}


class KeptGradients(Callback):
    """Keeps in a checkpoint what ``trainer.accumulate_grad_batches`` has summed up and no step has used yet.

    Without it the batches since the last step would be lost to a run that goes on.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # by parameter; copies, as a Ctrl-C may leave half a batch in the originals

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copy the gradients, unless a step has just used them."""
        done = batch_idx + 1
        used = done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches
        parameters = () if used else pl_module.named_parameters()
        self._sums = {name: one.grad.detach().clone() for name, one in parameters if one.grad is not None}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add them; over several processes their mean, which is what a step makes of them."""
        if self._sums:
            reduce = trainer.strategy.reduce
            checkpoint[GRADIENTS] = {name: reduce(one.clone(), reduce_op="mean") for name, one in self._sums.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember them until the model is where it will be trained."""
        self._sums = checkpoint.get(GRADIENTS, {})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add to them from here on."""
        for name, parameter in pl_module.named_parameters():
            if name in self._sums:
                parameter.grad = self._sums[name].to(parameter.device, copy=True)


class LastCheckpoint(ModelCheckpoint):
    """Keeps what an interrupt or an error leaves, unless nothing could go on with it."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save, but no weights that are no numbers in place of good ones."""
        if not isinstance(exception, Diverged):
            super().on_exception(trainer, pl_module, exception)
