"""The fitted temperature helps, or at least does no harm, however few the validation images are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tyre_lightning.decision.calibration import Floats, Labels, fit_temperature, softmax

CLASSES, POPULATION, DRAWS = 4, 20_000, 80
SIZES = [30, 60, 120, 250, 500, 1000]
HARM = 0.005  # of cross-entropy; one parameter fitted without a prior loses 1 / (2 n) on average, 0.017 of 30 images
GRID = np.linspace(math.log(0.04), math.log(25), 120)  # of the logarithm of the temperature
Scored = tuple[Floats, Labels]


def honest(draw: np.random.Generator, spread: float, temperature: float) -> Scored:
    """Scores [N, classes] that are right when divided by a temperature, and true classes, shape (N,)."""
    logits = draw.normal(0, spread, (POPULATION, CLASSES))
    labels = (softmax(logits).cumsum(axis=1) < draw.random((POPULATION, 1))).sum(axis=1)
    return logits * temperature, np.minimum(labels, CLASSES - 1)


def smoothed(draw: np.random.Generator, noise: float, wrong: float) -> Scored:
    """As of a network that label smoothing of 0.1 taught; a share of the images is classified wrongly for sure."""
    labels = draw.integers(0, CLASSES, POPULATION)
    logits = math.log(0.925 / 0.025) * np.eye(CLASSES)[labels] + draw.normal(0, noise, (POPULATION, CLASSES))
    other = (labels + draw.integers(1, CLASSES, POPULATION)) % CLASSES
    return logits, np.where(draw.random(POPULATION) < wrong, other, labels)


def cross_entropies(scored: Scored) -> Floats:
    """Of the whole population at each temperature of ``GRID``."""
    logits, labels = scored
    place = np.arange(len(labels))
    return np.array([-np.log(softmax(logits, math.exp(at))[place, labels] + 1e-300).mean() for at in GRID])


TRUTHS = {
    "right": lambda draw: honest(draw, 2, 1),
    "right and sharp": lambda draw: honest(draw, 6, 1),
    "too sure": lambda draw: honest(draw, 2, 3),
    "too sure and sharp": lambda draw: honest(draw, 6, 3),
    "too modest": lambda draw: honest(draw, 2, 0.5),
    "nearly separable, 0.97": lambda draw: smoothed(draw, 0.3, 0.03),
    "nearly separable, 0.98": lambda draw: smoothed(draw, 1.0, 0.005),
    "nearly separable, 0.99": lambda draw: smoothed(draw, 0.7, 0.01),
    "nearly separable, 0.995": lambda draw: smoothed(draw, 0.3, 0.005),
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_fresh_images_are_no_worse_off(truth: str) -> None:
    draw = np.random.default_rng(5)
    logits, labels = scored = TRUTHS[truth](draw)
    whole = cross_entropies(scored)
    before = np.interp(0.0, GRID, whole)
    for size in SIZES:
        drawn = draw.integers(0, POPULATION, (DRAWS, size))
        fitted = [math.log(fit_temperature(logits[some], labels[some])) for some in drawn]
        change = np.interp(fitted, GRID, whole) - before
        assert change.mean() <= HARM + 2 * change.std() / math.sqrt(DRAWS), (size, change.mean())


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_many_images_have_their_way(temperature: float) -> None:
    logits, labels = honest(np.random.default_rng(6), 2, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_images_without_an_error_ask_for_no_extreme() -> None:
    logits, labels = smoothed(np.random.default_rng(7), 0.3, 0)
    assert 0.3 < fit_temperature(logits[:60], labels[:60]) < 1
