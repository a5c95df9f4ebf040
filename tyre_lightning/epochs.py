"""A row for each epoch, which stays, and a bar for the present one where a person looks on."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.progress import Progress

from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.progress import progress_bar, say

_ESCAPE = "escape"
_NUMBERS = {
    "train loss": ("train/loss_epoch", ".4f"),
    "val loss": ("val/loss", ".4f"),
    "macro F1": ("val/f1", ".3f"),
    "AUROC(defective)": ("val/auroc_defective", ".3f"),
    _ESCAPE: (_ESCAPE, ".1%"),
}


class EpochRows(L.Callback):
    """Prints, in the first process, what each epoch came to on the validation images; what cannot be is left out.

    Args:
        share: of good images, with which the escape rate is measured; see :meth:`InspectionMetrics.escape_rate`.
        bar: whether to draw a bar too, where output is a terminal.
    """

    def __init__(self, share: float, *, bar: bool) -> None:
        self._share = share
        self._bar = bar
        self._escape: float | None = None  # of the last validation
        self._due: int | None = None  # the epoch, from 1, that has no row yet
        self._titles: list[str] = []
        self._since = 0.0
        self._progress: Progress | None = None  # made where it is used: a spawned process is sent this object

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, maybe within an epoch."""
        self._since = time.monotonic()
        if trainer.is_global_zero:
            self._progress = progress_bar(self._bar)
            self._progress.start()
            self._begin(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the row of the epoch before: its training loss is known only when all else in it is done."""
        self._row(trainer)
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        self._move(batch_idx + 1)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Move the bar."""
        self._move(int(trainer.num_training_batches) + batch_idx + 1)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the escape rate in all processes together, before the module forgets the images."""
        assert isinstance(pl_module, TyreClassifier)
        self._escape = pl_module.metric("val").escape_rate(self._share)
        self._due = trainer.current_epoch + 1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the last row."""
        self._row(trainer)
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no bar behind."""
        self._stop()

    def _begin(self, trainer: L.Trainer) -> None:
        if self._progress is not None:
            batches = int(trainer.num_training_batches) + sum(map(int, trainer.num_val_batches))
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", total=batches)

    def _move(self, done: int) -> None:
        if self._progress is not None:
            for task in self._progress.task_ids:
                self._progress.update(task, completed=done)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _row(self, trainer: L.Trainer) -> None:
        if self._due is None:
            return
        epoch, self._due = self._due, None
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        if not trainer.is_global_zero:
            return
        escape = {} if self._escape is None else {_ESCAPE: self._escape}
        values = {name: float(value) for name, value in trainer.callback_metrics.items()} | escape
        if not self._titles:
            self._titles = [title for title, (name, _) in _NUMBERS.items() if name in values]
            say("  ".join(["epoch", *map(self._heading, self._titles), "   time"]))
        cells = [
            f"{values.get(_NUMBERS[title][0], float('nan')):{_NUMBERS[title][1]}}".rjust(len(self._heading(title)))
            for title in self._titles
        ]
        say("  ".join([f"{epoch:5d}", *cells, f"{clock(seconds):>7}"]))

    def _heading(self, title: str) -> str:
        return escape_heading(self._share) if title == _ESCAPE else title.rjust(8)


def escape_heading(share: float) -> str:
    """The name of the column with the escape rate."""
    return f"{_ESCAPE}@{100 * share:.3g}%"


def clock(seconds: float) -> str:
    """A time as people write it: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
