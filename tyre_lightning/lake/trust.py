"""Who may have written what is kept on this disk: nothing is believed that another user can have put there."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

_OTHERS_MAY_WRITE = 0o022

log = logging.getLogger(__name__)


def is_own(user: int) -> bool:
    """Whether a file's owner is this user or root, who may write anything anyway."""
    return user in (0, os.geteuid())


def distrust(folder: Path) -> str:
    """Why others may have written to a folder that exists, and what to do; empty where they cannot have."""
    about = folder.stat()
    if not is_own(about.st_uid):
        return f"it belongs to user {about.st_uid}: give data.cache_dir a folder of your own"
    if about.st_mode & _OTHERS_MAY_WRITE:
        return "others may write to it: remove it, or chmod go-w, or give data.cache_dir a folder of your own"
    return ""


def trusted(path: Path) -> bool:
    """Whether a file is there and nobody else can have written it; where somebody can have, it is said once."""
    try:
        why = distrust(path.parent)
        if not why and not is_own(path.stat().st_uid):
            why = f"'{path.name}' in it belongs to another user: remove it"
    except OSError:
        return False
    if why:
        _say(f"what is kept in '{path.parent}' is not used ({why})")
    return not why


@cache
def _say(text: str) -> None:
    log.warning("%s", text)
