"""The server's application: it takes what it has room for, and answers from threads that look at pictures.

It is plain ASGI: a request is to be refused by its head, before a byte of its body is read, and no framework's layers
are to stand between a small picture and its answer.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

import tyre_lightning
from tyre_lightning.cores import cores
from tyre_lightning.errors import UserError
from tyre_lightning.line.listening import Message, Receive, Send
from tyre_lightning.model.inspector import Inspector, nothing_seen
from tyre_lightning.serving.forms import Asked, read_file, read_json, read_parts
from tyre_lightning.serving.metrics import KIND, Metrics
from tyre_lightning.serving.models import Held, Models
from tyre_lightning.tracking.asked import Row, finished, look, shown

LARGEST_REQUEST = 128 << 20  # bytes: a file of 64 MB is 86 MB of base64
_BODY_SECONDS = 60.0  # in which a body is to come
_LINGER_SECONDS = 5.0  # for which what a refused client still sends is thrown away, so that it reads the refusal
_SMALL = 1 << 18  # bytes of JSON that are read at once, in the thread that also talks to all clients
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_PATHS = {"/invocations": "POST", "/predict": "POST"} | dict.fromkeys(
    ("/ping", "/health", "/ready", "/version", "/metrics"), "GET"
)
_OPEN = ("/ping", "/health", "/ready")  # to those without the token, too


@dataclass(frozen=True)
class Limits:
    """What the server has room for.

    Args:
        pictures: that are taken and have no answer yet.
        bytes: of all requests that are taken.
        request: bytes of one request.
    """

    pictures: int
    bytes: int
    request: int = LARGEST_REQUEST


@dataclass
class Refusal(Exception):
    """Why a request has no answer."""

    status: int
    sentence: str
    wait: int | None = None  # seconds after which to ask again

    @property
    def headers(self) -> dict[str, str]:
        """What it says beside the sentence."""
        return {"Connection": "close"} | ({} if self.wait is None else {"Retry-After": str(self.wait)})


class App:
    """The application.

    Args:
        models: the model in use.
        workers: threads that look at pictures.
        limits: what there is room for.
        token: what a client must show; None: nothing.
    """

    def __init__(self, models: Models, workers: Executor, limits: Limits, token: str | None) -> None:
        self._models, self._workers, self._limits, self._token = models, workers, limits, token
        self.metrics = Metrics(models)
        self._bytes = 0  # of requests that are taken
        self._pace = 0.05  # seconds that a picture takes one of the workers, as it was lately

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Take a request, as ASGI has it."""
        if scope["type"] != "http":  # nothing else is spoken here
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            _check_method(scope)
            self._check_client(scope["path"], headers)
            if scope["method"] == "POST":
                await self._answer(scope, headers, receive, send)
            else:
                await _send(send, *self._say(scope["path"]))
        except Refusal as refusal:
            if scope["path"] in ("/invocations", "/predict"):
                self.metrics.ended(refusal.status)
            await _refuse(refusal, receive, send, linger=b"expect" not in headers)
        except Exception:  # which the server answers, and tells of
            self.metrics.ended(500)
            raise

    def _check_client(self, path: str, headers: Mapping[bytes, str]) -> None:
        """Refuse browsers that another page leads here, and clients without the token.

        Raises:
            Refusal: says which.
        """
        if b"origin" in headers or headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refusal(403, "this server answers programs, not pages of browsers")
        if self._token is None or path in _OPEN:
            return
        kind, _, shown = headers.get(b"authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), self._token.encode()):
            raise Refusal(401, "show the server's token in a header: Authorization: Bearer TOKEN")

    def _say(self, path: str) -> tuple[int, bytes, str]:
        held = self._models.held
        if path == "/metrics":
            return 200, self.metrics.text().encode(), KIND
        if path == "/version":
            about = {"tyre-lightning": tyre_lightning.__version__, "model": held.name if held else None}
            return 200, json.dumps(about).encode() + b"\n", "application/json"
        if path == "/ready" and held is None:
            return 503, b"the model is being loaded\n", "text/plain; charset=utf-8"
        return 200, b"\n", "text/plain; charset=utf-8"

    async def _answer(self, scope: Message, headers: Mapping[bytes, str], receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        if (held := self._models.held) is None:
            raise Refusal(503, "the model is being loaded", 5)
        length = self._length(headers)
        self._bytes += length
        try:
            body = await _body(receive, length)
            asked = await _read(scope, headers, body, held.inspector)
            rows = await self._rows(held, asked, receive)
        finally:
            self._bytes -= length
        if rows is None:  # who asked is gone
            self.metrics.ended(499)
            return
        self.metrics.answered(rows, time.perf_counter() - begun)
        self.metrics.ended(200)
        name = {"X-Model-Version": quote(held.name, safe="/:@.-_~")}
        await _send(send, 200, _json(held.inspector, rows), "application/json", name)

    def _length(self, headers: Mapping[bytes, str]) -> int:
        """The bytes of a body for which there is room.

        Raises:
            Refusal: there is none, now or ever.
        """
        said = headers.get(b"content-length", "")
        if not said.isdecimal():
            raise Refusal(411, "the length of the body must be said")
        if len(said) > 18 or int(said) > self._limits.request:
            raise Refusal(413, f"a request may have {self._limits.request} bytes, and this one has {said[:18]}")
        crowded = self._bytes and self._bytes + int(said) > self._limits.bytes
        if crowded or self.metrics.waiting >= self._limits.pictures:
            raise self._full()
        return int(said)

    def _full(self) -> Refusal:
        wait = max(1, min(60, math.ceil(self.metrics.waiting * self._pace / cores())))
        taken = (
            f"{self.metrics.waiting} pictures wait already"
            if self.metrics.waiting
            else "others' requests take all room"
        )
        return Refusal(429, f"{taken}: ask again in {wait} s", wait)

    async def _rows(self, held: Held, asked: Asked, receive: Receive) -> list[Row] | None:
        """The rows of an answer; None where nobody waits for it any more.

        Raises:
            Refusal: there are too many pictures.
        """
        count = len(asked.rows)
        if count > self._limits.pictures:
            raise Refusal(413, f"a request may have {self._limits.pictures} pictures, and this one has {count}")
        if self.metrics.waiting + count > self._limits.pictures:
            raise self._full()
        gone = threading.Event()
        leaving = asyncio.create_task(_leave(receive, gone))
        try:
            rows = await self._look(held.inspector, asked.rows, gone)
        except BaseException:
            gone.set()  # the other pictures have no answer either
            raise
        finally:
            leaving.cancel()
        return None if gone.is_set() else finished(held.inspector, rows, asked.rows, named=asked.named)

    async def _look(self, inspector: Inspector, asked: Sequence[Mapping[str, Any]], gone: threading.Event) -> list[Row]:
        loop = asyncio.get_running_loop()

        async def follow(one: Mapping[str, Any], index: int) -> Row:
            try:
                row, seconds = await loop.run_in_executor(self._workers, _look, inspector, one, f"row {index}", gone)
            finally:
                self.metrics.waiting -= 1
            self._pace += 0.05 * (seconds - self._pace)
            return row

        self.metrics.waiting += len(asked)
        return [*await asyncio.gather(*(follow(one, index) for index, one in enumerate(asked)))]


def _look(inspector: Inspector, asked: Mapping[str, Any], key: str, gone: threading.Event) -> tuple[Row, float]:
    """What is said of a picture, and the seconds that it took; nothing where nobody waits for it any more."""
    begun = time.perf_counter()
    row = nothing_seen("nobody waits for it") if gone.is_set() else look(inspector, asked, key)
    return row, time.perf_counter() - begun


def _check_method(scope: Message) -> None:
    wanted = _PATHS.get(scope["path"])
    if wanted is None:
        raise Refusal(404, f"there is no such thing here, but {', '.join(_PATHS)}")
    if scope["method"] not in (wanted, "HEAD" if wanted == "GET" else wanted):
        raise Refusal(405, f"ask for this by {wanted}")


async def _body(receive: Receive, length: int) -> bytes:
    """All of a body.

    Raises:
        Refusal: it does not come in time.
    """
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "the body has not come whole")
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(408, f"the {length} bytes of the body have not come in {_BODY_SECONDS:.0f} s") from None


async def _read(scope: Message, headers: Mapping[bytes, str], body: bytes, inspector: Inspector) -> Asked:
    """What a body asks.

    Raises:
        Refusal: that cannot be told.
    """
    said = headers.get(b"content-type", "")
    kind = said.partition(";")[0].strip().lower()
    pattern = inspector.group_pattern
    try:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=20))
        if scope["path"] == "/invocations":
            if kind != "application/json":
                raise Refusal(415, "the body must be application/json")
            return read_json(body) if len(body) <= _SMALL else await asyncio.to_thread(read_json, body)
        if kind == "multipart/form-data":
            return await asyncio.to_thread(read_parts, body, said, query, pattern)
        if kind.startswith("image/") or kind == "application/octet-stream":
            return read_file(body, query, pattern)
    except (UserError, ValueError) as error:
        raise Refusal(400, str(error)) from error
    raise Refusal(415, "the body must be an image file (image/jpeg, say), or multipart/form-data of several")


async def _leave(receive: Receive, gone: threading.Event) -> None:
    """Tell when a client does not wait any more."""
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _json(inspector: Inspector, rows: Sequence[Row]) -> bytes:
    return json.dumps({"predictions": [shown(inspector, row) for row in rows]}).encode()


async def _send(send: Send, status: int, body: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
    await _start(send, status, body, kind, more or {})
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, body: bytes, kind: str, more: Mapping[str, str]) -> None:
    about = {"content-type": kind, "content-length": str(len(body)), **more}
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in about.items()]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})


async def _refuse(refusal: Refusal, receive: Receive, send: Send, *, linger: bool) -> None:
    """Say why there is no answer; what is still coming is thrown away for a while, or the client would not read it."""
    code = "INVALID_PARAMETER_VALUE" if refusal.status == 400 else "BAD_REQUEST"  # as MLflow has them
    body = json.dumps({"error_code": code, "message": refusal.sentence}).encode()
    await _start(send, refusal.status, body, "application/json", refusal.headers)
    await send({"type": "http.response.body", "body": body, "more_body": linger})
    if linger:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})
