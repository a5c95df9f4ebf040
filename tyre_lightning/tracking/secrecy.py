"""Passwords stay out of what Hydra writes beside a run: its copies of the config and of the command line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from tyre_lightning.errors import hide_passwords


class WithoutPasswords(Callback):
    """Hydra calls this when it has written its files, and before the run begins."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take passwords out of them, and out of those of the sweep, if the run belongs to one."""
        hydra = config.hydra
        paths = [Path(hydra.sweep.dir, "multirun.yaml")] if hydra.mode == RunMode.MULTIRUN else []
        if hydra.output_subdir is not None:
            paths += Path(hydra.runtime.output_dir, hydra.output_subdir).glob("*.yaml")
        for path in paths:
            _clean(path)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Take them out of the command line that Hydra prints where a run of a sweep has failed."""
        job_return.overrides = [hide_passwords(override) for override in job_return.overrides or ()]


class PasswordFilter(logging.Filter):
    """Takes passwords out of what Hydra logs: the command line of each run of a sweep."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; none is dropped."""
        record.msg, record.args = hide_passwords(record.getMessage()), None
        return True


def _clean(path: Path) -> None:
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if (clean := hide_passwords(text)) != text:
            path.write_text(clean, encoding="utf-8")
