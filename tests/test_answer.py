"""What a training says at its end: every number in it, worked out anew by other means."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from scipy.stats import beta, binomtest
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from tyre_lightning.config import DataConfig, OperatingPointConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.operating_point import Calibration
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.answer import answer
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.lake.texts import column
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.inspector import Inspector

CLASSES = ["crack", "dent", "good"]
GOOD = 2
PROMISE = OperatingPointConfig(0.05, 0.9)


def scores_of(probabilities: np.ndarray, labels: np.ndarray, name: str = "tyre") -> Scores:
    """Pictures of a tyre each, with these class probabilities [N, 3]."""
    names = column([f"{name} {number:04}" for number in range(len(labels))])
    return Scores(names, labels, np.log(probabilities), names, names)


def drawn(seed: int, counts: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, 3] of a classifier that errs now and then, and the labels."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    return np.stack([draw.dirichlet(0.4 + 4 * np.eye(3)[label]) for label in labels]), labels


def inspector_of(validation: tuple[np.ndarray, np.ndarray], wanted: OperatingPointConfig) -> Inspector:
    probabilities, labels = validation
    defective = 1 - probabilities[:, GOOD]
    bad, good = np.sort(defective[labels != GOOD]), np.sort(defective[labels == GOOD])[::-1]
    options = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32))
    found = Inspector(cast(Network, None), "efficientnet_lite0", CLASSES, options, "good")
    found.calibration = Calibration(1.0, bad.tolist(), len(bad), good.tolist(), len(good))
    try:
        found.promise(wanted)
    except UserError:
        found.point = None
    return found


def threshold(validation: tuple[np.ndarray, np.ndarray], rate: float, confidence: float) -> float | None:
    """The highest at which Clopper and Pearson's bound of the escapes is not above the rate."""
    probabilities, labels = validation
    bad = np.sort(1 - probabilities[labels != GOOD, GOOD])
    kept = [k for k in range(len(bad)) if beta.ppf(confidence, k + 1, len(bad) - k) <= rate]
    return None if not kept else float(bad[max(kept)])


def interval(hit: np.ndarray, confidence: float) -> str:
    ends = binomtest(int(hit.sum()), len(hit)).proportion_ci(confidence, method="exact")
    return f"{hit.mean():.1%} ({ends.low:.1%} to {ends.high:.1%}), {hit.sum()} of {len(hit)}"


def lines_of(text: str) -> dict[str, str]:
    """The lines with a name, the first of each name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := re.match(r"  ([a-zA-Z0-9 ]{1,12}?)  +(\S.*)", line):
            found.setdefault(match[1], match[2])
    return found


@pytest.mark.parametrize("promise", [PROMISE, OperatingPointConfig(0.1, 0.95)])
def test_every_number_of_the_answer(promise: OperatingPointConfig) -> None:
    validation, (probabilities, labels) = drawn(1, (90, 80, 60)), drawn(2, (40, 30, 50))
    said = answer(inspector_of(validation, promise), {"test": scores_of(probabilities, labels)}, promise, {})
    found = lines_of(said)
    defective, bad, likeliest = 1 - probabilities[:, GOOD], labels != GOOD, probabilities.argmax(axis=1)
    at = threshold(validation, promise.max_escape_rate, promise.confidence)
    assert at is not None
    assert said.startswith("the model on 120 test images\n")
    assert found["macro F1"] == f"{f1_score(labels, likeliest, average='macro'):.3f}"
    assert found["AUROC"].startswith(f"{roc_auc_score(bad, defective):.3f} (")
    assert found["threshold"] == f"reject from P(defective) {at:.4g}"
    escape, overkill = (defective < at)[bad], (defective >= at)[~bad]
    assert found["escape"] == f"{interval(escape, promise.confidence)} defective tyres"
    assert found["overkill"] == f"{interval(overkill, promise.confidence)} good tyres"
    recalls = recall_score(labels, likeliest, average=None)
    worst = int(recalls.argmin())
    missed = likeliest[(labels == worst) & (likeliest != worst)]
    taken = CLASSES[np.bincount(missed, minlength=3).argmax()]
    hits, total = int((likeliest[labels == worst] == worst).sum()), int((labels == worst).sum())
    assert found["worst class"] == (
        f"{CLASSES[worst]}, {hits} of {total} images found; most others are taken for {taken}"
    )
    for rate in (0.01, 0.02, 0.05, 0.1):
        (row,) = re.findall(rf"^ +{100 * rate:g} %  (.+)$", said, re.MULTILINE)
        other = threshold(validation, rate, promise.confidence)
        if other is None:
            needed = int(np.ceil(np.log(1 - promise.confidence) / np.log(1 - rate)))
            assert row == f"not possible: takes {needed} defective validation tyres, not 170"
            continue
        costs = [f"{other:.4g}", f"{(defective < other)[bad].mean():.1%}", f"{(defective >= other)[~bad].mean():.1%}"]
        mark = ["<-", "promised"] if rate == promise.max_escape_rate else []
        assert row.split() == [*costs, *mark]
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_promise_that_cannot_be_made_says_which_can() -> None:
    validation, test = drawn(3, (12, 10, 20)), drawn(4, (20, 20, 20))
    said = answer(inspector_of(validation, PROMISE), {"test": scores_of(*test)}, PROMISE, {})
    assert "  promise      at most 5 % of defective tyres escape, confidence 0.9\n" in said
    assert "not possible: takes 45 defective validation tyres, not 22" in said
    least = float(np.ceil(1000 * (1 - 0.1 ** (1 / 22))) / 1000)  # what 22 tyres without an escape can promise
    assert threshold(validation, least, 0.9) is not None and threshold(validation, least - 0.001, 0.9) is None
    assert re.search(rf"^ +{100 * least:.3g} %  +0\.\d+ ", said, re.MULTILINE)
    assert "overkill  " not in said  # of the wanted one nothing can be said


def test_a_band_for_review_has_its_own_column() -> None:
    promise = OperatingPointConfig(0.05, 0.9, 0.1)
    validation, (probabilities, labels) = drawn(1, (90, 80, 60)), drawn(2, (40, 30, 50))
    inspector = inspector_of(validation, promise)
    said = answer(inspector, {"test": scores_of(probabilities, labels)}, promise, {})
    assert inspector.point is not None
    low, high = inspector.point.threshold, inspector.point.reject_from
    defective = 1 - probabilities[:, GOOD]
    review = (defective >= low) & (defective < high)
    assert lines_of(said)["review"] == f"{interval(review, 0.9)} tyres"
    assert lines_of(said)["threshold"] == f"reject from P(defective) {high:.4g}, accept below {low:.4g}"
    (row,) = re.findall(r"^ +5 %  (.+)$", said, re.MULTILINE)
    overkill = (defective >= high)[labels == GOOD].mean()
    assert row.split()[2:4] == [f"{overkill:.1%}", f"{review.mean():.1%}"]
    few = inspector_of(drawn(3, (90, 80, 10)), promise)
    said = answer(few, {"test": scores_of(probabilities, labels)}, promise, {})
    assert "not possible: takes 22 good validation tyres, not 10" in said


def test_tyres_that_training_saw_too_are_counted_out() -> None:
    validation, (probabilities, labels) = drawn(1, (90, 80, 60)), drawn(2, (40, 30, 50))
    found = scores_of(probabilities, labels)
    shared = [key for key, label in zip(found.keys, labels, strict=True) if label == 0]
    said = answer(inspector_of(validation, PROMISE), {"test": found}, PROMISE, {"test": shared})
    rest = said[said.index("40 of these images are of tyres that training saw too; without them") :]
    at = threshold(validation, 0.05, 0.9)
    assert at is not None
    escape = (1 - probabilities[:, GOOD] < at)[labels == 1]
    assert lines_of(rest)["escape"] == f"{interval(escape, 0.9)} defective tyres"


def test_without_test_images_the_validation_ones_tell_and_without_a_good_class_nothing_is_promised() -> None:
    validation = drawn(1, (90, 80, 60))
    inspector = inspector_of(validation, PROMISE)
    found = scores_of(*validation)
    seen = found.keys[:30]
    said = answer(inspector, {"val": found}, PROMISE, {"val": seen})
    assert said.startswith("the model on 230 validation images, by which its threshold was chosen\n")
    assert lines_of(said)["escape"].endswith("of 140 defective tyres")
    assert "these validation tyres" in said
    assert answer(inspector, {}, PROMISE, {}).startswith("no test or validation image could be read")
    without = replace(inspector, good_class=None, point=None)
    said = answer(without, {"test": found}, PROMISE, {})
    assert "AUROC" not in said and "escape" not in said and "macro F1" in said
    assert "none, because no class is known to be the good one (train with data.good_class=...)" in said
