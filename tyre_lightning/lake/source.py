"""The images that an address names: everything below a root, or some files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.lake.formats import IMAGE_SUFFIXES
from tyre_lightning.lake.listing import is_image
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import Entry, FolderStore, Store


@dataclass(frozen=True)
class Source:
    """The images to predict on: everything below a store's root, or the named keys of it."""

    store: Store
    only: tuple[str, ...] | None = None

    def entries(self) -> Iterator[Entry]:
        """The images, as a stream."""
        if self.only is not None:
            yield from map(self.store.entry, self.only)
        else:
            base = len(self.store.key(""))  # a hidden folder above the root hides nothing
            yield from (entry for entry in self.store.list() if is_image(entry.key[base:]))

    def count(self, name: str) -> int:
        """How many there are; they are listed twice rather than kept, so that memory does not grow with them.

        Args:
            name: of the source, for the error.

        Raises:
            UserError: there are none.
        """
        total = sum(1 for _ in self.entries())
        if not total:
            raise nothing_in(name)
        return total


def nothing_in(name: str) -> UserError:
    """That an input is empty."""
    return UserError(f"{name} holds no images ({', '.join(IMAGE_SUFFIXES)})")


def open_source(address: str, s3: S3Config) -> Source:
    """The images that an ``s3://`` address, a folder, a file or a glob names.

    Raises:
        UserError: there is nothing there.
    """
    if address.startswith("s3://"):
        return _s3_source(address, s3)
    path = os.path.expanduser(address)
    if os.path.isdir(path):
        return Source(FolderStore(path))
    files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if not files:
        raise UserError(f"input={address} is no file, folder, glob with a match, or s3:// address")
    root = Path(os.path.dirname(os.path.abspath(path))) if files == [path] else _above(path)
    store = FolderStore(str(root))
    return Source(store, tuple(store.key(Path(os.path.abspath(file)).relative_to(root).as_posix()) for file in files))


def _above(pattern: str) -> Path:
    """The folder that all files of a glob lie below: the same whichever of them are there."""
    *folders, _ = Path(os.path.abspath(pattern)).parts
    return Path(*takewhile(lambda name: not glob.has_magic(name), folders))


def _s3_source(address: str, s3: S3Config) -> Source:
    """A prefix; or one object, when the address ends like an image."""
    folder, _, name = address.rpartition("/")
    if not is_image(name):
        return Source(open_store(address, s3))
    store = open_store(folder, s3)
    return Source(store, (store.key(name),))
