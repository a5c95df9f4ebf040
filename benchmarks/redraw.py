"""Validation sets drawn again and again from many scored tyres, and how often what they promise is broken.

The scored tyres are the population: validation sets are drawn from them with replacement, so that the draws are
independent and the true escape rate of any threshold is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import tyre_lightning.evaluation.judgement as judgement
from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.lake.texts import column
from tyre_lightning.model.best_epoch import standard_error

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WAYS = ("epoch, offsets, temperature, threshold", "offsets, temperature, threshold", "threshold")  # images choose


@dataclass(frozen=True)
class Population:
    """What each epoch's weights say of the same tyres."""

    logits: Floats  # [epochs, N, classes]
    labels: Ints  # class indices, shape (N,)
    good: int  # index of the class without a defect

    def confusions(self) -> Floats:
        """Whether a tyre adds to a place of an epoch's confusion matrix: [N, epochs, classes, classes], 0 or 1."""
        epochs, count, classes = self.logits.shape
        found = np.zeros((count, epochs, classes, classes))
        place = np.arange(count)[:, None], np.arange(epochs), self.labels[:, None], self.logits.argmax(axis=2).T
        found[place] = 1
        return found

    def sample(self, drawn: Ints, epoch: int) -> Scores:
        """The scores of some tyres, shape (n,), each taken for a tyre of its own."""
        names = column([f"{place:06}" for place in range(len(drawn))])
        return Scores(names, self.labels[drawn], self.logits[epoch, drawn], names, names)

    def rates(
        self, epoch: int, temperature: float, threshold: float, offsets: Sequence[float] = (0.0,)
    ) -> tuple[float, float]:
        """Escape and overkill rate: the shares of defective tyres below a threshold and of good ones from it on."""
        whole = self.sample(np.arange(len(self.labels)), epoch).shifted(np.array(offsets))
        scores = whole.defective(self.good, temperature)
        good = self.labels == self.good
        return float((scores[~good] < threshold).mean()), float((scores[good] >= threshold).mean())


def macro_f1(confusion: Floats) -> Floats:
    """Macro F1 [...] of confusion matrices [..., classes, classes], over the classes that occur."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    each = 2 * hit / np.maximum(true + predicted, 1)
    return np.asarray(each.sum(-1) / (true > 0).sum(-1))


def kept_epoch(scores: Sequence[float], images: int) -> int:
    """The epoch that ``BestEpoch`` keeps, by the scores of all epochs on as many validation images."""
    kept, peak = 0, -math.inf
    for epoch, score in enumerate(scores):
        peak = max(peak, score)
        if score >= peak - standard_error(peak, images):
            kept = epoch
    return kept


def redraw(
    population: Population, promises: Sequence[OperatingPointConfig], size: int, draws: int, seed: int
) -> dict[str, Floats]:
    """The true escape and overkill rates [draws, promises, 2] of what each of ``WAYS`` chooses; NaN without a promise.

    Where validation images do not choose the epoch it is the last, and where not offsets and temperature, they are 0
    and 1.
    """
    draw, confusions = np.random.default_rng(seed), population.confusions()
    found: dict[str, list[list[tuple[float, float]]]] = {way: [] for way in WAYS}
    last = len(population.logits) - 1
    for _ in range(draws):
        drawn = draw.integers(0, len(population.labels), size)
        epoch = kept_epoch(macro_f1(confusions[drawn].sum(axis=0)).tolist(), size)
        fixed = [*_rates(population, drawn, last, promises)]
        found[WAYS[0]].append(fixed if epoch == last else [*_rates(population, drawn, epoch, promises)])
        found[WAYS[1]].append(fixed)
        nothing = mock.patch.object(judgement, "fit_offsets", return_value=np.zeros(population.logits.shape[2]))
        with nothing, mock.patch.object(judgement, "fit_temperature", return_value=1.0):
            found[WAYS[2]].append([*_rates(population, drawn, last, promises)])
    return {way: np.array(rates) for way, rates in found.items()}


def _rates(
    population: Population, drawn: Ints, epoch: int, promises: Sequence[OperatingPointConfig]
) -> Iterator[tuple[float, float]]:
    leaning = [0.0] * population.logits.shape[2]
    calibration = judgement.fit_calibration(population.sample(drawn, epoch), population.good, leaning=leaning)
    for promise in promises:
        try:
            threshold = calibration.operating_point(promise).threshold
        except UserError:
            yield math.nan, math.nan
        else:
            yield population.rates(epoch, calibration.temperature, threshold, calibration.offsets)


@dataclass(frozen=True)
class Broken:
    """How often a promise was broken among the draws in which it could be made."""

    possible: int
    share: float
    error: float  # standard error of the share, of this population's draws

    @classmethod
    def of(cls, rates: Floats, promise: OperatingPointConfig) -> Broken:
        """From true escape rates, shape (draws,), NaN where nothing was promised."""
        made = rates[~np.isnan(rates)]
        share = float((made > promise.max_escape_rate).mean()) if len(made) else math.nan
        return cls(len(made), share, math.sqrt(share * (1 - share) / max(1, len(made))))
