"""What a checkpoint of a training has beside Lightning's own, how it gets to the disk, and what is taken from it."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from tyre_lightning.errors import Diverged, Unwritable
from tyre_lightning.files import is_whole, whole

FOLDER = "checkpoints"  # in that of a run
GRADIENTS = "accumulated_gradients"  # a checkpoint's key
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
LOOPS = "loops"  # a checkpoint's key: how far the training was
# What only a training that goes on needs of a checkpoint: three quarters of it. The last two are the weight average's.
_PROGRESS = ("optimizer_states", "lr_schedulers", LOOPS, GRADIENTS, "current_model_state", "averaging_state")

log = logging.getLogger(__name__)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes every checkpoint of a training whole or not at all; what the last one held before stays beside it."""

    def __init__(self) -> None:
        super().__init__()
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one.

        Raises:
            Unwritable: it cannot be, or one that was written before is gone: no epoch more would be of use.
        """
        for place in self._written:
            if not place.is_file():
                raise Unwritable(f"{place} is gone, though this run goes on: nothing may be deleted in its folder")
        save_whole(checkpoint, path)
        self._written.add(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete one."""
        self._written.discard(Path(path))
        super().remove_checkpoint(path)


def save_whole(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint in the place of what is there, whole or not at all.

    Raises:
        Unwritable: the disk is full, and the like.
    """
    buffer = io.BytesIO()  # of a file that fails, torch.save only says that it is no good
    torch.save(content, buffer)
    with whole(path) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())
        if Path(path).name == LAST:
            _keep(Path(path))


def model_alone(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint has, without what only a training that goes on needs."""
    return {name: value for name, value in content.items() if name not in _PROGRESS}


def _keep(last: Path) -> None:
    """Give what the last checkpoint holds now a second name; costs no copy."""
    with suppress(OSError):  # there is none yet, or the file system has no links: the best is the one before, then
        link = last.with_name(f".{PREVIOUS}")
        link.unlink(missing_ok=True)
        os.link(last, link)
        os.replace(link, last.with_name(PREVIOUS))


def sound(path: Path) -> Path | None:
    """A checkpoint, or where it is damaged another of its run, which is said; None: no other is whole either."""
    others = [path.with_name(name) for name in (LAST, PREVIOUS, BEST)] if path.name in (LAST, BEST) else []
    found = next((place for place in dict.fromkeys([path, *others]) if is_whole(place)), None)
    if found not in (None, path):
        log.warning("%s is damaged or gone: %s, which was written before, takes its place", path, found)
    return found


def sweep_up(folder: Path) -> None:
    """Delete what a killed process has left half written among the checkpoints of a run."""
    for left in folder.glob(".*.ckpt"):
        left.unlink(missing_ok=True)


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
        """Save, but no weights that are no numbers in place of good ones; the exception itself goes on."""
        if isinstance(exception, (Diverged, Unwritable)):
            return
        try:
            super().on_exception(trainer, pl_module, exception)
        except Unwritable as error:
            log.warning("%s", error)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on the last checkpoint is written no more, and needs no other beside it."""
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero and self.dirpath is not None:
            Path(self.dirpath, PREVIOUS).unlink(missing_ok=True)
