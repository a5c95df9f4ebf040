"""What is known of every tyre so far, on the disk: there may be more tyres than fit into memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tyre_lightning.model.inspector import DEFECTS, NOVELTY, Inspector, Sighting

_TABLE = """
create table tyre (
    name text primary key, pictures integer, unreadable integer, score real, class_name text, key text, defects text,
    novelty real
) without rowid
"""
_WORSE = "ifnull(excluded.score > score, excluded.score is null and score is not null)"  # null is NaN here
_ADD = f"""
insert into tyre values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (name) do update set
    class_name = case when {_WORSE} then excluded.class_name else class_name end,
    key = case when {_WORSE} then excluded.key else key end,
    pictures = pictures + excluded.pictures,
    unreadable = unreadable + excluded.unreadable,
    score = max(score, excluded.score),
    defects = together(defects, excluded.defects),
    novelty = min(ifnull(novelty, excluded.novelty), ifnull(excluded.novelty, novelty))
"""


class Ledger:
    """Tyres by name; a context, at whose end they are forgotten.

    Args:
        path: of a new file.
        inspector: whose rows it will be given.
    """

    def __init__(self, path: Path, inspector: Inspector) -> None:
        self._database = sqlite3.connect(path)
        self._database.execute("pragma synchronous = off")
        self._database.create_function("together", 2, _together)
        self._database.execute(_TABLE)
        self._inspector = inspector

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count pictures, each a row with ``tyre``, ``key``, ``class``, probabilities and ``error``."""
        self._database.executemany(_ADD, [self._values(row) for row in rows])

    def get(self, names: Sequence[str]) -> list[Sighting]:
        """What is known of some tyres."""
        find = "select pictures, unreadable, score, class_name, key, defects, novelty from tyre where name = ?"
        return [_sighting(*self._database.execute(find, (name,)).fetchone()) for name in names]

    def tyres(self) -> Iterator[tuple[str, Sighting]]:
        """All tyres, by name."""
        for name, *values in self._database.execute("select * from tyre order by name"):
            yield name, _sighting(*values)

    def mean_pictures(self) -> float:
        """Of a tyre, readable or not; NaN where there is none."""
        (found,) = self._database.execute("select avg(pictures + unreadable) from tyre").fetchone()
        return float("nan") if found is None else float(found)

    def _values(self, row: dict[str, Any]) -> tuple[Any, ...]:
        if row["error"] is not None:
            return row["tyre"], 0, 1, -1.0, None, None, "[]", None
        defects = json.dumps(row.get(DEFECTS) or [])
        return row["tyre"], 1, 0, self._inspector.defective(row), row["class"], row["key"], defects, row[NOVELTY]


def _together(one: str, other: str) -> str:
    """The names in one JSON list or the other."""
    return one if other in ("[]", one) else json.dumps(sorted({*json.loads(one), *json.loads(other)}))


def _sighting(
    pictures: int, unreadable: int, score: float | None, class_name: str | None, key: str | None, defects: str,
    novelty: float | None,
) -> Sighting:  # fmt: skip
    """A row; SQLite keeps NaN as null, which is higher than any score there too."""
    known = float("nan") if score is None else score
    return Sighting(pictures, unreadable, known, class_name, key, frozenset(json.loads(defects)), novelty)
