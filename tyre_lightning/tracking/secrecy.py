"""Passwords stay out of what others write: Hydra's copies of the config and of the command line, and all logs."""

from __future__ import annotations

import logging
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from tyre_lightning.errors import hide_passwords
from tyre_lightning.files import write_whole


class WithoutPasswords(Callback):
    """Hydra calls this when it has written its files, and before the run begins."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take passwords out of them, and out of those of the sweep, if the run belongs to one."""
        hide_in_logs()  # where a launcher has started a process for the run
        logging.captureWarnings(True)  # Python's warnings are logs like others
        hydra = config.hydra
        paths = [Path(hydra.sweep.dir, "multirun.yaml")] if hydra.mode == RunMode.MULTIRUN else []
        if hydra.output_subdir is not None:
            paths += Path(hydra.runtime.output_dir, hydra.output_subdir).glob("*.yaml")
        for path in paths:
            _clean(path)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Take them out of the command line that Hydra prints where a run of a sweep has failed."""
        job_return.overrides = [hide_passwords(override) for override in job_return.overrides or ()]


def hide_in_logs() -> None:
    """Take passwords out of all logs, their tracebacks and warnings in this process from now on; idempotent."""
    make, form = logging.getLogRecordFactory(), warnings.formatwarning
    if getattr(make, "hides_passwords", False):
        return

    def make_clean(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
            record.exc_text = hide_passwords("".join(traceback.format_exception(*record.exc_info)).rstrip())
        with suppress(Exception):  # a message that does not fit its arguments is for logging to report
            text = record.getMessage()
            if (clean := hide_passwords(text)) != text:
                record.msg, record.args = clean, None
        return record

    def form_clean(*args: Any, **kwargs: Any) -> str:
        return hide_passwords(form(*args, **kwargs))

    make_clean.hides_passwords = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_clean)
    warnings.formatwarning = form_clean


def _clean(path: Path) -> None:
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if (clean := hide_passwords(text)) != text:
            write_whole(path, clean)
