"""A catalog's objects as they were listed: from the cache where it has them, else from the store."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tyre_lightning.config import Cache, Changed, DataConfig, S3Config
from tyre_lightning.errors import ForbiddenObject, MissingObject, UnreadableImage, UserError
from tyre_lightning.lake.cache import DiskCache, cache_folder
from tyre_lightning.lake.store import Content, Entry, FolderStore, Store

LARGEST = 1 << 30  # bytes that an image file may have
GONE = "it was listed, and is not there any more"
FORBIDDEN = "it may not be read"

T = TypeVar("T")

log = logging.getLogger(__name__)


def open_store(root: str, s3: S3Config, memory: Path | None = None) -> Store:
    """The store at ``s3://bucket[/prefix]`` or in a folder. S3 is not asked anything yet.

    Args:
        root: the address.
        s3: where the S3 service is.
        memory: a folder that keeps what S3 listed, so that the next listing takes less time.

    Raises:
        UserError: the URL is malformed, or the folder does not exist.
    """
    if re.match(r"s3:", root, re.IGNORECASE) or "://" in root:
        from tyre_lightning.lake.s3 import S3Store  # its clients are not for who reads a folder

        return S3Store(root, s3, memory)
    return FolderStore(os.path.expanduser(root))


def open_lake(root: str, config: DataConfig, s3: S3Config) -> Store:
    """The store at a lake's address; its listings are kept on this disk, if anything is.

    Raises:
        UserError: there is no such folder, or S3 cannot be asked.
    """
    folder = None if config.cache is Cache.none else cache_folder(config.cache_dir) / "listings"
    return open_store(root, s3, folder)


def open_cache(store: Store, config: DataConfig) -> DiskCache | None:
    """What keeps a lake's images on this disk; None where nothing is to be kept, or, with a warning, can be."""
    if config.cache is Cache.none or (config.cache is Cache.files and not store.remote):
        return None
    cache = DiskCache(cache_folder(config.cache_dir) / "images", int(config.cache_gb * 1e9))
    for problem in cache.problems:
        log.warning("%s", problem)
    return None if cache.problems else cache


def open_reader(store: Store, cache: DiskCache | None, config: DataConfig) -> Reader:
    """Reads the images' files, through the cache where that keeps files."""
    return Reader(store, cache if config.cache is Cache.files else None, config.changed)


class Reader:
    """Reads entries of a catalog.

    Args:
        store: where they lie.
        cache: keeps what the store gave; None: nothing is kept.
        changed: what happens when the store holds something else than was listed.
        vanishing: whether what was listed and is gone, or may not be read while others may, counts as unreadable; else
            it is an error.
    """

    def __init__(self, store: Store, cache: DiskCache | None, changed: Changed, *, vanishing: bool = False) -> None:
        self.store = store
        self._cache = cache
        self._changed = changed
        self._vanishing = vanishing
        self._may_read = False  # as something has been
        self.problems: list[str] = [] if cache is None else cache.problems  # what the user should hear of

    def read(self, entries: Sequence[Entry]) -> list[bytes | UnreadableImage]:
        """The content of every entry, in order; or why it is not read at all.

        Raises:
            UserError: an object cannot be read, or has changed and that is an error.
        """
        found: dict[Entry, bytes | UnreadableImage] = {}
        for entry in entries:
            if entry.size > LARGEST:
                found[entry] = too_large(entry)
            elif (kept := self._kept(entry)) is not None:
                found[entry] = kept
        self.forget([*found])  # another process may have put it into the cache since it was named to prefetch
        missing = [entry for entry in entries if entry not in found]
        contents = self._fetch(missing)
        there = {e: one for e, one in zip(missing, contents, strict=True) if isinstance(one, Content)}
        for entry, content in there.items():
            self._compare(entry, content)
        found.update(zip(missing, (c.data if isinstance(c, Content) else c for c in contents), strict=True))
        self._keep(there)
        return [found[entry] for entry in entries]

    def prefetch(self, entries: Sequence[Entry], *, fresh: bool = False) -> None:
        """Say which entries later calls of :meth:`read` will want; ``fresh``: and none that was named before."""
        wanted = [entry for entry in entries if entry.size <= LARGEST] if self.store.remote else []
        if self._cache is not None:
            wanted = [entry for entry in wanted if self.name(entry) not in self._cache]
        self.store.prefetch([entry.key for entry in wanted], fresh=fresh)

    def forget(self, entries: Sequence[Entry]) -> None:
        """Say which entries that :meth:`prefetch` was told of will not be read: they take no memory then."""
        self.store.forget([entry.key for entry in entries])

    def name(self, entry: Entry, form: str = "file") -> str:
        """What an entry is called in a cache, in some form of it."""
        return "\n".join((self.store.address, entry.key, entry.etag, form))

    def _kept(self, entry: Entry) -> bytes | None:
        if self._cache is None or not entry.etag:
            return None
        value = self._cache.get(self.name(entry))
        return None if value is None else bytes(value)

    def _fetch(self, entries: Sequence[Entry]) -> Sequence[Content | UnreadableImage]:
        """What the store has of entries; where one of them is not to be had, each is asked for by itself."""
        try:
            found: Sequence[Content | UnreadableImage | ForbiddenObject] = self.store.get_many([e.key for e in entries])
        except (MissingObject, ForbiddenObject):
            if not self._vanishing:
                raise
            found = [self._find(entry) for entry in entries]
        if any(isinstance(one, Content) for one in found):
            self._may_read = True
        elif found:
            self._explain_none(found)
        return [UnreadableImage(e.key, FORBIDDEN) if isinstance(f, ForbiddenObject) else f
                for e, f in zip(entries, found, strict=True)]  # fmt: skip

    def _explain_none(self, found: Sequence[UserError | Content]) -> None:
        """Raise where it is not single objects that are not to be had."""
        if next(self.store.list(), None) is None:
            raise UserError(f"nothing lies in {self.store.root} any more: is it a folder that should be mounted?")
        denied = [one for one in found if isinstance(one, ForbiddenObject)]
        if denied and (len(found) > 1 or not self._may_read):
            raise denied[0]

    def _find(self, entry: Entry) -> Content | UnreadableImage | ForbiddenObject:
        try:
            (found,) = self.store.get_many([entry.key])
        except MissingObject:
            if not entry.etag:  # it was named, not listed
                raise
            return UnreadableImage(entry.key, GONE)
        except ForbiddenObject as error:
            return error
        return found

    def _keep(self, contents: Mapping[Entry, Content]) -> None:
        if self._cache is not None:
            pairs = contents.items()
            self._cache.put({self.name(e._replace(etag=c.etag)): c.data for e, c in pairs if c.etag})

    def _compare(self, entry: Entry, content: Content) -> None:
        if not entry.etag or not content.etag or entry.etag == content.etag:
            return
        what = f"image '{entry.key}' is not what was listed (tag {content.etag} instead of {entry.etag})"
        if self._changed is Changed.error:
            raise UserError(f"{what}: start again to list anew, or give data.changed=reread")
        self.problems.append(f"{what}; its new content is used")


def too_large(entry: Entry) -> UnreadableImage:
    """The error for an object that nobody should fetch as an image."""
    return UnreadableImage(
        entry.key, f"{entry.size / 1e9:.1f} GB are more than the {LARGEST / 1e9:.1f} an image may have"
    )
