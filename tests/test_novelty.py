"""What is unlike the good tyres of training is told and not accepted; how many good tyres that costs is promised."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

import tyre_lightning as tl
from tests.conftest import Trained
from tests.images import encode
from tyre_lightning.config import GateConfig, OperatingPointConfig, OtherOperatingPointConfig
from tyre_lightning.decision.calibration import Floats
from tyre_lightning.decision.novelty import (
    DIRECTIONS,
    MOST,
    Reference,
    is_novel,
    p_values,
    promised_rate,
    share_bound,
)
from tyre_lightning.decision.operating_point import Calibration, OperatingPoint, decisions, measure_rates
from tyre_lightning.decision.tyres import Tyres
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.answer import novelty_sentence
from tyre_lightning.model.inspector import UNLIKE, Inspector
from tyre_lightning.prediction import _promise
from tyre_lightning.promote.comparison import Performance, Verdicts, performance
from tyre_lightning.promote.rule import judge
from tyre_lightning.tracking.registry import load_inspector

GOOD = 0


def clouds(seed: int, count: int, width: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Features of good and of defective pictures, and their labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    values = draw.normal(size=(count, width)) * np.linspace(3, 0.1, width) + 4 * labels[:, None]
    return values.astype(np.float32), labels


def test_the_distance_is_mahalanobis_where_pictures_are_many() -> None:
    features, labels = clouds(0, 4000)
    found = Reference.fit(features, labels, GOOD)
    assert found is not None
    exact = features[labels == GOOD].astype(float)
    means = [features[labels == label].mean(axis=0) for label in (0, 1)]
    away = features - np.stack(means)[labels]
    covariance = away.T @ away / (len(away) - 2)
    probe = exact[:50] - means[0]
    expected = np.einsum("ij,jk,ik->i", probe, np.linalg.inv(covariance), probe)
    np.testing.assert_allclose(found.distances(exact[:50].astype(np.float32)), expected, rtol=2e-2)


@pytest.mark.parametrize("count", [12, 60, 300])
def test_what_lies_elsewhere_is_farther_however_few_pictures_there_are(count: int) -> None:
    features, labels = clouds(1, count, width=300)
    found = Reference.fit(features, labels, GOOD)
    assert found is not None and len(found.variances) <= DIRECTIONS
    fresh, kinds = clouds(2, 200, width=300)
    good, bad = found.distances(fresh[kinds == GOOD]), found.distances(fresh[kinds != GOOD])
    away = found.distances(fresh[kinds == GOOD] + 30)
    assert np.isfinite(good).all() and (good.max() < away.min()) and np.median(good) < np.median(bad)


def test_without_good_pictures_nothing_is_learnt() -> None:
    features, labels = clouds(0, 40)
    assert Reference.fit(features, np.ones_like(labels), GOOD) is None
    assert Reference.fit(np.ones_like(features), labels, GOOD) is None


def flagged(total: int, rate: float) -> Floats:
    """Of all orders of n calibration tyres and one more, whether that one is novel: exact, by enumeration."""
    promised = promised_rate(rate, total)
    hits = []
    for order in itertools.permutations(range(total + 1)):
        rest = np.sort(np.array(order[:-1], float))[::-1]
        hits.append(is_novel(p_values(np.array([float(order[-1])]), rest, total), promised)[0])
    return np.array(hits)


@pytest.mark.parametrize(("total", "rate"), [(5, 0.2), (5, 0.34), (6, 0.15), (6, 0.5), (4, 0.4)])
def test_the_share_of_good_tyres_is_promised_on_average(total: int, rate: float) -> None:
    found, most = flagged(total, rate).mean(), promised_rate(rate, total)
    assert most is not None
    assert found == pytest.approx(math.floor(most * (total + 1) + 1e-9) / (total + 1)) and found <= most + 1e-12


def test_ties_never_break_it() -> None:
    draw = np.random.default_rng(0)
    hits = []
    for _ in range(4000):
        values = draw.integers(0, 6, 50).astype(float)
        rest = np.sort(values[:-1])[::-1]
        hits.append(is_novel(p_values(values[-1:], rest, 49), 0.1)[0])
    assert np.mean(hits) <= 0.1


def test_the_bound_with_a_confidence_holds() -> None:
    """Of calibrations drawn anew, the share of good tyres beyond the limit is above the bound in one of twenty."""
    draw, total, rate, confidence = np.random.default_rng(0), 120, 0.03, 0.95
    bound = share_bound(rate, total, confidence)
    scores = np.sort(draw.uniform(size=(20_000, total)), axis=1)[:, ::-1]
    count = math.floor(rate * (total + 1))
    broken = (1 - scores[:, count - 1] > bound).mean()  # of a uniform score the share beyond a limit is known
    assert broken == pytest.approx(1 - confidence, abs=0.006)
    assert share_bound(1 / 300, 299, 0.95) <= 0.01 < share_bound(1 / 299, 298, 0.95)  # an exact 1 % takes 299
    assert binom.cdf(0, 299, 0.01) <= 0.05 < binom.cdf(0, 298, 0.01)


def test_too_few_good_tyres_promise_what_they_can_and_say_so() -> None:
    assert promised_rate(0.01, 99) == 0.01 and promised_rate(0.01, 98) == 1 / 99
    assert promised_rate(0.01, 49) == 0.02 and promised_rate(0.01, 18) is None and promised_rate(0.2, 4) == 0.2
    assert promised_rate(0.01, round(1 / MOST) - 1) == MOST
    for total, words in (
        (49, ("2 % of good tyres on average", "takes 99", "not 49")),
        (10, ("none", "takes 99", "not 10")),
    ):
        calibration = Calibration(1.0, [0.5] * 99, 99, [0.1] * total, total, 1, 1.0, [1.0] * total, total)
        sentence = novelty_sentence(calibration.operating_point(OperatingPointConfig()), calibration)
        assert all(word in sentence for word in words), sentence


def calibrated() -> Calibration:
    """A hundred good tyres at distances 1 to 100, and a hundred defective ones."""
    farthest = np.arange(100.0, 0, -1).tolist()
    return Calibration(1.0, np.linspace(0.6, 0.9, 100).tolist(), 100, [0.1] * 100, 100, 1, 1.0, farthest, 100)


def test_what_is_novel_is_reviewed_and_what_is_rejected_stays_so() -> None:
    calibration = calibrated()
    point = calibration.operating_point(OperatingPointConfig())
    assert point.novel_rate == 0.01
    scores, far = np.array([0.1, 0.1, 0.95, 0.95, 0.1]), np.array([50.0, 101.0, 50.0, 101.0, np.nan])
    names = np.array([*"abcde"], dtype=object)
    tyres = Tyres.of(names, scores, np.array([0, 0, 1, 1, 1]), 0, distances=far)
    assert decisions(point, tyres, calibration).tolist() == ["accept", "review", "reject", "reject", "accept"]
    assert decisions(replace(point, novel_rate=None), tyres, calibration).tolist()[1] == "accept"
    found = measure_rates(point, tyres, calibration, ["good", "cracks"], "good")
    assert (found.novel.count, found.novel.total, found.escape.count) == (1, 2, 1)
    for score, distance, decision in zip(scores, far, decisions(point, tyres, calibration), strict=True):
        novelty = float(calibration.novelty(np.array([distance]))[0])
        assert point.decide(score, None if math.isnan(novelty) else novelty) == decision


def test_one_picture_makes_a_tyre_novel() -> None:
    names = np.array([*"aab"], dtype=object)
    tyres = Tyres.of(names, np.full(3, 0.1), np.zeros(3, int), 0, distances=np.array([3.0, 101.0, 3.0]))
    assert tyres.distances.tolist() == [101.0, 3.0]
    calibration = calibrated()
    point = calibration.operating_point(OperatingPointConfig())
    assert decisions(point, tyres, calibration).tolist() == ["review", "accept"]


def test_a_promise_without_novelty_and_one_of_an_older_model() -> None:
    assert calibrated().operating_point(OperatingPointConfig(max_novel_rate=None)).novel_rate is None
    old = {"threshold": 0.5, "reject_from": 0.5, "promised": {"max_escape_rate": 0.05, "confidence": 0.95}}
    assert OperatingPoint.from_dict(old).promised.max_novel_rate is None
    assert OperatingPoint.from_dict(old).decide(0.1, 0.0001) == "accept"


def test_the_gate_excuses_novelty_up_to_its_promise() -> None:
    names = np.array([f"{index:04}" for index in range(400)], dtype=object)
    defective = np.arange(400) < 200
    plain = np.where(defective, "reject", "accept").astype(object)

    def model(novel: list[int], rate: float, escapes: int) -> Performance:
        decided, hit = plain.copy(), np.zeros(400, bool)
        decided[:escapes] = "accept"
        decided[novel], hit[novel] = "review", True
        return performance(Verdicts(names, decided, defective, hit, rate), f1=0.9, latency_ms=1.0)

    champion = model([], 0.0, escapes=4)
    within, beyond = model([0, 1, 300, 301], 0.01, escapes=3), model([0, 1, 300, 301, 302], 0.01, escapes=3)
    assert judge(within, {"champion": champion}, GateConfig())[0] == []
    (reason,) = judge(beyond, {"champion": champion}, GateConfig())[0]
    assert "review rate" in reason


def nothing(kind: str) -> np.ndarray:
    """What a camera sees that sees no tyre."""
    draw = np.random.default_rng(0)
    return {
        "lens cap": np.zeros((64, 64, 3), np.uint8),
        "glare": np.full((64, 64, 3), 255, np.uint8),
        "noise": draw.integers(0, 256, (64, 64, 3)).astype(np.uint8),
        "stripes": np.broadcast_to(np.arange(64)[:, None, None] % 8 * 32, (64, 64, 3)).astype(np.uint8),
    }[kind]


@pytest.fixture(scope="module")
def model(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tl.Model:
    """The trained model, promised what its few tyres allow."""
    return tl.Model(load_inspector(trained.model, trained.tracking_uri), trained.model)


def test_training_teaches_what_good_tyres_look_like(trained: Trained, model: tl.Model, tmp_path: Path) -> None:
    inspector = model.inspector
    assert inspector.reference is not None and inspector.calibration is not None
    assert inspector.calibration.measured == inspector.calibration.good_total > 0
    size = sum(part.nbytes for part in inspector.reference.arrays().values())
    assert size < 5_000_000
    inspector.save(tmp_path)
    again = Inspector.load(tmp_path)
    image = inspector.read((next(Path(trained.local, "test").rglob("*.jpg"))).read_bytes(), "x")
    assert again.answers([image]) == inspector.answers([image])
    assert 0 < inspector.answers([image])[0]["novelty"] <= 1


@pytest.mark.parametrize("kind", ["lens cap", "glare", "noise", "stripes"])
def test_a_picture_of_nothing_is_not_accepted(model: tl.Model, kind: str) -> None:
    inspector = replace(model.inspector)
    assert inspector.calibration is not None
    wanted = OperatingPointConfig(max_escape_rate=0.5, confidence=0.5, max_novel_rate=0.4)
    inspector.promise(wanted)
    assert inspector.point is not None
    inspector.point = replace(inspector.point, threshold=1.1, reject_from=1.1)  # else its score might say no already
    row = inspector.answers([inspector.read(encode(Image.fromarray(nothing(kind)), "PNG"), kind)])[0]
    assert row["novelty"] == pytest.approx(1 / (1 + inspector.calibration.measured))
    assert (row["picture_decision"], row["reason"]) == ("review", UNLIKE)


def test_the_engine_and_the_network_see_the_same_features(model: tl.Model, trained: Trained) -> None:
    inspector = model.inspector
    images = [inspector.read(path.read_bytes(), "x") for path in sorted(Path(trained.local, "test").rglob("*.jpg"))[:4]]
    look = inspector.look(images)
    with torch.inference_mode():
        logits, features = inspector.network.look(torch.stack(images))
    np.testing.assert_allclose(look.features, features.numpy(), atol=1e-5)
    np.testing.assert_allclose(look.logits, logits.double().numpy(), atol=1e-4)
    np.testing.assert_allclose(inspector.distances(look.features), inspector.distances(features.numpy()), rtol=1e-3)


def test_a_model_that_tells_no_novelty_is_not_asked_for_it(model: tl.Model) -> None:
    older = replace(model.inspector, reference=None)
    with pytest.raises(UserError, match=r"operating_point\.max_novel_rate=0\.05 cannot be kept: .*train it anew"):
        _promise(older, OtherOperatingPointConfig(max_novel_rate=0.05))
    _promise(older, OtherOperatingPointConfig(max_escape_rate=0.6))
    image = older.preprocessing(torch.zeros(3, 64, 64, dtype=torch.uint8))
    assert older.point is not None and older.answers([image])[0]["novelty"] is None
