"""What people said of tyres: JSON lines, an answer each, in any number of files of a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tyre_lightning.errors import UserError
from tyre_lightning.names import one_form

FORMAT = 1
NO_TYRE, CANNOT_TELL = "not a tyre", "cannot tell"
DEFECTIVE, GOOD, NEITHER, UNTOLD, DISAGREED = "defective", "good", "neither", "cannot tell", "disagreed"


def read_answers(folder: str, good_class: str) -> dict[str, str]:
    """What is said of each tyre: :data:`DEFECTIVE`, :data:`GOOD`, :data:`NEITHER`, or why it is not known.

    A person's later answer takes the place of the earlier one, and None takes it back. Where persons differ in which
    defect they see, the tyre is defective; where in whether there is one, it is :data:`DISAGREED`. Who could not tell
    leaves it to the others.

    Raises:
        UserError: there is no such folder, it holds no answers, or a line is none.
    """
    said: dict[tuple[str, str], tuple[str, int, Any]] = {}
    for order, answer in enumerate(_lines(folder)):
        key = one_form(str(answer["tyre"])), str(answer["who"])
        newer = str(answer["time"]), order, answer["answer"]
        said[key] = max(said.get(key, newer), newer, key=lambda one: one[:2])
    kinds: dict[str, set[str]] = {}
    for (tyre, _), (_, _, answer) in said.items():
        if answer is not None:
            kinds.setdefault(tyre, set()).add(_kind(answer, good_class))
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
