"""What a sweep over shards ends with: the summary of all, whatever launcher has done them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tyre_lightning.command_line import sweep_codes
from tyre_lightning.commands import SOME_UNREADABLE
from tyre_lightning.errors import StoreUnavailable, Unwritable, UserError

_PASSING = (StoreUnavailable, Unwritable)  # after which the same may succeed; any other says what to give instead


class LastStep(Callback):
    """Hydra calls this when a shard, or all shards of a sweep, have ended."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say of a failed shard which it was: the sweep raises the error when the others have ended."""
        failed = config.hydra.mode == RunMode.MULTIRUN and job_return.status == JobStatus.FAILED
        if failed and config.shard is not None and isinstance(error := job_return._return_value, UserError):
            way = "; the same command goes on" if isinstance(error, _PASSING) else ""
            which = "" if str(error).startswith(mine := f"shard={config.shard}") else f"{mine}: "
            job_return.return_value = UserError(f"{which}{error}{way}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print what was found in all, where they are those of one output."""
        if config.shards > 1 and _swept(config.hydra.overrides.task) <= {"shard"}:
            _tell(str(config.output), int(config.shards), OmegaConf.to_object(config.s3))


def _swept(overrides: Sequence[str]) -> set[str]:
    """The keys of which each run has another value."""
    parsed = OverridesParser.create().parse_overrides([*overrides])
    return {one.get_key_element() for one in parsed if one.is_sweep_override()}


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
