"""From a store's listing to catalogs.

The layout of a lake is ``<usage>/<class>/<file>``, with any folders between class and file. The training split fixes
the classes and their order. A class is its folder's name in one Unicode form: folders whose names differ in that alone,
as some systems' copies do, are one class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher
from itertools import chain, islice
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tyre_lightning.config import DataConfig
from tyre_lightning.errors import UserError
from tyre_lightning.lake.catalog import Catalog, Lake, compact
from tyre_lightning.lake.formats import IMAGE_SUFFIXES
from tyre_lightning.lake.store import THREADS, Entry, Store
from tyre_lightning.names import mlflow_name, one_form

_CHUNK = 10_000  # entries that are Python objects at one time
_IMAGE = rf"(?i)[^/]\.({'|'.join(IMAGE_SUFFIXES)})$"
_GOOD_NAMES = ("good", "ok", "normal", "intact", "healthy", "passed", "defect_free", "no_defect", "no_defects",
               "non_defective", "not_defective")  # fmt: skip
_LAYOUT = "the layout is <usage>/<class>/<file>"


def is_image(path: str) -> bool:
    """Whether a path or key names an image file: a known suffix in any case, and nothing hidden."""
    return re.search(_IMAGE, path) is not None and "/." not in f"/{path}"


def read_lake(store: Store, data: DataConfig) -> Lake:
    """The classes and images of a lake; a usage without class folders is None.

    Raises:
        UserError: there is no training split, it has fewer than two classes, a class is missing or has no images, or
            another usage has a class that the training split does not have.
    """
    classes = classes_of(store, data.usage.train, data.classes)
    if len(classes) < 2:
        raise UserError(
            f"'{store.root}/{data.usage.train}' has only the class '{classes[0]}': at least two are needed ({_LAYOUT})"
        )
    return Lake(
        classes,
        train=read_catalog(store, data.usage.train, classes, strict=True),
        val=_read_other(store, data.usage.val, classes, data),
        test=_read_other(store, data.usage.test, classes, data),
    )


def classes_of(store: Store, usage: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The class folders directly below ``usage``, sorted, or those ``wanted``, in the given order.

    Raises:
        UserError: there is no such usage, it has no class folders, a wanted class is not among them, or two cannot be
            told apart in MLflow.
    """
    found = _classes(store, usage)
    if not found:
        raise UserError(_no_classes(store, usage))
    chosen = tuple(map(one_form, wanted or found))
    for name in chosen:
        if name not in found:
            near = _nearest_first(name, found)
            raise UserError(f"class '{name}' of data.classes is not in '{store.root}/{usage}': choose from {near}")
    mapped: dict[str, str] = {}
    for name in chosen:
        if (other := mapped.setdefault(mlflow_name(name), name)) != name:
            raise UserError(f"MLflow cannot tell the classes '{other}' and '{name}' apart: rename one of the folders")
    return chosen


def read_catalog(store: Store, usage: str, classes: Sequence[str], *, strict: bool) -> Catalog:
    """All images below ``<usage>/<class>/`` of the given classes, in any depth of folders.

    Args:
        strict: every class must have an image.

    Raises:
        UserError: ``strict``, and a class has no image.
    """
    stop = Event()
    with ThreadPoolExecutor(THREADS) as pool:
        loose = pool.submit(_count_loose, store, usage)
        parts = [
            pool.submit(_read_class, store, f"{usage}/{name}", classes, code, stop) for code, name in enumerate(classes)
        ]
        try:
            tables, ignored = zip(*(part.result() for part in parts), strict=True)
            more = loose.result()
        finally:
            stop.set()  # after an error or Ctrl-C the other classes need not be listed to their end
    for name, table in zip(classes, tables, strict=True):
        if strict and not table.num_rows:
            raise UserError(f"class '{name}' has no images in '{store.root}/{usage}/{name}': add some or remove it")
    catalog = Catalog(compact(pa.concat_tables(tables)), tuple(classes), sum(ignored) + more)
    del tables
    pa.default_memory_pool().release_unused()  # as much again as the catalog, which Arrow would keep
    return catalog


def _count_loose(store: Store, usage: str) -> int:
    """How many objects lie beside the class folders: they have no label."""
    return sum(1 for folder in _spelt(store, usage) for _ in store.list(folder, deep=False))


def _read_class(store: Store, folder: str, classes: Sequence[str], code: int, stop: Event) -> tuple[pa.Table, int]:
    """The images of one class folder, and how many other objects are in it."""
    tables = [_table([], classes, code)]
    ignored = 0
    for entries in _chunks(chain.from_iterable(map(store.list, _spelt(store, folder)))):
        table = _images(_table(entries, classes, code))
        ignored += len(entries) - table.num_rows
        tables.append(table)
        if stop.is_set():
            break
    return pa.concat_tables(tables), ignored


def good_class(classes: Sequence[str], configured: str | None) -> str | None:
    """The class of tyres without defects: the configured one, or the only one with such a name, or None.

    Raises:
        UserError: the configured class is not one of ``classes``.
    """
    if configured is not None and one_form(configured) not in classes:
        near = _nearest_first(configured, classes)
        raise UserError(f"data.good_class='{configured}' is not a class: choose from {near}")
    if configured is not None:
        return one_form(configured)
    named = [name for name in classes if re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") in _GOOD_NAMES]
    return named[0] if len(named) == 1 else None


def needed_good_class(classes: Sequence[str], configured: str | None) -> str:
    """The same where there must be one, since pictures may show several defects.

    Raises:
        UserError: none is known.
    """
    if (found := good_class(classes, configured)) is None:
        names = ", ".join(f"'{name}'" for name in classes)
        raise UserError(
            f"data.multi_label=true must know which of the classes {names} is that of good tyres, which have no "
            "defect: give data.good_class=..."
        )
    return found


def _read_other(store: Store, usage: str, classes: tuple[str, ...], data: DataConfig) -> Catalog | None:
    found = _classes(store, usage)
    if not found:
        return None
    unknown = [name for name in found if name not in classes]
    if unknown and data.classes is None:
        raise UserError(
            f"class '{unknown[0]}' is in '{store.root}/{usage}' but not in '{store.root}/{data.usage.train}': "
            "add it there, or list the classes to use in data.classes"
        )
    catalog = read_catalog(store, usage, classes, strict=False)
    if not len(catalog):
        names = ", ".join(f"'{name}'" for name in classes)
        raise UserError(f"'{store.root}/{usage}' has no image of the classes {names}: add some or remove the folder")
    return catalog


def _classes(store: Store, usage: str) -> tuple[str, ...]:
    """The classes of a usage, in the order in which their folders are listed."""
    names = {one_form(name) for folder in _spelt(store, usage) for name in store.prefixes(folder)}
    return tuple(sorted((name for name in names if not name.startswith(".")), key=lambda name: f"{name}/"))


def _spelt(store: Store, path: str) -> list[str]:
    """The folders of a path as the store spells it: in one Unicode form, another, or both."""
    found = [""]
    for part in path.split("/"):
        found = [f"{above}/{name}".lstrip("/") for above in found for name in _alike(store, above, part)]
    return found


def _alike(store: Store, above: str, name: str) -> Sequence[str]:
    if name.isascii():
        return [name]
    return [other for other in store.prefixes(above) if one_form(other) == one_form(name)]


def _no_classes(store: Store, usage: str) -> str:
    folders = store.prefixes()
    if one_form(usage) in map(one_form, folders):
        return f"'{store.root}/{usage}' has no class folders: {_LAYOUT}"
    found = "found " + ", ".join(f"'{name}'" for name in folders[:10]) if folders else "found no folders"
    return f"'{store.root}' has no folder '{usage}': {found} ({_LAYOUT})"


def _nearest_first(name: str, found: Iterable[str]) -> str:
    near = sorted(found, key=lambda other: -SequenceMatcher(None, name.lower(), other.lower()).ratio())
    return ", ".join(f"'{other}'" for other in near)


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while chunk := list(islice(entries, _CHUNK)):
        yield chunk


def _table(entries: list[Entry], classes: Sequence[str], code: int) -> pa.Table:
    codes = pa.array(np.full(len(entries), code, np.int32))
    return pa.table(
        {
            "key": pa.array([entry.key for entry in entries], pa.large_string()),
            "label": pa.DictionaryArray.from_arrays(codes, pa.array(classes, pa.string())),
            "size": pa.array([entry.size for entry in entries], pa.int64()),
            "etag": pa.array([entry.etag for entry in entries], pa.large_string()),
        }
    )


def _images(table: pa.Table) -> pa.Table:
    """The rows whose key is an image's, and neither the file nor a folder above it is hidden."""
    image = pc.match_substring_regex(table["key"], _IMAGE)
    return table.filter(pc.and_not(image, pc.match_substring(table["key"], "/.")))
