"""What the model looked at: maps point at the drawn defects, follow the weights, and leave the model alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pointing import points_at
from scipy.stats import spearmanr
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tests.cases import first_of
from tests.conftest import run_here, train_here
from tests.images import picture
from tests.once import once
from tyre_lightning.config import BACKBONES, DataConfig, EvalCrop
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.demo.drawing import draw, write_lake
from tyre_lightning.evaluation.saliency import explain, overlay, place
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.inspector import Inspector

SIZE = 112


@pytest.fixture
def keen() -> Inspector:
    """A model that has learnt to see bulges on drawn tyres."""

    def train(folder: Path) -> None:
        write_lake(folder / "v1", {"train": 80}, size=SIZE)
        train_here(
            folder, "experiment=demo", f"data.root={folder}/v1", "data.classes=[bulge,good]",
            f"data.image_size={SIZE}", "data.batch_size=16", "data.augment.min_scale=0.8", "trainer.max_epochs=8",
            "logger.registered_model=null", "logger.system_metrics=false",
        )  # fmt: skip

    return Inspector.from_checkpoint(run_here(once("keen", train)) / "checkpoints" / "best.ckpt")


def build(name: str = "efficientnet_lite0", good: str | None = "good", crop: EvalCrop = EvalCrop.whole) -> Inspector:
    """A model with random weights."""
    torch.manual_seed(1)
    preprocessing = Preprocessing.of(preset(name), DataConfig(image_size=64, eval_crop=crop))
    network = Network(name, 3, preprocessing.mean, preprocessing.std).eval()
    return Inspector(network, name, ["bulge", "crack", "good"], preprocessing, good)


def pictures(inspector: Inspector, count: int = 2) -> list[Tensor]:
    return [inspector.preprocessing(F.pil_to_tensor(picture(seed, (80, 60)))) for seed in range(count)]


def drawn(label: str, count: int) -> tuple[list[Tensor], Sequence[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]]:
    """Pictures that no training saw, and the masks of their defects."""
    found = [draw(label, 10_000 + seed, SIZE) for seed in range(count)]
    return [F.pil_to_tensor(image) for image, _ in found], [mask for _, mask in found]


@pytest.mark.slow
@pytest.mark.long
def test_maps_point_at_the_defects(keen: Inspector) -> None:
    """The pointing game (Zhang et al., arXiv:1608.00507), against guessing any place of the picture."""
    images, masks = drawn("bulge", 40)
    heats = explain(keen, [keen.preprocessing(image) for image in images])
    games = [
        points_at(place(heat, keen.preprocessing, SIZE, SIZE), mask) for heat, mask in zip(heats, masks, strict=True)
    ]
    chance = float(np.mean([chance for _, chance in games]))
    assert float(np.mean([hit for hit, _ in games])) > 3 * chance
    inside = [heat[mask].mean() / heat.mean() for heat, mask in zip(heats, masks, strict=True)]
    assert np.mean(inside) > 1.5


@pytest.mark.slow
def test_maps_follow_the_weights(keen: Inspector) -> None:
    """A map that survives random weights shows the picture's edges, not the model (arXiv:1810.03292)."""
    images, _ = drawn("bulge", 12)
    views = [keen.preprocessing(image) for image in images]
    torch.manual_seed(0)
    random = Network(keen.name, len(keen.classes), keen.preprocessing.mean, keen.preprocessing.std).eval()
    other = Inspector(random, keen.name, keen.classes, keen.preprocessing, keen.good_class)
    pairs = zip(explain(keen, views), explain(other, views), strict=True)
    assert np.mean([spearmanr(one, two, axis=None).statistic for one, two in pairs]) < 0.4


@pytest.mark.parametrize(
    "name", first_of([name for name in BACKBONES if name not in {f"efficientnet_b{i}" for i in range(3, 8)}], 2)
)
@pytest.mark.parametrize("good", ["good", None])
def test_every_backbone_can_be_explained(name: str, good: str | None) -> None:
    inspector = build(name, good)
    heats = explain(inspector, pictures(inspector))
    assert heats.shape == (2, 64, 64)
    assert heats.min() >= 0
    assert set(heats.max(axis=(1, 2)).round(6)) <= {0.0, 1.0}
    assert not np.allclose(heats[0], heats[1])


def test_an_image_s_map_does_not_depend_on_its_batch() -> None:
    inspector = build()
    images = pictures(inspector, 3)
    together = explain(inspector, images)
    for image, heat in zip(images, together, strict=True):
        np.testing.assert_allclose(explain(inspector, [image])[0], heat, atol=1e-3)
    assert explain(inspector, []).shape == (0, 64, 64)


def test_the_model_is_left_as_it_was() -> None:
    inspector = build()
    network = inspector.network.train()
    network.backbone.features[0].eval()
    network.head.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    flags = [parameter.requires_grad for parameter in network.parameters()]
    with torch.inference_mode():
        explain(inspector, pictures(inspector))
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_map_lies_where_the_network_looked() -> None:
    whole, center = (build(crop=crop).preprocessing for crop in (EvalCrop.whole, EvalCrop.center))
    heat = np.zeros((64, 64), np.float32)
    heat[:, 48:] = 1  # the right quarter
    on_whole = place(heat, whole, 60, 80)
    assert on_whole.shape == (60, 80)
    assert on_whole[:, :56].max() < 0.1 and on_whole[:, 64:].min() > 0.9
    side = round(60 * center.size / center.resize)
    on_center = place(heat, center, 60, 80)
    seen = np.flatnonzero(on_center.max(axis=0) > 0.5)
    assert seen.max() < 40 + side / 2 < 80
    assert seen.min() == pytest.approx(40 + side / 4, abs=2)


def test_an_overlay_keeps_the_aspect_and_leaves_the_picture_readable() -> None:
    preprocessing = build().preprocessing
    image = F.pil_to_tensor(draw("crack", 1, SIZE)[0].resize((1280, 320)))
    heat = np.zeros((64, 64), np.float32)
    plain = overlay(image, heat, preprocessing)
    assert plain.size == (640, 160)
    heat[20:40, 20:40] = 1
    pixels, marked = np.asarray(plain).astype(int), np.asarray(overlay(image, heat, preprocessing)).astype(int)
    assert np.array_equal(pixels[:30], marked[:30])
    inside = (slice(60, 90), slice(230, 370))
    assert np.abs(pixels[inside] - marked[inside]).mean() > 5
    for channel in range(3):
        assert np.corrcoef(pixels[inside][..., channel].ravel(), marked[inside][..., channel].ravel())[0, 1] > 0.9
