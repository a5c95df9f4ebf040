"""Whether probabilities mean what they say, and how to make them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of the calibration error, as in Guo et al.
_RANGE = (math.log(0.05), math.log(20.0))  # of the logarithm of the temperature
# Of the prior on the logarithm of the temperature. The widest with which scores that are right as they are lose no more
# than 0.005 of cross-entropy, from 30 images on (tests/test_temperature.py); 250 images outweigh it.
_SPREAD = 0.25
# Of the prior on each class's offset. What unseen pictures of real tyres ask for has a spread of 0.6, over five models;
# what scores that need none lose by it, tests/test_offsets.py bounds.
_OFFSET_SPREAD = 0.5

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Class probabilities of logits [N, classes] that are divided by ``temperature``."""
    found = np.asarray(logits / temperature, np.float64)  # in place from here on: there may be half a million images
    found -= found.max(axis=1, keepdims=True)
    np.exp(found, out=found)
    found /= found.sum(axis=1, keepdims=True)
    return found


def fit_temperature(logits: Floats, labels: Labels, weights: Floats | None = None) -> float:
    """The likeliest temperature (Guo et al., arXiv:1706.04599), with a prior by which it stays near 1.

    Few images that are all classified rightly would ask for a temperature of 0, and the first error afterwards would
    cost more than all that is won. Hence the maximum a posteriori under a Gaussian prior on the logarithm, as Chen and
    Rosenfeld smooth log-linear models (IEEE Transactions on Speech and Audio Processing 8, 2000).

    Args:
        logits: [N, classes].
        labels: class indices, shape (N,).
        weights: how much each image says, shape (N,); None: one each. Many pictures of few tyres say little.
    """
    from scipy.optimize import minimize_scalar

    counted = np.ones(len(labels)) if weights is None else weights

    def unlikeliness(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        top, true = scaled.max(axis=1), scaled[np.arange(len(labels)), labels]
        scaled -= top[:, None]
        log_sum = top + np.log(np.exp(scaled, out=scaled).sum(axis=1))
        cross_entropy = float((counted * (log_sum - true)).sum())
        return cross_entropy + (log_temperature / _SPREAD) ** 2 / 2

    return math.exp(minimize_scalar(unlikeliness, bounds=_RANGE, method="bounded").x)


def fit_offsets(logits: Floats, labels: Labels, priors: Floats | None = None) -> Floats:
    """What to add to each class's logits, shape (classes,), so that none is said too often or too seldom.

    Training sees crops of pictures that it will remember, and leans to some classes where whole new ones come. Offsets
    are fitted together with a temperature, which is given up (bias-corrected temperature scaling, Alexandari, Kundaje
    and Shrikumar, ICML 2020, arXiv:1901.06852), with a prior by which few images move them little, and none that of
    a class of which there is none.

    Args:
        logits: [N, classes]; an image with one that is no number says nothing.
        labels: class indices, shape (N,).
        priors: what makes logits fit the images that training saw, shape (classes,), see
            :func:`tyre_lightning.model.imbalance.leaning`; None: nothing.
    """
    from scipy.optimize import minimize

    whole = np.isfinite(logits).all(axis=1)
    logits, labels = logits[whole], labels[whole]
    classes, place = logits.shape[1], np.arange(len(labels))
    free = np.bincount(labels, minlength=classes) > 0
    leaning = logits if priors is None else logits + priors

    def unlikeliness(values: Floats) -> tuple[float, Floats]:
        offsets, log_scale = np.where(free, values[:-1], 0.0), values[-1]
        scaled = leaning * math.exp(log_scale)
        found = softmax(scaled + offsets)
        cost = -np.log(np.maximum(found[place, labels], 1e-300)).sum()
        found[place, labels] -= 1
        slopes = [*np.where(free, found.sum(axis=0), 0.0), (found * scaled).sum()]
        return float(cost + np.square(values / spreads).sum() / 2), slopes + values / np.square(spreads)

    spreads = np.array([_OFFSET_SPREAD] * classes + [_SPREAD])
    fitted = minimize(unlikeliness, np.zeros(classes + 1), jac=True, method="L-BFGS-B").x
    return np.asarray(fitted[:-1] / math.exp(fitted[-1]))


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Mean distance of confidence and accuracy over bins of the likeliest class's probability (arXiv:1706.04599)."""
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(place, hit - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))


def brier_score(probabilities: Floats, labels: Labels) -> float:
    """Mean squared distance of the probabilities from the truth, summed over classes (Brier, 1950): 0 to 2."""
    away = probabilities.copy()
    away[np.arange(len(labels)), labels] -= 1
    return float(np.square(away, out=away).sum(axis=1).mean())
