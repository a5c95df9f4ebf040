"""Predict the class of images: ``python predict.py model=models:/tyre-defects/1 input=folder``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("predict"))
