"""Which tyres a person should see: ``python -m tyre_lightning.select predictions=predictions.parquet budget=300``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("select"))
