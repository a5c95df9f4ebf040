"""Which tyres of a window a person should see: typical ones, and those that are most like what has shifted."""

from __future__ import annotations

import numpy as np

from tyre_lightning.data.traits import TRAITS
from tyre_lightning.decision.sample import Sample

SHOWN = 6  # pictures of a kind


def typical(sample: Sample) -> list[str]:
    """The keys of tyres, those first whose looks are nearest to the median; those of unknown looks are left out."""
    looks = np.stack([sample.numbers(name) for name in TRAITS], axis=1)
    known = ~np.isnan(looks).any(axis=1)
    if not known.any():
        return []
    low, middle, high = np.quantile(looks[known], (0.25, 0.5, 0.75), axis=0)
    away = np.abs(looks[known] - middle) / np.maximum(high - low, 1e-6 + 0.01 * np.abs(middle))
    keys: list[str] = sample.texts("key")[known][np.argsort(away.sum(axis=1), kind="stable")].tolist()
    return keys
