"""The kind of error that a user can mend, and what else ends a run in good order."""

import re

# User and password of an address, which may hold slashes; keys and paths may hold an @. Hydra escapes colons.
_CREDENTIALS = re.compile(r"(?<![\w+.-])(?!(?:s3|file|sqlite)\\?:)([\w+.-]+\\?://)[^\s'\"]*@")


class UserError(Exception):
    """A mistake in what the user gave (config, data, address): one sentence that names the thing and what to do.

    The command line prints it without a traceback and exits with code 1.
    """


class Pruned(Exception):
    """A trial of a study has been ended early, because others do better."""


class Diverged(UserError):
    """A training's loss is no number any more, and so are its weights."""


class Unwritable(UserError):
    """The disk does not take what is written: it is full, a folder is read-only or gone."""


class StoreUnavailable(UserError):
    """The store does not answer, or not at present: the same request may succeed later."""


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
        return f"cannot decode image '{self.key}': {self.reason}"


def first_line(error: Exception) -> str:
    """What an error of a library says, as part of a sentence, without passwords."""
    return hide_passwords((str(error).strip() or type(error).__name__).splitlines()[0])


def hide_passwords(text: str) -> str:
    """A text whose addresses have neither user nor password."""
    return _CREDENTIALS.sub(r"\1", text)
