"""A network on a CPU by ONNX Runtime, which takes half the time of PyTorch for the same answer to within 1e-5."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tyre_lightning.cores import threads
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.from_timm import is_timm

INPUT, OUTPUTS = "image", ("logits", "features")


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
        # Threads that spin while they wait for the next layer take the cores from decoding, and from other pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Of itself it binds a thread to each core of the machine, also to those that are not this process's.
        options.intra_op_num_threads = threads()
        self._session: Any = onnxruntime.InferenceSession(
            to_onnx(network, size), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What :meth:`Network.look` gives of images [N, 3, size, size]."""
        logits, features = self._session.run(OUTPUTS, {INPUT: images})
        return logits, features


def check_export(network: Network, name: str, size: int) -> None:
    """Refuse now a network of timm that would not answer when the training is done.

    Raises:
        UserError: names the network.
    """
    if not is_timm(name):  # the others are tested
        return
    training, pixels = network.training, np.zeros((1, 3, size, size), np.uint8)
    way_out = "give another model.name, or another data.image_size"
    try:
        with torch.no_grad():  # an export may fold a size away that PyTorch refuses
            network.eval()(torch.from_numpy(pixels))
    except Exception as error:
        raise UserError(f"{name} cannot look at pictures of {size} pixels ({first_line(error)}): {way_out}") from error
    try:
        Engine(network, size)(pixels)
    except Exception as error:  # of the exporter, the runtime, or the network itself
        raise UserError(
            f"{name} cannot be trained here, because ONNX Runtime, by which models answer on a CPU, cannot run it on "
            f"pictures of {size} pixels ({first_line(error)}): {way_out}"
        ) from error
    finally:
        network.train(training)


class _Look(nn.Module):
    """A network whose answer is what its ``look`` gives."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.train(network.training)  # to which the exporter returns, for all parts

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.look(image)


def to_onnx(network: Network, size: int) -> bytes:
    """A network as an ONNX file: ``image``, uint8 [N, 3, size, size], to ``logits``, float32 [N, classes].

    Its second output is ``features``, float32 [N, D], by which novelty is told, see :meth:`Network.look`.
    Normalisation and the averaging over mirrored views are inside; decoding and resizing are not.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no other package, and a tenth of the time, is old
        torch.onnx.export(
            _Look(network),
            (torch.zeros(1, 3, size, size, dtype=torch.uint8),),
            path := Path(folder, "network.onnx"),
            dynamo=False,
            input_names=[INPUT],
            output_names=[*OUTPUTS],
            dynamic_axes={name: {0: "images"} for name in (INPUT, *OUTPUTS)},
        )
        return path.read_bytes()
