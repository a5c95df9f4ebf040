"""How sure an AUROC is: the interval holds the truth as often as it says, with several pictures of a tyre too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torchmetrics.functional.classification import binary_auroc

from tyre_lightning.evaluation.auroc import auroc_interval

SHIFT = 1.8  # of defective tyres' scores, in standard deviations
ALIKE = 0.9  # correlation of pictures of one tyre
TRUTH = float(norm.cdf(SHIFT / math.sqrt(2)))


def pictures(draw: np.random.Generator, tyres: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, whether defective, and tyre, of one to ``most`` pictures each of as many good tyres as defective ones."""
    shown = np.repeat(np.arange(2 * tyres), draw.integers(1, most + 1, 2 * tyres))
    defective = shown < tyres
    own = draw.normal(0, 1, 2 * tyres)[shown]
    noise = draw.normal(0, 1, len(shown))
    return SHIFT * defective + math.sqrt(ALIKE) * own + math.sqrt(1 - ALIKE) * noise, defective, shown


@pytest.mark.parametrize("most", [1, 5])
def test_the_interval_holds_the_truth_as_often_as_it_says(most: int) -> None:
    draw, rounds = np.random.default_rng(3), 1000
    held = {"by tyre": 0, "by picture": 0}
    for _ in range(rounds):
        scores, defective, shown = pictures(draw, 60, most)
        for name, tyres in (("by tyre", shown), ("by picture", np.arange(len(shown)))):
            found = auroc_interval(scores, defective, tyres, 0.9)
            assert found is not None
            held[name] += found[0] <= TRUTH <= found[1]
    assert held["by tyre"] / rounds == pytest.approx(0.9, abs=0.03)
    assert (held["by picture"] / rounds < 0.8) == (most > 1)


def test_the_interval_lies_round_the_area() -> None:
    scores, defective, shown = pictures(np.random.default_rng(4), 40, 3)
    area = float(binary_auroc(torch.from_numpy(scores).sigmoid(), torch.from_numpy(defective).long()))
    narrow, wide = (auroc_interval(scores, defective, shown, confidence) for confidence in (0.5, 0.99))
    assert narrow is not None and wide is not None
    assert 0 < wide[0] < narrow[0] < area < narrow[1] < wide[1] < 1


def test_ties_count_half() -> None:
    same = auroc_interval(np.zeros(40), np.arange(40) < 20, np.arange(40), 0.9)
    assert same == pytest.approx((0.5, 0.5))


def test_a_perfect_separation_is_not_certain() -> None:
    found = auroc_interval(np.arange(30.0), np.arange(30) >= 10, np.arange(30), 0.9)
    assert found == pytest.approx((0.05 ** (1 / 10), 1))
    found = auroc_interval(-np.arange(30.0), np.arange(30) >= 10, np.arange(30), 0.9)
    assert found == pytest.approx((0, 1 - 0.05 ** (1 / 10)))


@pytest.mark.parametrize("defective", [0, 1, 9, 10])
def test_without_two_tyres_of_each_kind_there_is_no_interval(defective: int) -> None:
    assert auroc_interval(np.arange(10.0), np.arange(10) < defective, np.arange(10), 0.9) is None
