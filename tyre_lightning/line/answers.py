"""What people said of tyres: JSON lines, an answer each, in any number of files of a folder or of a prefix on S3."""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError
from tyre_lightning.files import disk_errors, sync
from tyre_lightning.names import one_form

if TYPE_CHECKING:
    from tyre_lightning.lake.s3 import S3Store

FORMAT = 1
_ENDING = ".jsonl"
NO_TYRE, CANNOT_TELL = "not a tyre", "cannot tell"
DEFECTIVE, GOOD, NEITHER, UNTOLD, DISAGREED = "defective", "good", "neither", "cannot tell", "disagreed"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a person said of a tyre.

    Args:
        tyre: its name, as the queue has it.
        who: the person.
        time: ISO 8601, UTC.
        answer: a class, several defects, :data:`NO_TYRE` or :data:`CANNOT_TELL`.
        keys: of the pictures that were shown.
        tags: of their contents, as the store told them; None: not known.
        queue: the file of the queue.
        shows: keys of those pictures that show the defect; none named: all do.
    """

    tyre: str
    who: str
    time: str
    answer: str | list[str]
    keys: tuple[str, ...] = ()
    tags: tuple[str | None, ...] = ()
    queue: str | None = None
    shows: tuple[str, ...] = ()


class Sink(Protocol):
    """Takes answers, each of which lasts once it has been taken."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Write an answer, as docs/line.md has it.

        Raises:
            UserError: it could not be kept for certain.
        """


class _Folder:
    """A file of this process's own, begun with its first answer; no file is ever appended to by a second process.

    So a line that a power cut broke off stays the last of its file, where :func:`latest` leaves it out.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(os.path.expanduser(folder))
        self._file: int | None = None
        self._lock = threading.Lock()

    @disk_errors()
    def add(self, line: Mapping[str, Any]) -> None:
        """See :class:`Sink`."""
        with self._lock:
            number = self._opened()
            data = _encoded(line)
            try:
                while data:
                    data = data[os.write(number, data) :]
                os.fsync(number)
            except OSError:  # whatever half a line is there now, the next answer begins another file
                self._file = None
                os.close(number)
                raise

    def _opened(self) -> int:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / _new_name()
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
            with suppress(OSError):  # not every file system lets a folder be synced
                sync(self._folder)
                sync(self._folder.parent)
        return self._file


class _Bucket:
    """An object for each answer, since S3 appends nothing."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    def add(self, line: Mapping[str, Any]) -> None:
        """See :class:`Sink`."""
        self._store.put(self._store.key(_new_name()), _encoded(line))


def open_sink(place: str, s3: S3Config) -> Sink:
    """What writes answers to a folder, which is made with the first, or to ``s3://bucket/prefix``."""
    return _Bucket(_store(place, s3)) if place.startswith("s3://") else _Folder(place)


def new_line(
    tyre: str, who: str, time: str, said: str | list[str] | None, keys: Sequence[str], queue: str,
    tags: Sequence[str | None] = (), shows: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """What :class:`Sink` takes.

    Args:
        tyre: its name, as the queue has it.
        who: the person.
        time: ISO 8601, UTC.
        said: the answer; None takes back what was said before.
        keys: of the pictures that were shown.
        queue: the file of the queue.
        tags: of their contents; none: not known.
        shows: the keys of those that show the defect; none: all.
    """
    return {
        "format": FORMAT,
        "time": time,
        "who": who,
        "tyre": tyre,
        "keys": [*keys],
        "tags": [*tags] or [None] * len(keys),
        "answer": said,
        "queue": queue,
        **({"shows": [*shows]} if shows else {}),
    }


def latest(folder: str, s3: S3Config | None = None, *, needed: bool = True) -> list[Answer]:
    """What holds of all that was said: a person's later answer on a tyre replaces the earlier, None takes it back.

    Args:
        folder: or ``s3://bucket/prefix``.
        s3: where the S3 service is; None: as the AWS chain has it.
        needed: whether it is a mistake that there are no files.

    Raises:
        UserError: there is no such folder, it holds no answers, or a line is none.
    """
    said: dict[tuple[str, str], tuple[str, int, dict[str, Any]]] = {}
    for order, answer in enumerate(_lines(folder, s3 or S3Config(), needed)):
        key = one_form(str(answer["tyre"])), str(answer["who"])
        newer = moment(str(answer["time"])), order, answer
        said[key] = max(said.get(key, newer), newer, key=lambda one: one[:2])
    return [
        Answer(
            tyre, who, str(answer["time"]), answer["answer"], tuple(answer.get("keys") or ()),
            tuple(answer.get("tags") or ()), answer.get("queue"), tuple(answer.get("shows") or ()),
        )
        for (tyre, who), (_, _, answer) in said.items()
        if answer["answer"] is not None
    ]  # fmt: skip


def moment(time: str) -> str:
    """An ISO 8601 time in the one form in which the later of two texts is the later time; UTC if it names no zone.

    What is none stays as it is.
    """
    try:
        when = datetime.fromisoformat(time)
    except ValueError:
        return time
    return f"{when.replace(tzinfo=when.tzinfo or UTC).astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def read_answers(folder: str, good_class: str, s3: S3Config | None = None) -> dict[str, str]:
    """What is said of each tyre: :data:`DEFECTIVE`, :data:`GOOD`, :data:`NEITHER`, or why it is not known.

    Where persons differ in which defect they see, the tyre is defective; where in whether there is one, it is
    :data:`DISAGREED`. Who could not tell leaves it to the others.

    Raises:
        UserError: see :func:`latest`.
    """
    kinds: dict[str, set[str]] = {}
    for one in latest(folder, s3):
        kinds.setdefault(one.tyre, set()).add(_kind(one.answer, good_class))
    return {tyre: _together(found) for tyre, found in kinds.items()}


def _together(found: set[str]) -> str:
    told = found - {UNTOLD}
    return UNTOLD if not told else told.pop() if len(told) == 1 else DISAGREED


def _kind(answer: str | list[str], good_class: str) -> str:
    if isinstance(answer, list):
        defects = [name for name in answer if one_form(name) != good_class]
        return DEFECTIVE if defects else GOOD
    if answer in (NO_TYRE, CANNOT_TELL):
        return NEITHER if answer == NO_TYRE else UNTOLD
    return GOOD if one_form(answer) in (good_class, "good") else DEFECTIVE


def _lines(folder: str, s3: S3Config, needed: bool) -> Iterator[dict[str, Any]]:
    for name, data in _files(folder, s3):
        needed = False
        *lines, last = data.split(b"\n")  # not at the other characters that end lines, which a name may hold
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _answer(line, f"{name}, line {number}")
        if last.strip():
            if _broken_off(last):
                log.warning("%s: its last line was broken off, as by a power cut, and is left out", name)
            else:
                yield _answer(last, f"{name}, line {len(lines) + 1}")
    if needed:
        raise UserError(f"answers={folder} is no folder with answers (*.jsonl): give the one that the review wrote to")


def _files(folder: str, s3: S3Config) -> Iterator[tuple[str, bytes]]:
    """Names and contents."""
    if not folder.startswith("s3://"):
        for file in sorted(Path(os.path.expanduser(folder)).glob("*.jsonl")):
            yield str(file), file.read_bytes()
        return
    store = _store(folder, s3)
    keys = [entry.key for entry in store.list(deep=False) if entry.key.endswith(_ENDING)]
    for key, content in zip(keys, store.get_many(keys), strict=True):
        yield store.uri(key), content.data


def _store(address: str, s3: S3Config) -> S3Store:
    from tyre_lightning.lake.s3 import S3Store  # its clients are not for who reads a folder

    return S3Store(address, s3)


def _new_name() -> str:
    """In the order of their times, as far as one machine's clock tells it."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z-{uuid.uuid4().hex[:12]}{_ENDING}"


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _broken_off(last: bytes) -> bool:
    """Whether a line without an end is no whole JSON value, and so no line that somebody has ended there."""
    try:
        json.loads(last)
    except ValueError:
        return True
    return False


def _answer(line: bytes, place: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(line)
        if not {"tyre", "who", "time", "answer"} <= {*answer} or not isinstance(answer["answer"], str | list | None):
            raise ValueError
    except (ValueError, TypeError) as error:
        raise UserError(f"{place}: it is no answer, which has tyre, who, time and answer: mend or remove it") from error
    if (made := answer.get("format", 1)) > FORMAT:
        raise UserError(f"{place}: an answer of format {made}, and this version knows up to {FORMAT}: update")
    return answer
