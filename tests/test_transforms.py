"""Evaluation's and training's ways from a picture to the network's input."""

import json
import random

import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from tests.images import encode, picture
from tyre_lightning.config import AugmentConfig, DataConfig, EvalCrop
from tyre_lightning.data.transforms import Augmentation, Colour, Preprocessing, random_crop, recolour
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
    assert whole(pixels).shape == (3, 400, 400)
    assert center(pixels).shape == (3, 224, 224)
    assert whole(pixels).max() == 255
    assert center(pixels).max() == 0


def test_image_size_and_any_aspect() -> None:
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=64))
    for size in ((64, 64), (200, 50), (33, 500)):
        view = preprocessing(pil_to_tensor(picture(size=size)))
        assert view.shape == (3, 64, 64)
        assert view.dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "crop", "side", "size", "train_size"),
    [
        ("efficientnet_b0", EvalCrop.center, 640, 224, 224),
        ("efficientnet_b0", EvalCrop.whole, None, 400, 350),  # fine defects need more than ImageNet's pixels
        ("efficientnet_b0", EvalCrop.whole, 640, 400, 350),
        ("efficientnet_b0", EvalCrop.whole, 300, 300, 262),  # there is nothing to see between a picture's pixels
        ("efficientnet_b0", EvalCrop.whole, 40, 256, 224),
        ("efficientnet_b4", EvalCrop.whole, 300, 384, 380),
    ],
)
def test_training_crops_are_to_evaluation_as_the_preset_s(
    name: str, crop: EvalCrop, side: int | None, size: int, train_size: int
) -> None:
    preprocessing = Preprocessing.of(preset(name), DataConfig(eval_crop=crop), side)
    assert (preprocessing.size, preprocessing.train_size) == (size, train_size)


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
    first, colour = augmentation(image, 7)
    assert torch.equal(torch.get_rng_state(), state)  # the training's own random numbers are not disturbed
    torch.manual_seed(2)
    again, same = augmentation(image, 7)
    assert torch.equal(again, first)
    assert same == colour
    other, different = augmentation(image, 8)
    assert not torch.equal(other, first)
    assert different != colour
    assert first.shape == (3, 42, 42)
    assert first.dtype == torch.uint8


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_view_is_laid_in_all_eight_ways_or_without_turns_in_four(layout: torch.memory_format) -> None:
    """The corner with the mark, and the way that the line from it runs, tell which way it is."""
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=48))
    image = torch.zeros(1, 3, 80, 80, dtype=torch.uint8).contiguous(memory_format=layout)[0]
    image[:, :20] = 120  # a line along the top ...
    image[:, :20, :40] = 250  # ... that is brighter on the left
    views: dict[bool, list[torch.Tensor]] = {}
    for turn in (False, True):
        augmentation = Augmentation(AugmentConfig(turn=turn, min_scale=0.9), preprocessing)
        views[turn] = [augmentation(image, seed)[0] for seed in range(60)]
        assert all(torch.equal(augmentation(image, seed)[0], view) for seed, view in enumerate(views[turn]))
    assert len({way(view) for view in views[False]}) == 4
    assert len({way(view) for view in views[True]}) == 8
    turned = 0
    for before, after in zip(views[False], views[True], strict=True):
        turned += (here := torch.equal(before.transpose(1, 2), after))
        assert here or torch.equal(before, after)  # nothing else is drawn differently
        assert after.stride() == before.stride()  # else a batch would have views of two layouts
    assert 15 < turned < 45


def way(view: torch.Tensor) -> tuple[int, ...]:
    """The brightness of the four corners in steps."""
    return tuple(int(view[0, y, x]) // 100 for y in (2, -3) for x in (2, -3))


def test_crops_keep_their_share_and_stay_inside() -> None:
    draw = random.Random(1)
    crops = [random_crop(draw, 480, 640, 0.5) for _ in range(500)]
    for top, left, height, width in crops:
        assert top >= 0 and left >= 0 and top + height <= 480 and left + width <= 640
        assert 0.49 <= height * width / (480 * 640) <= 1
        assert 0.74 <= width / height <= 1.34
    assert len({crop[:2] for crop in crops}) > 200
    assert random_crop(draw, 1000, 10, 1.0) == (0, 0, 1000, 10)  # no part of such an image has sides from 3:4 to 4:3


@pytest.mark.parametrize("colour", [Colour(), Colour(1.2, 0.8, 1.1), Colour(0.7, 1.3, 0.2)])
def test_colours_change_as_torchvision_s_do(colour: Colour) -> None:
    images = torch.stack([pil_to_tensor(picture(seed, (40, 40))) // 2 + 60 for seed in (1, 2)])  # nothing is clipped
    ours = recolour(images, torch.tensor([colour, Colour()]))
    theirs = images[0].float() / 255
    for adjust, factor in zip((F.adjust_brightness, F.adjust_contrast, F.adjust_saturation), colour, strict=True):
        theirs = adjust(theirs, factor)
    torch.testing.assert_close(ours[0] / 255, theirs, atol=2e-3, rtol=0)  # their luma has four digits
    torch.testing.assert_close(ours[1], images[1].float())


def test_a_cache_s_image_has_pixels_enough_for_every_crop() -> None:
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig())
    shrink = Augmentation(AugmentConfig(min_scale=0.5), preprocessing).shrink()
    assert shrink.side == 495  # half of its area is 350 x 350
    assert shrink(torch.zeros(3, 640, 960, dtype=torch.uint8)).shape == (3, 495, 742)
    small = torch.zeros(3, 300, 400, dtype=torch.uint8)
    assert shrink(small) is small
