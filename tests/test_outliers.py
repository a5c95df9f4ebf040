"""Pictures of no tyre, which training makes so that a network does not take for good what it has never seen."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.test_imbalance import classifier
from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.transforms import recolour
from tyre_lightning.decision.outputs import Outputs
from tyre_lightning.model import outliers
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.outliers import add_outliers, not_good, outliers_in

EVERY = pytest.mark.parametrize("make", outliers._KINDS)


def pictures(count: int = 16, side: int = 48, seed: int = 0) -> Tensor:
    """Smooth ones with some grain, from 0 to 255."""
    made = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return 255 * torch.nn.functional.interpolate(made, side, mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_loss_is_what_the_model_says_of_good(multi_label: bool) -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double() * 6
    good = Outputs(2, multi_label).probabilities(logits.numpy())[:, 2]
    assert not_good(logits, 2, multi_label=multi_label).numpy() == pytest.approx(-np.log1p(-good), rel=1e-9)


def test_no_answer_is_too_sure_for_the_loss() -> None:
    for multi_label in (False, True):
        logits = torch.tensor([[500.0, -500.0], [-500.0, 500.0]], requires_grad=True)
        found = not_good(logits, 0, multi_label=multi_label)
        found.sum().backward()  # type: ignore[no-untyped-call]
        assert found[1] == 0
        assert 400 < float(found[0].detach()) < 1100
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


@EVERY
@pytest.mark.parametrize("side", [32, 50, 97])
def test_an_outlier_is_another_picture_of_the_same_size(make: outliers.Make, side: int) -> None:
    torch.manual_seed(0)
    (image,) = pictures(1, side)
    before = image.clone()
    made = torch.stack([make(image) for _ in range(8)])
    assert made.shape == (8, 3, side, side)
    assert torch.isfinite(made).all()
    assert torch.equal(image, before)
    assert (made - image).abs().mean((1, 2, 3)).min() > 1  # of 255


@EVERY
def test_outliers_of_one_colour_are_no_trouble(make: outliers.Make) -> None:
    torch.manual_seed(0)
    for shade in (0.0, 90.0, 255.0):
        assert torch.isfinite(make(torch.full((3, 40, 40), shade))).all()


def test_of_a_scrambled_picture_the_frequencies_are_left() -> None:
    torch.manual_seed(0)
    (image,) = pictures(1, 64).double()
    made = outliers._scrambled(image)
    assert torch.fft.fft2(made).abs().numpy() == pytest.approx(torch.fft.fft2(image).abs().numpy(), rel=1e-6, abs=1e-3)


def test_a_shuffled_picture_has_the_same_pixels() -> None:
    torch.manual_seed(0)
    (image,) = pictures(1, 120)  # 3, 4, 5 and 8 divide it
    for _ in range(12):
        made = outliers._shuffled(image)
        assert torch.equal(made.flatten(1).sort().values, image.flatten(1).sort().values)


def test_a_batch_keeps_its_own_pictures_and_a_seed_repeats_the_others() -> None:
    images = pictures(16)
    torch.manual_seed(3)
    one = add_outliers(images, 0.125)
    torch.manual_seed(3)
    again = add_outliers(images, 0.125)
    assert len(one) == 18
    assert torch.equal(one[:16], images)
    assert torch.equal(one, again)
    assert not torch.equal(one[16:], add_outliers(images, 0.125)[16:])
    assert one.min() >= 0
    assert one.max() <= 255
    assert [outliers_in(count, 0.125) for count in (1, 7, 8, 32)] == [0, 0, 1, 4]
    assert add_outliers(images, 0.0) is images


def batch(images: Tensor, labels: Tensor) -> Batch:
    plain = torch.ones(len(images), 3)  # no other brightness, contrast or saturation
    return Batch(images.to(torch.uint8), labels, plain, [""] * len(images), [], [])


def learning(share: float, **options: object) -> TyreClassifier:
    torch.manual_seed(0)
    model = classifier(outliers=share, dropout=0.0, **options)
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    return model.train()


def test_the_loss_of_a_step_is_that_of_its_pictures_and_that_of_the_outliers() -> None:
    images, labels = pictures(8, 32), torch.arange(8) % 2
    plain = [0.4, -0.3]
    for share, priors in ((0.0, None), (0.5, None), (0.5, plain)):
        model = learning(share, log_priors=priors)
        torch.manual_seed(7)
        loss = model.training_step(batch(images, labels), 0)
        again = learning(share)
        torch.manual_seed(7)
        logits = again(add_outliers(recolour(images.to(torch.uint8), torch.ones(8, 3)), share))
        adjusted = logits if priors is None else logits + torch.tensor(priors)
        known = cross_entropy(adjusted[:8], labels)
        chance = adjusted[8:].softmax(1)[:, 0]  # of good
        assert float(loss.detach()) == pytest.approx(float((known - (1 - chance).log().sum() / 8).detach()), rel=1e-4)
        assert float(model._loss[0]) / 8 == pytest.approx(float(known.detach()), rel=1e-4)  # what is recorded


def test_without_a_good_class_or_with_ones_own_loss_there_are_none() -> None:
    nobody, own = learning(0.5), learning(0.5)
    nobody.hparams["good_class"] = None
    own.use({"_target_": "torch.nn.CrossEntropyLoss"}, {})
    assert (learning(0.5)._outliers, nobody._outliers, own._outliers) == (0.5, 0.0, 0.0)


@pytest.mark.slow
def test_what_is_no_tyre_is_called_good_less_often() -> None:
    """Two kinds of pictures that a few steps tell apart: what each of two networks says of pictures like neither."""
    labels = torch.arange(16) % 2
    fine, odd = pictures(16, 32, 1), pictures(16, 32, 2)
    odd[:, :, 10:22, 10:22] = 255  # a mark
    images = torch.where((labels == 0)[:, None, None, None], fine, odd)
    torch.manual_seed(5)
    never = add_outliers(pictures(64, 32, 9), 1.0)[64:]
    said = []
    for share in (0.0, 0.5):
        model = learning(share)
        steps = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for number in range(80):
            torch.manual_seed(number)
            steps.zero_grad()
            model.training_step(batch(images, labels), number).backward()  # type: ignore[no-untyped-call]
            steps.step()
        with torch.no_grad():
            known, new = (model.eval()(batch).softmax(1)[:, 0] > 0.5 for batch in (images, never))
        assert (known == (labels == 0)).float().mean() > 0.9
        said.append(float(new.float().mean()))
    assert said[1] < said[0] / 2, said
