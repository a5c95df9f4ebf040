"""A new threshold for the same network: ``python -m tyre_lightning.recalibrate model=... root=s3://plant/tyres/v2``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("recalibrate"))
