"""What the terminal shows of logs and warnings: a short mark and a line; the log file of a run keeps all of it."""

from __future__ import annotations

import logging
import multiprocessing
import re
import shutil
import sys
import warnings
from textwrap import shorten
from typing import Any, TextIO

from hydra.core.config_store import ConfigStore

from tyre_lightning import progress
from tyre_lightning.names import terminal_text
from tyre_lightning.tracking.secrecy import hide_in_logs

NAME = "short"  # of Hydra's hydra/job_logging and hydra/hydra_logging
_MARKS = {logging.DEBUG: ".", logging.INFO: "-", logging.WARNING: "!"}
_OURS = "tyre_lightning"
_WIDEST = 120  # columns of a library's message where no window limits it
# One of Python's: the place in a file, the category, the text, the line of code.
_WARNING = re.compile(r"\S.*?:\d+: (?:\w+: )?(?P<text>.*?)(?:\n  .*)?", re.DOTALL)
# What libraries tell their own developers, and what they take to be wrong here and is not.
_NO_NEWS = (
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # the data module is
    ".*exists and is not empty.*",  # where a run goes on
    ".*`srun` command is available.*",  # a training is one task
    "No (positive|negative) samples .*",  # what the images cannot tell is left out
    ".*It is recommended to use `self.log.*sync_dist=True.*",  # validation metrics are those of all processes already
)


class ShortFormatter(logging.Formatter):
    """A mark, and what is said; what a library warns of is cut to one line, with the log file that has it whole.

    Args:
        file: the log file; None: there is none.
    """

    def __init__(self, file: str | None = None) -> None:
        super().__init__()
        self._file = file

    def format(self, record: logging.LogRecord) -> str:
        """One record; a traceback, where there is one, goes below it."""
        mark, text = _MARKS.get(record.levelno, "x"), terminal_text(super().format(record))
        if record.name.partition(".")[0] == _OURS or record.exc_info or record.levelno != logging.WARNING:
            return f"{mark} {text}"
        return f"{mark} {self._short(record, text.strip())}"

    def _short(self, record: logging.LogRecord, text: str) -> str:
        if record.name == "py.warnings" and (found := _WARNING.fullmatch(text)):
            text = found["text"]
        pointer = f" (all of it: {self._file})" if self._file else ""
        width = shutil.get_terminal_size((_WIDEST, 0)).columns - 3
        line = shorten(text, max(width, 40), placeholder=" ...")
        return line if line == text else line + pointer


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to what stdout is now: while a progress bar is drawn, that is what puts a line above it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(lambda record: record.name != progress.log.name)  # it has been printed

    @property
    def stream(self) -> TextIO:
        """The present stdout."""
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("it is always the present stdout")


def quiet() -> None:
    """Silence what is no news to a user, and let no library say its messages twice; idempotent."""
    hide_in_logs()
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        if logging.getLogger().hasHandlers():  # else Lightning's own is the only one
            logger.handlers.clear()
            logger.propagate = True
    for text in _NO_NEWS:
        warnings.filterwarnings("ignore", message=text)


def have_logs() -> None:
    """In a process that another has spawned, which has neither logging nor filters, show and silence the same."""
    if multiprocessing.parent_process() is not None:
        show_logs()
    quiet()


def show_logs() -> None:
    """Where nothing shows warnings, as in a process that only takes part, show and silence the same."""
    root = logging.getLogger()
    if not root.hasHandlers():
        handler = TerminalHandler()
        handler.setFormatter(ShortFormatter())
        root.addHandler(handler)
        logging.captureWarnings(True)
    quiet()


def register_logging() -> None:
    """Offer Hydra this module's logging: ``short``, and ``lines`` for commands that leave no log file; idempotent."""
    store, console = ConfigStore.instance(), {"class": f"{__name__}.TerminalHandler", "formatter": "short"}
    file = "${hydra.runtime.output_dir}/${hydra.job.name}.log"
    short: dict[str, Any] = {"()": f"{__name__}.ShortFormatter"}
    whole = {"format": "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"}
    lines: dict[str, Any] = {
        "version": 1,
        "formatters": {"short": short},
        "handlers": {"console": console},
        "root": {"level": "INFO", "handlers": ["console"]},
        "disable_existing_loggers": False,
    }
    to_file = {"class": "logging.FileHandler", "formatter": "whole", "filename": file}
    job = lines | {
        "formatters": {"short": {**short, "file": file}, "whole": whole},
        "handlers": {"console": console, "file": to_file},
        "root": {"level": "INFO", "handlers": ["console", "file"]},
    }
    store.store(group="hydra/job_logging", name=NAME, node=job)
    store.store(group="hydra/job_logging", name="lines", node=lines)
    store.store(group="hydra/hydra_logging", name=NAME, node=lines)
