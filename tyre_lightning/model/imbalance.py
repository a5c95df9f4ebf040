"""What makes up for classes of which there are few images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_OVERLAP = 0.99  # of a class's images: with it some hundred are as good as any number


def class_weights(counts: Sequence[int]) -> list[float]:
    """Balanced loss weights: inversely proportional to a class's images, with a mean of 1 over all images."""
    numbers = torch.tensor(counts, dtype=torch.float64)
    weights: list[float] = (numbers.sum() / (len(numbers) * numbers)).tolist()
    return weights


def adjustment(counts: Sequence[int], tau: float) -> list[float]:
    """What the loss adds to each class's logit: ``tau`` times the logarithm of its prior.

    A network that learns with it need not favour the frequent classes by itself, and so what it says without it does
    not (logit adjustment, Menon et al., arXiv:2007.07314). The prior is a class's share of the *effective* numbers of
    images (Cui et al., arXiv:1901.05555), (1 - b^n) / (1 - b) of n: where all classes have some hundred, nothing
    changes.

    Args:
        counts: images of each class, of which none counts as one.
        tau: how much of the prior is taken out of what the network says: 0 for nothing, 1 for all.
    """
    numbers = np.maximum(np.array(counts, np.float64), 1)
    effective = (1 - _OVERLAP**numbers) / (1 - _OVERLAP)
    found: list[float] = (tau * np.log(effective / effective.sum())).tolist()
    return found
