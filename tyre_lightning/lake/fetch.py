"""Many S3 objects at once with obstore, a client in Rust that takes a quarter of boto3's CPU time.

boto3 stays the one that finds the credentials, lists, and explains what goes wrong: whatever cannot be fetched here is
asked for again there.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from tyre_lightning.lake.store import Content

if TYPE_CHECKING:
    from obstore.store import ClientConfig

_CONCURRENT = 128  # requests under way in one process; see AHEAD_IMAGES of the dataset
_RETRIES = 2
_CONNECT = timedelta(seconds=3)
_WHOLE = timedelta(seconds=60)  # for one object
_CREDENTIALS_LIFE = timedelta(minutes=5)  # boto3 renews what expires sooner than in ten minutes

# obstore has its own ideas of empty, dot and percent-encoded parts of a key; such keys are left to boto3.
_PLAIN = re.compile(r"(?!\.{1,2}(?:/|$))[\w.,=@+ -]+(?:/(?!\.{1,2}(?:/|$))[\w.,=@+ -]+)*", re.ASCII)


def may_fetch() -> bool:
    """Whether this process may use obstore: only in a DataLoader worker.

    A process that has used obstore cannot be forked any more (its threads are missing in the child, which waits for
    them for ever). Workers start no processes; everybody else may.
    """
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


def can_serve(url: str, region: str, *, path_style: bool) -> bool:
    """Whether obstore reaches the service that boto3's client does: with the bucket in the host name, only AWS's."""
    return path_style or url == f"https://s3.{region}.amazonaws.com"


class Fetcher:
    """Reads objects of one bucket, in the background of its process.

    Args:
        bucket: its name.
        session: boto3's session, for the credentials, asked again before they expire; None: requests are not signed.
        url: the service's.
        region: the bucket's.
        path_style: whether the bucket stands in the path rather than in the host name.
        ca_bundle: a file of certificates to trust besides the system's.
        pause: seconds without a byte after which a request has failed.
    """

    def __init__(
        self,
        bucket: str,
        session: Any,
        url: str,
        region: str,
        *,
        path_style: bool,
        ca_bundle: str | None,
        pause: float,
    ) -> None:
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        client: ClientConfig = {
            "allow_http": True,
            "timeout": _WHOLE,
            "connect_timeout": _CONNECT,
            "read_timeout": timedelta(seconds=pause),
        }
        if ca_bundle:
            client["root_certificate"] = Path(ca_bundle).read_bytes()
        signing: dict[str, Any] = (
            {"credential_provider": Boto3CredentialProvider(session, ttl=_CREDENTIALS_LIFE)}
            if session
            else {"skip_signature": True}
        )
        self._store = S3Store(
            bucket,
            endpoint=url if path_style else None,
            region=region,
            virtual_hosted_style_request=not path_style,
            client_options=client,
            retry_config={"max_retries": _RETRIES},
            **signing,
        )
        self._ahead: dict[str, Future[Content | None]] = {}
        self._wanted: SimpleQueue[tuple[str, Future[Content | None]] | None] = SimpleQueue()
        for _ in range(_CONCURRENT):  # no executor: at its process's end that one would first do all it was asked for
            threading.Thread(target=self._work, daemon=True).start()

    def prefetch(self, keys: Sequence[str], *, fresh: bool) -> None:
        """Begin to fetch what later calls will ask for; ``fresh``: forget what was begun before."""
        if fresh:
            self.forget([*self._ahead])
        self._ahead.update(self._begun(keys))

    def forget(self, keys: Sequence[str]) -> None:
        """Hold what was begun of some objects no longer, and do not begin what waits."""
        for key in keys:
            if (future := self._ahead.pop(key, None)) is not None:
                future.cancel()

    def __call__(self, keys: Sequence[str]) -> list[Content | None]:
        """The objects in the order of ``keys``; None for what could not be read, for whatever reason."""
        begun = self._begun(keys)
        for key in begun:
            self._ahead.pop(key, None)
        return [begun[key].result() for key in keys]

    def close(self) -> None:
        """Stop the threads."""
        for _ in range(_CONCURRENT):
            self._wanted.put(None)

    def _begun(self, keys: Sequence[str]) -> dict[str, Future[Content | None]]:
        """What each key's object will be, under way already or from now on."""
        begun = {}
        for key in keys:
            if (future := self._ahead.get(key)) is None:
                future = Future()
                self._wanted.put((key, future))
            begun[key] = future
        return begun

    def _work(self) -> None:
        while self._fetch_one():
            pass

    def _fetch_one(self) -> bool:
        """Fetch what is wanted next; False at the end. A thread that waits holds no object: its names end here."""
        item = self._wanted.get()
        if item is None:
            return False
        key, future = item
        if future.set_running_or_notify_cancel():
            future.set_result(self._get(key))
        return True

    def _get(self, key: str) -> Content | None:
        if not _PLAIN.fullmatch(key):
            return None
        try:
            answer = self._store.get(key)
            return Content(bytes(answer.bytes()), (answer.meta["e_tag"] or "").strip('"'))
        except Exception:  # obstore and its callbacks raise many kinds; boto3 will say it better
            return None
