"""Train, test and register a classifier: ``python train.py data.root=s3://bucket/prefix/version``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("train"))
