"""The gate between training and the line: ``python -m tyre_lightning.promote`` lets only a better model pass.

Its exit code is 0 when the challenger was promoted (or, in a dry run, would be), 4 when it was not, 2 when it could not
be judged. ``python -m tyre_lightning.promote rollback`` returns to the champion before, and ``... anchor`` makes the
champion the version that no later one may be much worse than.
"""

import sys

from tyre_lightning.commands import start

if __name__ == "__main__":
    sys.exit(start("promote"))
