"""What people said of tyres: JSON lines, an answer each, in any number of files of a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyre_lightning.errors import UserError
from tyre_lightning.names import one_form

FORMAT = 1
NO_TYRE, CANNOT_TELL = "not a tyre", "cannot tell"
DEFECTIVE, GOOD, NEITHER, UNTOLD, DISAGREED = "defective", "good", "neither", "cannot tell", "disagreed"


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


def latest(folder: str) -> list[Answer]:
    """What holds of all that was said: a person's later answer on a tyre replaces the earlier, None takes it back.

    Raises:
        UserError: there is no such folder, it holds no answers, or a line is none.
    """
    said: dict[tuple[str, str], tuple[str, int, dict[str, Any]]] = {}
    for order, answer in enumerate(_lines(folder)):
        key = one_form(str(answer["tyre"])), str(answer["who"])
        newer = str(answer["time"]), order, answer
        said[key] = max(said.get(key, newer), newer, key=lambda one: one[:2])
    return [
        Answer(
            tyre, who, time, answer["answer"], tuple(answer.get("keys") or ()), tuple(answer.get("tags") or ()),
            answer.get("queue"), tuple(answer.get("shows") or ()),
        )
        for (tyre, who), (time, _, answer) in said.items()
        if answer["answer"] is not None
    ]  # fmt: skip


def read_answers(folder: str, good_class: str) -> dict[str, str]:
    """What is said of each tyre: :data:`DEFECTIVE`, :data:`GOOD`, :data:`NEITHER`, or why it is not known.

    Where persons differ in which defect they see, the tyre is defective; where in whether there is one, it is
    :data:`DISAGREED`. Who could not tell leaves it to the others.

    Raises:
        UserError: see :func:`latest`.
    """
    kinds: dict[str, set[str]] = {}
    for one in latest(folder):
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


def _lines(folder: str) -> Iterator[dict[str, Any]]:
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise UserError(f"answers={folder} is no folder with answers (*.jsonl): give the one that the review wrote to")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                yield _answer(line, f"{file}, line {number}")


def _answer(line: str, place: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(line)
        if not {"tyre", "who", "time", "answer"} <= {*answer} or not isinstance(answer["answer"], str | list | None):
            raise ValueError
    except (ValueError, TypeError) as error:
        raise UserError(f"{place}: it is no answer, which has tyre, who, time and answer: mend or remove it") from error
    if (made := answer.get("format", 1)) > FORMAT:
        raise UserError(f"{place}: an answer of format {made}, and this version knows up to {FORMAT}: update")
    return answer
