"""How all processes of a training end together, after the same batch, when one of them is told to end."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from tyre_lightning.company import present


class JoinedSignals(_SignalConnector):
    """What Ctrl-C and SIGTERM do within a fit of several processes: all end it together, after the same batch.

    Lightning's own has each process broadcast from within its handler, in the middle of whatever it was exchanging.
    """

    told = False  # whether this process was told to end
    over = False  # whether the fit has failed, after which others end, and torchrun tells this one to

    def register_signal_handlers(self) -> None:
        """Listen."""
        self.received_sigterm = self.told = False
        self._original_handlers = self._get_current_signal_handlers()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._register_signal(number, self._hear)

    def _hear(self, number: Any, frame: FrameType | None) -> None:
        if self.told and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and not self.told:
            # Which the workers of its DataLoaders may have got too: PyTorch would raise at any place, and again and
            # again. It still does where a batch is waited for.
            signal.signal(signal.SIGCHLD, _nothing)
        self.told = True

    def agree(self) -> None:
        """Ask all processes; in each of them at the same place."""
        self.received_sigterm = present().any(self.told)

    def teardown(self) -> None:
        """Listen no more."""
        super().teardown()
        if self.over:
            self._register_signal(signal.SIGTERM, signal.SIG_IGN)


def _nothing(number: Any, frame: FrameType | None) -> None:
    """What is done about it."""


class Together(L.Callback):
    """Has all processes ask each other, at the ends of batches and of validations, whether one was told to end."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask, unless the validation comes next, which the processes could leave at different batches."""
        if batch_idx + 1 < trainer.num_training_batches:
            self._ask(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask."""
        self._ask(trainer)

    def _ask(self, trainer: L.Trainer) -> None:
        assert isinstance(trainer._signal_connector, JoinedSignals)
        trainer._signal_connector.agree()
