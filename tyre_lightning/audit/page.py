"""What an audit shows: one self-contained HTML page, and a few lines in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from rich.console import Console

from tyre_lightning.audit.findings import FINDINGS, PAGE, Audit
from tyre_lightning.errors import hide_passwords
from tyre_lightning.evaluation.gallery import jpeg, thumbnails

SHOWN = 60  # findings of a kind with pictures; the table has all

_PIXELS = ("brightness", "contrast", "colour", "sharpness")


def render(audit: Audit) -> str:
    """The page.

    Raises:
        UserError: an image that was there is gone.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
    sections = _sections(audit)
    shown = [row for _, _, rows in sections for row in rows[:SHOWN]]
    keys = {key for row in shown for key in (row["key"], row.get("other_key")) if isinstance(key, str)}
    return template.render(
        root=hide_passwords(audit.store.root),
        classes=_classes(audit),
        pixels=_PIXELS,
        summary=audit.sentences(),
        shortcut=audit.shortcut,
        betrayers=_betrayers(audit),
        sections=sections,
        limit=SHOWN,
        table=FINDINGS,
        pictures=_pictures(audit, sorted(keys)),
        unreadable=_rows(audit.of("unreadable")),
    )


def show(audit: Audit, output: str) -> None:
    """Print what was found and where it is."""
    console = Console(highlight=False)
    for line in audit.sentences():
        console.print(line, markup=False)
    console.print(f"pictures are in {Path(output, PAGE)}, all findings in {Path(output, FINDINGS)}", markup=False)


def _classes(audit: Audit) -> list[dict[str, Any]]:
    """A row for each class: images by usage, the most frequent sizes, and medians of what was measured."""
    rows = []
    for name in audit.classes:
        images = audit.images
        own = images[[name in shown for shown in images["shows"]] if "shows" in images else images["label"] == name]
        seen = own[own["error"].isna()]
        sizes = (seen["width"].astype(int).astype(str) + " × " + seen["height"].astype(int).astype(str)).value_counts()
        rows.append(
            {
                "name": name,
                "usages": {usage: int((own["usage"] == usage).sum()) for usage in audit.images["usage"].unique()},
                "sizes": [f"{size} ({count})" for size, count in sizes.head(3).items()],
                "more": max(0, len(sizes) - 3),
                "grey": int((seen["colour"] < 1).sum()),
                "median": {pixel: float(seen[pixel].median()) for pixel in _PIXELS},
            }
        )
    return rows


def _betrayers(audit: Audit) -> list[tuple[str, float]]:
    """What the trivial classifier went by, the most telling first."""
    if audit.shortcut is None:
        return []
    sides: dict[str, float] = {}
    for name, share in audit.shortcut.importance.items():
        what = name if "_" not in name else "border spread" if name.endswith("spread") else "border colour"
        sides[what] = sides.get(what, 0.0) + share
    return sorted(sides.items(), key=lambda item: -item[1])


def _sections(audit: Audit) -> list[tuple[str, str, list[dict[str, Any]]]]:
    copies = audit.of("exact copy", "near-copy")
    grave = {*audit.conflicts.index, *audit.leaks.index}
    return [
        ("Copies in different classes", "One of the labels is wrong, or the tyre has two defects.",
         _rows(audit.conflicts)),
        ("Copies in different usages", "A test on what training has seen is too good. Training warns of them, and "
         "keeps near-copies on one side where it divides the images itself.", _rows(audit.leaks)),
        ("Labels in doubt", f"A classifier that never saw these labels says otherwise. {_agreement(audit)}"
         "The most suspicious come first.", _rows(audit.of("label"))),
        ("Other copies", "They do no harm where they are, but count as several tyres where there is one.",
         _rows(copies[~copies.index.isin(grave)])),
    ]  # fmt: skip


def _agreement(audit: Audit) -> str:
    """How much its doubts are worth."""
    if audit.agreement is None:
        return ""
    return f"It agrees with {audit.agreement:.0%} of all labels, and may be wrong where it does not. "


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _pictures(audit: Audit, keys: Sequence[str]) -> dict[str, str]:
    """Small JPEGs by key, as data URLs."""
    tiles = thumbnails(audit.store, keys)
    return {key: f"data:image/jpeg;base64,{jpeg(tile)}" for key, tile in zip(keys, tiles, strict=True)}
