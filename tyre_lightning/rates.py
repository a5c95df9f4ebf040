"""Whether the line keeps its promise: ``python -m tyre_lightning.rates queue=queue.parquet answers=answers``.

Its exit code is 0, or 5 when the promise is probably broken.
"""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("rates"))
