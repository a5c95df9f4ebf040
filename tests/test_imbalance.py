"""What makes up for classes of which there are few images."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from tests.conftest import write_images
from tyre_lightning.config import ClassWeights, DataConfig, ModelConfig, Sampling, TrainConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.imbalance import adjustment, class_weights
from tyre_lightning.opening import open_data
from tyre_lightning.training import build_model

LITE = "efficientnet_lite0"


def classifier(**options: object) -> TyreClassifier:
    preprocessing = Preprocessing.of(preset(LITE), DataConfig(image_size=32)).to_dict()
    return TyreClassifier(LITE, ["good", "odd"], preprocessing, good_class="good", **options)  # type: ignore[arg-type]


def test_balanced_class_weights() -> None:
    weights = class_weights([90, 10])
    assert weights[1] / weights[0] == pytest.approx(9)
    assert (90 * weights[0] + 10 * weights[1]) / 100 == pytest.approx(1)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_prior_is_of_the_effective_numbers_of_images(tau: float) -> None:
    """Each image adds 0.99 of what the one before it added: the sum of a geometric series, term by term."""
    counts = [100, 5, 700]
    effective = [math.fsum(0.99**image for image in range(count)) for count in counts]
    expected = [tau * math.log(number / math.fsum(effective)) for number in effective]
    assert adjustment(counts, tau) == pytest.approx(expected, rel=1e-12)
    good, odd = adjustment([100, 5], tau)
    assert good - odd == pytest.approx(tau * math.log(63.397 / 4.901), abs=1e-4)


def test_classes_that_are_full_are_trained_as_before_and_one_without_images_is_no_infinity() -> None:
    assert adjustment([2000, 800], 0.5) == pytest.approx([math.log(0.5) / 2] * 2, abs=1e-4)
    assert adjustment([50, 0], 0.5) == adjustment([50, 1], 0.5)


def test_the_loss_is_of_the_adjusted_logits() -> None:
    """By hand: that of the softmax of logit + tau * log prior, and its gradient, that softmax less the label."""
    good, odd = adjustment([100, 5], 0.5)
    logits = torch.tensor([[1.0, 2.0], [0.5, -1.0]], requires_grad=True)
    labels = torch.tensor([1, 0])
    loss = classifier(log_priors=[good, odd])._cross_entropy(logits, labels)
    rows = [[math.exp(a + good), math.exp(b + odd)] for a, b in logits.tolist()]
    shares = [[value / sum(row) for value in row] for row in rows]
    assert loss.item() == pytest.approx(-(math.log(shares[0][1]) + math.log(shares[1][0])) / 2, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (torch.tensor(shares) - one_hot(labels, 2)) / 2)
    assert loss.item() != pytest.approx(classifier()._cross_entropy(logits, labels).item(), abs=0.05)


def test_what_the_network_says_is_not_adjusted() -> None:
    model = classifier(log_priors=adjustment([100, 5], 0.5)).eval()
    plain = classifier().eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images), plain(images))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_images(root := tmp_path_factory.mktemp("lake") / "v1", {"train": 4, "val": 2}, ("crack", "good"))
    for number in (1, 2, 3):
        (root / "train" / "crack" / f"{number}.jpg").unlink()
    return root


def test_training_adjusts_by_the_images_it_has_where_nothing_else_balances(lake: Path) -> None:
    plain = TrainConfig(
        data=DataConfig(root=str(lake), image_size=32, near_copies=False), model=ModelConfig(weights="none")
    )
    several = replace(plain.data, multi_label=True)
    drawn, asked = replace(plain.data, sampling=Sampling.balanced), replace(plain.model, logit_adjustment=2.0)
    weighed, off = (
        replace(plain.model, class_weights=ClassWeights.balanced), replace(plain.model, logit_adjustment=0.0)
    )  # fmt: skip
    for config, expected in (
        (plain, adjustment([1, 4], 0.5)),
        (replace(plain, model=asked), adjustment([1, 4], 2.0)),
        (replace(plain, model=off), None),
        (replace(plain, model=weighed), None),
        (replace(plain, data=drawn), None),
        (replace(plain, data=several), None),
    ):
        model = build_model(config, open_data(config), pretrained=False)
        assert model.hparams["log_priors"] == expected


def test_a_checkpoint_of_before_loads_and_adjusts_nothing(tmp_path: Path) -> None:
    model = classifier(log_priors=[-0.1, -0.7])
    kept = {name: value for name, value in model.hparams.items() if name != "log_priors"}
    content = {"state_dict": model.state_dict(), "hyper_parameters": kept, "pytorch-lightning_version": "2.6.6"}
    torch.save(content, tmp_path / "old.ckpt")
    old = TyreClassifier.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    logits, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    assert float(old._cross_entropy(logits, labels)) == pytest.approx(math.log(1 + math.exp(-1)))
