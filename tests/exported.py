"""ONNX files of networks that tests load again and again: to make one takes half a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import pytest
import torch
from xxhash import xxh3_128

from tyre_lightning.model import engine
from tyre_lightning.model.backbones import Network

_KEPT = 4  # of some 13 MB


@contextmanager
def exported_once() -> Iterator[None]:
    """Meanwhile an engine of the same weights in the same network takes the file that was made before."""
    made: dict[tuple[str, int, bytes], bytes] = {}
    to_onnx = engine.to_onnx

    def made_before(network: Network, size: int) -> bytes:
        # What exports is a part of it, since tests let that fail.
        key = f"{network} {network.training} {network._views} {id(torch.onnx.export)}", size, _content(network)
        file = made.pop(key, None) or to_onnx(network, size)
        made[key] = file
        for oldest in [*made][:-_KEPT]:
            del made[oldest]
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "to_onnx", made_before)
        yield


def _content(network: Network) -> bytes:
    content = xxh3_128()
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        content.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        content.update(tensor.detach().cpu().numpy().tobytes())
    return content.digest()
