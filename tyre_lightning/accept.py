"""Answers become the next data version: ``python -m tyre_lightning.accept from=s3://plant/v1 to=s3://plant/v2``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("accept"))
