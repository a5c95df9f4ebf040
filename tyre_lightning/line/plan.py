"""What a new data version is to hold: the version before, with corrections and additions.

A tyre keeps its usage for ever. What is held out is a uniform sample of the line's tyres; whatever somebody or some
model chose is there to learn from alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tyre_lightning.config import AcceptConfig
from tyre_lightning.decision.thinning import TEST, TRAIN, VAL, held_out
from tyre_lightning.errors import UserError
from tyre_lightning.lake.provenance import Provenance, Step
from tyre_lightning.lake.store import Entry
from tyre_lightning.lake.tyres import find_tyre
from tyre_lightning.lake.writing import Job
from tyre_lightning.line.answered import Answered, Picture, Same
from tyre_lightning.line.contents import Contents, Place, to_table
from tyre_lightning.names import mlflow_name

HELD_OUT = "its tyre is held out, and it was not drawn as the others there"
ONLY_HELD_OUT = "no training picture has its new class yet"
_CHUNK = 4096
_FEWEST = 2  # tyres of a new class, of which one could be held out


@dataclass(frozen=True)
class Addition:
    """A new picture and where it goes."""

    same: Same
    usage: str
    selected: bool


class Wish(NamedTuple):
    """An object that the new version is to have, before it has its path."""

    picture: Picture
    place: Place
    job: Job
    address: str  # where it comes from
    before: str | None  # its class in the version before
    selected: bool


@dataclass
class Plan:
    """What is to be done.

    Args:
        contents: of the version before.
        dropped: paths in it that the new version does not have.
        jobs: objects that it has beside those of the version before.
        rows: of the provenance, for :attr:`jobs`.
        confirmed: pictures whose label was right.
        corrected: pictures by classes before and after.
        added: pictures by usage and class; of several classes each counts.
        new: pictures.
        new_classes: those that the version before does not have.
    """

    contents: Contents
    dropped: set[str] = field(default_factory=set)
    jobs: list[Job] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    confirmed: int = 0
    corrected: Counter[tuple[str, str]] = field(default_factory=Counter)
    added: Counter[tuple[str, str]] = field(default_factory=Counter)
    new: int = 0
    new_classes: list[str] = field(default_factory=list)

    def table(self) -> pa.Table:
        """All objects of the new version, as :func:`tyre_lightning.line.contents.to_table` has them."""
        kept = self.contents.table
        kept = kept.filter(pc.invert(pc.is_in(kept["path"], value_set=pa.array([*self.dropped], pa.string()))))
        return pa.concat_tables([kept, to_table(job.entry._replace(key=job.path) for job in self.jobs)])

    def all_jobs(self) -> Iterator[Job]:
        """How they come there, in the order of :meth:`table`."""
        table, store = self.table(), self.contents.store
        for batch in table.slice(0, len(table) - len(self.jobs)).to_batches(_CHUNK):
            for path, size, etag in zip(*batch.to_pydict().values(), strict=True):
                yield Job(store, Entry(store.key(path), size, etag), path)
        yield from self.jobs

    def provenance(self, before: Provenance | None, to: str, settings: Mapping[str, Any]) -> Provenance:
        """What the new version says of itself, before it is finished."""
        source, rows = self.contents.store.root, [] if before is None else before.rows
        there = {*self.contents.at({row["path"] for row in rows})} - self.dropped
        kept = [row for row in rows if row["path"] in there]
        step = Step(version_of(to), version_of(source), self.new, self.corrected.total())
        steps = [step, *(() if before is None else before.steps)]
        return Provenance(sorted([*kept, *self.rows], key=lambda row: row["path"]), source, to, steps, settings)


def version_of(root: str) -> str:
    """The name of a data version: its last folder."""
    return root.rstrip("/").rpartition("/")[2]


class Planner:
    """Makes a plan.

    Args:
        config: the shares to hold out, the pattern, the seed.
        contents: of the version before.
        before: its provenance.
        to: the new version's root.
        answered: what has no place is put aside there.
    """

    def __init__(
        self, config: AcceptConfig, contents: Contents, before: Provenance | None, to: str, answered: Answered
    ) -> None:
        self._config, self._answered = config, answered
        self._version = version_of(to)
        self._selected = set() if before is None else before.selected()
        self._counts: Counter[tuple[str, str]] = Counter()  # pictures of the version before, by usage and class
        self._homes: dict[str, set[str]] = {}  # the usages of tyres
        self._wishes: list[Wish] = []
        self.plan = Plan(contents)

    def make(self, found: Sequence[Same]) -> Plan:
        """The plan for pictures that have labels.

        Raises:
            UserError: a class loses all its training pictures, or MLflow cannot tell two classes apart.
        """
        self._survey({name for same in found if (name := self._named(same)) is not None})
        known = {label for usage, label in self._counts if usage == self._folder(TRAIN)}
        new = {label for same in found for label in same.classes} - known
        corrections = [same for same in found if same.entries]
        additions = [*self._additions([same for same in found if not same.entries])]
        few = self._few(new, additions, corrections)
        additions = [self._only_learn(one) if few & {*one.same.classes} else one for one in additions]
        trained = {label for one in additions if one.usage == TRAIN for label in one.same.classes}
        trained |= {label for same in corrections if self._trains(same) for label in same.classes}
        for same in corrections:
            self._correct(same, new - trained, few)
        for addition in additions:
            self._add(addition, new - trained)
        self._settle()
        self.plan.new_classes = sorted(new & {row["class"] for row in self.plan.rows})
        self._check_classes()
        return self.plan

    def _folder(self, usage: str) -> str:
        return str(getattr(self._config.usage, usage))

    def _named(self, same: Same) -> str | None:
        """The tyre that a picture's file name tells."""
        return find_tyre(same.first.entry.key, self._config.group_pattern)

    def _survey(self, tyres: set[str]) -> None:
        """Count the pictures of the version before, and find the usages of some tyres; in one go, for it is long."""
        for path, place in self.plan.contents.pictures():
            self._counts[place.usage, place.label] += 1
            if tyres and (name := find_tyre(path, self._config.group_pattern)) in tyres:
                self._homes.setdefault(str(name), set()).add(place.usage)

    def _additions(self, new: Sequence[Same]) -> Iterator[Addition]:
        """New pictures with their usages; what may not go to its tyre's is put aside."""
        tyres: dict[str, list[Same]] = {}
        for same in new:
            tyres.setdefault(same.first.tyre, []).append(same)
        for tyre, mine in tyres.items():
            usage = self._usage(tyre, mine)
            for same in mine:
                if usage == TRAIN or same.first.uniform:
                    yield Addition(same, usage, not same.first.uniform)
                else:
                    self._answered.leave(same.first, HELD_OUT)

    def _home(self, same: Same) -> str | None:
        """The usage that the version before has a picture's tyre in."""
        homes = self._homes.get(self._named(same) or "", set())
        return next((usage for usage in (TRAIN, TEST, VAL) if self._folder(usage) in homes), None)

    def _usage(self, tyre: str, mine: Sequence[Same]) -> str:
        """A tyre's usage: as ever, or by chance where it is new and of the uniform sample, or else training."""
        if (home := self._home(mine[0])) is not None:
            return home
        if not any(same.first.uniform for same in mine):
            return TRAIN
        has_val = any(usage == self._folder(VAL) for usage, _ in self._counts)
        config = self._config
        return held_out(tyre, config.val if has_val else 0.0, config.test, config.seed)

    def _trains(self, same: Same) -> bool:
        """Whether the version before has a picture in training."""
        places = map(self.plan.contents.place, same.entries)
        return any(place is not None and place.usage == self._folder(TRAIN) for place in places)

    def _few(self, new: set[str], additions: Sequence[Addition], corrections: Sequence[Same]) -> set[str]:
        """The new classes of which fewer than two tyres would train: one held out would leave none to learn from."""
        trains = [one.same for one in additions if one.usage == TRAIN] + [*filter(self._trains, corrections)]
        tyres = {(label, same.first.tyre) for same in trains for label in same.classes}
        count = Counter(label for label, _ in tyres)
        return {label for label in new if count[label] < _FEWEST}

    def _only_learn(self, addition: Addition) -> Addition:
        held = self._home(addition.same) not in (None, TRAIN)  # a tyre keeps its usage
        return addition if held else Addition(addition.same, TRAIN, selected=True)

    def _correct(self, same: Same, untrained: set[str], few: set[str]) -> None:
        """Have a picture of the version before in the folders of its classes, in its usage."""
        contents, wanted = self.plan.contents, {*same.classes}
        by_usage: dict[str, dict[str, Place]] = {}
        for path in sorted(same.entries):
            if (place := contents.place(path)) is not None:
                by_usage.setdefault(place.usage, {})[path] = place
        wrong = {usage: here for usage, here in by_usage.items() if {one.label for one in here.values()} != wanted}
        self.plan.confirmed += not wrong
        for usage, here in wrong.items():
            if usage != self._folder(TRAIN) and wanted & untrained:
                self._answered.leave(same.first, ONLY_HELD_OUT)
            else:
                learns = usage == self._folder(TRAIN) and bool(few & wanted)
                self._move(same, here, learns or bool(self._selected & {*here}))

    def _move(self, same: Same, here: Mapping[str, Place], selected: bool) -> None:
        """Plan the right places of a picture instead of the wrong ones, within a usage."""
        store, origin = self.plan.contents.store, next(iter(here))
        before = ", ".join(sorted({place.label for place in here.values()}))
        self.plan.corrected[before, ", ".join(same.classes)] += 1
        self.plan.dropped |= {path for path, place in here.items() if place.label not in same.classes}
        there = {place.path for place in here.values()}
        job = Job(store, same.entries[origin], "")
        for rest in sorted({place.rest for place in here.values()}):
            for place in (Place(here[origin].usage, label, rest) for label in same.classes):
                if place.path not in there:
                    self._wishes.append(Wish(same.first, place, job, f"{store.root}/{origin}", before, selected))

    def _add(self, addition: Addition, untrained: set[str]) -> None:
        picture, usage = addition.same.first, self._folder(addition.usage)
        if addition.usage != TRAIN and untrained & {*addition.same.classes}:
            self._answered.leave(picture, ONLY_HELD_OUT)
            return
        self.plan.new += 1
        job = Job(picture.window.store, picture.entry, "")
        for label in addition.same.classes:
            place = Place(usage, label, f"{picture.window.name}/{picture.file}")
            self._wishes.append(Wish(picture, place, job, picture.address, None, addition.selected))
            self.plan.added[usage, label] += 1

    def _settle(self) -> None:
        """Give each wish its path; of two pictures that want one, the second has a digest in the folder's name."""
        contents, dropped = self.plan.contents, self.plan.dropped
        taken = {*contents.at({wish.place.path for wish in self._wishes})} - dropped
        for wish in self._wishes:
            place, number = wish.place, 0
            while place.path in taken or (number and place.path not in dropped and contents.at([place.path])):
                place, number = _beside(wish, number), number + 1
            taken.add(place.path)
            self.plan.jobs.append(wish.job._replace(path=place.path))
            self.plan.rows.append(self._row(wish, place))

    def _row(self, wish: Wish, place: Place) -> dict[str, Any]:
        picture = wish.picture
        probability = None if math.isnan(picture.probability) else picture.probability
        return {
            "path": place.path, "version": self._version, "copied_from": wish.address, "class": place.label,
            "class_before": wish.before, "usage": place.usage, "tyre": picture.tyre, "who": picture.verdict.who,
            "time": picture.verdict.time, "window": picture.window.store.root,
            "predictions": picture.window.queue.source, "why": picture.why, "probability": probability,
            "selected": wish.selected,
        }  # fmt: skip

    def _check_classes(self) -> None:
        """Refuse a version that no training would take."""
        counts = self._counts + Counter((row["usage"], row["class"]) for row in self.plan.rows)
        gone = [place for path in self.plan.dropped if (place := self.plan.contents.place(path)) is not None]
        counts.subtract((place.usage, place.label) for place in gone)
        train = self._folder(TRAIN)
        for usage, label in sorted(+counts):
            if counts[train, label] <= 0 and label in {place.label for place in gone}:
                raise UserError(
                    f"with these corrections, class '{label}' has pictures in {usage} and none in {train}, so that "
                    "nobody could train: correct those too, or take some of these answers back"
                )
        mapped: dict[str, str] = {}
        for label in sorted({label for _, label in +counts}):
            if (other := mapped.setdefault(mlflow_name(label), label)) != label:
                raise UserError(
                    f"MLflow cannot tell the classes '{other}' and '{label}' apart: answer with one of them"
                )


def _beside(wish: Wish, number: int) -> Place:
    """Another place for a picture, by a digest of what it is."""
    text = f"{wish.address}\n{wish.job.entry.etag}\n{number}".encode("utf-8", "surrogatepass")
    digest = blake2b(text, digest_size=4).hexdigest()
    folder, slash, file = wish.place.rest.rpartition("/")
    return wish.place._replace(rest=f"{folder}-{digest}/{file}" if slash else f"{digest}/{file}")
