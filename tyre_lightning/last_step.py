"""What a sweep over shards ends with: the summary of all, whatever launcher has done them."""

from __future__ import annotations

import json
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tyre_lightning.command_line import sweep_codes
from tyre_lightning.commands import SOME_UNREADABLE
from tyre_lightning.errors import UserError


class LastStep(Callback):
    """Hydra calls this when a shard, or all shards of a sweep, have ended."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say of a failed shard which it was: the sweep raises the error when the others have ended."""
        failed = config.hydra.mode == RunMode.MULTIRUN and job_return.status == JobStatus.FAILED
        if failed and config.shard is not None and isinstance(error := job_return._return_value, UserError):
            job_return.return_value = UserError(f"shard={config.shard}: {error}; the same command goes on")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print what was found in all."""
        if config.shards > 1:
            _tell(str(config.output), int(config.shards), OmegaConf.to_object(config.s3))


def _tell(output: str, shards: int, s3: Any) -> None:
    from tyre_lightning.evaluation.predictions import SUMMARY
    from tyre_lightning.lake.place import open_place
    from tyre_lightning.progress import say
    from tyre_lightning.summary import show_classes

    data = open_place(output, s3).read(SUMMARY)
    if data is None:
        say(f"not all of the {shards} shards are done")
        return
    found = json.loads(data)
    show_classes(found["classes"], found["unreadable"])
    say("\n".join(found["told"]))
    if found["unreadable"]:
        sweep_codes.append(SOME_UNREADABLE)
