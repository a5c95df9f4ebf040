"""Evaluation's and training's ways from a picture to the network's input."""

import json

import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from tests.images import encode, picture
from tyre_lightning.config import AugmentConfig, DataConfig, EvalCrop
from tyre_lightning.data.transforms import Augmentation, Preprocessing
from tyre_lightning.model.backbones import Network, preset


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s"])
def test_center_crop_is_the_backbone_s_own_preset(name: str) -> None:
    """To the last float with the preset's own numbers, and, to two levels of 255, as its way through Pillow does."""
    image = picture(3, (500, 420))
    own = get_model_weights(name).DEFAULT.transforms()
    exact = v2.Compose(
        [
            v2.Resize(own.resize_size, own.interpolation),
            v2.CenterCrop(own.crop_size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(own.mean, own.std),
        ]
    )
    reference = own(image)
    preprocessing = Preprocessing.of(preset(name), DataConfig(eval_crop=EvalCrop.center))
    network = Network(name, 2, preprocessing.mean, preprocessing.std)
    ours = (preprocessing(pil_to_tensor(image))[None] - network.mean) / network.std
    torch.testing.assert_close(ours[0], exact(pil_to_tensor(image)), atol=2e-6, rtol=0)
    torch.testing.assert_close(ours[0], reference, atol=2 / 255 / 0.224, rtol=0)
    assert (ours[0] - reference).abs().mean() < 1e-3


@pytest.mark.parametrize("crop", EvalCrop)
def test_pixels_are_pillow_s_to_rounding(crop: EvalCrop) -> None:
    """Resized on tensors, which is faster, but not another picture."""
    image = picture(4, (640, 480))
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(eval_crop=crop))
    size = [preprocessing.size] * 2 if crop is EvalCrop.whole else [preprocessing.resize]
    reference = F.resize(image, size, F.InterpolationMode.BICUBIC)
    expected = pil_to_tensor(F.center_crop(reference, [preprocessing.size] * 2))
    difference = (preprocessing(pil_to_tensor(image)).int() - expected.int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.01


def test_whole_keeps_the_edge_that_the_centre_crop_loses() -> None:
    image = Image.new("RGB", (300, 300), "black")
    image.paste("white", (0, 0, 300, 8))  # a defect along the top edge
    pixels = pil_to_tensor(image)
    whole = Preprocessing.of(preset("efficientnet_b0"), DataConfig(eval_crop=EvalCrop.whole))
    center = Preprocessing.of(preset("efficientnet_b0"), DataConfig(eval_crop=EvalCrop.center))
    assert whole(pixels).shape == (3, 256, 256)
    assert center(pixels).shape == (3, 224, 224)
    assert whole(pixels).max() == 255
    assert center(pixels).max() == 0


def test_image_size_and_any_aspect() -> None:
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=64))
    for size in ((64, 64), (200, 50), (33, 500)):
        view = preprocessing(pil_to_tensor(picture(size=size)))
        assert view.shape == (3, 64, 64)
        assert view.dtype == torch.uint8


def test_training_crops_are_the_preset_s() -> None:
    for crop in EvalCrop:
        assert Preprocessing.of(preset("efficientnet_b0"), DataConfig(eval_crop=crop)).train_size == 224


def test_preprocessing_survives_json() -> None:
    before = Preprocessing.of(preset("efficientnet_lite2"), DataConfig(eval_crop=EvalCrop.center, image_size=50))
    after = Preprocessing.from_dict(json.loads(json.dumps(before.to_dict())))
    assert after == before
    data = encode(picture(size=(90, 70)))
    assert torch.equal(after.read(data, "k"), before.read(data, "k"))


def test_augmentation_follows_from_its_seed_alone() -> None:
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=48))
    augmentation = Augmentation(AugmentConfig(), preprocessing)
    image = pil_to_tensor(picture(5, (80, 80)))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augmentation(image, 7)
    assert torch.equal(torch.get_rng_state(), state)  # the training's own random numbers are not disturbed
    torch.manual_seed(2)
    assert torch.equal(augmentation(image, 7), first)
    assert not torch.equal(augmentation(image, 8), first)
    assert first.shape == (3, 42, 42)
    assert first.dtype == torch.uint8
