"""What a training takes from a checkpoint."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class FreshStart(Callback):
    """Lets a new run take weights and progress from another run's checkpoint, and not which of its files were best.

    With the other run's peak it might keep no checkpoint of its own, and would then judge and register the other's.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drop it before Lightning hands each callback its state."""
        judges = {callback.state_key for callback in (*trainer.checkpoint_callbacks, *trainer.early_stopping_callbacks)}
        checkpoint["callbacks"] = {key: state for key, state in checkpoint["callbacks"].items() if key not in judges}
