"""The review, top to bottom: read the queue and what was said, open the store, listen, and say how to go on."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from urllib.parse import quote

from omegaconf import DictConfig

from tyre_lightning.config import ReviewConfig, to_review_config
from tyre_lightning.errors import UserError, hide_passwords
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import Store
from tyre_lightning.line.answers import latest, open_sink
from tyre_lightning.line.desk import Desk
from tyre_lightning.line.listening import Server, given_token, is_here, listen
from tyre_lightning.line.looks import Looks
from tyre_lightning.line.queue import Queue
from tyre_lightning.line.server import Door, Guard, make_app
from tyre_lightning.line.tools import export_tasks, import_answers
from tyre_lightning.names import terminal_text
from tyre_lightning.progress import say

TOKEN = "TYRE_REVIEW_TOKEN"  # the environment variable that may hold one
_GRACE = 3  # seconds for what is being answered when the server ends


def review(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C, or exchange tasks and labels with another tool.

    Raises:
        UserError: the queue, its pictures, the answers, the address or the other tool's file cannot be used.
    """
    config = to_review_config(cfg)
    queue = Queue.read(config.queue)
    if config.export_to:
        say(export_tasks(queue, _pictures(queue, config), config.export_to, config.tool))
    elif config.import_from:
        say(import_answers(queue, config))
    else:
        _serve(config, queue)


def _serve(config: ReviewConfig, queue: Queue) -> None:
    with listen(config.host, config.port) as listening:
        port = listening.getsockname()[1]
        desk, door, app = prepare(config, queue, port)

        def tell() -> None:
            for line in _beginning(config, desk):
                say(hide_passwords(line))
            # Not by say, whose log files would keep the token.
            print(terminal_text(f"open {_address(config, port, door)}  (Ctrl-C ends it)"), flush=True)

        Server(app, tell, _GRACE).run(sockets=[listening])
    found = desk.progress()
    left = found.total - found.done
    say(f"\n{left} of {found.total} tyres are left" + ("; to go on, give the same command again" if left else ""))


def prepare(config: ReviewConfig, queue: Queue, port: int) -> tuple[Desk, Door, Guard]:
    """What is behind the page: the state, who may come in, and the application; the model begins to load.

    Raises:
        UserError: the pictures, the answers or the token cannot be used.
    """
    door = Door.at(config.host, port, config.name, _token(config))
    store = _pictures(queue, config)
    said = latest(config.answers, config.s3, needed=False)
    desk = Desk(queue, config.queue, open_sink(config.answers, config.s3), said, config.overlap)
    looks = Looks(store, config.model or queue.model, config.tracking_uri)
    looks.load()
    return desk, door, make_app(desk, looks, door, f"Review of {os.path.basename(config.queue)}")


def _pictures(queue: Queue, config: ReviewConfig) -> Store:
    """The store of the queue's pictures, which can be reached and has keys as the queue's.

    Raises:
        UserError: it is not so.
    """
    root = _root(queue, config)
    store = open_store(root, config.s3)
    next(iter(store.list(deep=False)), None)
    base = store.key("")
    for key in queue.pictures["key"]:
        if not key.startswith(base) or ".." in key.split("/"):
            raise UserError(f"the queue has the picture {key}, which is not below root={root}: give root=... of them")
    return store


def _root(queue: Queue, config: ReviewConfig) -> str:
    if root := config.root or queue.root:
        return root
    raise UserError(f"{config.queue} does not say where its pictures lie: give root=... as it was predict.py's input")


def _token(config: ReviewConfig) -> str | None:
    """What a browser must show; none where only this machine can ask, and no proxy for others, unless it is set."""
    alone = is_here(config.host) and config.name is None
    return given_token(TOKEN) or (None if alone else secrets.token_urlsafe(32))


def _address(config: ReviewConfig, port: int, door: Door) -> str:
    """What to open; of a machine that listens everywhere, by its name."""
    host = config.name or (config.host if config.host not in ("0.0.0.0", "::") else socket.gethostname())
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={quote(door.token, safe='')}" if door.token else "")


def _beginning(config: ReviewConfig, desk: Desk) -> Iterator[str]:
    found = desk.progress()
    yield f"{config.queue}: {found.total} tyres, {found.done} of them answered; answers go to {config.answers}"
    if found.second:
        yield f"  {found.second} wait for a second person"
