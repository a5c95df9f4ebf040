"""Networks without first weights, where all of them are loaded: to draw millions of numbers takes longer than that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any

from torch import Tensor, nn

_DRAWS = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_")  # of torch.nn.init
_one = RLock()  # what one thread puts into place, another is not to take for torch's own


@contextmanager
def unfilled() -> Iterator[None]:
    """Weights of networks that this thread builds meanwhile are whatever lies in memory, and none is drawn.

    All else is as ever: what a network computes when it is built, and what other threads build.
    """
    with _one:
        own = {name: getattr(nn.init, name) for name in _DRAWS}
        for name, draw in own.items():
            setattr(nn.init, name, _but_here(draw))
        try:
            yield
        finally:
            for name, draw in own.items():
                setattr(nn.init, name, draw)


def _but_here(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    here = get_ident()

    def perhaps(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor if get_ident() == here else draw(tensor, *args, **kwargs)

    return perhaps
