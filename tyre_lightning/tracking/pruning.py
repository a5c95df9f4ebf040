"""Ends a trial of a study early when its epochs fall behind those of the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.trainer.states import TrainerFn

from tyre_lightning.errors import Pruned
from tyre_lightning.tracking.studies import storage_of
from tyre_lightning.tracking.sweeps import in_sweep

if TYPE_CHECKING:
    from optuna import Trial

_FIRST_EPOCHS = 2  # in which no trial is ended


class Prune(L.Callback):
    """Tells the study what each epoch reached, and ends the trial at its word.

    Args:
        trial: of the study.
        metric: which of the validation metrics.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self._trial = trial
        self._metric = metric

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, and ask while there is something to save: not after the last epoch.

        Raises:
            Pruned: the median of the other trials was better at this epoch.
        """
        if trainer.state.fn == TrainerFn.FITTING and self._metric in trainer.callback_metrics:
            self._trial.report(float(trainer.callback_metrics[self._metric]), trainer.current_epoch)
            if trainer.current_epoch + 1 != trainer.max_epochs and self._trial.should_prune():
                raise Pruned(f"pruned in epoch {trainer.current_epoch + 1}")


def pruning() -> list[Prune]:
    """The callback for this run, if it is a trial of a study that prunes."""
    if not in_sweep():
        return []
    hydra = HydraConfig.get()
    options = hydra.sweeper
    if "study" not in options or not options.prune:  # another sweeper
        return []
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(
        study_name=options.study,
        storage=storage_of(options.storage, Path(hydra.sweep.dir)),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=_FIRST_EPOCHS),
    )
    return [Prune(optuna.Trial(study, study.trials[hydra.job.num]._trial_id), options.metric)]
