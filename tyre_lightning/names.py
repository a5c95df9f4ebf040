"""Keys, classes and tyres are free text inside; one function for each border makes of it what the other side takes."""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2b
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


def csv_text(table: DataFrame) -> str:
    """A table as the text of a CSV file, by :func:`csv_cell`, without its index."""
    text: str = (
        table.map(csv_cell).rename(columns=csv_cell).to_csv(index=False, lineterminator="\r\n")
    )  # so \r is quoted too
    return text


def _alone(text: str) -> bool:
    """Whether a text is, of all that look like it, the one in lower case and in composed form."""
    return unicodedata.normalize("NFKC", text).upper().lower() == text == unicodedata.normalize("NFC", text)
