"""What an audit found."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import pandas as pd

from tyre_lightning.audit.labels import Shortcut
from tyre_lightning.lake.store import Store

PAGE = "audit.html"
FINDINGS = "findings.csv"
IMAGES = "images.parquet"
COLUMNS = [
    *("kind", "key", "usage", "label"),
    *("other_key", "other_usage", "other_label", "distance"),
    *("suggested", "confidence"),
    "error",
]


@dataclass(frozen=True)
class Audit:
    """What was found.

    Args:
        store: where the images lie.
        classes: in order.
        images: a row for each image: key, usage, label, size (bytes), error (None where it was decoded), the columns
            of :data:`tyre_lightning.audit.looks.TRAITS`, and group: images that show the same tyre have one number.
            Where some show several defects also shows, a list, and label has all of them.
        findings: a row for each thing to look at, the gravest first, always with all of :data:`COLUMNS`: kind, key,
            usage, label; of copies also other_key, other_usage, other_label and distance; of labels suggested and
            confidence; of unreadable images error.
        shortcut: None where a class is too small to tell.
        agreement: share of labels that the classifier which doubts some agrees with; None where a class is too small.
    """

    store: Store
    classes: tuple[str, ...]
    images: pd.DataFrame
    findings: pd.DataFrame
    shortcut: Shortcut | None
    agreement: float | None

    def of(self, *kinds: str) -> pd.DataFrame:
        """The findings of some kinds."""
        return self.findings[self.findings["kind"].isin(kinds)]

    @property
    def leaks(self) -> pd.DataFrame:
        """Pairs that lie in different usages: results on the one are too good because of the other."""
        copies = self.of("exact copy", "near-copy")
        return copies[copies["usage"] != copies["other_usage"]]

    @property
    def conflicts(self) -> pd.DataFrame:
        """Pairs that lie in different classes: one of the labels is wrong, or the tyre has two defects."""
        copies = self.of("exact copy", "near-copy")
        return copies[copies["label"] != copies["other_label"]]

    def sentences(self) -> list[str]:
        """The findings in sentences."""
        exact, near = self.of("exact copy"), self.of("near-copy")
        lines = [
            f"{len(self.images)} images in {len(self.classes)} classes, {len(self.of('unreadable'))} unreadable",
            f"{len(exact)} pairs with the same bytes, {len(near)} pairs of near-copies; "
            f"{len(self.leaks)} pairs lie in different usages, {len(self.conflicts)} in different classes",
            *self._several(),
            self._doubts(),
        ]
        if self.shortcut is None:
            return [*lines, "too few images in a class to test for shortcuts"]
        found = self.shortcut
        accuracy = f"{found.accuracy:.0%} of images are classified rightly by size, sharpness and border colour alone"
        if found.high:
            return [*lines, f"warning: {accuracy} (guessing: {found.chance:.0%}): a model may learn the background"]
        return [*lines, f"{accuracy} (guessing: {found.chance:.0%})"]

    def _doubts(self) -> str:
        if self.agreement is None:
            return "too few images in a class to doubt labels"
        count = len(self.of("label"))
        return f"{count} labels are in doubt, by a classifier that agrees with {self.agreement:.0%} of all"

    def _several(self) -> list[str]:
        count = int((self.images["shows"].str.len() > 1).sum()) if "shows" in self.images else 0
        return [f"{count} images lie in several class folders and show several defects"] if count else []

    def _repr_html_(self) -> str:
        return "".join(f"<p>{escape(line)}</p>" for line in self.sentences())
