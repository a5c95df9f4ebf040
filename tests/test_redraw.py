"""The benchmark of promises makes the choices that training makes, and finds a broken promise where there is one."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from redraw import WAYS, Broken, Population, kept_epoch, macro_f1, redraw

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.evaluation.judgement import class_metrics, confusion
from tyre_lightning.model.best_epoch import BestEpoch

PROMISE = OperatingPointConfig(0.1, 0.9)


def population(draw: np.random.Generator, epochs: int, count: int = 2000, noise: float = 1.0) -> Population:
    """Epochs that know equally much, each with errors of its own."""
    labels = draw.integers(0, 4, count)
    return Population(2 * np.eye(4)[labels] + draw.normal(0, noise, (epochs, count, 4)), labels, 1)


def test_it_keeps_the_epoch_that_training_keeps(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    strategy = SimpleNamespace(reduce_boolean_decision=bool)
    trainer: Any = SimpleNamespace(callback_metrics={"val/images": 60}, strategy=strategy)
    for _ in range(50):
        scores = draw.uniform(0.6, 0.9, 8)
        rule = BestEpoch(tmp_path, monitor="val/f1", mode="max")
        kept = [epoch for epoch, score in enumerate(scores) if rule.check_monitor_top_k(trainer, torch.tensor(score))]
        assert kept_epoch(scores.tolist(), 60) == kept[-1]


def test_macro_f1_is_what_training_measures() -> None:
    found = population(np.random.default_rng(2), 3, 40)
    scores = macro_f1(found.confusions().sum(axis=0))
    for epoch, score in enumerate(scores):
        sample = found.sample(np.arange(40), epoch)
        assert score == pytest.approx(class_metrics(sample, list("abcd"), "b")["f1"])
        assert (found.confusions().sum(axis=0)[epoch] == confusion(sample)).all()


def test_one_epoch_keeps_its_promise() -> None:
    found = redraw(population(np.random.default_rng(3), 1), [PROMISE, OperatingPointConfig(0.01, 0.95)], 60, 300, 4)
    for way in WAYS:
        assert np.isnan(found[way][:, 1]).all()  # 299 defective tyres would be needed
        broken = Broken.of(found[way][:, 0, 0], PROMISE)
        assert broken.possible == 300
        assert 0 < broken.share <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 300)
    assert (found[WAYS[0]][:, 0] == found[WAYS[1]][:, 0]).all()


def test_rates_are_shares_of_their_own_kind() -> None:
    logits = np.array([[[0.0, 9.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0], [9.0, 0.0]]])  # class 1 is the defective
    found = Population(logits, np.array([0, 0, 0, 1, 1]), 0)
    assert found.rates(0, 1.0, 0.5) == pytest.approx((1 / 2, 2 / 3))


def test_a_choice_among_many_epochs_breaks_promises() -> None:
    """The worst case, epochs that differ by luck alone: the luckiest lets fewer of its validation images escape."""
    found = redraw(population(np.random.default_rng(5), 30, noise=1.2), [PROMISE], 200, 200, 6)
    chosen, last = (Broken.of(found[way][:, 0, 0], PROMISE) for way in WAYS[:2])
    assert last.share <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 200)
    assert chosen.share > last.share + 0.05


def test_a_share_of_what_was_possible() -> None:
    found = Broken.of(np.array([0.05, 0.2, math.nan, 0.1]), PROMISE)
    assert found.possible == 3
    assert found.share == pytest.approx(1 / 3)
    assert math.isnan(Broken.of(np.array([math.nan]), PROMISE).share)
