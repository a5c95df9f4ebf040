"""The oracle of promises is right about its populations, and the exact rule keeps its word on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from tests.cases import first_of
from tests.promise_simulation import (
    DRAWS,
    SCENES,
    Promised,
    allowed,
    exact_thresholds,
    share_broken,
    to_latent,
    to_probability,
)

PROMISES = [Promised(0.05, 0.95), Promised(0.1, 0.9), Promised(0.01, 0.95), Promised(0.2, 0.9)]
NEEDED = [59, 22, 299, 11]  # independent tyres without which nothing can promise it


@pytest.mark.parametrize("name", SCENES)
def test_the_true_rate_is_what_is_drawn(name: str) -> None:
    scene = SCENES[name]
    scores = scene.tyre_scores(np.random.default_rng(1), 1000)
    thresholds = np.quantile(scores, [0.01, 0.05, 0.1, 0.3, 0.7])
    for threshold, rate in zip(thresholds, scene.escape_rate(thresholds), strict=True):
        noise = math.sqrt(rate * (1 - rate) / scores.size)
        assert (scores < threshold).mean() == pytest.approx(rate, abs=4 * noise)


@pytest.mark.parametrize("name", SCENES)
def test_pictures_are_of_the_same_population(name: str) -> None:
    scene, draw = SCENES[name], np.random.default_rng(2)
    threshold = float(np.quantile(scene.tyre_scores(draw, 200), 0.3))
    rate = float(scene.escape_rate(np.array([threshold]))[0])
    below = []
    for _ in range(100):
        scores, tyres = scene.draw(draw)
        highest = np.full(scene.tyres, -np.inf)
        np.maximum.at(highest, tyres, scores)
        below.append((highest < threshold).mean())
    assert np.mean(below) == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / (100 * scene.tyres)))


def test_pictures_of_one_tyre_are_as_alike_as_they_should_be() -> None:
    scene = SCENES["many alike, some weak"]
    scores = scene.draw(np.random.default_rng(3))[0][: scene.several * scene.pictures]
    scores = np.concatenate([scores, *(scene.draw(np.random.default_rng(k))[0][:480] for k in range(4, 60))])
    pairs = scores.reshape(-1, scene.pictures)
    assert np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("promised", PROMISES)
def test_the_rule_is_clopper_and_pearsons(promised: Promised) -> None:
    for tyres in (1, 20, 59, 180, 405):
        escapes = allowed(promised, tyres)
        assert escapes < 0 or beta.ppf(promised.confidence, escapes + 1, tyres - escapes) <= promised.rate
        assert beta.ppf(promised.confidence, escapes + 2, tyres - escapes - 1) > promised.rate


@pytest.mark.parametrize("name", first_of(SCENES, 3))
def test_the_exact_rule_keeps_its_promises(name: str) -> None:
    scene = SCENES[name]
    scores = scene.tyre_scores(np.random.default_rng(4))
    for promised, needed in zip(PROMISES, NEEDED, strict=True):
        made, share, noise = share_broken(scene, exact_thresholds(scores, promised), promised)
        assert made == (DRAWS if scene.tyres >= needed else 0)
        assert not made or share <= 1 - promised.confidence + 3 * noise


def test_independent_tyres_use_up_what_the_rule_allows() -> None:
    """The share of broken promises is then known: that of as few escapes, or fewer, at the promised rate."""
    scene = SCENES["independent"]
    for promised in PROMISES:
        thresholds = exact_thresholds(scene.tyre_scores(np.random.default_rng(5)), promised)
        _, share, noise = share_broken(scene, thresholds, promised)
        escapes = allowed(promised, scene.tyres)
        assert share == pytest.approx(beta.sf(promised.rate, escapes + 1, scene.tyres - escapes), abs=4 * noise)


def test_ties_are_no_escapes() -> None:
    scene, promised = SCENES["ties"], PROMISES[1]
    scores = scene.tyre_scores(np.random.default_rng(6), 200)
    thresholds = exact_thresholds(scores, promised)
    assert ((scores < thresholds[:, None]).sum(axis=1) <= allowed(promised, scene.tyres)).all()
    hair = to_latent(to_probability(thresholds) * (1 - 1e-6))
    assert (scene.escape_rate(hair) == scene.escape_rate(thresholds)).all()


def test_probabilities_keep_the_order() -> None:
    latent = np.linspace(-4, 11, 2000)
    assert (np.diff(to_probability(latent)) > 2e-6).all()
    assert to_latent(to_probability(latent)) == pytest.approx(latent)
