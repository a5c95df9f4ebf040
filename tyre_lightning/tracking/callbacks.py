"""Lightning callbacks that record to MLflow from inside the training processes."""

from __future__ import annotations

import lightning as L

from tyre_lightning.evaluation.figures import confusion_figure
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.tracking.logger import RunLogger


class LogConfusion(L.Callback):
    """Records the test images' confusion matrix as a figure."""

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs before the module logs and resets its metrics."""
        assert isinstance(pl_module, TyreClassifier)
        metric = pl_module.metric("test")
        matrix = metric.matrix()  # every process must take part
        logger = trainer.logger
        if trainer.is_global_zero and isinstance(logger, RunLogger):
            logger.log_figure(confusion_figure(matrix.cpu().numpy(), metric.classes), "confusion_matrix.png")
