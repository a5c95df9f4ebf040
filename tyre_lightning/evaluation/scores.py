"""What a model says of every validation and test image: recorded in the training processes, read after them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from tyre_lightning.data.dataset import Batch

LOGITS = "logits"  # of a step's outputs


@dataclass(frozen=True)
class Scores:
    """Images in the order of their keys."""

    keys: list[str]
    labels: NDArray[np.int64]  # class indices, shape (N,)
    logits: NDArray[np.float64]  # [N, classes]
    tyres: NDArray[np.int64]  # a number for the tyre that an image shows, shape (N,)

    @classmethod
    def read(cls, folder: Path, usage: str, tyres: Mapping[str, str]) -> Scores | None:
        """What :class:`RecordScores` wrote, in however many processes; None where it recorded no image.

        Args:
            folder: it was given.
            usage: of the images.
            tyres: the name of the tyre that an image shows, by key; those that are missing show one of their own.
        """
        tables = [pq.read_table(path) for path in folder.glob(f"{usage}-*.parquet")]
        if not sum(map(len, tables)):
            return None
        table = pa.concat_tables(tables).sort_by("key")
        logits = np.array(table["logits"].to_pylist(), np.float64)
        keys = table["key"].to_pylist()
        shown = np.unique([tyres.get(key, key) for key in keys], return_inverse=True)[1]
        return cls(keys, table["label"].to_numpy().astype(np.int64), logits, shown)

    def without(self, keys: Collection[str]) -> Scores:
        """The scores of all other images."""
        kept = np.array([key not in keys for key in self.keys], bool)
        rest = [key for key in self.keys if key not in keys]
        return Scores(rest, self.labels[kept], self.logits[kept], self.tyres[kept])


class RecordScores(L.Callback):
    """Writes a file ``<usage>-<rank>.parquet`` of keys, labels and logits whenever a model is evaluated by itself.

    Args:
        folder: where to; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[pa.Table] = []

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **_: Any) -> None:
        """Remember a batch; not those between training epochs."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._add(*args)

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any, **_: Any) -> None:
        """Remember a batch."""
        self._add(*args)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write("val", trainer.global_rank)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        self._write("test", trainer.global_rank)

    def _add(self, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any) -> None:
        if outputs is not None:
            self._rows.append(_table(batch.key, batch.label, outputs[LOGITS]))

    def _write(self, usage: str, rank: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.concat_tables([_table([], None, None), *self._rows]), self._folder / f"{usage}-{rank}.parquet"
        )
        self._rows = []


def _table(keys: Sequence[str], labels: Tensor | None, logits: Tensor | None) -> pa.Table:
    values = {
        "key": pa.array(keys, pa.string()),
        "label": pa.array([] if labels is None else labels.tolist(), pa.int64()),
        "logits": pa.array([] if logits is None else logits.double().tolist(), pa.list_(pa.float64())),
    }
    return pa.table(values)
