"""How long a store that does not answer is asked again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tyre_lightning.errors import StoreUnavailable

T = TypeVar("T")

_FIRST_PAUSE = 0.5  # seconds, doubled each time
_LONGEST_PAUSE = 8.0

log = logging.getLogger(__name__)


class Patience:
    """Repeats requests until some seconds have passed; for many threads together.

    The pauses are drawn at random below a bound that doubles ("full jitter": Brooker, Exponential Backoff and Jitter,
    AWS Architecture Blog, 2015), so that many clients do not come back all at once.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._over = threading.Event()
        self._told = False

    def call(self, request: Callable[[], T]) -> T:
        """What ``request`` gives, in the end.

        Raises:
            StoreUnavailable: the last one of ``request``, when the time is over.
        """
        bound = _FIRST_PAUSE
        while True:
            try:
                return request()
            except StoreUnavailable as error:
                pause = random.uniform(0, bound)
                if time.monotonic() + pause > self._end or self._over.is_set():
                    raise
                self._tell(error)
                self._over.wait(pause)
                bound = min(2 * bound, _LONGEST_PAUSE)

    def end(self) -> None:
        """Have all that wait fail at once."""
        self._over.set()

    def _tell(self, error: StoreUnavailable) -> None:
        if not self._told:
            self._told = True
            log.warning("%s; trying again for up to %.0f seconds", error, self._seconds)
