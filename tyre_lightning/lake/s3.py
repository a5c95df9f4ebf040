"""An S3 bucket as a :class:`Store`: boto3 lists and explains, obstore fetches in bulk where it may."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from tyre_lightning.config import S3Config
from tyre_lightning.errors import ForbiddenObject, MissingObject, StoreUnavailable, UserError, hide_passwords
from tyre_lightning.lake.fetch import Fetcher, can_serve, may_fetch
from tyre_lightning.lake.patience import Patience
from tyre_lightning.lake.s3_errors import is_expiry, is_forbidden, is_gone, is_missing, is_passing, reason
from tyre_lightning.lake.s3_listing import PAGE, list_again
from tyre_lightning.lake.s3_pages import Page, page_of, register
from tyre_lightning.lake.store import THREADS, Content, Entry, Store, as_folder, check_size, in_threads

ATTEMPTS = 3  # of every S3 request
CONNECT_SECONDS = 3  # three attempts and the pauses between them stay near ten seconds
READ_SECONDS = 10  # without a single byte
PATIENCE_SECONDS = 60  # with a store that has answered before

T = TypeVar("T")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


class _Connection(NamedTuple):
    """What one process talks to S3 with; never pickled, and never carried over a fork."""

    process: int  # its id
    client: Any  # boto3's
    fetch: Fetcher | None  # where obstore may be used


class S3Store(Store):
    """A bucket, or a prefix in it. Credentials come from the standard AWS chain only; each process connects once.

    Args:
        root: its address.
        config: where the service is.
        memory: a folder that keeps listings between runs; None: nothing is kept.
    """

    remote = True

    def __init__(self, root: str, config: S3Config, memory: Path | None = None) -> None:
        self._memory = memory
        self._bucket, prefix = _parse_s3(root)
        self.root = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._base = as_folder(prefix)
        self._parent = as_folder(prefix.rpartition("/")[0])
        self._config = config
        self.address = f"{hide_passwords(_configured_endpoint(config) or 'aws')} s3://{self._bucket}/{self._parent}"
        self._made: _Connection | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
        """See :meth:`Store.list`."""
        folder = self._base + as_folder(prefix)
        with self._explained("list", folder):
            for entry in self._entries(folder, deep=deep):
                yield Entry(entry.key.removeprefix(self._parent), entry.size, entry.etag)

    def prefixes(self, prefix: str = "") -> tuple[str, ...]:
        """See :meth:`Store.prefixes`."""
        folder = self._base + as_folder(prefix)
        with self._explained("list", folder):
            answers = self._answers(folder, Delimiter="/")
            found = {name.removeprefix(folder).rstrip("/") for answer in answers for name in _folders(answer)}
        return tuple(sorted(found - {""}))  # a key may have two slashes in a row; a folder without a name is none

    def key(self, path: str) -> str:
        """See :meth:`Store.key`."""
        return (self._base + path).removeprefix(self._parent)

    def get(self, key: str, largest: int | None = None) -> Content:
        """See :meth:`Store.get`."""
        from botocore.exceptions import ClientError

        with self._explained("read", self._parent + key):
            connection = self._connection()
            try:
                return _download(connection.client, self._bucket, self._parent + key, largest)
            except ClientError as error:
                if not is_expiry(error):
                    raise
            self._disconnect(connection)  # whoever renews the credentials may have done so by now
            return _download(self._connection().client, self._bucket, self._parent + key, largest)

    def find(self, key: str) -> bytes | None:
        """See :meth:`Store.find`."""
        try:
            return self.get(key).data
        except UserError as error:
            if is_missing(error.__cause__):
                return None
            raise

    def put(self, key: str, data: bytes) -> None:
        """Write an object.

        Raises:
            UserError: it cannot be written.
        """
        self.ask("write", key, lambda client, place: client.put_object(**place, Body=data))

    def ask(self, verb: str, key: str, request: Callable[[Any, dict[str, str]], T]) -> T:
        """What some other request for an object gives.

        Args:
            verb: what it does, for the error.
            key: of the object.
            request: takes boto3's client, and ``Bucket`` and ``Key``.

        Raises:
            UserError: it fails.
        """
        with self._explained(verb, self._parent + key):
            return request(self._connection().client, {"Bucket": self._bucket, "Key": self._parent + key})

    def list_after(self, prefix: str, last: str) -> Iterator[Entry]:
        """What :meth:`list` gives of a folder beyond a key, which need not be there; nothing before it is asked for.

        Raises:
            UserError: as for :meth:`list`.
        """
        folder = self._base + as_folder(prefix)
        with self._explained("list", folder):
            for page in self._pages(folder, self._parent + last):
                for entry in page.entries():
                    yield Entry(entry.key.removeprefix(self._parent), entry.size, entry.etag)

    def copy_from(self, other: S3Store, entry: Entry, to: str) -> None:
        """Have the service copy another bucket's or prefix's object, as it was listed there, to ``to`` here.

        Its tag is the condition, since a copy's own tag need not be the same: not where a key of KMS encrypts it.

        Raises:
            UserError: it cannot be read or written, or has changed since.
        """
        place = {"Bucket": other._bucket, "Key": other._parent + entry.key}
        with self._explained("copy", f"{self._parent}{to}' from 's3://{other._bucket}/{other._parent}{entry.key}"):
            self._connection().client.copy_object(
                Bucket=self._bucket, Key=self._parent + to, CopySource=place, CopySourceIfMatch=entry.etag
            )

    def get_many(self, keys: Sequence[str], threads: int = THREADS) -> Sequence[Content]:
        """See :meth:`Store.get_many`. A store that stops answering is asked again for a minute."""
        if not keys:
            return []
        with self._explained("read", self._base):
            fetch = self._connection().fetch  # here, so that the threads do not connect one by one
        found = dict(zip(keys, fetch([self._parent + key for key in keys]), strict=True)) if fetch else {}
        missing = [key for key in keys if found.get(key) is None]
        patience = Patience(PATIENCE_SECONDS)
        try:
            more = in_threads(lambda key: patience.call(partial(self.get, key)), missing, threads)
        finally:
            patience.end()
        found.update(zip(missing, more, strict=True))
        return [content for key in keys if (content := found[key]) is not None]

    def prefetch(self, keys: Sequence[str], *, fresh: bool = False) -> None:
        """See :meth:`Store.prefetch`."""
        if not keys and self._made is None:
            return  # all is in the cache: connecting would take longer than the first batch
        try:
            fetch = self._connection().fetch
        except Exception:  # get_many will fail for the same reason, and explain it
            return
        if fetch is not None:
            fetch.prefetch([self._parent + key for key in keys], fresh=fresh)

    def forget(self, keys: Sequence[str]) -> None:
        """See :meth:`Store.forget`."""
        made = self._made
        if made is not None and made.process == os.getpid() and made.fetch is not None:
            made.fetch.forget([self._parent + key for key in keys])

    def _entries(self, folder: str, *, deep: bool) -> Iterator[Entry]:
        if deep and self._memory is not None:
            name = blake2b(f"{self.address} {folder}".encode(), digest_size=16).hexdigest()
            return list_again(partial(self._pages, folder), self._memory / f"{name}.parquet")
        return self._deep(folder) if deep else self._shallow(folder)

    def _deep(self, folder: str) -> Iterator[Entry]:
        return (entry for page in self._pages(folder) for entry in page.entries())

    def _shallow(self, folder: str) -> Iterator[Entry]:
        """The objects in a folder; those below a folder in it that has no name are its own."""
        nameless = False
        for answer in self._answers(folder, Delimiter="/"):
            yield from page_of(answer).entries()
            nameless |= f"{folder}/" in _folders(answer)
        if nameless:
            yield from self._deep(f"{folder}/")

    def _pages(self, folder: str, after: str = "") -> Iterator[Page]:
        return map(page_of, self._answers(folder, **({"StartAfter": after} if after else {})))

    def _answers(self, folder: str, **options: str) -> Iterator[dict[str, Any]]:
        paginator = self._connection().client.get_paginator("list_objects_v2")
        yield from paginator.paginate(Bucket=self._bucket, Prefix=folder, MaxKeys=PAGE, **options)

    def _connection(self) -> _Connection:
        with self._lock:
            if self._made is None or self._made.process != os.getpid():
                self._made = _connect(self._bucket, self._config)
            return self._made

    def _disconnect(self, old: _Connection) -> None:
        with self._lock:
            if self._made is old:
                self._made = None
                if old.fetch is not None:
                    old.fetch.close()

    @contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        """Turn what boto3 raises into a :class:`UserError` that names the object and the endpoint."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of the credential chain, too: missing files and commands, wrong settings
            endpoint = _configured_endpoint(self._config)
            where = f" at {hide_passwords(endpoint)}" if endpoint else ""
            raise _kind(error)(f"cannot {verb} 's3://{self._bucket}/{path}'{where}: {reason(error)}") from error


def _kind(error: Exception) -> type[UserError]:
    """Of the error that tells of one."""
    kinds = {StoreUnavailable: is_passing, MissingObject: is_gone, ForbiddenObject: is_forbidden}
    return next((kind for kind, holds in kinds.items() if holds(error)), UserError)


def _folders(answer: dict[str, Any]) -> list[str]:
    return [item["Prefix"] for item in answer.get("CommonPrefixes", ())]


def _parse_s3(root: str) -> tuple[str, str]:
    """Bucket and prefix of an ``s3://`` URL."""
    scheme, _, rest = root.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket):
        shown = hide_passwords(root).partition("?")[0]
        raise UserError(f"'{shown}' is not an address of images: write s3://bucket/prefix or a folder")
    return bucket, prefix.strip("/")


def _check_endpoint(endpoint: str | None) -> None:
    """Refuse what is no address of a server.

    Raises:
        UserError: names it.
    """
    try:
        parts = urlsplit(endpoint or "http://none")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"the S3 endpoint '{hide_passwords(endpoint or '')}' is not a URL: write http://host:port")


def _configured_endpoint(config: S3Config) -> str | None:
    return config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _connect(bucket: str, config: S3Config) -> _Connection:
    import boto3
    import botocore.session

    _check_endpoint(_configured_endpoint(config))
    logging.getLogger("botocore").setLevel(logging.WARNING)  # at INFO it reports where every client found its settings
    core = botocore.session.Session()
    core.register_component("data_loader", _descriptions(core.get_config_variable("data_path")))
    session = boto3.Session(botocore_session=core, profile_name=config.profile)
    path_style = bool(_configured_endpoint(config)) if config.path_style is None else config.path_style
    client = session.client(
        "s3",
        endpoint_url=config.endpoint_url,
        region_name=config.region or session.region_name or "us-east-1",
        config=_client_config(path_style, config.anonymous),
    )
    register(client)
    url, region = client.meta.endpoint_url, client.meta.region_name
    credentials = None if config.anonymous else session
    fetch = None
    if (
        may_fetch()
        and can_serve(url, region, path_style=path_style)
        and (config.anonymous or session.get_credentials())
    ):
        bundle = core.get_config_variable("ca_bundle") if url.startswith("https:") else None
        fetch = Fetcher(bucket, credentials, url, region, path_style=path_style, ca_bundle=bundle, pause=READ_SECONDS)
    return _Connection(os.getpid(), client, fetch)


@cache
def _descriptions(folders: str | None) -> Any:
    """AWS's services as botocore describes them, read once: each session would parse the files anew, for 0.1 s."""
    from botocore.loaders import create_loader

    return create_loader(folders)


def _client_config(path_style: bool, anonymous: bool) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    return Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=2 * THREADS,
        signature_version=UNSIGNED if anonymous else None,
        # Other S3 servers do not know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if path_style else "auto"},
    )


def _download(client: Any, bucket: str, key: str, largest: int | None) -> Content:
    """One object. boto3 repeats failed requests; a body that breaks off is repeated here."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    attempt = 1
    while True:
        answer = client.get_object(Bucket=bucket, Key=key)
        try:
            check_size(key, answer["ContentLength"], largest)
            return Content(answer["Body"].read(), answer.get("ETag", "").strip('"'))
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            if attempt == ATTEMPTS:
                raise
            attempt += 1
