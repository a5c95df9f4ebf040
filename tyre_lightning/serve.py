"""A model as a server: ``python -m tyre_lightning.serve model=models:/tyre-defects@champion``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("serve"))
