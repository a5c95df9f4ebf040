"""What the line sees, compared with a baseline: ``python -m tyre_lightning.watch model=... input=...``.

Its exit code is 0 when nothing has shifted, 5 when something has, 1 when it could not be told.
"""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("watch"))
