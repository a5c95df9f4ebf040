"""The gate's rule, without models: tyres that count once."""

from __future__ import annotations

import numpy as np

from tyre_lightning.promote.tyres import by_tyre


def test_a_tyre_escapes_when_all_its_readable_pictures_are_accepted() -> None:
    rows = [
        (0, "accept", True), (0, "accept", False), (0, None, False),
        (1, "accept", True), (1, "review", False),
        (2, "reject", False), (2, "review", False), (2, "accept", False),
        (3, None, True),
        (7, "accept", False), (7, None, True),
    ]  # fmt: skip
    tyres, decisions, defective = (np.array(column) for column in zip(*rows, strict=True))
    found = by_tyre(decisions.astype(object), defective, tyres)
    assert found.decisions.tolist() == ["accept", "review", "reject", None, "accept"]
    assert found.defective.tolist() == [True, True, False, True, True]
