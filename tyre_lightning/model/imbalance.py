"""What makes up for classes of which there are few images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tyre_lightning.config import ClassWeights, Sampling, TrainConfig

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


def log_priors(config: TrainConfig, counts: Sequence[int]) -> list[float] | None:
    """What training's cross-entropy adds to logits for rare classes; None where that is off, or balancing does as much.

    Args:
        config: of the training.
        counts: its images of each class.
    """
    if _balanced(config) or config.data.multi_label or not config.model.logit_adjustment:
        return None
    return adjustment(counts, config.model.logit_adjustment)


def leaning(config: TrainConfig, counts: Sequence[int]) -> list[float] | None:
    """What, added to logits, makes them fit the images that training saw, whatever it has done for rare classes.

    Args:
        config: of the training.
        counts: its images of each class.

    Returns:
        A number for each class; None where nobody knows, with a loss of one's own, or where every class is a yes or no.
    """
    if config.model.loss or config.data.multi_label:
        return None
    if not _balanced(config):
        return log_priors(config, counts) or [0.0] * len(counts)
    numbers = np.maximum(np.array(counts, np.float64), 1)
    found: list[float] = np.log(numbers / numbers.sum()).tolist()
    return found


def _balanced(config: TrainConfig) -> bool:
    return config.model.class_weights is ClassWeights.balanced or config.data.sampling is Sampling.balanced
