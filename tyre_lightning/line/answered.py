"""The pictures that people have answered: joined from queues, answers and what the windows' stores hold now."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tyre_lightning.config import AcceptConfig
from tyre_lightning.decision.thinning import stays
from tyre_lightning.errors import UserError
from tyre_lightning.lake.listing import is_image
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import THREADS, Entry, Store
from tyre_lightning.lake.tyres import tyre_of
from tyre_lightning.lake.writing import content_tag
from tyre_lightning.line.contents import Contents
from tyre_lightning.line.queue import Queue
from tyre_lightning.line.verdicts import Verdict
from tyre_lightning.names import one_form

GONE = "it is no longer there"
NO_IMAGE = "its name is that of no image"
SEVERAL = "it has several defects, and multi_label=false"
CONTRADICTED = "the same picture has other answers elsewhere"

Identity = tuple[int, str]


@dataclass(frozen=True)
class Window:
    """A queue, and where its pictures lie."""

    queue: Queue
    store: Store

    @property
    def name(self) -> str:
        """A folder's name: the last part of the root."""
        return self.store.root.rpartition("/")[2].lstrip(".") or "window"

    def smallest(self) -> float:
        """The smallest probability with which a tyre of the window can have been drawn."""
        return min((one.drawn / one.total for one in self.queue.strata.values() if one.drawn), default=math.nan)


@dataclass(frozen=True)
class Picture:
    """A picture whose label people agree on.

    Args:
        window: in which it was seen.
        tyre: its name.
        entry: what the store has.
        why: it was in the queue.
        probability: with which its tyre was drawn; NaN where chance did not draw it.
        uniform: whether its tyre is in the window's uniform sample.
        verdict: on its tyre.
    """

    window: Window
    tyre: str
    entry: Entry
    why: str
    probability: float
    uniform: bool
    verdict: Verdict

    @property
    def address(self) -> str:
        """Where it lies."""
        return self.window.store.uri(self.entry.key)

    @property
    def file(self) -> str:
        """Its file's name."""
        return self.entry.key.rpartition("/")[2]


@dataclass(frozen=True)
class Left:
    """Pictures that the new version does not learn of."""

    tyre: str
    keys: list[str]
    reason: str
    window: str
    said: Mapping[str, str]


@dataclass
class Answered:
    """What people have answered.

    Args:
        pictures: with labels.
        left: those without.
        waiting: tyres of the queues that nobody has answered.
        elsewhere: answered tyres that are in none of the queues.
    """

    pictures: list[Picture] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    waiting: int = 0
    elsewhere: int = 0

    def leave(self, picture: Picture, reason: str) -> None:
        """Put a picture aside."""
        said = picture.verdict.said()
        self.left.append(Left(picture.tyre, [picture.entry.key], reason, picture.window.store.root, said))


def find_answered(config: AcceptConfig, queues: Sequence[Queue], verdicts: Mapping[str, Verdict]) -> Answered:
    """Join queues with verdicts.

    Raises:
        UserError: a queue does not say where its pictures lie, or tells tyres otherwise than the pattern does.
    """
    found, seen = Answered(), set()
    for queue in queues:
        if queue.root is None:
            raise UserError(
                f"the queue of {queue.source} does not say where its pictures lie: select it again with root=..."
            )
        _check_tyres(queue, config.group_pattern)
        window = Window(queue, open_store(queue.root, config.s3))
        tyres = {one_form(name) for name in queue.pictures["tyre"]}
        seen |= tyres
        found.waiting += len(tyres - {*verdicts})
        _add_window(found, window, verdicts, config)
    found.elsewhere = len({*verdicts} - seen)
    return found


def _check_tyres(queue: Queue, pattern: str | None) -> None:
    for tyre, key in zip(queue.pictures["tyre"], queue.pictures["key"], strict=True):
        if (told := tyre_of(key, pattern)) != one_form(tyre) and told != tyre:
            given = f"group_pattern='{pattern}' tells '{told}'" if pattern else "no group_pattern is given"
            raise UserError(
                f"the queue of {queue.source} has '{key}' as a picture of tyre '{tyre}', and {given}: give the pattern "
                "by which its model was trained"
            )


def _add_window(found: Answered, window: Window, verdicts: Mapping[str, Verdict], config: AcceptConfig) -> None:
    rows = [row for row in _rows(window.queue) if one_form(row["tyre"]) in verdicts]
    wanted = {row["key"] for row in rows if verdicts[one_form(row["tyre"])].reason is None}
    there = {entry.key: entry for entry in window.store.list() if entry.key in wanted} if wanted else {}
    silent: dict[str, list[str]] = {}
    for row in rows:
        tyre, key = one_form(row["tyre"]), row["key"]
        verdict, entry = verdicts[tyre], there.get(key)
        if verdict.reason is not None:
            silent.setdefault(tyre, []).append(key)
            continue
        uniform = stays(tyre, row["probability"], window.smallest(), config.seed)
        picture = Picture(window, tyre, entry or Entry(key, 0, ""), row["why"], row["probability"], uniform, verdict)
        if reason := GONE if entry is None else _reason(picture, config):
            found.leave(picture, reason)
        else:
            found.pictures.append(picture)
    for tyre, keys in silent.items():
        verdict = verdicts[tyre]
        found.left.append(Left(tyre, keys, str(verdict.reason), window.store.root, verdict.said()))


def _rows(queue: Queue) -> list[dict[str, Any]]:
    return [dict(row) for row in queue.pictures[["tyre", "key", "why", "probability"]].to_dict("records")]


def _reason(picture: Picture, config: AcceptConfig) -> str | None:
    """Why a picture that is there gets no label."""
    if len(picture.verdict.classes) > 1 and not config.multi_label:
        return SEVERAL
    if not is_image(picture.file):
        return NO_IMAGE
    return picture.verdict.against(picture.entry.key, picture.entry.etag)


@dataclass(frozen=True)
class Same:
    """Pictures of one content, and where the version before has it.

    Args:
        pictures: in the order of the queues, those of a uniform sample first.
        entries: in the version before, by path.
    """

    pictures: list[Picture]
    entries: Mapping[str, Entry]

    @property
    def first(self) -> Picture:
        """The one that stands for all."""
        return self.pictures[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """What it shows, sorted."""
        return self.first.verdict.classes


def by_content(answered: Answered, contents: Contents, earlier: Mapping[str, Sequence[str]]) -> list[Same]:
    """Gather pictures of one content; what has several labels is put aside.

    Content is told by size and tag; a folder's files are read for it, those of which another has the same size.

    Args:
        answered: has the pictures.
        contents: of the version before.
        earlier: the paths of what that version had from other places, by address.
    """
    sizes = Counter(one.entry.size for one in answered.pictures)
    lake = {path: entry for path, entry in contents.of_sizes(sizes).items() if contents.place(path)}
    shared = {entry.size for entry in lake.values()} | {size for size, count in sizes.items() if count > 1}
    places: dict[Identity, list[str]] = {}
    for path, tag in zip(lake, _tags((contents.store, entry) for entry in lake.values()), strict=True):
        places.setdefault((lake[path].size, tag), []).append(path)
    likely = [one for one in answered.pictures if one.entry.size in shared]
    tags = dict(zip(map(id, likely), _tags((one.window.store, one.entry) for one in likely), strict=True))
    groups: dict[Identity, list[Picture]] = {}
    for one in answered.pictures:
        groups.setdefault((one.entry.size, tags.get(id(one), one.address)), []).append(one)
    addressed = _addressed(answered.pictures, contents, earlier)
    found = []
    for identity, pictures in groups.items():
        if len({one.verdict.classes for one in pictures}) > 1:
            for one in pictures:
                answered.leave(one, CONTRADICTED)
            continue
        entries = {path: lake[path] for path in places.get(identity, ())}
        for one in pictures:
            entries |= addressed[one.address]
        found.append(Same(sorted(pictures, key=lambda one: not one.uniform), entries))
    return found


def _tags(items: Iterable[tuple[Store, Entry]]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [*pool.map(lambda item: content_tag(*item), items)]


def _addressed(
    pictures: Sequence[Picture], contents: Contents, earlier: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Entry]]:
    """What the version before has of pictures by what their addresses say: by address and path."""
    root = f"{contents.store.root}/"
    named = {one.address: [*earlier.get(one.address, ()), one.address.removeprefix(root)] for one in pictures}
    there = contents.at({path for paths in named.values() for path in paths})
    found: dict[str, dict[str, Entry]] = {}
    for one in pictures:
        known = {path: there[path] for path in named[one.address] if path in there and contents.place(path)}
        found[one.address] = {path: entry for path, entry in known.items() if entry.size == one.entry.size}
    return found
