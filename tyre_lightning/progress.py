"""How work on many images shows how far it is, and what it has to say."""

from __future__ import annotations

import logging
import warnings

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tyre_lightning.names import terminal_text

log = logging.getLogger(__name__)  # of what has been printed


def progress_bar(show: bool = True) -> Progress:
    """A bar that counts what is done and guesses what time is left; it is gone when the work is done.

    None is drawn for ``show`` False, nor where output goes to a file or a pipe.
    """
    console = Console()
    seen = console.is_terminal or console.is_jupyter
    if console.is_jupyter:  # a notebook without ipywidgets shows no bar, and would be told so at each
        warnings.filterwarnings("ignore", 'install "ipywidgets" for Jupyter')
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (show and seen), transient=True, refresh_per_second=4)


def say(text: str) -> None:
    """Print lines at once, above a bar where one is drawn; a log file has them too."""
    print(terminal_text(text), flush=True)
    log.info("%s", text)
