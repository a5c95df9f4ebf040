"""How unlike the good tyres of training a picture is, and how many good tyres may be called so by mistake.

A network that tells good from defective by a few features says "good" of a lens cap too, if it has those. What it makes
of a picture in passing tells more: here a Gaussian of the features of good tyres, whose spread is that of all training
pictures about their classes' means (Lee et al., arXiv:1807.03888), on features of unit length (arXiv:2505.18032), with
the directions that few pictures cannot tell apart given one variance together (Tipping and Bishop, Journal of the Royal
Statistical Society B 61, 1999). Its distance is Mahalanobis's.

From distances of calibration tyres that are good, each counted once, a conformal p-value follows (Vovk et al.,
Algorithmic Learning in a Random World, 2005): of n + 1 tyres that are drawn alike, the last is among the k most unlike
with a probability of at most k / (n + 1), whatever the distribution. That is a promise on average over all draws of the
calibration tyres. For these very ones the share has a beta distribution, by which :func:`share_bound` bounds it with a
confidence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.decision.calibration import Floats, Labels

DIRECTIONS = 128  # with a variance of their own: 0.8 MB with EfficientNet-Lite0, 1.6 MB with B7
MOST = 0.05  # a limit that would have more good tyres reviewed than this is not set unless it is asked for
_TIE = 1e-9

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What good tyres look like to a network.

    Args:
        mean: of their features, float32 [D].
        directions: in which pictures of a class differ most, orthonormal, float32 [R, D].
        variances: in these directions, float32 [R].
        rest: the variance in every other direction, float32 [1].
    """

    mean: Floats32
    directions: Floats32
    variances: Floats32
    rest: Floats32

    @classmethod
    def fit(cls, features: Floats32, labels: Labels, good: int) -> Reference | None:
        """From training pictures; None where fewer than four are of good tyres, or all look the same.

        Args:
            features: [N, D].
            labels: class indices, shape (N,).
            good: the index of the class without a defect.
        """
        kept = features.astype(np.float64)
        if (labels == good).sum() < 4:
            return None
        classes, place = np.unique(labels, return_inverse=True)
        means = np.stack([kept[labels == index].mean(axis=0) for index in classes])
        away = kept - means[place]
        free = len(kept) - len(means)
        count = min(DIRECTIONS, free // 2, kept.shape[1] - 1)  # the others tell the variance of the rest
        values, vectors = _principal(away)
        rest = values[count:].sum() / free / (kept.shape[1] - count)
        if not rest > 0:
            return None
        arrays = kept[labels == good].mean(axis=0), vectors[:count], values[:count] / free, np.array([rest])
        return cls(*(array.astype(np.float32) for array in arrays))

    def distances(self, features: Floats32) -> Floats:
        """How far pictures are from what good tyres look like, squared and in variances, shape (N,)."""
        if not len(features):
            return np.empty(0)
        away = features.astype(np.float64) - self.mean
        along = np.square(away @ self.directions.T.astype(np.float64))
        beside = np.maximum(np.square(away).sum(axis=1) - along.sum(axis=1), 0.0)
        return np.asarray((along / self.variances).sum(axis=1) + beside / float(self.rest[0]))

    def arrays(self) -> dict[str, Floats32]:
        """By name, for a file."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def _principal(away: Floats) -> tuple[Floats, Floats]:
    """Sums of squares along the principal directions, descending, and these directions as rows."""
    count, width = away.shape
    values, vectors = np.linalg.eigh(away @ away.T if count < width else away.T @ away)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if count < width:
        vectors = (away.T @ vectors) / np.sqrt(np.maximum(values, 1e-30))
    return values, vectors.T


def p_values(distances: Floats, farthest: Floats, total: int) -> Floats:
    """Of good tyres a share of at most this is so unlike the good tyres of training, shape (N,); NaN stays NaN.

    Args:
        distances: shape (N,).
        farthest: the largest of good calibration tyres, descending; what lies below all that are kept is 1.
        total: how many good calibration tyres there were.
    """
    farther = len(farthest) - np.searchsorted(farthest[::-1], distances, side="left")
    found = np.where((farther == len(farthest)) & (total > len(farthest)), 1.0, (1 + farther) / (1 + total))
    return np.where(np.isnan(distances), np.nan, found)


def promised_rate(wanted: float, total: int) -> float | None:
    """The share of good tyres that is promised to be reviewed as novel at most.

    It is what is wanted, or where the calibration tyres are too few for any limit to keep that, the least that they
    allow; None where that is more than :data:`MOST`.

    Args:
        wanted: the share.
        total: good calibration tyres.
    """
    least = 1 / (1 + total)
    return max(wanted, least) if least <= max(wanted, MOST) else None


def share_bound(rate: float, total: int, confidence: float) -> float:
    """With this confidence at most such a share of good tyres is novel at a rate, given these calibration tyres.

    Of n + 1 tyres the share beyond the k-th farthest of n has the distribution Beta(k, n + 1 - k).

    Args:
        rate: as :func:`promised_rate` gives it.
        total: good calibration tyres.
        confidence: of the bound.
    """
    from scipy.stats import beta

    count = int(rate * (1 + total) + _TIE)
    return float(beta.ppf(confidence, count, total + 1 - count)) if count else 0.0


def is_novel(novelty: Floats, rate: float | None) -> NDArray[np.bool_]:
    """Whether p-values, shape (N,), are beyond a promised share; none is where there is no promise."""
    return novelty <= (-1.0 if rate is None else rate + _TIE)
