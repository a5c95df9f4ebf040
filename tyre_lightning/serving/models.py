"""The model in use: an alias is followed to the version that it names now, and no answer is of two versions."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from tyre_lightning.errors import first_line
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.tracking.asked import warmed
from tyre_lightning.tracking.registry import exact_uri, load_inspector

POLL_SECONDS = 3.0
_LONGEST_PAUSE = 60.0  # after what fails again and again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """A model, and what it is called in answers.

    Args:
        inspector: whose engine is ready.
        name: ``models:/NAME/VERSION``; of a model that is not registered, its address.
    """

    inspector: Inspector
    name: str


class Models:
    """Loads a model and, where an alias names it, each that the alias names later, beside the one in use.

    Whoever answers a request takes :attr:`held` once, and so finishes with what it began with.

    Args:
        model: as predict.py's.
        tracking_uri: of the registry.
    """

    def __init__(self, model: str, tracking_uri: str) -> None:
        self._model, self._tracking_uri = model, tracking_uri
        self._over = threading.Event()
        self.held: Held | None = None  # None: it is being loaded
        self.loads = 0
        self.loaded_at = 0.0  # seconds since 1970
        self.trouble: str | None = None  # why the registry cannot be followed now

    def load(self) -> Held:
        """Load what the model's address names now, unless it is in use already.

        Raises:
            UserError: there is no such model, or the registry does not answer.
        """
        name = exact_uri(self._model, self._tracking_uri)
        if self.held is None or name != self.held.name:
            self.held = Held(warmed(load_inspector(name, self._tracking_uri)), name)
            self.loads, self.loaded_at = self.loads + 1, time.time()
        return self.held

    def follow(self) -> None:
        """Look again and again, in a thread, where an alias names the model; the first is loaded."""
        if self._model.startswith("models:/") and "@" in self._model:
            threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()

    def _follow(self) -> None:
        pause = POLL_SECONDS
        while not self._over.wait(pause):
            before = self.held
            try:
                now = self.load()
            except Exception as error:  # MLflow, its stores and their clients each raise their own
                self._tell(f"going on with {before.name if before else None}: {first_line(error)}")
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            if self.trouble is not None:
                log.warning("%s can be followed again", self._model)
            self.trouble, pause = None, POLL_SECONDS
            if now is not before:
                log.warning("%s is now %s", self._model, now.name)

    def _tell(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            log.warning("%s", trouble)
