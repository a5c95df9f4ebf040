"""An S3 bucket as a :class:`Store`: boto3 lists and explains, obstore fetches in bulk where it may."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.lake.fetch import Fetcher, can_serve, may_fetch
from tyre_lightning.lake.store import THREADS, Entry, Store, as_folder

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


class _Connection(NamedTuple):
    """What one process talks to S3 with; never pickled, and never carried over a fork."""

    process: int  # its id
    client: Any  # boto3's
    fetch: Fetcher | None  # where obstore may be used


class S3Store(Store):
    """A bucket, or a prefix in it. Credentials come from the standard AWS chain only; each process connects once."""

    def __init__(self, root: str, config: S3Config) -> None:
        self._bucket, prefix = _parse_s3(root)
        self.root = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._base = as_folder(prefix)
        self._parent = as_folder(prefix.rpartition("/")[0])
        self._config = config
        self._made: _Connection | None = None

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
            fetch = self._connection().fetch  # here, so that the threads do not connect one by one
        if fetch is None:
            return super().get_many(keys, threads)
        found = dict(zip(keys, fetch([self._parent + key for key in keys]), strict=True))
        missing = [key for key, data in found.items() if data is None]
        found.update(zip(missing, super().get_many(missing, threads), strict=True))
        return [data for key in keys if (data := found[key]) is not None]

    def prefetch(self, keys: Sequence[str]) -> None:
        """See :meth:`Store.prefetch`."""
        if self._made is not None and self._made.process == os.getpid() and self._made.fetch is not None:
            self._made.fetch.prefetch([self._parent + key for key in keys])

    def _pages(self, prefix: str, options: dict[str, str]) -> Iterator[dict[str, Any]]:
        folder = self._base + as_folder(prefix)
        with self._explained("list", folder):
            paginator = self._client().get_paginator("list_objects_v2")
            yield from paginator.paginate(Bucket=self._bucket, Prefix=folder, **options)

    def _client(self) -> Any:
        return self._connection().client

    def _connection(self) -> _Connection:
        if self._made is None or self._made.process != os.getpid():
            self._made = _connect(self._bucket, self._config)
        return self._made

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


def _connect(bucket: str, config: S3Config) -> _Connection:
    import boto3
    import botocore.session

    logging.getLogger("botocore").setLevel(logging.WARNING)  # at INFO it reports where every client found its settings
    core = botocore.session.Session()
    # Listings carry a time for every key. Parsing it takes most of a listing's CPU time, and nobody reads it.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=lambda value: value)
    session = boto3.Session(botocore_session=core, profile_name=config.profile)
    path_style = bool(_configured_endpoint(config)) if config.path_style is None else config.path_style
    try:
        client = session.client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=config.region or session.region_name or "us-east-1",
            config=_client_config(path_style),
        )
    except ValueError as error:
        endpoint = _without_secrets(_configured_endpoint(config) or "")
        raise UserError(f"the S3 endpoint '{endpoint}' is not a URL: write http://host:port") from error
    url, region, bundle = client.meta.endpoint_url, client.meta.region_name, core.get_config_variable("ca_bundle")
    fast = may_fetch() and can_serve(url, region, bundle, path_style=path_style) and session.get_credentials()
    fetch = Fetcher(bucket, session, url, region, path_style=path_style) if fast else None
    return _Connection(os.getpid(), client, fetch)


def _client_config(path_style: bool) -> Any:
    from botocore.config import Config

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
