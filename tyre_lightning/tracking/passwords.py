"""User and password of a tracking server, which MLflow finds in its environment: each server is sent its own only."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from tyre_lightning.errors import hide_passwords
from tyre_lightning.surroundings import set_variable

_NAMES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")

Values = tuple[str | None, ...]
_given: dict[str, Values] = {}  # by server, where an address had them
_put: Values | None = None  # in the environment by this module
_users: Values = (None, None)  # what was there otherwise


def hand_over_password(uri: str) -> str:
    """A server's URI without user and password, which go to the environment: MLflow prints the URI.

    A server whose address never had any gets what the user has in the environment, and nothing of another server.
    """
    global _put, _users
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return uri
    server = parts.netloc.rpartition("@")[2]
    if parts.username:
        _given[server] = unquote(parts.username), unquote(parts.password or "")
    there = tuple(os.environ.get(name) for name in _NAMES)
    if there != _put:
        _users = there
    _put = _given.get(server, _users)
    for name, value in zip(_NAMES, _put, strict=True):
        set_variable(name, value)  # of one that stays the same a run's sender must not miss it in between
    return hide_passwords(uri) if parts.username else uri
