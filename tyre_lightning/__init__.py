"""Tell good tyres from defective ones, from the pictures in the plant's data lake.

In a notebook::

    import tyre_lightning as tl

    run = tl.train("data.root=s3://plant/tyres/v1")
    run.errors(12)
    run.model.predict("new/*.jpg")
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tyre_lightning.loading import unsearched
from tyre_lightning.surroundings import drop_empty_variables, have_home

if TYPE_CHECKING:
    from tyre_lightning.api import Model as Model
    from tyre_lightning.api import compose as compose
    from tyre_lightning.api import examine as examine
    from tyre_lightning.api import load as load
    from tyre_lightning.api import open_data as open_data
    from tyre_lightning.api import show as show
    from tyre_lightning.errors import UserError as UserError
    from tyre_lightning.results import Result as Result
    from tyre_lightning.results import open_run as open_run
    from tyre_lightning.results import runs as runs
    from tyre_lightning.results import train as train

__version__ = "0.1.0"
_HOMES = {
    **dict.fromkeys(("load", "Model", "compose", "open_data", "examine", "show"), "api"),
    **dict.fromkeys(("train", "open_run", "runs", "Result"), "results"),
    "UserError": "errors",
}
__all__ = [*_HOMES]

drop_empty_variables()
have_home()


def __getattr__(name: str) -> Any:
    """Load what is asked for: the heavy libraries behind it take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with unsearched(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # of a bar that is none of ours
        home = import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
