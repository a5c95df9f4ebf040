"""A network on a CPU by ONNX Runtime, which takes half the time of PyTorch for the same answer to within 1e-5."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.from_timm import is_timm

INPUT, OUTPUT = "image", "logits"


class Engine:
    """Runs a network's weights as they are when this is made.

    Args:
        network: on the CPU, in evaluation mode.
        size: of an image's side in pixels.
    """

    def __init__(self, network: Network, size: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self._session: Any = onnxruntime.InferenceSession(
            to_onnx(network, size), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits [N, classes] of images [N, 3, size, size]."""
        found: NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: images})[0]
        return found


def check_export(network: Network, name: str, size: int) -> None:
    """Refuse now a network of timm that would not answer when the training is done.

    Raises:
        UserError: names the network.
    """
    if not is_timm(name):  # the others are tested
        return
    training = network.training
    try:
        Engine(network.eval(), size)(np.zeros((1, 3, size, size), np.uint8))
    except Exception as error:  # of the exporter, the runtime, or the network itself
        raise UserError(
            f"{name} cannot be trained here, because ONNX Runtime, by which models answer on a CPU, cannot run it on "
            f"pictures of {size} pixels ({first_line(error)}): give another model.name, or another data.image_size"
        ) from error
    finally:
        network.train(training)


def to_onnx(network: Network, size: int) -> bytes:
    """A network as an ONNX file: ``image``, uint8 [N, 3, size, size], to ``logits``, float32 [N, classes].

    Normalisation and the averaging over mirrored views are inside; decoding and resizing are not.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no other package, and a tenth of the time, is old
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, size, size, dtype=torch.uint8),),
            path := Path(folder, "network.onnx"),
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "images"}, OUTPUT: {0: "images"}},
        )
        return path.read_bytes()
