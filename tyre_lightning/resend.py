"""What runs could not send to MLflow when its server was away: ``python -m tyre_lightning.resend folder=outputs``."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from tyre_lightning.config import to_resend_config
from tyre_lightning.errors import UserError


def resend(cfg: DictConfig) -> tuple[int, list[UserError]]:
    """Send what the journals below a folder have left; gives their number, and why some could not be sent.

    Raises:
        UserError: there is no such folder.
    """
    config = to_resend_config(cfg)
    from tyre_lightning.tracking import runs
    from tyre_lightning.tracking.journal import unsent

    found, errors = unsent(Path(config.folder)), []
    for journal in found:
        try:
            runs.resend(journal, config.tracking_uri)
        except UserError as error:
            errors.append(error)
    return len(found), errors


if __name__ == "__main__":
    from tyre_lightning.commands import start

    sys.exit(start("resend"))
