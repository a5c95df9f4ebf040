"""The page on which people answer: ``python -m tyre_lightning.review queue=queue.parquet answers=answers``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("review"))
