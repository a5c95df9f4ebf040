"""Many S3 objects at once with obstore, a client in Rust that takes a quarter of boto3's CPU time.

boto3 stays the one that finds the credentials, lists, and explains what goes wrong: whatever cannot be fetched here is
asked for again there.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

_CONCURRENT = 64  # requests under way in one process
_RETRIES = 2

# obstore has its own ideas of empty, dot and percent-encoded parts of a key; such keys are left to boto3.
_PLAIN = re.compile(r"(?!\.{1,2}(?:/|$))[\w.,=@+ -]+(?:/(?!\.{1,2}(?:/|$))[\w.,=@+ -]+)*", re.ASCII)


def may_fetch() -> bool:
    """Whether this process may use obstore: only in a DataLoader worker.

    A process that has used obstore cannot be forked any more (its threads are missing in the child, which waits for
    them for ever). Workers start no processes; everybody else may.
    """
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


class Fetcher:
    """Reads objects of one bucket, in the background of its process.

    Args:
        bucket: its name.
        session: boto3's session, for the credentials, asked again before they expire.
        url: the service's.
        region: the bucket's.
        path_style: whether the bucket stands in the path rather than in the host name.
    """

    def __init__(self, bucket: str, session: Any, url: str, region: str, *, path_style: bool) -> None:
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        self._store = S3Store(
            bucket,
            endpoint=url if path_style else None,
            region=region,
            virtual_hosted_style_request=not path_style,
            credential_provider=Boto3CredentialProvider(session, ttl=timedelta(minutes=5)),
            client_options={
                "allow_http": True,
                "timeout": timedelta(seconds=60),
                "connect_timeout": timedelta(seconds=3),
            },
            retry_config={"max_retries": _RETRIES},
        )
        self._loop = asyncio.new_event_loop()
        self._gate = asyncio.Semaphore(_CONCURRENT)
        self._ahead: tuple[list[str], Future[list[bytes | None]]] | None = None
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def prefetch(self, keys: Sequence[str]) -> None:
        """Begin to fetch what the next call will ask for."""
        self._ahead = ([*keys], self._begin(keys)) if keys else None

    def __call__(self, keys: Sequence[str]) -> list[bytes | None]:
        """The contents in the order of ``keys``; None for what could not be read, for whatever reason."""
        ahead, self._ahead = self._ahead, None
        begun = ahead is not None and ahead[0] == [*keys]
        return (ahead[1] if ahead and begun else self._begin(keys)).result()

    def _begin(self, keys: Sequence[str]) -> Future[list[bytes | None]]:
        return asyncio.run_coroutine_threadsafe(self._get_all(keys), self._loop)

    async def _get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        return await asyncio.gather(*map(self._get, keys))

    async def _get(self, key: str) -> bytes | None:
        if not _PLAIN.fullmatch(key):
            return None
        async with self._gate:
            try:
                answer = await self._store.get_async(key)
                return bytes(await answer.bytes_async())
            except Exception:  # obstore and its callbacks raise many kinds; boto3 will say it better
                return None


def can_serve(url: str, region: str, ca_bundle: str | None, *, path_style: bool) -> bool:
    """Whether obstore reaches the service that boto3's client does: it knows neither other hosts nor CA bundles."""
    if url.startswith("https:") and ca_bundle:
        return False
    return path_style or url == f"https://s3.{region}.amazonaws.com"
