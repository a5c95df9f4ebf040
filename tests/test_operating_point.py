"""A promised escape rate holds, and what cannot be promised is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from tests.cases import first_of
from tests.promise_simulation import SCENES, Promised, exact_thresholds, to_latent, to_probability
from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.decision.bounds import Interval, Promise, interval
from tyre_lightning.decision.calibration import brier_score, expected_calibration_error, fit_temperature, softmax
from tyre_lightning.decision.operating_point import Calibration, OperatingPoint, decisions, measure_rates
from tyre_lightning.decision.tyres import Tyres
from tyre_lightning.errors import UserError
from tyre_lightning.lake.texts import column

GOOD = 1  # the index of a class
PROMISES = [Promise(0.05, 0.9), Promise(0.01, 0.95), Promise(0.2, 0.5), Promise(0.1, 0.99)]


def calibration(draw: np.random.Generator, defective: int, good: int) -> Calibration:
    """Scores of a classifier that confuses some."""
    scores = np.concatenate([draw.beta(4, 1, defective), draw.beta(1, 4, good)])
    return Calibration.of(singles(scores, np.arange(defective + good) >= defective), GOOD, 1.0)


def singles(scores: np.ndarray, good: np.ndarray) -> Tyres:
    """Tyres with a picture each."""
    names = column([f"tyre {number:05}" for number in range(len(scores))])
    return Tyres.of(names, scores, np.where(good, GOOD, 0), GOOD)


def wanted(promise: Promise) -> OperatingPointConfig:
    return OperatingPointConfig(promise.rate, promise.confidence)


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("count", [0, 1, 44, 45, 92, 299, 1000, 20_000])
def test_the_bound_is_clopper_and_pearsons(promise: Promise, count: int) -> None:
    def bound(escapes: int) -> float:
        return float(beta.ppf(promise.confidence, escapes + 1, count - escapes)) if escapes < count else 1.0

    allowed = promise.allowed(count)
    assert allowed == -1 or bound(allowed) <= promise.rate
    assert bound(allowed + 1) > promise.rate
    assert (allowed >= 0) == (count >= promise.needed())


def test_how_many_tyres_a_promise_needs() -> None:
    assert Promise(0.01, 0.95).needed() == 299
    assert Promise(0.05, 0.9).needed() == 45


@pytest.mark.parametrize("promise", first_of(PROMISES))
def test_the_promise_holds_over_many_calibration_sets(promise: Promise) -> None:
    """The true rate is known here. It is broken as seldom as promised, and not much more seldom."""
    draw = np.random.default_rng(7)
    count, rounds = 2 * promise.needed() + 20, 4000
    broken = 0
    for _ in range(rounds):
        threshold = calibration(draw, count, 1).operating_point(wanted(promise)).threshold
        broken += beta.cdf(threshold, 4, 1) > promise.rate
    allowed = 1 - promise.confidence
    noise = 3 * math.sqrt(allowed * (1 - allowed) / rounds)
    assert broken / rounds <= allowed + noise
    assert broken / rounds >= 0.2 * allowed


def test_the_promise_on_good_tyres_holds_too() -> None:
    draw = np.random.default_rng(8)
    broken = 0
    for _ in range(2000):
        point = calibration(draw, 200, 200).operating_point(OperatingPointConfig(0.2, 0.9, 0.05))
        assert point.reject_from >= point.threshold
        broken += beta.sf(point.reject_from, 1, 4) > 0.05
    assert broken / 2000 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 2000)


def test_the_threshold_is_the_highest_that_keeps_the_promise() -> None:
    found = calibration(np.random.default_rng(1), 100, 50)
    promise = Promise(0.05, 0.9)
    escapes = promise.allowed(100)
    point = found.operating_point(wanted(promise))
    assert sum(score < point.threshold for score in found.defective) == escapes
    assert point.threshold == pytest.approx(found.defective[escapes], rel=1e-5)
    assert found.operating_point(OperatingPointConfig(0.2, 0.9)).threshold > point.threshold
    assert found.operating_point(OperatingPointConfig(0.05, 0.99)).threshold < point.threshold


def test_ties_are_no_escapes() -> None:
    found = Calibration.of(singles(np.full(100, 0.7), np.zeros(100, bool)), GOOD, 1.0)
    point = found.operating_point(OperatingPointConfig(0.05, 0.9))
    assert point.decide(0.7) == "reject"


def test_what_cannot_be_promised_says_what_is_missing() -> None:
    found = calibration(np.random.default_rng(1), 92, 10)
    with pytest.raises(UserError) as error:
        found.operating_point(OperatingPointConfig(0.01, 0.95))
    assert "299 defective validation tyres, and there are 92" in str(error.value)
    way_out = float(str(error.value).rpartition("=")[2])
    found.operating_point(OperatingPointConfig(way_out, 0.95))
    with pytest.raises(UserError, match=r"operating_point\.max_overkill_rate.*takes 59 good validation tyres.*are 10"):
        found.operating_point(OperatingPointConfig(0.05, 0.95, 0.05))
    with pytest.raises(UserError, match=r"there are 0: add tyres$"):
        calibration(np.random.default_rng(1), 0, 10).operating_point(OperatingPointConfig(0.5, 0.95))


def test_decisions() -> None:
    point = OperatingPoint(0.2, 0.8, OperatingPointConfig(0.05, 0.9))
    assert [point.decide(p) for p in (0.0, 0.19, 0.2, 0.79, 0.8, 1.0)] == [
        "accept", "accept", "review", "review", "reject", "reject",
    ]  # fmt: skip


def test_only_the_scores_that_a_promise_may_need_are_kept() -> None:
    found = calibration(np.random.default_rng(1), 15_000, 12_000)
    assert (len(found.defective), found.defective_total) == (10_000, 15_000)
    assert found.defective == sorted(found.defective)
    assert found.good == sorted(found.good, reverse=True)
    assert Calibration.from_dict(found.to_dict()) == found
    strict = found.operating_point(OperatingPointConfig(0.9, 0.9))  # 13,000 might escape: as many as are kept do
    assert sum(score < strict.threshold for score in found.defective) == 9_999


def pictures(least: int) -> Calibration:
    """What validation tyres of so many pictures say, and no more."""
    return Calibration(1.0, [], 0, [], 0, least_pictures=least)


def test_rates() -> None:
    scores = np.array([0.1, 0.9, 0.9, 0.5, 0.1, 0.3, 0.9])
    labels = np.array([0, 0, 2, 2, 1, 1, 1])
    names = column([*"abcdefg"])
    point = OperatingPoint(0.2, 0.8, OperatingPointConfig(0.05, 0.9))
    found = measure_rates(point, Tyres.of(names, scores, labels, 1), pictures(1), ["bulge", "good", "cracks"], "good")
    assert (found.escape.count, found.escape.total) == (1, 4)
    assert (found.overkill.count, found.overkill.total) == (1, 3)
    assert (found.review.count, found.review.total) == (2, 7)
    assert {name: (part.count, part.total) for name, part in found.escape_by_class.items()} == {
        "bulge": (1, 2),
        "cracks": (0, 2),
    }
    assert found.escape.low < 0.25 < found.escape.high


def test_intervals_are_exact() -> None:
    def of(count: int, total: int) -> Interval:
        return interval(np.arange(total) < count, 0.9)

    assert (of(0, 10).low, of(10, 10).high) == (0, 1)
    assert of(0, 10).high == pytest.approx(1 - 0.05 ** (1 / 10))
    assert (of(3, 10).low, of(3, 10).high) == pytest.approx((beta.ppf(0.05, 3, 8), beta.ppf(0.95, 4, 7)))
    assert math.isnan(of(0, 0).share)
    assert (of(0, 0).low, of(0, 0).high) == (0, 1)


def test_a_tyre_is_as_bad_as_its_worst_picture() -> None:
    names = column(["b", "a", "b", "b", "c", "a"])
    scores = np.array([0.2, 0.4, 0.9, 0.3, 0.1, 0.7])
    labels = np.array([GOOD, GOOD, GOOD, 2, GOOD, GOOD])
    found = Tyres.of(names, scores, labels, GOOD, damaged={"c"})
    assert found.names.to_pylist() == ["a", "b", "c"]
    assert found.scores.tolist() == [0.7, 0.9, 0.1]
    assert found.labels.tolist() == [GOOD, 2, GOOD]  # one defective picture makes a defective tyre
    assert found.deciding.tolist() == [5, 2, 4]
    assert found.pictures.tolist() == [2, 3, 1]
    assert found.whole.tolist() == [True, True, False]
    point = OperatingPoint(0.5, 0.8, OperatingPointConfig(0.05, 0.9))
    assert decisions(point, found, pictures(1)).tolist() == ["review", "reject", "review"]
    assert decisions(point, found, pictures(3)).tolist() == ["review", "reject", "review"]
    other = OperatingPoint(0.8, 0.8, point.promised)
    assert decisions(other, found, pictures(2)).tolist() == ["accept", "reject", "review"]


def test_what_is_no_number_hides_behind_nothing() -> None:
    names = column([*"aabbc"])
    scores = np.array([0.1, np.nan, np.nan, 0.9, 0.1])
    found = Tyres.of(names, scores, np.array([0, GOOD, GOOD, GOOD, 0]), GOOD)
    assert found.labels.tolist() == [0, GOOD, 0] and found.deciding.tolist() == [1, 2, 4]
    point = OperatingPoint(0.5, 0.5, OperatingPointConfig(0.05, 0.9))
    assert decisions(point, found, pictures(1)).tolist() == [point.decide(score) for score in found.scores]
    assert decisions(point, found, pictures(1)).tolist() == ["review", "review", "accept"]
    calibrated = Calibration.of(found, GOOD, 1.0)
    assert (calibrated.defective, calibrated.defective_total, calibrated.good_total) == ([0.1], 1, 0)


def test_of_near_copies_one_counts_whatever_their_order() -> None:
    names = [f"{number}.jpg" for number in range(30)]
    groups = [f"group {number // 10}" for number in range(30)]
    whole = Tyres.of(column(names), np.linspace(0, 1, 30), np.zeros(30, np.int64), GOOD)
    group_of = dict(zip(names, groups, strict=True))
    found = whole.one_of_each(column([group_of[name] for name in whole.names.to_pylist()]))
    assert sorted({group_of[name] for name in found.names.to_pylist()}) == sorted({*groups}) and len(found) == 3
    shuffled = np.random.default_rng(0).permutation(30)
    other = Tyres.of(column([names[place] for place in shuffled]), np.linspace(1, 0, 30), np.zeros(30, np.int64), GOOD)
    again = other.one_of_each(column([group_of[name] for name in other.names.to_pylist()]))
    assert again.names.equals(found.names)


def test_tyres_seen_less_often_than_in_calibration_are_reviewed() -> None:
    names = column(np.repeat([f"t{number}" for number in range(60)], np.r_[2, [4] * 59]))
    found = Calibration.of(Tyres.of(names, np.ones(len(names)), np.zeros(len(names), np.int64), GOOD), GOOD, 1.0)
    assert found.least_pictures == 2 and found.mean_pictures == pytest.approx(238 / 60)
    assert found.doubt(2, 0) is None
    assert found.doubt(1, 0) == "it has 1 picture, and the validation tyres had at least 2"
    assert found.doubt(3, 1) == "1 of its 4 pictures cannot be read"


@pytest.mark.parametrize("name", first_of(SCENES, 2))
def test_the_promise_holds_tyre_by_tyre(name: str) -> None:
    """Whatever the number of a tyre's pictures tells of its defect; and what is promised is all that can be."""
    scene, draw, rounds = SCENES[name], np.random.default_rng(9), 600
    sets, scores = [], []
    for _ in range(rounds):
        latent, shown = scene.draw(draw)
        names = column([f"{number:04}" for number in shown])
        tyres = Tyres.of(names, to_probability(latent), np.zeros(len(latent), np.int64), GOOD)
        sets.append(Calibration.of(tyres, GOOD, 1.0))
        scores.append(to_latent(np.sort(tyres.scores)))
    for promise in (Promise(0.05, 0.95), Promise(0.1, 0.9), Promise(0.01, 0.95)):
        if scene.tyres < promise.needed():
            with pytest.raises(UserError, match=f"it takes {promise.needed()} defective validation tyres"):
                sets[0].operating_point(wanted(promise))
            continue
        thresholds = to_latent(np.array([found.operating_point(wanted(promise)).threshold for found in sets]))
        oracle = exact_thresholds(np.array(scores), Promised(promise.rate, promise.confidence))
        np.testing.assert_allclose(thresholds, oracle, atol=1e-4)
        broken, allowed = (scene.escape_rate(thresholds) > promise.rate).mean(), 1 - promise.confidence
        assert broken <= allowed + 3 * math.sqrt(allowed * (1 - allowed) / rounds)


def test_temperature_mends_what_is_too_sure() -> None:
    draw = np.random.default_rng(3)
    honest = draw.normal(0, 2, (5000, 4))
    labels = (softmax(honest).cumsum(axis=1) < draw.random((5000, 1))).sum(axis=1)
    sure = 3 * honest
    temperature = fit_temperature(sure, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    before, after = softmax(sure), softmax(sure, temperature)
    assert expected_calibration_error(before, labels) > 0.1 > 0.03 > expected_calibration_error(after, labels)
    assert brier_score(after, labels) < brier_score(before, labels)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()


def test_calibration_measures_of_known_answers() -> None:
    certain = np.eye(2)[[0, 1, 1, 0]]
    assert expected_calibration_error(certain, np.array([0, 1, 1, 0])) == 0
    assert expected_calibration_error(certain, np.array([1, 0, 1, 0])) == pytest.approx(0.5)
    assert brier_score(certain, np.array([0, 1, 1, 0])) == 0
    assert brier_score(certain, np.array([1, 0, 0, 1])) == 2
