"""How unlike the good tyres of training a picture is, and how many good tyres may be called so by mistake.

A network that tells good from defective by a few features says "good" of a lens cap too, if it has those. What it makes
of a picture in passing tells more: here a Gaussian of the features of good tyres, whose spread is that of all training
pictures about their classes' means (Lee et al., arXiv:1807.03888), on features of unit length (arXiv:2505.18032), with
the directions that few pictures cannot tell apart given one variance together (Tipping and Bishop, Journal of the Royal
Statistical Society B 61, 1999). Its distance is Mahalanobis's.

From distances of calibration tyres that are good, each counted once, a conformal p-value follows (Vovk et al.,
Algorithmic Learning in a Random World, 2005): of n + 1 tyres that are drawn alike, the last is among the k most unlike
with a probability of at most k / (n + 1), whatever the distribution. That is a promise on average over all draws of the
calibration tyres. For these very ones the share has a beta distribution, by which :meth:`Scale.bound` bounds it with a
confidence.

Fewer than :data:`ENOUGH` tyres cannot tell a share of 1 %, and where the limit is their farthest one, a single tyre out
of the common decides what passes for good. There, beyond the second farthest, the good tyres of training help, and the
limit is not one of them but what the farthest tenth of both kinds says together, see :func:`expected_beyond`: what is
then aimed at is an estimate; proved is, by the calibration tyres alone and whatever those of training are like, that no
limit lies below the second farthest of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.decision.calibration import Floats, Labels

DIRECTIONS = 128  # with a variance of their own: 1.5 MB with EfficientNet-Lite0, 2.3 MB with B7
MOST = 0.05  # a limit that would have more good tyres reviewed than this is not set unless it is asked for
ENOUGH = 99  # good calibration tyres by which a share of 1 % can be promised
_HELPED = 2  # the farthest calibration tyres, about which those of training are asked where there are too few
_TAIL = 10  # one of so many tyres is among the farthest that say how the share falls with the distance
_UNUSUAL = 2  # of these, the very farthest, are counted and not measured: a lens cap among the good ones is no measure
_SHARES = 10  # of the good tyres of training, each left out once
_ASKED = 10 * ENOUGH  # good tyres of training: where there are more, so are there of calibration tyres
_TIE = 1e-9

Floats32 = NDArray[np.float32]
NOBODY: Floats = np.empty(0)  # no distances


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
        values, vectors = principal(away, count)
        spread = np.square(away).sum()
        beside = spread - values.sum()
        if not beside > _TIE * spread:
            return None
        rest = beside / free / (kept.shape[1] - count)
        arrays = kept[labels == good].mean(axis=0), vectors, values / free, np.array([rest])
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


def principal(away: Floats, most: int | None = None) -> tuple[Floats, Floats]:
    """Sums of squares along the principal directions, descending, and these directions as rows.

    Args:
        away: from the mean, [N, D].
        most: how many of them; None: all.

    Returns:
        K values, and as many orthonormal directions [K, D], where K is min(N, D), or ``most`` where that is less.
    """
    from scipy.linalg import eigh

    count, width = away.shape
    size = min(count, width)
    wanted = (size - (size if most is None else min(most, size)), size - 1)
    values, vectors = eigh(away @ away.T if count < width else away.T @ away, subset_by_index=wanted)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if count < width:
        vectors = (away.T @ vectors) / np.sqrt(np.maximum(values, 1e-30))
    return values, vectors.T


def left_out(features: Floats32, labels: Labels, good: int, tyres: NDArray[Any]) -> Floats:
    """How far each good tyre of training is from what the others look like, shape (T,), in no order.

    They are left out a tenth at a time. A tyre is as far as its farthest picture.

    Args:
        features: [N, D], of training pictures.
        labels: class indices, shape (N,).
        good: the index of the class without a defect.
        tyres: of the tyre that each shows, shape (N,).

    Returns:
        None at all where there are fewer than :data:`_SHARES` such tyres, or so many that they need not be asked.
    """
    names, place = np.unique(tyres, return_inverse=True)
    fine = ~np.isin(np.arange(len(names)), place[labels != good])
    count = int(fine.sum())
    if not _SHARES <= count <= _ASKED:
        return NOBODY
    part = np.full(len(names), -1)
    part[fine] = np.random.default_rng(0).permutation(count) % _SHARES
    farthest = np.full(len(names), np.nan)
    for left in range(_SHARES):
        out = part[place] == left
        others = Reference.fit(features[~out], labels[~out], good)
        if others is not None:
            np.fmax.at(farthest, place[out], others.distances(features[out]))
    return np.asarray(farthest[~np.isnan(farthest)])


@dataclass(frozen=True)
class Scale:
    """How far good tyres are from what good tyres look like: by what is known of calibration tyres, and of training's.

    Args:
        farthest: the largest distances of good calibration tyres, descending.
        total: how many of them there were.
        tail: the distances of the farthest of both kinds, and of the one before them, descending; none where the
            calibration tyres are enough.
        learnt_total: how many good tyres of training there were.
    """

    farthest: Floats
    total: int
    tail: Floats
    learnt_total: int

    @classmethod
    def of(cls, distances: Floats, learnt: Floats) -> Scale:
        """From distances of good calibration tyres, shape (N,), and of training's, each left out, shape (T,).

        Training has seen the latter, and a network makes what it has seen look more alike: where their median is the
        smaller one they are made larger, until it is the same.
        """
        farthest = np.sort(distances)[::-1]
        if not _HELPED <= len(farthest) < ENOUGH or not len(learnt):
            return cls(farthest, len(farthest), NOBODY, 0)
        grown = learnt * max(1.0, float(np.median(farthest)) / max(float(np.median(learnt)), _TIE))
        both = np.sort(np.concatenate([farthest, grown]))[::-1]
        return cls(farthest, len(farthest), both[: 1 + max(1, len(both) // _TAIL)], len(learnt))

    def p_values(self, distances: Floats) -> Floats:
        """Of good tyres a share of at most this is so unlike the good tyres of training, shape (N,); NaN stays NaN.

        Below all calibration tyres that are kept it is 1. Where those of training help it is, beyond the second
        farthest calibration tyre, by the tail of both kinds, at most what calibration tyres say, and at least what one
        of so many tyres is: more than that nobody has seen.

        Args:
            distances: shape (N,).
        """
        farther = _as_far(self.farthest, distances)
        beyond = (farther == len(self.farthest)) & (self.total > len(self.farthest))
        found = np.where(beyond, 1.0, (1 + farther) / (1 + self.total))
        if self.learnt_total:
            total = 1 + self.total + self.learnt_total
            both = np.clip(expected_beyond(self.tail, distances) / total, 1 / total, _HELPED / (1 + self.total))
            found = np.where(farther < _HELPED, both, found)
        return np.where(np.isnan(distances), np.nan, found)

    def rate(self, wanted: float) -> float | None:
        """From which p-value on tyres are novel; None where the calibration tyres are too few to set any limit.

        It is what is wanted, or the least that so few tyres can tell.
        """
        if 1 / (1 + self.total) > max(wanted, MOST):
            return None
        return max(wanted, 1 / (1 + self.total + self.learnt_total))

    def average(self, rate: float) -> float:
        """At most such a share of good tyres is novel at a rate, on average over all draws of calibration tyres."""
        return max(rate, _HELPED / (1 + self.total)) if self.learnt_total else rate

    def bound(self, rate: float, confidence: float) -> float:
        """With this confidence at most such a share of good tyres is novel at a rate, given these calibration tyres.

        Of n + 1 tyres the share beyond the k-th farthest of n has the distribution Beta(k, n + 1 - k).
        """
        from scipy.stats import beta

        count = int(self.average(rate) * (1 + self.total) + _TIE)
        return float(beta.ppf(confidence, count, self.total + 1 - count)) if count else 0.0


def _as_far(farthest: Floats, distances: Floats) -> NDArray[np.int64]:
    """How many of some, descending, are at least as far, shape (N,)."""
    return np.asarray(len(farthest) - np.searchsorted(farthest[::-1], distances, side="left"))


def expected_beyond(tail: Floats, distances: Floats) -> Floats:
    """How many of all tyres and one more are as far, shape (N,), where distances have an exponential tail.

    Of n + 1 tyres that are drawn alike k + 1 are expected beyond the farthest but k. Where the excesses over that one
    are exponential (as of most distributions they nearly are: Balkema and de Haan, Annals of Probability 2, 1974; of a
    squared Mahalanobis distance, too), and the m largest are taken for as large as the next, their sum has a gamma
    distribution of shape k - m (Epstein and Sobel, Journal of the American Statistical Association 48, 1953). So the
    excess of one more is larger than x with a probability of (1 + x / sum) ** (m - k), the uncertainty about their mean
    included. Where the tail is heavier more good tyres are novel than that; where m of them are no good tyres, fewer.

    Args:
        tail: k + 1 distances, descending.
        distances: shape (N,).
    """
    excesses = tail[:-1] - tail[-1]
    count = len(excesses)
    measured = max(1, count - _UNUSUAL)
    total = max(float(np.minimum(excesses, excesses[-measured]).sum()), _TIE)
    return np.asarray((1 + count) * (1 + np.maximum(distances - tail[-1], 0.0) / total) ** -measured)


def is_novel(novelty: Floats, rate: float | None) -> NDArray[np.bool_]:
    """Whether p-values, shape (N,), are beyond a promised share; none is where there is no promise."""
    return novelty <= (-1.0 if rate is None else rate + _TIE)
