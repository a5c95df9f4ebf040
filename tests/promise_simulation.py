"""An oracle for promises: populations of tyres whose true escape rates are known, and thresholds by the exact rule.

Owes nothing to the project's code. Scores are latent, any number; :func:`to_probability` makes P(defective) of them.
A tyre scores as the highest of its pictures, and escapes where that is below the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr
from scipy.stats import binom

DRAWS = 4000
_NODES = np.linspace(-9, 9, 1201)  # of what a tyre's pictures have in common, in standard deviations

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Promised:
    """A share of tyres is at most ``rate``, with this ``confidence``."""

    rate: float
    confidence: float


@dataclass(frozen=True)
class Scene:
    """A population of defective tyres, and how many of them a validation set has.

    Args:
        several: tyres with several pictures.
        pictures: of each of these.
        single: tyres with one picture.
        mean_several: latent scores of the former are N(mean_several, 1).
        mean_single: latent scores of the latter are N(mean_single, 1).
        rho: the correlation of two pictures of one tyre.
        grid: that scores are rounded to a multiple of, a power of two; None: they are not.
        mixed: whether each tyre's kind is drawn too; otherwise every validation set has just as many of each.
    """

    several: int
    pictures: int
    single: int
    mean_several: float
    mean_single: float
    rho: float
    grid: float | None = None
    mixed: bool = False

    @property
    def tyres(self) -> int:
        """How many a validation set has."""
        return self.several + self.single

    def draw(self, draw: np.random.Generator) -> tuple[Floats, Ints]:
        """A validation set: the score of each picture, shape (N,), and its tyre, shape (N,)."""
        several = int(draw.binomial(self.tyres, self.several / self.tyres)) if self.mixed else self.several
        single = self.tyres - several
        scores = [self._alike(draw, (several,)).ravel(), draw.normal(self.mean_single, 1, single)]
        tyres = [np.repeat(np.arange(several), self.pictures), several + np.arange(single)]
        return self._rounded(np.concatenate(scores)), np.concatenate(tyres)

    def tyre_scores(self, draw: np.random.Generator, draws: int = DRAWS) -> Floats:
        """The scores [draws, tyres] of the tyres of many validation sets."""
        if not self.mixed:
            several = self._alike(draw, (draws, self.several)).max(axis=2)
            single = draw.normal(self.mean_single, 1, (draws, self.single))
            return self._rounded(np.concatenate([several, single], axis=1))
        kind = draw.random((draws, self.tyres)) < self.several / self.tyres
        found = draw.normal(self.mean_single, 1, kind.shape)
        found[kind] = self._alike(draw, (int(kind.sum()),)).max(axis=1)
        return self._rounded(found)

    def escape_rate(self, thresholds: Floats) -> Floats:
        """The exact share of the population's tyres, shape (T,), that score below thresholds, shape (T,).

        Of equally correlated normal scores the highest is below t with the probability
        E_z[Phi((t - mean - sqrt(rho) z) / sqrt(1 - rho)) ^ pictures] (Dunnett and Sobel, Biometrika 42, 1955).
        """
        cuts = np.asarray(thresholds, np.float64)
        if self.grid is not None:  # what rounds to the lowest multiple that is no escape, or above
            cuts = (np.ceil(cuts / self.grid - 1e-9) - 0.5) * self.grid
        weight = self.several / self.tyres
        return np.asarray(weight * self._highest_below(cuts) + (1 - weight) * ndtr(cuts - self.mean_single))

    def _highest_below(self, cuts: Floats) -> Floats:
        density = np.exp(-(_NODES**2) / 2)
        centred = (cuts - self.mean_several)[:, None] - math.sqrt(self.rho) * _NODES
        below = ndtr(centred / math.sqrt(1 - self.rho)) ** self.pictures
        return np.asarray(below @ (density / density.sum()))

    def _alike(self, draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Scores [*shape, pictures] of tyres with several pictures."""
        common = math.sqrt(self.rho) * draw.normal(0, 1, (*shape, 1))
        own = math.sqrt(1 - self.rho) * draw.normal(0, 1, (*shape, self.pictures))
        return self.mean_several + common + own

    def _rounded(self, scores: Floats) -> Floats:
        return scores if self.grid is None else np.round(scores / self.grid) * self.grid


SCENES = {
    "many alike, some weak": Scene(60, 8, 120, 4, 1.5, 0.9),
    "five weak, 400 clear": Scene(5, 20, 400, 0.5, 6, 0.98),
    "six weak, 250 clear": Scene(6, 12, 250, 0.5, 6, 0.98),
    "independent": Scene(0, 1, 400, 0, 2, 0),
    "independent pictures of one tyre": Scene(100, 4, 100, 1, 2, 0),
    "ties": Scene(60, 8, 120, 4, 1.5, 0.9, grid=0.5),
    "few": Scene(10, 5, 10, 2, 2, 0.9),
    "kinds drawn": Scene(60, 8, 120, 4, 1.5, 0.9, mixed=True),
    "kinds drawn, weak few": Scene(5, 20, 400, 0.5, 6, 0.98, mixed=True),
}


def to_probability(latent: Floats) -> Floats:
    """Latent scores as P(defective); flat enough that none is so near 1 that two become one."""
    return np.asarray(expit(latent / 2))


def to_latent(probability: Floats) -> Floats:
    """The inverse of :func:`to_probability`."""
    return np.asarray(2 * logit(probability))


def allowed(promised: Promised, tyres: int) -> int:
    """How many of so many tyres may escape; -1: it cannot be promised.

    The one-sided bound of Clopper and Pearson (Biometrika 26, 1934) on k escapes is at most a rate where k or fewer
    have at most the probability 1 - confidence at that rate.
    """
    likely = binom.cdf(np.arange(tyres + 1), tyres, promised.rate)
    return int((likely <= 1 - promised.confidence).sum()) - 1


def exact_thresholds(tyre_scores: Floats, promised: Promised) -> Floats:
    """The highest threshold of each validation set that keeps a promise, shape (draws,); NaN where none does.

    Args:
        tyre_scores: [draws, tyres], one for each tyre.
        promised: on the share of tyres below the threshold.
    """
    escapes = allowed(promised, tyre_scores.shape[1])
    if escapes < 0:
        return np.full(len(tyre_scores), math.nan)
    return np.asarray(np.partition(tyre_scores, escapes, axis=1)[:, escapes])


def share_broken(scene: Scene, thresholds: Floats, promised: Promised) -> tuple[int, float, float]:
    """How many promises were made and the share of them that the population breaks, with the noise that it may have.

    Args:
        scene: the population.
        thresholds: latent, shape (draws,), NaN where nothing was promised.
        promised: by each of them.
    """
    made = thresholds[~np.isnan(thresholds)]
    if not len(made):
        return 0, math.nan, math.nan
    broken = scene.escape_rate(made) > promised.rate * (1 + 1e-9)
    noise = math.sqrt(promised.confidence * (1 - promised.confidence) / len(made))
    return len(made), float(broken.mean()), noise
