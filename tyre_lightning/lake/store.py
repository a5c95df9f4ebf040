"""Where images lie: an S3 bucket or a local folder, behind one small interface.

Every image has one **key**. It begins with the last component of the store's root (the data version) and is the same
for a lake on S3 and for its local copy: the roots ``s3://bucket/a/v1`` and ``/lakes/v1`` both give
``v1/train/cracks/0001.jpg``; the root ``s3://bucket`` gives ``train/cracks/0001.jpg``. Folders are named without the
root, as in ``list("train/cracks")``.
"""

from __future__ import annotations

import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError

THREADS = 16
ATTEMPTS = 3  # of every S3 request
CONNECT_SECONDS = 3  # three attempts and the pauses between them stay near ten seconds
READ_SECONDS = 60

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_RENEW = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that s3.profile names"
_ADVICE = {
    "SignatureDoesNotMatch": f"the secret key does not fit the access key: {_RENEW}",
    "InvalidAccessKeyId": f"the access key is not known there: {_RENEW}",
    "AccessDenied": "access is denied: the credentials need s3:ListBucket and s3:GetObject",
    "ExpiredToken": "the credentials have expired: renew them",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "NoSuchBucket": "there is no such bucket: check its name",
    "NoSuchKey": "there is no such object: it was deleted, or its key is misspelt",
    "PermanentRedirect": "the bucket is in another region: set s3.region",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set s3.region",
}
_NO_CREDENTIALS = (
    "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with s3.profile"
)
_REACH = "check s3.endpoint_url, AWS_ENDPOINT_URL and the network"


class Entry(NamedTuple):
    """One stored object: its key, its size in bytes, and a tag that changes with its content."""

    key: str
    size: int
    etag: str


class Store(ABC):
    """Read access to the objects below ``root``. Stores pickle, and work in forked and spawned processes."""

    root: str

    @abstractmethod
    def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
        """The objects in the folder ``prefix``, with all folders below it if ``deep``; sorted by key.

        A folder that does not exist holds nothing, since S3 has no folders.

        Raises:
            UserError: the bucket, the credentials or the endpoint are wrong.
        """

    @abstractmethod
    def prefixes(self, prefix: str = "") -> tuple[str, ...]:
        """The names of the folders directly in the folder ``prefix``, sorted.

        Raises:
            UserError: as for :meth:`list`.
        """

    @abstractmethod
    def key(self, path: str) -> str:
        """The key of the object at ``path`` below the root, whether or not it exists."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The content of one object.

        Raises:
            UserError: it is missing or cannot be read; names the object and the status.
        """

    def get_many(self, keys: Sequence[str], threads: int = THREADS) -> Sequence[bytes]:
        """The contents of many objects, fetched concurrently, in the order of ``keys``.

        Raises:
            UserError: for the first of ``keys`` that :meth:`get` fails for.
        """
        if not keys:
            return []
        with ThreadPoolExecutor(max_workers=min(threads, len(keys))) as pool:
            return [*pool.map(self.get, keys)]


def open_store(root: str, s3: S3Config) -> Store:
    """The store at ``s3://bucket[/prefix]`` or in a folder. S3 is not asked anything yet.

    Raises:
        UserError: the URL is malformed, or the folder does not exist.
    """
    if re.match(r"s3:", root, re.IGNORECASE) or "://" in root:
        return S3Store(root, s3)
    return FolderStore(os.path.expanduser(root))


class FolderStore(Store):
    """A local folder; symbolic links are followed."""

    def __init__(self, root: str) -> None:
        if not os.path.isdir(root):
            raise UserError(f"there is no folder '{root}'")
        self.root = os.path.abspath(root)
        self._parent, version = os.path.split(self.root)
        self._base = _folder(version)

    def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
        """See :meth:`Store.list`. The tag is made of the file's time and size."""
        folder = os.path.join(self.root, *_folder(prefix).split("/"))
        if os.path.isdir(folder):
            yield from _walk(folder, self._base + _folder(prefix), deep, ())

    def prefixes(self, prefix: str = "") -> tuple[str, ...]:
        """See :meth:`Store.prefixes`."""
        folder = os.path.join(self.root, *_folder(prefix).split("/"))
        if not os.path.isdir(folder):
            return ()
        return tuple(entry.name for entry in _scan(folder) if entry.is_dir())

    def key(self, path: str) -> str:
        """See :meth:`Store.key`."""
        return self._base + path

    def get(self, key: str) -> bytes:
        """See :meth:`Store.get`."""
        path = os.path.join(self._parent, *key.split("/"))
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise UserError(f"cannot read '{path}': {error.strerror}") from error


class S3Store(Store):
    """A bucket, or a prefix in it, over boto3. Credentials come from the standard AWS chain only.

    The client is made when a process first needs one; it is never pickled and never crosses a fork.
    """

    def __init__(self, root: str, config: S3Config) -> None:
        self._bucket, prefix = _parse_s3(root)
        self.root = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._base = _folder(prefix)
        self._parent = _folder(prefix.rpartition("/")[0])
        self._config = config
        self._made: tuple[int, Any] | None = None  # process id and its client

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def list(self, prefix: str = "", *, deep: bool = True) -> Iterator[Entry]:
        """See :meth:`Store.list`."""
        for page in self._pages(prefix, {} if deep else {"Delimiter": "/"}):
            for item in page.get("Contents", ()):
                yield Entry(item["Key"].removeprefix(self._parent), item["Size"], item.get("ETag", "").strip('"'))

    def prefixes(self, prefix: str = "") -> tuple[str, ...]:
        """See :meth:`Store.prefixes`."""
        found = [
            folder["Prefix"].rstrip("/").rpartition("/")[2]
            for page in self._pages(prefix, {"Delimiter": "/"})
            for folder in page.get("CommonPrefixes", ())
        ]
        return tuple(sorted(found))

    def key(self, path: str) -> str:
        """See :meth:`Store.key`."""
        return (self._base + path).removeprefix(self._parent)

    def get(self, key: str) -> bytes:
        """See :meth:`Store.get`."""
        with self._explained("read", self._parent + key):
            return _download(self._client(), self._bucket, self._parent + key)

    def get_many(self, keys: Sequence[str], threads: int = THREADS) -> Sequence[bytes]:
        """See :meth:`Store.get_many`."""
        with self._explained("read", self._base):
            self._client()  # here, so that the threads do not make one each
        return super().get_many(keys, threads)

    def _pages(self, prefix: str, options: dict[str, str]) -> Iterator[dict[str, Any]]:
        folder = self._base + _folder(prefix)
        with self._explained("list", folder):
            paginator = self._client().get_paginator("list_objects_v2")
            yield from paginator.paginate(Bucket=self._bucket, Prefix=folder, **options)

    def _client(self) -> Any:
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), _make_client(self._config)
        return self._made[1]

    @contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        """Turn what boto3 raises into a :class:`UserError` that names the object and the endpoint."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            endpoint = _configured_endpoint(self._config)
            where = f" at {_without_secrets(endpoint)}" if endpoint else ""
            raise UserError(f"cannot {verb} 's3://{self._bucket}/{path}'{where}: {_reason(error)}") from error


def _folder(path: str) -> str:
    """A folder's path with exactly one slash at its end, so that ``good`` never means ``good_old`` too."""
    path = path.strip("/")
    return path + "/" if path else ""


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder in the order in which S3 would list their keys."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name + "/" if entry.is_dir() else entry.name)
    except OSError as error:
        raise UserError(f"cannot list '{folder}': {error.strerror}") from error


def _walk(folder: str, key: str, deep: bool, above: tuple[str, ...]) -> Iterator[Entry]:
    real = os.path.realpath(folder)
    if real in above:
        raise UserError(f"the link '{folder}' leads back to a folder above it: remove it")
    for entry in _scan(folder):
        if entry.is_dir():
            if deep:
                yield from _walk(entry.path, f"{key}{entry.name}/", deep, (*above, real))
        else:
            yield _file_entry(entry, key + entry.name)


def _file_entry(entry: os.DirEntry[str], key: str) -> Entry:
    try:
        key.encode()
        stat = entry.stat()
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {entry.path!a} is not UTF-8: rename it") from error
    except OSError as error:
        raise UserError(f"cannot read '{entry.path}': {error.strerror}") from error
    return Entry(key, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


def _parse_s3(root: str) -> tuple[str, str]:
    """Bucket and prefix of an ``s3://`` URL."""
    scheme, _, rest = root.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket):
        raise UserError(f"'{_without_secrets(root)}' is not an address of images: write s3://bucket/prefix or a folder")
    return bucket, prefix.strip("/")


def _without_secrets(url: str) -> str:
    """A URL without user, password and query."""
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])


def _configured_endpoint(config: S3Config) -> str | None:
    return config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _make_client(config: S3Config) -> Any:
    import boto3
    import botocore.session

    logging.getLogger("botocore").setLevel(logging.WARNING)  # at INFO it reports where every client found its settings
    core = botocore.session.Session()
    # Listings carry a time for every key. Parsing it takes most of a listing's CPU time, and nobody reads it.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=lambda value: value)
    session = boto3.Session(botocore_session=core, profile_name=config.profile)
    try:
        return session.client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=config.region or session.region_name or "us-east-1",
            config=_client_config(config),
        )
    except ValueError as error:
        endpoint = _without_secrets(_configured_endpoint(config) or "")
        raise UserError(f"the S3 endpoint '{endpoint}' is not a URL: write http://host:port") from error


def _client_config(config: S3Config) -> Any:
    from botocore.config import Config

    path_style = bool(_configured_endpoint(config)) if config.path_style is None else config.path_style
    return Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=2 * THREADS,
        # Other S3 servers do not know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if path_style else "auto"},
    )


def _download(client: Any, bucket: str, key: str) -> bytes:
    """One object's bytes. boto3 repeats failed requests; a body that breaks off is repeated here."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    attempt = 1
    while True:
        body = client.get_object(Bucket=bucket, Key=key)["Body"]
        try:
            data: bytes = body.read()
            return data
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            if attempt == ATTEMPTS:
                raise
            attempt += 1


def _reason(error: Exception) -> str:
    """What went wrong and what to do, without anything that the server said in words: it may quote secrets."""
    from botocore import exceptions as known

    if isinstance(error, known.ClientError):
        return _refusal(error.response)
    if isinstance(error, known.ProfileNotFound):
        return f"the AWS profile '{error.kwargs['profile']}' is not in the AWS config: check s3.profile and AWS_PROFILE"
    if isinstance(error, known.NoCredentialsError):
        return _NO_CREDENTIALS
    credentials = (known.PartialCredentialsError, known.CredentialRetrievalError, known.TokenRetrievalError)
    if isinstance(error, (*credentials, known.SSOError)):
        return f"the AWS credentials cannot be loaded: {_RENEW} ({type(error).__name__})"
    if isinstance(error, (known.ConnectionError, known.HTTPClientError, known.IncompleteReadError)):
        return f"the endpoint does not answer: {_REACH} ({type(error).__name__})"
    return f"the request could not be made: check the s3 settings ({type(error).__name__})"


def _refusal(response: dict[str, Any]) -> str:
    code = response.get("Error", {}).get("Code", "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    advice = _ADVICE.get(code)
    if advice is None and status == 403:
        advice = _ADVICE["AccessDenied"]
    return f"{advice or 'S3 refused the request'} (HTTP {status}, {code})"
