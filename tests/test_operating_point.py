"""A promised escape rate holds, and what cannot be promised is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, norm

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.decision.calibration import brier_score, expected_calibration_error, fit_temperature, softmax
from tyre_lightning.decision.operating_point import (
    Calibration,
    Interval,
    OperatingPoint,
    Promise,
    interval,
    rates,
    worth,
)
from tyre_lightning.errors import UserError

PROMISES = [Promise(0.05, 0.9), Promise(0.01, 0.95), Promise(0.2, 0.5), Promise(0.1, 0.99)]


def calibration(draw: np.random.Generator, defective: int, good: int) -> Calibration:
    """Scores of a classifier that confuses some."""
    scores = np.concatenate([draw.beta(4, 1, defective), draw.beta(1, 4, good)])
    return Calibration.of(scores, np.arange(defective + good) < defective, np.arange(defective + good), 1.0)


def wanted(promise: Promise) -> OperatingPointConfig:
    return OperatingPointConfig(promise.rate, promise.confidence)


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("count", [0, 1, 44, 45, 92, 299, 1000, 20_000])
def test_the_bound_is_clopper_and_pearsons(promise: Promise, count: int) -> None:
    def bound(escapes: int) -> float:
        return float(beta.ppf(promise.confidence, escapes + 1, count - escapes)) if escapes < count else 1.0

    allowed = promise.allowed(count, count)
    assert allowed == -1 or bound(allowed) <= promise.rate
    assert bound(allowed + 1) > promise.rate
    assert (allowed >= 0) == (count >= promise.needed())


def test_how_many_images_a_promise_needs() -> None:
    assert Promise(0.01, 0.95).needed() == 299
    assert Promise(0.05, 0.9).needed() == 45


@pytest.mark.parametrize("promise", PROMISES)
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
    escapes = promise.allowed(100, 100)
    point = found.operating_point(wanted(promise))
    assert sum(score < point.threshold for score in found.defective) == escapes
    assert point.threshold == pytest.approx(found.defective[escapes], rel=1e-5)
    assert found.operating_point(OperatingPointConfig(0.2, 0.9)).threshold > point.threshold
    assert found.operating_point(OperatingPointConfig(0.05, 0.99)).threshold < point.threshold


def test_ties_are_no_escapes() -> None:
    found = Calibration.of(np.full(100, 0.7), np.ones(100, bool), np.arange(100), 1.0)
    point = found.operating_point(OperatingPointConfig(0.05, 0.9))
    assert point.decide(0.7) == "reject"


def test_what_cannot_be_promised_says_what_is_missing() -> None:
    found = calibration(np.random.default_rng(1), 92, 10)
    with pytest.raises(UserError) as error:
        found.operating_point(OperatingPointConfig(0.01, 0.95))
    assert "299 defective validation images, and there are 92" in str(error.value)
    way_out = float(str(error.value).rpartition("=")[2])
    found.operating_point(OperatingPointConfig(way_out, 0.95))
    with pytest.raises(UserError, match=r"operating_point\.max_overkill_rate.*takes 59 good validation images.*are 10"):
        found.operating_point(OperatingPointConfig(0.05, 0.95, 0.05))
    with pytest.raises(UserError, match=r"there are 0: add images$"):
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


def test_rates() -> None:
    scores = np.array([0.1, 0.9, 0.9, 0.5, 0.1, 0.3, 0.9])
    labels = np.array([0, 0, 2, 2, 1, 1, 1])
    found = rates(
        OperatingPoint(0.2, 0.8, OperatingPointConfig(0.05, 0.9)),
        scores, labels, np.arange(7), ["bulge", "good", "cracks"], "good",
    )  # fmt: skip
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
        return interval(np.arange(total) < count, np.arange(total), 0.9)

    assert (of(0, 10).low, of(10, 10).high) == (0, 1)
    assert of(0, 10).high == pytest.approx(1 - 0.05 ** (1 / 10))
    assert (of(3, 10).low, of(3, 10).high) == pytest.approx((beta.ppf(0.05, 3, 8), beta.ppf(0.95, 4, 7)))
    assert math.isnan(of(0, 0).share)
    assert (of(0, 0).low, of(0, 0).high) == (0, 1)


def test_pictures_of_one_tyre_count_for_fewer() -> None:
    assert worth(np.arange(10)) == 10
    assert worth(np.arange(10) // 2) == 5
    assert worth(np.array([0, 0, 0, 1])) == 1.6
    assert worth(np.empty(0, np.int64)) == 0
    pairs = interval(np.arange(20) < 4, np.arange(20) // 2, 0.9)
    single = interval(np.arange(10) < 2, np.arange(10), 0.9)
    assert (pairs.count, pairs.share, pairs.low, pairs.high) == (4, single.share, single.low, single.high)


def clustered(draw: np.random.Generator, tyres: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of defective tyres with one to four pictures each, which the classifier sees in much the same way."""
    shown = np.repeat(np.arange(tyres), draw.integers(1, 5, tyres))
    own = draw.normal(0, 1, tyres)[shown]
    return norm.cdf(1 + 0.95 * own + math.sqrt(1 - 0.95**2) * draw.normal(0, 1, len(shown))), shown


@pytest.mark.parametrize("promise", PROMISES)
def test_the_promise_holds_where_tyres_have_several_pictures(promise: Promise) -> None:
    """It would be broken too often, were each picture taken for a tyre of its own."""
    draw, rounds = np.random.default_rng(9), 2000
    broken = {"by tyre": 0, "by picture": 0}
    for _ in range(rounds):
        scores, shown = clustered(draw, 2 * promise.needed())
        for name, tyres in (("by tyre", shown), ("by picture", np.arange(len(shown)))):
            found = Calibration.of(scores, np.ones(len(scores), bool), tyres, 1.0)
            threshold = found.operating_point(wanted(promise)).threshold
            broken[name] += norm.cdf(norm.ppf(threshold) - 1) > promise.rate
    allowed = 1 - promise.confidence
    noise = 3 * math.sqrt(allowed * (1 - allowed) / rounds)
    assert broken["by tyre"] / rounds <= allowed + noise
    if promise.confidence > 0.5:  # at an even chance, spread does not matter
        assert broken["by picture"] / rounds > allowed + noise


def test_what_cannot_be_promised_says_how_much_pictures_of_one_tyre_count_for() -> None:
    found = Calibration.of(np.linspace(0.5, 1, 60), np.ones(60, bool), np.arange(60) // 2, 1.0)
    with pytest.raises(UserError, match=r"takes 45 defective validation images, and there are 60, which count for 30 "):
        found.operating_point(OperatingPointConfig(0.05, 0.9))


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
