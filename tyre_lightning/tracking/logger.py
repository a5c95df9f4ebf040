"""Lightning's logger of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tyre_lightning.tracking.runs import Run


class RunLogger(MLFlowLogger):
    """An MLFlowLogger that writes to the run's journal, so that no step waits for a server, and none is recorded twice.

    Args:
        run: which to log to.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run.config.experiment, tracking_uri=run.config.tracking_uri, run_id=run.id)
        self._journal = run.journal
        self._recorded = run.journal.recorded()  # before a run that goes on was broken off

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics of a step."""
        step = step or 0
        new = {name: float(value) for name, value in metrics.items() if (name, step) not in self._recorded}
        if new:
            self._journal.add_metrics(new, step)

    @rank_zero_only
    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as an artifact."""
        self._journal.add_figure(figure, name)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run has its parameters already."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """The run goes on after a fit or a test."""
