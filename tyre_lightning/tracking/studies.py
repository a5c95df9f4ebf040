"""What a study's sweeper and its trials agree on."""

from __future__ import annotations

from pathlib import Path

PRUNED = "pruned"  # what a trial returns that was ended early


def storage_of(storage: str | None, folder: Path) -> str:
    """The address of a study's database: the given one, or that of a file in the sweep's folder."""
    return storage or f"sqlite:///{folder}/study.db"
