"""A network's training pass as a CUDA graph: the GPU repeats it as a whole, where Python would launch every kernel.

A small network has as many kernels as a large one, and each takes a GPU less time than Python takes to ask for it:
without a graph EfficientNet-Lite0 learns no more pictures a second from batches of 32 than Python's pace allows (see
``benchmarks/gpu.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


class Graph:
    """Calls a network in training: by a graph where a batch has the shape of the example, else as it is.

    The numbers are those of the network itself. While this is used, the network's parameters stay where they are, and
    learn or do not learn as they did. It is to be made before anything else uses the GPU: neither another thread (as
    that of a data loader, which pins memory) nor a backward pass of before whose tensors still live, since either
    would break it off, and chance would not work any more.

    Args:
        network: in training, on a GPU; takes one tensor and gives one.
        example: of what it will be called with.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self._network = network
        self._shape = example.shape
        kept = [(one, one.clone()) for one in network.buffers()]
        with torch.random.fork_rng([example.device] if example.is_cuda else []):
            self._run = capture(_Pass(network), example)
        for one, value in kept:  # to make a graph takes some passes, which move BatchNorm's statistics
            one.copy_(value)

    def __call__(self, images: Tensor) -> Tensor:
        """What the network gives."""
        return self._run(images) if images.shape == self._shape else self._network(images)


class _Pass(nn.Module):
    """A network in a module of its own, since PyTorch puts the graph's call in the place of the module's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network  # some of its parts may be in evaluation mode: nothing is set here

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images)
        return found


def capture(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """A module's graph, for inputs like an example."""
    quiet: Any = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet is not None:  # a graph is made on a stream of its own, and a warning says so
        quiet(False)
    found: Callable[[Tensor], Tensor] = cast(Any, torch.cuda.make_graphed_callables(module, (example,)))
    return found
