"""Who looks at which tyre of a queue, what was said of them, and what is left: the state behind the page."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from math import isnan
from time import monotonic
from typing import NamedTuple

from tyre_lightning.decision.agreement import Agreement, agreement
from tyre_lightning.errors import UserError
from tyre_lightning.line.answers import CANNOT_TELL, NO_TYRE, Answer, Sink, moment, new_line
from tyre_lightning.line.queue import Queue
from tyre_lightning.line.verdicts import class_fault
from tyre_lightning.names import one_form

LEASE_SECONDS = 300.0  # since a person was last heard of; then others may see the tyres that he or she was given
AHEAD = 3  # tyres that a person is given at a time: the one to look at, and those to fetch meanwhile

Said = str | list[str]


class Seat(NamedTuple):
    """Where a person sits: the same person at two screens is not given the same tyre twice."""

    who: str
    screen: str


class Refused(UserError):
    """An answer that cannot be taken: the tyre is someone else's meanwhile, or it is no answer to this queue."""


@dataclass(frozen=True)
class Tyre:
    """A tyre of the queue.

    Args:
        name: as the queue has it.
        keys: of its pictures.
        probabilities: of each picture, by class; None where it could not be read.
    """

    name: str
    keys: tuple[str, ...]
    probabilities: tuple[dict[str, float] | None, ...]


@dataclass
class _Held:
    """The tyres that a seat was given, the one to look at first, and when it was last heard of."""

    tyres: list[int] = field(default_factory=list)
    heard: float = 0.0


@dataclass(frozen=True)
class Progress:
    """How far the queue is.

    Args:
        total: its tyres.
        done: those that have all their answers.
        mine: those that a person has answered.
        second: those that wait for a second person only.
        agreement: of persons who saw the same tyres.
    """

    total: int
    done: int
    mine: int
    second: int
    agreement: Agreement


class Desk:
    """Hands out tyres and takes answers; of many threads.

    Args:
        queue: the tyres.
        source: of the queue, which answers name.
        sink: where answers go.
        said: what has been answered so far.
        overlap: share of the tyres that two persons see.
        clock: seconds, which never go back.
    """

    def __init__(
        self,
        queue: Queue,
        source: str,
        sink: Sink,
        said: Sequence[Answer],
        overlap: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.tyres = tyres_of(queue)
        self.classes = classes_of(queue)
        self.good, self.multi_label = one_form(queue.good_class), queue.multi_label
        self._source, self._sink, self._clock = source, sink, clock
        self._wanted = [2 if share(tyre.name) < overlap else 1 for tyre in self.tyres]
        self._lock = threading.Lock()
        self._held: dict[Seat, _Held] = defaultdict(_Held)
        self._skipped: dict[Seat, list[int]] = defaultdict(list)
        self._said: list[dict[str, Said]] = [{} for _ in self.tyres]
        self._told: dict[Seat, list[int]] = defaultdict(list)  # what can be undone, the latest last
        self._times: dict[tuple[int, str], str] = {}
        places = {one_form(tyre.name): index for index, tyre in enumerate(self.tyres)}
        for one in sorted(said, key=lambda one: moment(one.time)):
            if (index := places.get(one.tyre)) is not None:
                self._note(index, Seat(one.who, ""), one.answer, one.time)

    def next(self, seat: Seat) -> list[int]:
        """The tyres that a seat is given, the one to look at first; whoever asks is heard of."""
        with self._lock:
            held = self._held[seat]
            held.heard = self._clock()
            held.tyres = [index for index in held.tyres if self._is_open(index, seat)]  # others may have taken them
            later = self._skipped[seat]
            for index in [*(index for index in range(len(self.tyres)) if index not in later), *later]:
                if len(held.tyres) >= AHEAD:
                    break
                if index not in held.tyres and self._is_open(index, seat):
                    held.tyres.append(index)
            return [*held.tyres]

    def skip(self, seat: Seat, index: int) -> None:
        """Put a tyre off until nothing else is left."""
        with self._lock:
            self._let_go(seat, index)
            self._skipped[seat].append(index)

    def answer(self, seat: Seat, index: int, said: Said, shows: Sequence[int], tags: Sequence[str | None]) -> None:
        """Take an answer; once this returns, it lasts.

        Args:
            seat: whose it is.
            index: of the tyre.
            said: what is said of it.
            shows: which of its pictures show the defect; none: all.
            tags: of the contents of its pictures as they were shown.

        Raises:
            Refused: see there.
            UserError: it could not be kept.
        """
        tyre = self.tyres[index]
        self._check(tyre, said, shows)
        with self._lock:
            if seat.who not in self._said[index] and not self._is_open(index, seat):
                raise Refused(f"someone else has taken {tyre.name}, because nothing was heard of you for long")
            held = self._held[seat]
            held.heard = self._clock()
            if index not in held.tyres:
                held.tyres.append(index)
        time = self._write(seat.who, index, said, tags, [tyre.keys[place] for place in sorted({*shows})])
        with self._lock:
            self._let_go(seat, index)
            self._note(index, seat, said, time)

    def undo(self, seat: Seat) -> int | None:
        """Take back what was answered last, and give that tyre again; None: there is nothing to take back.

        Raises:
            UserError: it could not be kept.
        """
        with self._lock:
            told = self._told[seat] or self._told[Seat(seat.who, "")]  # of this screen, or of before a restart
            if not told:
                return None
            index = told[-1]
        time = self._write(seat.who, index, None)
        with self._lock:
            if index in told:
                told.remove(index)
            self._said[index].pop(seat.who, None)
            self._times[index, seat.who] = time
            self._let_go(seat, index)
            self._held[seat].tyres.insert(0, index)
            return index

    def others(self) -> list[str]:
        """Classes that people have named beside those of the queue, sorted."""
        with self._lock:
            said = {name for one in self._said for told in one.values() for name in _names(told)}
        return sorted(said - {*self.classes, NO_TYRE, CANNOT_TELL})

    def progress(self, who: str = "") -> Progress:
        """How far all are, and one person."""
        with self._lock:
            answered = [len(said) for said in self._said]
            done = sum(have >= wanted for have, wanted in zip(answered, self._wanted, strict=True))
            second = sum(0 < have < wanted for have, wanted in zip(answered, self._wanted, strict=True))
            by: dict[str, dict[str, str | tuple[str, ...]]] = defaultdict(dict)
            for tyre, said in zip(self.tyres, self._said, strict=True):
                for person, one in said.items():
                    by[person][tyre.name] = one if isinstance(one, str) else tuple(sorted(one))
            return Progress(len(self.tyres), done, len(by[who]), second, agreement(by))

    def _check(self, tyre: Tyre, said: Said, shows: Sequence[int]) -> None:
        if isinstance(said, list):
            known = self.multi_label and said and self.good not in said and len({*said}) == len(said)
            if not known or any(name not in self.classes and self._fault(name) for name in said):
                raise Refused("several defects are said of one tyre, or none, which this queue does not know")
        elif said not in (*self.classes, NO_TYRE, CANNOT_TELL) and (fault := self._fault(said)):
            raise Refused(f"that cannot be a class, since it {fault}")
        if not {*shows} <= {*range(len(tyre.keys))}:
            raise Refused(f"{tyre.name} has no such picture")
        if shows and said in (self.good, NO_TYRE, CANNOT_TELL):
            raise Refused("no picture shows a defect of a tyre that has none")

    def _fault(self, name: str) -> str | None:
        """Why a defect that is not of the queue's classes cannot be called so."""
        same = [known for known in (*self.classes, NO_TYRE, CANNOT_TELL) if known.casefold() == name.casefold()]
        return f"is '{same[0]}' in other letters" if same else class_fault(name)

    def _write(
        self, who: str, index: int, said: Said | None, tags: Sequence[str | None] = (), shows: Sequence[str] = ()
    ) -> str:
        """Keep an answer for certain; gives its time."""
        tyre, time = self.tyres[index], _after(self._times.get((index, who)))
        self._sink.add(new_line(tyre.name, who, time, said, tyre.keys, self._source, tags, shows))
        return time

    def _note(self, index: int, seat: Seat, said: Said, time: str) -> None:
        self._said[index][seat.who] = said
        self._times[index, seat.who] = time
        for told in (self._told[seat], self._told[Seat(seat.who, "")]):
            if index in told:
                told.remove(index)
        self._told[seat].append(index)

    def _is_open(self, index: int, seat: Seat) -> bool:
        """Whether a tyre wants one more answer, and that of this person."""
        silent = self._clock() - LEASE_SECONDS
        persons = {*self._said[index]} | {
            other.who
            for other, held in self._held.items()
            if other != seat and held.heard >= silent and index in held.tyres
        }
        return seat.who not in persons and len(persons) < self._wanted[index]

    def _let_go(self, seat: Seat, index: int) -> None:
        for kept in (self._held[seat].tyres, self._skipped[seat]):
            if index in kept:
                kept.remove(index)


def tyres_of(queue: Queue) -> list[Tyre]:
    """The tyres of a queue, in its order."""
    columns = {name: one_form(name.removeprefix("p_")) for name in queue.pictures.columns if name.startswith("p_")}
    found: list[Tyre] = []
    for name, rows in queue.pictures.groupby("tyre", sort=False):
        looks = rows[[*columns]].rename(columns=columns).to_dict("records")
        known = tuple(None if any(map(isnan, row.values())) else row for row in looks)
        found.append(Tyre(str(name), tuple(rows["key"]), known))
    return found


def classes_of(queue: Queue) -> list[str]:
    """The classes of a queue, that of good tyres first."""
    names = [one_form(name.removeprefix("p_")) for name in queue.pictures.columns if name.startswith("p_")]
    return sorted(names, key=lambda name: name != one_form(queue.good_class))


def share(name: str) -> float:
    """A number from 0 to 1 that is the same for a tyre at every start."""
    return int.from_bytes(blake2b(one_form(name).encode(), digest_size=8).digest()) / 2**64


def _names(said: Said) -> list[str]:
    return [said] if isinstance(said, str) else said


def _after(before: str | None) -> str:
    """The time, or a little later than another where a clock was set back: the later of two answers counts."""
    now = datetime.now(UTC)
    if before is not None:
        with suppress(ValueError):  # another program's, that cannot be read
            now = max(now, datetime.fromisoformat(moment(before)) + timedelta(microseconds=1))
    return moment(now.isoformat())
