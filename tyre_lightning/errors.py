"""The kind of error that a user can mend, what else ends a run in good order, and what none of them may say."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any
from urllib.parse import quote, unquote

_HIDDEN = "HIDDEN"  # a word, since YAML and Hydra read much else as more than a text
# What an address goes on with: all but white space, and quotes that end it.
_MORE = r"(?:[^\s'\"]|['\"](?=['\"]?[^\s'\",;:)\]}]))"
# Hydra escapes colons and equals signs, JSON may escape slashes, and an address may stand in another.
_SLASHES = r"\\?:(?:\\?/){2}"
_PATHS = rf"(?:s3[an]?|file|sqlite[\w+]*){_SLASHES}"  # whose paths may hold an @
_ADDRESS = re.compile(rf"(?<![\w+.-])(?!{_PATHS})([\w+.-]+(?:{_SLASHES}|%3A%2F%2F))({_MORE}*)", re.IGNORECASE)
_PATH = re.compile(rf"(?<![\w+.-])({_PATHS})(?:[^\s'\"/@:]*:{_MORE}*@|(?:(?!/){_MORE})*@)", re.IGNORECASE)
_BARE = re.compile(  # user:password@host, without a scheme or after the one slash that a path keeps of two
    rf"(?:(?<![^\s'\"=(,\[{{])|(?<=:/))[\w.%+-]+\\?:(?![/\\])(?:(?!/){_MORE})*@(?=[\w\[])"
)
_NAME = re.compile(  # name=value, name: value, "name": "value"
    r"(?:(?P<asked>[?&;#])|(?<![\w.%-]))(?P<name>[\w.%-]+)"
    r"(?:[ \t]*(?:\\?=|%3D)[ \t]*|\\?['\"]?(?P<colon>:)(?:[ \t]+|(?=\\?['\"])))",
    re.IGNORECASE,
)
_VALUE = re.compile(rf"(\\?(['\"]))(?:\\.|\2\2|(?!\2).)*?(?:\1|$)|()(?:(?!&){_MORE})+", re.MULTILINE)
_LINE = re.compile(r"[^\n]+")  # of "name: value", whose value may hold spaces
_SECRET = re.compile(
    r"pass(?!ed|es|ive)|pwd|secret|token|credential|authorization|signature|^x_(?:amz|goog)_|odbc_connect|"
    r"(?:access|api|secret|private|account|shared|signing|encryption|auth|master)_?key|(?:^|[_.])(?:sig|sas|pw|auth|jwt)$"
)
_FILES = ("file", "path", "dir", "askpass", "sock")  # what variables end in that only say where a secret is
_FOLDERS = ("PWD", "OLDPWD")  # where a shell is and was: every path of a run would be hidden with them
_SHORTEST = 8  # characters of a variable's value that is looked for by itself: shorter ones are words too


class UserError(Exception):
    """A mistake in what the user gave (config, data, address): one sentence that names the thing and what to do.

    The command line prints it without a traceback and exits with code 1. What it says holds no password.
    """

    def __str__(self) -> str:
        return hide_passwords(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the sentence, as the command line does, and all where that shows all."""
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            return [hide_passwords("".join(traceback.format_exception(self)))]
        return [f"{type(self).__name__}: {self}"]


class Pruned(Exception):
    """A trial of a study has been ended early, because others do better."""


class TooManyUnseen(Exception):
    """More images were never looked at than are to be looked at now.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class Diverged(UserError):
    """A training's loss is no number any more, and so are its weights."""


class Unwritable(UserError):
    """The disk does not take what is written: it is full, a folder is read-only or gone."""


class StoreUnavailable(UserError):
    """The store does not answer, or not at present: the same request may succeed later."""


class MissingObject(UserError):
    """What was listed is not there any more, or never was."""


class ForbiddenObject(UserError):
    """Access to one object is denied; others may be read."""


class UnreadableImage(UserError):
    """The bytes of one image cannot be decoded.

    Args:
        key: the image's key, as in the catalog.
        reason: what the decoder found wrong.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)  # both in args, so that the error survives a trip between processes
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return hide_passwords(f"cannot decode image '{self.key}': {self.reason}")


def first_line(error: BaseException) -> str:
    """What an error of a library says, as part of a sentence, without passwords."""
    if isinstance(error, UnpicklingError):  # torch says at length how to run what may be in the file
        return "it is no file of weights, or holds more than these"
    return hide_passwords((str(error).strip() or type(error).__name__).splitlines()[0])


def hide_passwords(text: str) -> str:
    """A text without what is secret: the one place that decides what is.

    Addresses lose user and password; ``HIDDEN`` stands for the value of what is called a password, token, signature and
    the like, in an address or anywhere, and for that of an environment variable which is called so.
    """
    text = _BARE.sub("", _ADDRESS.sub(_without_user, _PATH.sub(r"\1", text)))
    text = _without_values(text)
    for secret in _of_environment(os.environ):
        text = text.replace(secret, _HIDDEN)
    return text


def without_passwords(values: Any) -> Any:
    """Nested values, whose texts have gone through :func:`hide_passwords`."""
    if isinstance(values, str):
        return hide_passwords(values)
    if isinstance(values, Mapping):
        return {key: without_passwords(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_passwords(value) for value in values]
    return values


def _without_user(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    user, at, rest = rest.rpartition("%40" if "%" in scheme else "@")
    # The @ may be one of a password that was asked for, of which the rest follows it.
    half = at and any(_is_secret(found) for found in _NAME.finditer(user))
    return scheme + (_HIDDEN + "".join(rest.partition("&")[1:]) if half else rest)


def _without_values(text: str) -> str:
    parts, end = [], 0
    for name in _NAME.finditer(text):
        if name.start() < end or not _is_secret(name):
            continue
        quoted = _VALUE.match(text, name.end())
        value = _LINE.match(text, name.end()) if name["colon"] and not (quoted and quoted[1]) else quoted
        if value is not None:
            mark = (quoted and quoted[1]) or ""
            parts += [text[end : name.end()], mark, _HIDDEN, mark]
            end = value.end()
    return "".join([*parts, text[end:]])


def _is_secret(match: re.Match[str]) -> bool:
    name = match["name"].lower()
    return _called_secret(name) or (bool(match["asked"]) and name in ("key", "code"))


def _called_secret(name: str) -> bool:
    return _SECRET.search(unquote(name).lower().replace("-", "_")) is not None


def _of_environment(variables: Mapping[str, str]) -> list[str]:
    """The secrets among variables, as they are and as they stand in an address; the longest first."""
    found = [
        value
        for name in [*variables]
        if len(value := variables.get(name, "")) >= _SHORTEST  # MLflow deletes some meanwhile, in a thread
        and _called_secret(name)
        and not name.lower().endswith(_FILES)
        and name not in _FOLDERS
    ]
    return sorted({*found, *(quote(value, safe="") for value in found)}, key=len, reverse=True)
