"""Which labels are in doubt, and which labels come too easily."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tyre_lightning.data.traits import SIDES, TRAITS

BETRAYED = 0.4  # of the way from guessing to certainty: from there on, warn
BETRAYERS = ("width", "height", "sharpness", *SIDES)

_FOLDS = 5

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Suspects:
    """M images whose label a classifier doubts, the most suspicious first.

    How many of them are wrong depends on how good the classifier is: with ``agreement`` at 0.9 it doubts about every
    tenth label, also where all are right.
    """

    place: Ints  # [M] in the order of what was given
    suggested: Ints  # [M] class index
    confidence: Floats  # [M] probability of the suggested class less that of the given one
    agreement: float  # share of all labels that the classifier would have given too


@dataclass(frozen=True)
class Shortcut:
    """How well the classes can be told apart without looking at the tyre."""

    accuracy: float  # balanced: the mean over the classes
    chance: float
    importance: dict[str, float]  # each measurement's share

    @property
    def high(self) -> bool:
        """Whether a model may well learn this instead of the defects."""
        return self.accuracy > self.chance + BETRAYED * (1 - self.chance)


def suspects(points: Floats, labels: Ints, groups: Ints) -> Suspects | None:
    """Labels that a classifier that never saw them, nor copies of their images, confidently disagrees with.

    Confident learning (Northcutt, Jiang and Chuang, JAIR 2021, arXiv:1911.00068): a class counts as confident for an
    image where its out-of-fold probability reaches the mean that images labelled so have of it; an image is suspected
    where a class other than its own counts, and its own is less probable.

    Args:
        points: features [N, D].
        labels: class indices [N].
        groups: [N]; images of one group are in one fold.

    Returns:
        None where a class has fewer groups than there are folds.
    """
    codes, dense = np.unique(labels, return_inverse=True)
    probabilities = _out_of_fold(LogisticRegression(C=0.01, max_iter=300), points, dense, groups)
    if probabilities is None:
        return None
    usual = np.array([probabilities[dense == code, code].mean() for code in range(len(codes))])
    confident = np.where(probabilities >= usual, probabilities, 0)
    confident[np.arange(len(dense)), dense] = 0
    suggested = confident.argmax(1)
    gain = confident.max(1) - probabilities[np.arange(len(dense)), dense]
    found = np.flatnonzero(gain > 0)
    ranked = found[np.argsort(-gain[found], kind="stable")]
    agreement = float((probabilities.argmax(1) == dense).mean())
    return Suspects(ranked, codes[suggested[ranked]], gain[ranked].astype(np.float32), agreement)


def shortcut(traits: Floats, labels: Ints, groups: Ints) -> Shortcut | None:
    """How well a random forest tells the classes apart by size, sharpness and the colour of the border alone.

    Shortcut learning: Geirhos et al., arXiv:2004.07780.

    Args:
        traits: as :meth:`tyre_lightning.audit.looks.Looks.traits` gives them, [N, 22], without nan.
        labels: class indices [N].
        groups: [N]; images of one group are in one fold.

    Returns:
        None where a class has fewer groups than there are folds.
    """
    chosen = traits[:, [TRAITS.index(name) for name in BETRAYERS]]
    codes, dense = np.unique(labels, return_inverse=True)
    forest = RandomForestClassifier(100, min_samples_leaf=3, class_weight="balanced", random_state=0, n_jobs=-1)
    probabilities = _out_of_fold(forest, chosen, dense, groups)
    if probabilities is None:
        return None
    accuracy = balanced_accuracy_score(dense, probabilities.argmax(1))
    shares = forest.fit(chosen, dense).feature_importances_
    importance = {name: float(share) for name, share in zip(BETRAYERS, shares, strict=True)}
    return Shortcut(float(accuracy), 1 / len(codes), importance)


def _out_of_fold(model: ClassifierMixin, points: Floats, labels: Ints, groups: Ints) -> NDArray[np.float64] | None:
    """Class probabilities [N, C] of each image by a model that was not fitted on its group."""
    pairs = np.unique(np.stack([labels, groups], axis=1), axis=0)
    if len(pairs) == 0 or np.bincount(pairs[:, 0]).min() < _FOLDS or labels.max() < 1:
        return None
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), model)
    found = cross_val_predict(pipeline, points, labels, groups=groups, cv=folds, method="predict_proba")
    return np.asarray(found)
