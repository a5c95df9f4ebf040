"""Verdicts for a camera's folder: ``python -m tyre_lightning.inbox model=... input=/line/camera``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("inbox"))
