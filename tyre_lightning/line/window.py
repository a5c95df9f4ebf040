"""A window of the line: its tyres, drawn from a listing or a predictions file, and what the model sees of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tyre_lightning.config import Changed, WatchConfig
from tyre_lightning.decision.sample import Sample
from tyre_lightning.errors import UserError, hide_passwords
from tyre_lightning.evaluation.predictions import is_predictions, read_rows
from tyre_lightning.evaluation.sampling import Draw, Gathering
from tyre_lightning.evaluation.scoring import Image, look_at
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.source import open_source
from tyre_lightning.lake.store import Entry, Store
from tyre_lightning.lake.tyres import tyre_of
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.prediction import check_names, find_device, rows_of
from tyre_lightning.progress import progress_bar

ALL = ""  # the group of windows that are not divided
OTHER = "other"  # of keys in which the pattern finds nothing
MOST_GROUPS = 50


@dataclass(frozen=True)
class Window:
    """What was seen.

    Args:
        samples: of tyres, by group.
        store: of the pictures; None where a predictions file was read.
    """

    samples: dict[str, Sample]
    store: Store | None


class _Source(Protocol):
    """Goes through pictures twice: once for their names, once for what the model says of some."""

    def names(self) -> Iterator[tuple[str, str]]:
        """The key of each picture and the name of its tyre."""

    def gather(self, drawn: dict[str, Draw], found: dict[str, Gathering], pattern: str | None) -> None:
        """Give what is known of the pictures of drawn tyres to the gatherings, by group."""


def group_of(key: str, pattern: str | None) -> str:
    """What a pattern finds in a key: its first pair of parentheses, or all that it matches."""
    if pattern is None:
        return ALL
    match = re.search(pattern, key)
    return OTHER if match is None else next(filter(None, match.groups() if match.re.groups else (match[0],)), OTHER)


def look_through(config: WatchConfig, inspector: Inspector, groups: str | None) -> Window:
    """Draw tyres of the configured input, and gather what the model sees of them; memory does not grow with the input.

    Args:
        config: names the input, and how many tyres are drawn of a group.
        inspector: the model.
        groups: a pattern that divides the input.

    Raises:
        UserError: the input cannot be used.
    """
    source = _Predictions(config, inspector) if is_predictions(str(config.input)) else _Pictures(config, inspector)
    drawn, pictures = _draw(source, config, groups)
    found = {name: Gathering(inspector) for name in drawn}
    source.gather(drawn, found, groups)
    place = hide_passwords(str(config.input))
    samples = {
        name: one.sample({"tyres": drawn[name].tyres, "pictures": pictures[name], "input": place})
        for name, one in sorted(found.items())
    }
    return Window(samples, source.store if isinstance(source, _Pictures) else None)


def _draw(source: _Source, config: WatchConfig, groups: str | None) -> tuple[dict[str, Draw], Counter[str]]:
    drawn: dict[str, Draw] = {}
    pictures: Counter[str] = Counter()
    for key, tyre in source.names():
        name = group_of(key, groups)
        if name not in drawn:
            if len(drawn) == MOST_GROUPS:
                raise UserError(
                    f"group_by='{groups}' makes more than {MOST_GROUPS} groups of input={config.input}, such as "
                    f"'{name}': let it find what names a line or a camera"
                )
            drawn[name] = Draw(config.tyres)
        drawn[name].add(tyre)
        pictures[name] += 1
    if not drawn:
        raise UserError(f"input={config.input} holds no pictures")
    if [*drawn] == [OTHER]:
        raise UserError(f"group_by='{groups}' finds nothing in any key of input={config.input}, such as '{key}'")
    return drawn, pictures


class _Predictions:
    """A file that predict.py wrote."""

    def __init__(self, config: WatchConfig, inspector: Inspector) -> None:
        self._path, self._inspector = str(config.input), inspector

    def names(self) -> Iterator[tuple[str, str]]:
        for row in read_rows(self._path, self._inspector.columns()):
            yield row["key"], row["tyre"] or row["key"]

    def gather(self, drawn: dict[str, Draw], found: dict[str, Gathering], pattern: str | None) -> None:
        for row in read_rows(self._path, self._inspector.columns()):
            group, tyre = group_of(row["key"], pattern), row["tyre"] or row["key"]
            if group in drawn and drawn[group].holds(tyre):
                found[group].add(row | {"tyre": tyre}, decision=row["decision"])


class _Pictures:
    """Pictures in a store: those of drawn tyres are read."""

    def __init__(self, config: WatchConfig, inspector: Inspector) -> None:
        self._source = open_source(str(config.input), config.s3)
        check_names(inspector, self._source, self._source.count(f"input={config.input}"))
        inspector.network.to(find_device(config.accelerator))
        self._inspector, self._batch_size, self.store = inspector, config.batch_size, self._source.store

    def names(self) -> Iterator[tuple[str, str]]:
        for entry in self._source.entries():
            yield entry.key, tyre_of(entry.key, self._inspector.group_pattern)

    def gather(self, drawn: dict[str, Draw], found: dict[str, Gathering], pattern: str | None) -> None:
        inspector, reader = self._inspector, Reader(self.store, None, Changed.reread, vanishing=True)
        entries = partial(self._entries, drawn, pattern)
        with progress_bar() as progress:
            task = progress.add_task("looking at the line", total=sum(1 for _ in entries()))
            for seen in look_at([inspector], reader, entries(), self._batch_size, traits=True):
                far = iter(inspector.distances(seen.look.features).tolist())
                for row, image in zip(rows_of(inspector, seen), seen.images, strict=True):
                    gathering = found[group_of(row["key"], pattern)]
                    if isinstance(image, Image):
                        gathering.add(row, next(far), image.traits)
                    else:
                        gathering.add(row)
                progress.advance(task, len(seen.entries))

    def _entries(self, drawn: dict[str, Draw], pattern: str | None) -> Iterator[Entry]:
        """Pictures of drawn tyres; what has come since they were drawn waits for the next window."""
        for entry in self._source.entries():
            draw = drawn.get(group_of(entry.key, pattern))
            if draw is not None and draw.holds(tyre_of(entry.key, self._inspector.group_pattern)):
                yield entry
