"""An HTTP proxy between clients and the real server, which fails as networks and services do when a test says so."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Operation = Literal["get", "list", "head", "other"]

_CHUNK = 1 << 16
_STATUS_LINES = {400: "Bad Request", 403: "Forbidden", 404: "Not Found", 500: "Internal Server Error"}


@dataclass
class Fault:
    """What goes wrong with a request.

    Args:
        kind: ``slow`` waits before it passes the request on, ``late`` before it passes the answer on. The others but
            ``status`` send half of the body and then nothing more (``stall``), a TCP reset (``reset``) or a proper end
            of the connection (``truncate``). ``status`` answers itself and does not ask the server.
        match: part of the decoded path and query.
        operation: reading objects, listing them, ...
        times: how many requests, counted down; None: all.
        skip: how many that it would hit pass before it begins, counted down.
        share: the part of the requests that is hit, drawn at random.
        seconds: of ``slow`` and ``late``.
        status: of ``status``.
        code: S3's name for it.
        signed_by: part of the request's signature or session token.
    """

    kind: Literal["slow", "late", "stall", "reset", "truncate", "status"]
    match: str = ""
    operation: Operation = "get"
    times: int | None = 1
    skip: int = 0
    share: float = 1.0
    seconds: float = 0.0
    status: int = 503
    code: str = "SlowDown"
    signed_by: str = ""

    def hits(self, request: Request, draw: random.Random) -> bool:
        """Whether it happens to this request; counts."""
        if self.times == 0 or self.operation != request.operation or self.match not in request.path:
            return False
        if self.signed_by not in request.signature or draw.random() >= self.share:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def answer(self) -> bytes:
        """The whole answer of a ``status``."""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{self.code}</Code><Message>injected</Message><RequestId>0</RequestId></Error>"
        ).encode()
        line = f"HTTP/1.1 {self.status} {_STATUS_LINES.get(self.status, 'Service Unavailable')}\r\n"
        return f"{line}Content-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True)
class Message:
    """The first line and the headers of a request or an answer, as they came."""

    head: bytes

    @cached_property
    def start(self) -> list[str]:
        """The words of the first line."""
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    def header(self, name: str) -> str:
        """The value of a header; empty where there is none."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return ""

    @property
    def chunked(self) -> bool:
        return self.header("transfer-encoding") == "chunked"

    @property
    def length(self) -> int:
        """Bytes of the body, where it is not chunked."""
        return int(self.header("content-length") or 0)


class Request(Message):
    """A request's head."""

    @property
    def method(self) -> str:
        return self.start[0]

    @property
    def path(self) -> str:
        """Path and query, decoded."""
        return unquote(self.start[1])

    @property
    def operation(self) -> Operation:
        bucket, _, key = urlsplit(self.start[1]).path.lstrip("/").partition("/")
        if self.method == "HEAD":
            return "head"
        if self.method != "GET":
            return "other"
        return "get" if bucket and key else "list"

    @property
    def signature(self) -> str:
        return f"{self.header('authorization')} {self.header('x-amz-security-token')}"


class FaultProxy:
    """Passes every request on unchanged, the Host header too (it is signed), unless a fault hits it.

    It runs in a thread while the block lasts; forked processes do not keep its connections open.

    Args:
        endpoint: of the real server, ``http://host:port``.
    """

    def __init__(self, endpoint: str) -> None:
        self.requests: list[tuple[str, str]] = []  # method, decoded path and query
        self.injected = 0
        self.endpoint = ""
        self._address = urlsplit(endpoint)
        self._faults: list[Fault] = []
        self._draw = random.Random(0)
        self._lock = threading.Lock()
        self._sockets: set[Any] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def add(self, *faults: Fault) -> None:
        """Let these happen from now on; the first of all that hits a request happens to it."""
        with self._lock:
            self._faults += faults

    def clear(self) -> None:
        """Let nothing happen any more."""
        with self._lock:
            self._faults.clear()

    def reads(self, match: str = "") -> list[str]:
        """The decoded paths of the objects that were asked for."""
        return [path for method, path in self.requests if method == "GET" and "?" not in path and match in path]

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._ready.wait()
        _running.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close every connection and end the thread; idempotent."""
        if self in _running:
            _running.remove(self)
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def descriptors(self) -> Iterator[int]:
        """The file descriptors of its sockets."""
        return (number for number in (item.fileno() for item in self._sockets) if number >= 0)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # cancels what still runs, closes the loop
            runner.run(self._listen())

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
        self._sockets.update(server.sockets)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, and one to the server for it."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            up_reader, up_writer = await asyncio.open_connection(self._address.hostname, self._address.port)
            ours = {item.get_extra_info("socket") for item in (writer, up_writer)}
            self._sockets |= ours
            try:
                while True:
                    request = Request(await reader.readuntil(b"\r\n\r\n"))
                    await self._exchange(request, (reader, writer), (up_reader, up_writer))
            finally:
                self._sockets -= ours
                up_writer.transport.abort()
        writer.transport.abort()

    async def _exchange(
        self,
        request: Request,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        fault = self._fault_for(request)
        if request.header("expect"):  # the client waits before it sends a body
            client[1].write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault is not None and fault.kind == "status":
            await client[0].readexactly(request.length)
            client[1].write(fault.answer())
            return
        if fault is not None and fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
            fault = None
        await _send(request, client[0], server[1])
        answer = Message(await server[0].readuntil(b"\r\n\r\n"))
        if answer.start[1] == "100":
            answer = Message(await server[0].readuntil(b"\r\n\r\n"))
        if fault is not None and fault.kind == "late":
            await asyncio.sleep(fault.seconds)
            fault = None
        if fault is not None:
            await _break_off(fault, answer, server[0], client)
        elif request.method == "HEAD":
            client[1].write(answer.head)
        else:
            await _send(answer, server[0], client[1])

    def _fault_for(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append((request.method, request.path))
            found = next((fault for fault in self._faults if fault.hits(request, self._draw)), None)
            self.injected += found is not None
            return found


async def _send(message: Message, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass a message on as it comes in."""
    sink.write(message.head)
    if not message.chunked:
        await _copy(source, sink, message.length)
        return
    size = 1
    while size:
        line = await source.readline()
        size = int(line.partition(b";")[0], 16)
        sink.write(line)
        await _copy(source, sink, size + 2)  # with its line end


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, count: int) -> None:
    while count:
        data = await source.read(min(count, _CHUNK))
        if not data:
            raise ConnectionResetError
        sink.write(data)
        await sink.drain()
        count -= len(data)
    await sink.drain()


async def _break_off(
    fault: Fault,
    answer: Message,
    source: asyncio.StreamReader,
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Send half of an answer's body, and then what the fault says; ends the connection."""
    reader, writer = client
    writer.write(answer.head)
    await _copy(source, writer, answer.length // 2)
    if fault.kind == "stall":
        await reader.read()  # until the client has had enough
    elif fault.kind == "reset":
        await asyncio.sleep(0.02)  # a reset discards what the client has not taken yet
        lingering = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
    else:
        writer.close()
        await writer.wait_closed()
    raise ConnectionAbortedError


_running: set[FaultProxy] = set()


def _release_in_child() -> None:
    """A connection ends only when all processes have closed it; so a fork's descriptors lead nowhere from now on.

    They stay open, for Python objects in the child would close the same numbers again.
    """
    if _running:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for proxy in _running:
            for number in proxy.descriptors():
                os.dup2(nowhere, number, inheritable=False)
        os.close(nowhere)
        _running.clear()


os.register_at_fork(after_in_child=_release_in_child)
