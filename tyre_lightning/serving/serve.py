"""The server, top to bottom: listen, load the model, answer until Ctrl-C, and follow the model's alias meanwhile."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import psutil
from omegaconf import DictConfig
from uvicorn.protocols.http.h11_impl import H11Protocol

from tyre_lightning.config import ServeConfig, to_serve_config
from tyre_lightning.cores import cores
from tyre_lightning.errors import UserError
from tyre_lightning.line.listening import Server, given_token, is_here, listen
from tyre_lightning.memory import memory_errors
from tyre_lightning.progress import say
from tyre_lightning.serving.app import LARGEST_REQUEST, App, Limits
from tyre_lightning.serving.models import Models
from tyre_lightning.tracking.asked import open_workers

TOKEN = "TYRE_SERVE_TOKEN"  # the environment variable that may hold one
QUEUE = 512  # pictures that may wait, a core
_CONNECTIONS = 1000  # at one time
_SILENT_SECONDS = 30  # after which a connection that asks nothing is closed
_GRACE = 30  # seconds for what is being answered when the server ends
_LOADING = 3.0  # seconds for a model that is being loaded then; a registry that does not answer takes minutes


@memory_errors("queue")
def serve(cfg: DictConfig) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Raises:
        UserError: the model, the address or the token cannot be used.
    """
    config = to_serve_config(cfg)
    token = check_token(config)
    with listen(config.host, config.port) as listening, open_workers() as workers:
        models = Models(str(config.model), config.tracking_uri)
        app = App(models, workers, limits(config), token)
        port = listening.getsockname()[1]
        server = Server(app, lambda: say(f"listening at http://{_shown(config.host)}:{port}"), _GRACE, **options())
        loading = Loading(models, server)
        loading.start()
        try:
            server.run(sockets=[listening])
        finally:
            models.end()
    loading.join(_LOADING)
    if loading.error is not None:
        raise loading.error


class Loading(threading.Thread):
    """Loads the first model while the server answers that it is not ready; where there is none, the server ends.

    Args:
        models: which load it.
        server: that answers.
    """

    def __init__(self, models: Models, server: Server) -> None:
        super().__init__(name="load", daemon=True)
        self._models, self._server = models, server
        self.error: Exception | None = None

    def run(self) -> None:
        """See :class:`threading.Thread`."""
        try:
            say(f"ready, with {self._models.load().name}  (Ctrl-C ends it)")
            self._models.follow()
        except Exception as error:  # which the main thread raises
            self.error = error
            self._server.should_exit = True


def options() -> dict[str, Any]:
    """What uvicorn is told of clients that are slow, or too many."""
    return {"http": Impatient, "timeout_keep_alive": _SILENT_SECONDS, "limit_concurrency": _CONNECTIONS}


class Impatient(H11Protocol):
    """Closes a connection on which nothing is asked for half a minute, be it that a head never ends."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See uvicorn."""
        if len(self.connections) + 1 >= _CONNECTIONS:
            self._make_room()
        super().connection_made(transport)
        self._begun = self.loop.time()
        self._before: Any = self  # no request
        self._look_again()

    def _make_room(self) -> None:
        """Close the oldest connection on which nothing was asked yet: many of those are to hold nobody up."""
        silent = (one for one in self.connections if isinstance(one, Impatient) and one.cycle is None)
        waiting = [one for one in silent if not one.transport.is_closing()]
        if waiting:
            min(waiting, key=lambda one: one._begun).transport.close()

    def _look_again(self) -> None:
        if self.transport.is_closing():
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        if not busy and self.cycle is self._before:
            self.transport.close()
            return
        self._before = self.cycle
        self.loop.call_later(_SILENT_SECONDS, self._look_again)


def limits(config: ServeConfig) -> Limits:
    """What this machine has room for: a sixteenth of its memory for what clients have sent."""
    queue = config.queue or QUEUE * cores()
    return Limits(queue, max(LARGEST_REQUEST, psutil.virtual_memory().total // 16))


def check_token(config: ServeConfig) -> str | None:
    """What clients must show.

    Raises:
        UserError: others than this machine can ask, and nothing is said of who may.
    """
    token = given_token(TOKEN)
    if token is None and not (config.open or is_here(config.host)):
        raise UserError(
            f"host={config.host} lets other machines ask: set {TOKEN} to the bearer token that they must show, or give "
            "open=true where all who reach the address may ask"
        )
    return token


def _shown(host: str) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"[{name}]" if ":" in name else name
