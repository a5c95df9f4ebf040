"""``python -m tyre_lightning.export MODEL FILE``: a model as an ONNX file, for other runtimes.

In: ``image``, uint8 [N, 3, size, size], RGB, decoded and resized; out: ``logits``, float32 [N, classes]. Normalisation
and mirrored views are inside. The metadata's ``inspector`` is JSON: classes in order, preprocessing, temperature and
operating point.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tyre_lightning.command_line import Parser
from tyre_lightning.config import DEFAULT_TRACKING_URI
from tyre_lightning.errors import UserError
from tyre_lightning.surroundings import run_plainly


def export(model: str, path: Path, tracking_uri: str) -> None:
    """Write a model's network as ONNX.

    Args:
        model: as ``predict.py`` takes it.
        path: of the new file.
        tracking_uri: of the registry.

    Raises:
        UserError: there is no such model, or the file cannot be written.
    """
    import onnx

    from tyre_lightning.model.engine import to_onnx
    from tyre_lightning.tracking.registry import load_inspector

    inspector = load_inspector(model, tracking_uri)
    proto = onnx.load_from_string(to_onnx(inspector.network, inspector.preprocessing.size))
    proto.metadata_props.add(key="inspector", value=inspector.spec())
    try:
        onnx.save(proto, str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def main() -> int:
    """The command line; gives the exit code."""
    parser = Parser(
        prog="python -m tyre_lightning.export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="models:/NAME/VERSION, models:/NAME@ALIAS, a checkpoint or a saved folder")
    parser.add_argument("file", type=Path, help="tyre.onnx")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_TRACKING_URI))
    options = parser.parse_args()
    export(options.model, options.file, options.tracking_uri)
    return 0


if __name__ == "__main__":
    sys.exit(run_plainly(main))
