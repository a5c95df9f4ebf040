"""``python -m tyre_lightning.resend [FOLDER]``: send what runs could not send to MLflow when its server was away."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tyre_lightning.command_line import Parser
from tyre_lightning.errors import UserError
from tyre_lightning.surroundings import run_plainly
from tyre_lightning.tracking.journal import unsent
from tyre_lightning.tracking.secrecy import hide_in_logs


def main() -> int:
    """Send what the journals below a folder have left; gives the exit code."""
    from tyre_lightning.tracking.runs import resend

    parser = Parser(prog="python -m tyre_lightning.resend", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="of a run, or of many")
    parser.add_argument("--tracking-uri", help="default: each run's own; a password may be in it")
    options = parser.parse_args()
    hide_in_logs()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not options.folder.is_dir():
        print(f"error: there is no folder {options.folder}", file=sys.stderr)
        return 2
    failed = 0
    found = unsent(options.folder)
    for journal in found:
        try:
            resend(journal, options.tracking_uri)
        except UserError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if not found:
        print(f"nothing below {options.folder} waits to be sent")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_plainly(main))
