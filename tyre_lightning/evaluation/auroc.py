"""How sure an AUROC is, where some images show the same tyre."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def auroc_interval(
    scores: Floats, defective: NDArray[np.bool_], tyres: Ints, confidence: float
) -> tuple[float, float] | None:
    """The two-sided interval of the AUROC of P(defective), symmetric on the scale of its logit.

    The variance is Obuchowski's for clustered data (Biometrics 53, 1997), which is that of DeLong et al. (Biometrics
    44, 1988) where every image shows a tyre of its own. Where all defective images score higher than all good ones it
    is 0; the lower end is then the binomial one of as many hits in a row as there are tyres on the smaller side.

    Args:
        scores: P(defective), shape (N,).
        defective: whether each image is of a defective tyre, shape (N,).
        tyres: a number for the tyre that each shows, shape (N,).
        confidence: of the interval.

    Returns:
        Its ends; None where there are fewer than two defective or two good tyres.
    """
    from scipy.stats import norm

    groups = [np.unique(tyres[side]) for side in (defective, ~defective)]
    fewest = min(map(len, groups))
    if fewest < 2:
        return None
    above, below = _placements(scores[defective], scores[~defective])
    area = float(above.mean())
    tail = (1 - confidence) / 2
    if area in (0.0, 1.0):
        far = tail ** (1 / fewest)
        return (far, 1.0) if area else (0.0, 1 - far)
    names, place = np.unique(tyres, return_inverse=True)
    first: Floats = np.bincount(place[defective], above - area, len(names)).astype(np.float64)
    second: Floats = np.bincount(place[~defective], below - area, len(names)).astype(np.float64)
    positive, negative = len(above), len(below)
    variance = (
        _spread(first**2, len(groups[0])) / positive**2
        + _spread(second**2, len(groups[1])) / negative**2
        + 2 * _spread(first * second, len(names)) / (positive * negative)
    )
    half = norm.ppf(1 - tail) * np.sqrt(max(variance, 0.0)) / (area * (1 - area))
    middle = np.log(area / (1 - area))
    return float(1 / (1 + np.exp(half - middle))), float(1 / (1 + np.exp(-half - middle)))


def _placements(defective: Floats, good: Floats) -> tuple[Floats, Floats]:
    """Of each defective image the share of good ones below it, and of each good one that of defective ones above it."""

    def below(values: Floats, others: Floats) -> Floats:
        ranked = np.sort(others)
        return np.asarray(
            (np.searchsorted(ranked, values) + np.searchsorted(ranked, values, "right")) / 2 / len(others)
        )

    return below(defective, good), 1 - below(good, defective)


def _spread(products: Floats, count: int) -> float:
    return float(products.sum() * count / (count - 1))
