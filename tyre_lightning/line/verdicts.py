"""From what people said of tyres to what a data version says of pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tyre_lightning.errors import UserError
from tyre_lightning.line.answers import CANNOT_TELL, GOOD, NO_TYRE, Answer
from tyre_lightning.names import one_form

DISAGREE = "people disagree"
CHANGED = "it has changed since it was shown"
NOT_SHOWN = "it was not shown to those who answered"
NO_DEFECT_SEEN = "it shows none of its tyre's defect"
_LONGEST = 200  # bytes of a class: a folder's name has room for 255


@dataclass(frozen=True)
class Verdict:
    """What holds of a tyre.

    Args:
        classes: those that it shows, sorted; empty where it has no label.
        reason: why it has none.
        clear: the answers of those who could tell.
        everyone: all answers.
        defective: whether it shows a defect; of a good tyre all pictures are good.
    """

    classes: tuple[str, ...]
    reason: str | None
    clear: tuple[Answer, ...]
    everyone: tuple[Answer, ...]
    defective: bool = False

    @property
    def who(self) -> list[str]:
        """Those who said so."""
        return sorted({answer.who for answer in self.clear})

    @property
    def time(self) -> str:
        """When the last of them did."""
        return max(answer.time for answer in self.clear)

    def said(self) -> dict[str, str]:
        """What each person said."""
        return {one.who: one.answer if isinstance(one.answer, str) else ", ".join(one.answer) for one in self.everyone}

    def against(self, key: str, tag: str) -> str | None:
        """Why the classes are not those of a picture of the tyre; None where they are.

        Args:
            key: of the picture.
            tag: of what the store has now.
        """
        shown = [answer for answer in self.clear if not answer.keys or key in answer.keys]
        if not shown:
            return NOT_SHOWN
        tags = {dict(zip(answer.keys, answer.tags, strict=False)).get(key) for answer in shown}
        if tags - {None, tag}:
            return CHANGED
        if self.defective and any(answer.shows and key not in answer.shows for answer in shown):
            return NO_DEFECT_SEEN
        return None


def verdicts_of(answers: Iterable[Answer], good: str, also_good: Collection[str] = ()) -> dict[str, Verdict]:
    """The verdict on each tyre: on what all agree who could tell.

    Args:
        answers: as :func:`tyre_lightning.line.answers.latest` gives them.
        good: the class of good tyres.
        also_good: what people who answered may have called it.

    Raises:
        UserError: an answer's class cannot be a folder.
    """
    names = {good, GOOD, *also_good}
    by_tyre: dict[str, list[Answer]] = {}
    for answer in answers:
        by_tyre.setdefault(answer.tyre, []).append(answer)
    return {tyre: _verdict(found, good, names) for tyre, found in by_tyre.items()}


def _verdict(answers: list[Answer], good: str, good_names: Collection[str]) -> Verdict:
    clear = tuple(one for one in answers if one.answer != CANNOT_TELL)
    said = {_classes(one, good, good_names) for one in clear}
    if len(said) == 1 and (classes := said.pop()):
        return Verdict(classes, None, clear, tuple(answers), defective=classes != (good,))
    reason = DISAGREE if len(said) > 1 else NO_TYRE if clear else CANNOT_TELL
    return Verdict((), reason, clear, tuple(answers))


def _classes(answer: Answer, good: str, good_names: Collection[str]) -> tuple[str, ...]:
    """What an answer says that a tyre shows, sorted; nothing where it is no tyre.

    Raises:
        UserError: a class cannot be a folder.
    """
    if answer.answer == NO_TYRE:
        return ()
    names = [answer.answer] if isinstance(answer.answer, str) else answer.answer
    found = set()
    for name in names:
        if not isinstance(name, str) or (fault := class_fault(name)):
            why = fault if isinstance(name, str) else "is no text"
            raise UserError(
                f"the answer {name!r} of {answer.who} on '{answer.tyre}' cannot be a class, since it {why}: answer anew"
            )
        if one_form(name) not in good_names:
            found.add(one_form(name))
    return tuple(sorted(found)) or (good,)


def class_fault(name: str) -> str | None:
    """Why a class cannot be a folder of a lake; None where it can."""
    if name in (NO_TYRE, CANNOT_TELL):
        return "is not one beside others"
    if not name.strip() or name != name.strip():
        return "is empty, or begins or ends with a space"
    if name.startswith("."):
        return "begins with a dot, as hidden folders do"
    if any(one in "/\\" or not one.isprintable() for one in name):
        return "holds a slash, or what cannot be printed"
    return "is too long" if len(name.encode("utf-8", "surrogatepass")) > _LONGEST else None
