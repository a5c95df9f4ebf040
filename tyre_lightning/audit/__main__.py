"""Look at a lake before training on it: ``python -m tyre_lightning.audit data.root=s3://bucket/prefix/version``."""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("audit"))
