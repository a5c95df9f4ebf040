"""A TCP proxy that lets every request wait: a network of a given latency, for the other benchmarks.

Latency is added once to each request, whatever its answer's size; bandwidth is not limited.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import psutil

_CHUNK = 1 << 18


class SlowLink:
    """Runs the proxy in a process of its own while the block lasts.

    Args:
        endpoint: where requests go in the end, ``http://host:port``.
        seconds: how long each waits.
    """

    def __init__(self, endpoint: str, seconds: float) -> None:
        address = urlsplit(endpoint)
        ours, theirs = multiprocessing.Pipe()
        context: Any = multiprocessing.get_context("spawn")
        self._process = context.Process(
            target=_run, args=(address.hostname, address.port, seconds, theirs), daemon=True
        )
        self._process.start()
        self.endpoint = f"http://127.0.0.1:{ours.recv()}"

    def cpu_seconds(self) -> float:
        """CPU time that the proxy has taken so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def __enter__(self) -> SlowLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()


def _run(host: str, port: int, seconds: float, answer: Connection) -> None:
    asyncio.run(_serve(host, port, seconds, answer))


async def _serve(host: str, port: int, seconds: float, answer: Connection) -> None:
    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, port, limit=_CHUNK)
        await asyncio.gather(_pass(reader, up_writer, seconds), _pass(up_reader, writer, 0), return_exceptions=True)

    server = await asyncio.start_server(link, "127.0.0.1", 0, limit=_CHUNK, backlog=512)
    answer.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    try:
        while data := await reader.read(_CHUNK):
            if seconds:
                await asyncio.sleep(seconds)
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
