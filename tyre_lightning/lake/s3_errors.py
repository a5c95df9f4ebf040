"""What boto3 and botocore raise, in one sentence that a user can act on."""

from __future__ import annotations

from typing import Any

from tyre_lightning.errors import first_line

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
    "SlowDown": "the service asks for fewer requests: start fewer processes or workers at once, or wait",
}
_WRITING = ("CopyObject", "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
_MAY_NOT_WRITE = "access is denied: the credentials need s3:PutObject there, and s3:GetObject for what is copied"
_MAY_NOT_DELETE = "access is denied: the credentials need s3:DeleteObject there"
_NO_CREDENTIALS = (
    "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with s3.profile"
)
_REACH = "check s3.endpoint_url, AWS_ENDPOINT_URL and the network"
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId")  # Ceph says the last
_BUSY = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded")


def is_expiry(error: Exception) -> bool:
    """Whether the credentials may have been good once."""
    return getattr(error, "response", {}).get("Error", {}).get("Code") in _EXPIRED


def is_missing(error: BaseException | None) -> bool:
    """Whether there is no object of that name; S3 says that access is denied to whoever may not list the bucket."""
    response = getattr(error, "response", None) or {}
    return _code_and_status(response)[0] in ("NoSuchKey", "AccessDenied")


def is_gone(error: BaseException | None) -> bool:
    """Whether there surely is no object of that name."""
    response = getattr(error, "response", None) or {}
    return _code_and_status(response)[0] in ("NoSuchKey", "404")


def is_forbidden(error: BaseException | None) -> bool:
    """Whether access is denied."""
    response = getattr(error, "response", None) or {}
    return _is_denial(*_code_and_status(response))


def is_there_already(error: BaseException | None) -> bool:
    """Whether an object was not written because there is, or just then appears, another of that name."""
    response = getattr(error, "response", None) or {}
    return _code_and_status(response)[0] in ("PreconditionFailed", "ConditionalRequestConflict")


def is_unknown(error: BaseException | None) -> bool:
    """Whether the server does not know what was asked of it."""
    response = getattr(error, "response", None) or {}
    return _code_and_status(response)[0] == "NotImplemented"


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed later: the network or the service failed, not what was asked of it."""
    from botocore import exceptions as known
    from urllib3.exceptions import ProtocolError, ReadTimeoutError

    if isinstance(error, known.ClientError):
        code, status = _code_and_status(error.response)
        return code in _BUSY or status == 429 or (status or 0) >= 500
    in_refusal = (ProtocolError, ReadTimeoutError)  # botocore gives them as they are where it reads why it was refused
    return isinstance(error, (known.ConnectionError, known.HTTPClientError, known.IncompleteReadError, *in_refusal))


def reason(error: Exception) -> str:
    """What went wrong and what to do, without anything that the server said in words: it may quote secrets.

    Args:
        error: of a request, or of whatever looks for settings and credentials before one: files, roles, commands.
    """
    from botocore import exceptions as known

    if isinstance(error, known.ClientError):
        return _refusal(error.response, error.operation_name)
    if isinstance(error, known.ProfileNotFound):
        return f"the AWS profile '{error.kwargs['profile']}' is not in the AWS config: check s3.profile and AWS_PROFILE"
    if isinstance(error, known.NoCredentialsError):
        return _NO_CREDENTIALS
    credentials = (known.PartialCredentialsError, known.CredentialRetrievalError, known.TokenRetrievalError)
    if isinstance(error, (*credentials, known.SSOError)):
        return f"the AWS credentials cannot be loaded: {_RENEW} ({type(error).__name__})"
    if is_passing(error):
        return f"the endpoint does not answer: {_REACH} ({type(error).__name__})"
    return _of_settings(error)


def _of_settings(error: Exception) -> str:
    """What is wrong with AWS's own config files and variables. Only texts that hold no value of them are quoted."""
    from botocore import exceptions as known

    if isinstance(error, known.InvalidRegionError):
        return f"'{error.kwargs['region_name']}' is no region: check s3.region, AWS_REGION and AWS_DEFAULT_REGION"
    if isinstance(error, (known.ConfigParseError, known.ConfigNotFound)):
        return f"the AWS config {error.kwargs['path']} cannot be read: mend it, or set AWS_CONFIG_FILE"
    if isinstance(error, (known.InvalidConfigError, known.InfiniteLoopConfigError)):
        return f"the AWS config is wrong: {first_line(error)}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}, which the AWS config or a variable names, cannot be used: {error.strerror}"
    return (
        "the request could not be made: check the s3 settings, and the profile, role or credential_process of the AWS "
        f"config and variables ({type(error).__name__})"
    )


def _refusal(response: dict[str, Any], operation: str) -> str:
    code, status = _code_and_status(response)
    advice = _ADVICE.get(code)
    if _is_denial(code, status):
        denied = {"DeleteObject": _MAY_NOT_DELETE} | dict.fromkeys(_WRITING, _MAY_NOT_WRITE)
        advice = denied.get(operation, _ADVICE["AccessDenied"])
    return f"{advice or 'S3 refused the request'} (HTTP {status}, {code})"


def _is_denial(code: str, status: int | None) -> bool:
    return code == "AccessDenied" or (status == 403 and code not in _ADVICE)


def _code_and_status(response: dict[str, Any]) -> tuple[str, int | None]:
    return response.get("Error", {}).get("Code", ""), response.get("ResponseMetadata", {}).get("HTTPStatusCode")
