"""What the machine does during a run: processor, memory, disk, network and GPU, by MLflow's own monitors."""

from __future__ import annotations

import logging
from typing import Any

from tyre_lightning.errors import UserError
from tyre_lightning.tracking.journal import Journal

log = logging.getLogger(__name__)


class SystemMonitor:
    """Records system metrics to a journal every ten seconds (``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL``).

    Args:
        journal: of the run; steps are counted on from those that it has.
    """

    def __init__(self, journal: Journal) -> None:
        from mlflow.system_metrics import system_metrics_monitor

        logging.getLogger(system_metrics_monitor.__name__).setLevel(logging.WARNING)
        base: Any = system_metrics_monitor.SystemMetricsMonitor
        steps = [step for name, step in journal.recorded() if name.startswith("system/")]

        class Monitor(base):  # type: ignore[misc]
            """MLflow's, which would ask the server before each sample and give up when it does not answer."""

            def monitor(self) -> None:
                while not self._shutdown_event.is_set():
                    self.collect_metrics()
                    self._shutdown_event.wait(self.sampling_interval)
                    values = {f"system/{name}": float(value) for name, value in self.aggregate_metrics().items()}
                    try:
                        journal.add_metrics(values, self._logging_step)
                    except (OSError, UserError) as error:  # the training comes upon it too
                        log.warning("system metrics end here: %s", error)
                        return
                    self._logging_step += 1
                    for part in self.monitors:
                        part.clear_metrics()

        self._monitor: Any = Monitor(journal.run()["run_id"])
        self._monitor._logging_step = max(steps, default=-1) + 1
        self._monitor.start()

    def finish(self) -> None:
        """Take a last sample and stop."""
        self._monitor.finish()
