"""Execute notebooks from top to bottom: ``python notebooks/execute.py notebooks/*.ipynb``.

The committed files stay without outputs: the executed copies go to another folder.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from tyre_lightning.errors import hide_passwords

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = Path("outputs", "notebooks")


def main() -> int:
    """Execute the named notebooks in turn, up to the first that fails; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the folder for the executed copies")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads leave the cores to those that have work
    for path in options.notebooks:
        started = time.monotonic()
        try:
            error = execute(path, options.output / path.name)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
        if error:
            print(f"error: {path.name}, {error}", file=sys.stderr)
            return 1
        print(f"{path.name} took {time.monotonic() - started:.0f} s: {options.output / path.name}", flush=True)
    return 0


def execute(path: Path, copy: Path) -> str | None:
    """Execute one notebook in the project's folder and write the copy, also of one that fails; gives what failed."""
    try:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"
    where = {"metadata": {"path": str(PROJECT)}}
    client = NotebookClient(notebook, timeout=None, resources=where, shutdown_kernel="immediate")
    client.km = client.create_kernel_manager()
    client.km.transport = "ipc"  # files of this user instead of open ports
    try:
        with TemporaryDirectory() as sockets:
            client.km.ip = f"{sockets}/kernel"  # Jupyter's own names may be those of another kernel that starts now
            client.execute()
    except CellExecutionError as error:
        return f"cell {_failed(notebook)}: {_last_line(error)}"
    except DeadKernelError:
        return f"cell {_failed(notebook)}: Python itself has ended (out of memory?)"
    except AssertionError:  # nbclient's own answer to Ctrl-C, after which its kernel has gone
        raise KeyboardInterrupt from None
    finally:
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)  # type: ignore[no-untyped-call]
    return None


def _failed(notebook: nbformat.NotebookNode) -> int:
    """The number of the code cell that ran last, counted from 1 as Jupyter does."""
    started = [cell for cell in notebook.cells if cell.cell_type == "code" and "execution" in cell.metadata]
    return max(1, len(started))


def _last_line(error: CellExecutionError) -> str:
    """The end of a traceback; of an error that is meant for the user, only its sentence."""
    sentence = next(iter(reversed(re.sub(r"\x1b\[[0-9;]*m", "", error.evalue).strip().splitlines())), "")
    return hide_passwords(sentence if error.ename in ("SystemExit", "UserError") else f"{error.ename}: {sentence}")


if __name__ == "__main__":
    sys.exit(main())
