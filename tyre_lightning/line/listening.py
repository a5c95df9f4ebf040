"""What servers of this project share: where they listen, who can reach that, and how they begin and end."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import uvicorn

from tyre_lightning.errors import UserError
from tyre_lightning.surroundings import terminated_as_interrupted

# As ASGI has them.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_SHORTEST = 16  # characters of a token


class Server(uvicorn.Server):
    """Tells something once requests are answered, and Ctrl-C and SIGTERM are heeded.

    Args:
        app: as ASGI has it.
        tell: what tells it.
        grace: seconds for what is being answered when the server ends.
        options: more of uvicorn's.
    """

    def __init__(self, app: Callable[..., Any], tell: Callable[[], None], grace: int, **options: Any) -> None:
        fixed: dict[str, Any] = {
            "log_config": None,
            "log_level": "warning",
            "access_log": False,
            "lifespan": "off",
            "ws": "none",
        }
        ends = {"server_header": False, "timeout_graceful_shutdown": grace}
        super().__init__(uvicorn.Config(app, **fixed | ends | options))
        self._tell = tell

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer until Ctrl-C or SIGTERM, and then what was asked before.

        uvicorn raises a signal again once it has ended in good order, by which SIGTERM would kill the process.
        """
        with terminated_as_interrupted(), suppress(KeyboardInterrupt):
            super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self._tell()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: it cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # the address follows, once more
        raise UserError(f"cannot listen at {host}, port {port}: {why}: give another port=... or host=...") from error
    server.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    )  # else an answer waits 40 ms for the last one's receipt
    return server


def given_token(variable: str) -> str | None:
    """The token that an environment variable holds, if it does.

    Raises:
        UserError: it is too short.
    """
    given = os.environ.get(variable)
    if given is not None and len(given) < _SHORTEST:
        raise UserError(f"{variable} has fewer than {_SHORTEST} characters: set a longer one, or none")
    return given


def is_here(address: str) -> bool:
    """Whether only this machine can reach an address."""
    return address == "localhost" or (is_ip(address) and ipaddress.ip_address(address).is_loopback)


def is_ip(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
