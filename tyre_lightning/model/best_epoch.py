"""Which epoch's weights are kept as the best."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint

from tyre_lightning.files import is_whole

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor


log = logging.getLogger(__name__)


class BestEpoch(ModelCheckpoint):
    """Keeps the latest epoch that is as good as the best to within one standard error (Breiman et al., CART, 1984).

    On some hundred validation images the highest score of many epochs is luck; among epochs that these images cannot
    tell apart, the later has learnt more. With ``mode`` min (a loss has no such error) the best epoch itself is kept.
    """

    _peak = -math.inf

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with."""
        return {**super().state_dict(), "peak": self._peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it; where the best checkpoint is damaged or gone, the next epoch is the best anew."""
        super().load_state_dict(state_dict)
        self._peak = state_dict.get("peak", -math.inf)
        if self.best_model_path and not is_whole(self.best_model_path):
            log.warning("%s is damaged or gone: the next epoch takes its place", self.best_model_path)
            self._peak, self.best_model_path, self.best_k_models = -math.inf, "", {}

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether the epoch that has just ended takes the best one's place."""
        if current is None:
            return False
        score = float(current) if self.mode == "max" else -float(current)
        self._peak = max(self._peak, score)
        images = int(trainer.callback_metrics.get("val/images", 0))
        margin = standard_error(self._peak, images) if self.mode == "max" else 0.0
        decision: Any = trainer.strategy.reduce_boolean_decision(score >= self._peak - margin)
        return bool(decision)


def standard_error(share: float, images: int) -> float:
    """That of a share of ``images``, as accuracy is one, estimated with a success and a failure more (Laplace)."""
    smoothed = (share * images + 1) / (images + 2)
    return math.sqrt(smoothed * (1 - smoothed) / (images + 2))
