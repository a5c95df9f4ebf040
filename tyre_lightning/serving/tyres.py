"""Verdicts on tyres of which pictures come one after another."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tyre_lightning.errors import StoreUnavailable, UnreadableImage, UserError
from tyre_lightning.evaluation.predictions import tyre_row
from tyre_lightning.lake.tyres import find_tyre
from tyre_lightning.model.inspector import Sighting, answer_columns, nothing_seen
from tyre_lightning.names import file_name
from tyre_lightning.serving.arrivals import CONTENT, VERDICT, Arrivals
from tyre_lightning.serving.models import Held
from tyre_lightning.tracking.asked import Row, look

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{,99}")  # names that every system takes as they are
_STRICTNESS = (None, "accept", "review", "reject")


@dataclass
class Waiting:
    """What is known of a tyre until its verdict."""

    before: dict[str, Any] | None  # the verdict that it has
    number: int  # of its next verdict
    rows: dict[str, Row] = field(default_factory=dict)  # of new pictures, by path
    last: float = 0.0  # when the last picture came
    renamed: dict[str, str] = field(default_factory=dict)  # from names that are gone to those of the same pictures

    @property
    def told(self) -> list[str]:
        """The pictures that its verdict knows of."""
        return self.before["pictures"] if self.before else []

    @property
    def paths(self) -> list[str]:
        """Of all its pictures."""
        return sorted({*self.rows, *self.told} - {*self.renamed})

    @property
    def grown(self) -> bool:
        """Whether any is new, and not only called so."""
        known = {path for former, path in self.renamed.items() if former in self.told and former not in self.rows}
        return not {*self.rows} <= known | {*self.renamed}


class Tyres:
    """Decides on a tyre when all its pictures are there, or none has come for a while.

    A picture that comes later gives one more verdict, with a number, on all pictures. It is never less strict than the
    one before, on which the line has acted. A picture that got another name counts once. The verdict is of one version
    of the model: pictures that another has judged are looked at again.

    Args:
        arrivals: of the pictures and the verdicts.
        pictures: of a tyre; None: it is not known.
        wait: seconds after the last picture.
    """

    def __init__(self, arrivals: Arrivals, pictures: int | None, wait: float) -> None:
        self._arrivals, self._pictures, self._wait = arrivals, pictures, wait
        self._waiting: dict[str, Waiting] = {}

    def add(self, path: str, row: Row, held: Held) -> None:
        """Count one more picture, whose verdict is written."""
        if (name := find_tyre(path, held.inspector.group_pattern)) is None:
            return  # it is a tyre of its own, on which is decided
        if name not in self._waiting:
            self._waiting[name] = self.open(name)
        one = self._waiting[name]
        one.rows[path], one.last = row, time.monotonic()
        one.renamed.pop(path, None)

    def restore(self, name: str, known: Waiting, paths: Iterable[str], held: Held) -> None:
        """Go on with pictures that a run before has judged, unless the verdict on their tyre knows of them.

        Args:
            name: of the tyre.
            known: what :meth:`open` gave of it.
            paths: of the pictures.
            held: the model in use.

        Raises:
            UserError: their rows cannot be read now.
        """
        if {*paths} <= {*known.told}:
            return
        one = self._waiting.get(name) or self.open(name)  # more of its pictures may have had a verdict meanwhile
        if missing := {*paths} - {*one.told, *one.rows}:
            one.rows |= {path: self._row(path, held) for path in missing}
            one.last = time.monotonic()
            self._waiting[name] = one

    def open(self, name: str) -> Waiting:
        """A tyre with the last verdict that it has; where a file system takes T1 for t1, not that of the other.

        Raises:
            UserError: it cannot be read now.
        """
        found, number = None, 1
        while (more := self._arrivals.find(verdict_file(name, number))) is not None:
            found, number = (more if _is_of(name, more) else found), number + 1
        return Waiting(found, number)

    def decide(self, held: Held) -> Iterator[dict[str, Any]]:
        """Write the verdicts that are due; gives them.

        Raises:
            UserError: one cannot be written; it is still due then. The others are written first.
        """
        failed: UserError | None = None
        for name, one in [*self._waiting.items()]:
            if not self._due(one):
                continue
            try:
                self._find_renamed(one)
                if one.grown and not self._due(one):
                    continue
                said = self._write(name, one, held) if one.grown else None
            except StoreUnavailable:
                raise  # nor would it take the others
            except UserError as error:
                failed = error
                continue
            del self._waiting[name]
            if said is not None:
                yield said
        if failed is not None:
            raise failed

    def _due(self, one: Waiting) -> bool:
        complete = self._pictures is not None and len(one.paths) >= self._pictures
        return complete or time.monotonic() - one.last >= self._wait

    def _find_renamed(self, one: Waiting) -> None:
        """Find other names that new pictures had, or have by now: files of the same content, of which one is there.

        New ones that are all gone count each, as cameras without light make them, but not beside one that the verdict
        on the tyre knows.
        """
        contents = {path: content for path in one.paths if (content := self._content(path, one)) is not None}
        often = Counter(contents.values())
        gone = {path for path, content in contents.items() if often[content] > 1 and self._arrivals.is_gone(path)}
        last = [path for path in contents if path in one.rows or path not in gone]
        for path in sorted(last, key=gone.__contains__):  # what is there has the last name
            former = {other for other in gone - {path, *one.renamed} if contents[other] == contents[path]}
            if path in gone:
                former &= {*one.told}
            elif path not in one.rows:  # what the verdict counts twice stays so
                former -= {*one.told}
            if path not in one.renamed:
                one.renamed |= dict.fromkeys(former, path)

    def _content(self, path: str, one: Waiting) -> str | None:
        row = one.rows.get(path) or self._arrivals.find(f"{path}{VERDICT}") or {}
        return row.get(CONTENT)

    def _write(self, name: str, one: Waiting, held: Held) -> dict[str, Any]:
        sighting = Sighting()
        for path in one.paths:
            sighting.add(held.inspector, self._of_version(path, one.rows.get(path), held))
        said = tyre_row(held.inspector, name, sighting)
        if one.before is not None and _strict(one.before["decision"]) > _strict(said["decision"]):
            said |= {key: one.before[key] for key in ("decision", "reason")}
        said |= {"model": held.name, "verdict": one.number, "pictures": one.paths}
        self._arrivals.put(verdict_file(name, one.number), json.dumps(said, ensure_ascii=False).encode())
        return said

    def _of_version(self, path: str, row: Row | None, held: Held) -> Row:
        """A picture's row by this version of the model."""
        row = self._row(path, held) if row is None else row
        columns = answer_columns(held.inspector.columns(), multi_label=held.inspector.multi_label)
        return row if row.get("model") == held.name and {*columns} <= {*row} else self._look(path, held)

    def _row(self, path: str, held: Held) -> Row:
        """A picture's row, as it was written, or anew where that is gone."""
        data = self._arrivals.find(f"{path}{VERDICT}")
        return self._look(path, held) if data is None else data

    def _look(self, path: str, held: Held) -> Row:
        key = self._arrivals.store.key(path)
        about = {"key": key, "model": held.name}
        try:
            return look(held.inspector, {"image": self._arrivals.read(path)}, key) | about
        except StoreUnavailable:
            raise
        except UnreadableImage as error:
            return nothing_seen(error.reason) | about
        except UserError as error:  # it is gone
            return nothing_seen(str(error)) | about


def verdict_file(name: str, number: int) -> str:
    """Where the verdict on a tyre lies: no picture's is called so, since ``.tyre`` is no suffix of one."""
    ending = f".tyre{VERDICT}" if number == 1 else f".tyre-{number}{VERDICT}"
    return name + ending if _PLAIN.fullmatch(name) else file_name(name, ending)


def _is_of(name: str, found: dict[str, Any]) -> bool:
    """Whether a file's content is a verdict that was written here on a tyre."""
    written = {"reason", "decision", "pictures"} <= {*found} and isinstance(found["pictures"], list)
    return written and found.get("tyre") == name and found["decision"] in _STRICTNESS


def _strict(decision: str | None) -> int:
    return _STRICTNESS.index(decision)
