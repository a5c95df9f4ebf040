"""Names at the borders: text that is free inside becomes what another system takes, readably, and no two become one."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b, blake2s
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pandas import DataFrame

T = TypeVar("T")

_LONGEST = 255  # bytes of a file's name
_MARK = "~"  # of names that are made here
_UNFIT = re.compile(rf'[<>:"/\\|?*{_MARK}]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$|clock\$) *(\.|$)", re.IGNORECASE)  # Windows'
# As OWASP has it ("CSV Injection"), with the wide forms. What looks as if it were marked already is marked once more.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_MLFLOW = re.compile(r"[\w.\- :]+")  # of a parameter, metric or tag, between slashes
MLFLOW_LENGTH = 250
_CLASS_LENGTH = 200  # so that words may stand before a class
_EXPERIMENT_LENGTH = 256
RUN_LENGTH = 250
_MODEL_LENGTH = 200  # the gate makes longer ones of it
_NOT_IN_MODELS = "/:'\"?#%\\"  # MLflow refuses them, or its filters and models:/ addresses cannot hold them
_FIGURE_LENGTH = 40


def file_name(text: str, ending: str = "") -> str:
    """A name for the file or folder of any text: itself where every system takes it, else much of it and a digest.

    No two texts share one, also where a file system does not tell ``A`` from ``a``, or the two forms of ``ü``.

    Args:
        text: a key, a part of one, a class, a tyre.
        ending: of the file, such as ``.jpg``.
    """
    room = _LONGEST - len(ending.encode())
    kept = "".join(one if one.isprintable() and not _UNFIT.match(one) else "_" for one in text)
    kept = "_" + kept if _RESERVED.match(kept) or kept[:1] in ("", ".", "-", " ") else kept.rstrip(". ")
    if kept == text and _alone(text) and len(text.encode()) <= room:
        return text + ending
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
    return f"{kept.encode()[: room - len(digest) - 1].decode(errors='ignore')}{_MARK}{digest}{ending}"


def csv_cell(value: T) -> T | str:
    """A value for a cell of a CSV file: a text that a spreadsheet would compute gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def plain_cell(value: T) -> T | str:
    """The inverse of :func:`csv_cell`."""
    marked = isinstance(value, str) and value[:1] == "'" and _FORMULA.match(value[1:])
    return value[1:] if isinstance(value, str) and marked else value


def csv_text(table: DataFrame) -> str:
    """A table as the text of a CSV file, by :func:`csv_cell`, without its index."""
    text: str = (
        table.map(csv_cell).rename(columns=csv_cell).to_csv(index=False, lineterminator="\r\n")
    )  # so \r is quoted too
    return text


def _alone(text: str) -> bool:
    """Whether a text is, of all that look like it, the one in lower case and in composed form."""
    return unicodedata.normalize("NFKC", text).upper().lower() == text == unicodedata.normalize("NFC", text)


def one_form(text: str) -> str:
    """A text in the one Unicode form (NFC) in which texts that look the same are the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def mlflow_name(name: str, longest: int = _CLASS_LENGTH) -> str:
    """A name of a parameter, metric or tag that MLflow accepts; one that it accepts anyway stays as it is.

    In each part between slashes, other characters become ``_``, and a digest of the part tells it from its like:
    ``val/recall/cracks (deep)`` becomes ``val/recall/cracks _deep_-c32e0407``. So does what is beyond ``longest``.
    """
    return "/".join(_mlflow_part(part, longest) for part in name.split("/"))


def _mlflow_part(part: str, longest: int) -> str:
    if _MLFLOW.fullmatch(part) and len(part) <= longest and part != "." and not part.startswith(".."):
        return part
    digest = blake2s(part.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    readable = re.sub(r"[^\w.\- :]|^\.+", "_", part)[: longest - len(digest) - 1]
    return f"{readable}-{digest}"


def mlflow_quoted(text: str) -> str:
    """A text in one of MLflow's filters, which has no way to write a quotation mark within marks of its kind."""
    mark = '"' if "'" in text else "'"
    return f"{mark}{text}{mark}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Dotted names by what tells them apart: their last parts, and no more of them than that takes."""
    short = dict.fromkeys(names, "")
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[place:]) for place in reversed(range(len(parts)))]
        alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1)
        short[name] = next(alone, name)
    return short


def model_fault(name: str) -> str | None:
    """Why a model cannot be registered under a name; None where it can."""
    found = sorted({character for character in name if character in _NOT_IN_MODELS or not character.isprintable()})
    if found:
        return f"holds {' '.join(map(_visible, found))}"
    if name in (".", ".."):
        return "is a path"
    return _length_fault(name, _MODEL_LENGTH)


def experiment_fault(name: str) -> str | None:
    """Why an experiment cannot have a name; None where it can."""
    return _length_fault(name, _EXPERIMENT_LENGTH)


def run_fault(name: str) -> str | None:
    """Why a run cannot have a name; None where it can."""
    return _length_fault(name, RUN_LENGTH)


def _length_fault(name: str, longest: int) -> str | None:
    if not name.strip():
        return "is empty"
    return f"has {len(name)} characters, and {longest} are the most" if len(name) > longest else None


def _visible(character: str) -> str:
    """A character that can be seen."""
    return character if character.isprintable() else ascii(character)


def terminal_text(text: str) -> str:
    """A text for a terminal: what would move or colour there stands as its code point; lines and tabs stay."""
    return "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text)


def figure_text(text: str) -> str:
    """A text for a figure: not too long, and no formula, which matplotlib takes text between dollars for."""
    short = text if len(text) <= _FIGURE_LENGTH else f"{text[: _FIGURE_LENGTH - 1]}…"
    return short.replace("$", r"\$")


def as_override(key: str, value: str) -> str:
    """A key and its value for a shell's command line, so quoted that the shell and Hydra leave the text as it is."""
    if re.fullmatch(r"[\w./:+-]+", value, re.ASCII):
        return f"{key}={value}"
    mark = "'" if '"' in value and "'" not in value else '"'
    # Hydra takes a backslash for itself, except before a mark.
    value = re.sub(rf"(\\*)({mark}|$)", lambda found: found[1] * 2 + (f"\\{mark}" if found[2] else ""), value)
    return shlex.quote(f"{key}={mark}{value}{mark}")
