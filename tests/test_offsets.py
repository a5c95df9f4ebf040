"""Offsets mend a network that says some classes too often, and do little where it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.conftest import TINY, run_here, train_here
from tests.test_temperature import CLASSES, TRUTHS, Scored, honest
from tyre_lightning.config import ClassWeights, DataConfig, ModelConfig, Sampling, TrainConfig
from tyre_lightning.decision.calibration import Floats, Labels, fit_offsets, fit_temperature, softmax
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.classifier import FORMAT, MADE_AS
from tyre_lightning.model.engine import to_onnx
from tyre_lightning.model.imbalance import adjustment, leaning
from tyre_lightning.model.inspector import Inspector

LEANS = np.array([0.8, -0.6, 0.3, -0.5])
FREE = 3  # parameters, which fitted without a prior to n images lose FREE / (2 n) of cross-entropy on average
HARM = 0.002  # of scores as networks give them here


def some_of(scored: Scored) -> Scored:
    logits, labels = scored
    return logits[:4000], labels[:4000]


def cross_entropy(logits: Floats, labels: Labels, temperature: float) -> float:
    return float(-np.log(softmax(logits, temperature)[np.arange(len(labels)), labels] + 1e-300).mean())


def gain(logits: Floats, labels: Labels, some: Labels) -> float:
    """By how much offsets and a temperature that some images say lower the cross-entropy of all, against the latter."""
    shifted = logits + fit_offsets(logits[some], labels[some])
    plain = cross_entropy(logits, labels, fit_temperature(logits[some], labels[some]))
    return plain - cross_entropy(shifted, labels, fit_temperature(shifted[some], labels[some]))


@pytest.mark.parametrize("truth", TRUTHS)
def test_where_none_are_needed_fresh_images_lose_little(truth: str) -> None:
    draw = np.random.default_rng(5)
    logits, labels = some_of(TRUTHS[truth](draw))
    for size in (30, 120, 500):
        gains = np.array([gain(logits, labels, draw.integers(0, len(labels), size)) for _ in range(40)])
        bound = HARM if truth.startswith("nearly separable") else FREE / (2 * size)
        assert gains.mean() >= -bound - 2 * gains.std() / np.sqrt(len(gains)), size


@pytest.mark.parametrize("size", [120, 500])
def test_what_leans_is_mended(size: int) -> None:
    draw = np.random.default_rng(6)
    right, labels = some_of(honest(draw, 2, 1))
    logits = right + LEANS
    gains, said = [], []
    for _ in range(20):
        some = draw.integers(0, len(labels), size)
        gains.append(gain(logits, labels, some))
        said.append(((logits + fit_offsets(logits[some], labels[some])).argmax(1) == labels).mean())
    whole = cross_entropy(logits, labels, 1) - cross_entropy(right, labels, 1)
    assert np.mean(gains) > 0.5 * whole
    assert np.mean(said) > (logits.argmax(1) == labels).mean()


def test_many_images_have_their_way() -> None:
    logits, labels = honest(np.random.default_rng(7), 2, 3)  # three times too sure
    found = fit_offsets(logits + 3 * LEANS, labels)
    np.testing.assert_allclose(found - found.mean(), -3 * (LEANS - LEANS.mean()), atol=0.2)


def test_a_class_without_images_stays_where_it_is() -> None:
    logits, labels = honest(np.random.default_rng(8), 2, 1)
    there = labels != 2
    found = fit_offsets(logits[there], labels[there])
    assert found[2] == 0 and np.abs(found).max() > 0


def test_an_image_whose_score_is_no_number_says_nothing() -> None:
    logits, labels = some_of(honest(np.random.default_rng(9), 2, 1))
    broken = np.concatenate([logits[:100], [[np.nan] * CLASSES, [np.inf, 0, 0, 0]]])
    found = fit_offsets(broken, np.r_[labels[:100], 1, 2])
    np.testing.assert_array_equal(found, fit_offsets(logits[:100], labels[:100]))
    assert fit_offsets(broken[100:], np.array([1, 2])).tolist() == [0] * CLASSES


@pytest.mark.parametrize("counts", [(400, 5, 300, 20)])
@pytest.mark.parametrize("balanced", [None, "loss", "sampling"])
def test_what_training_has_done_for_rare_classes_is_not_undone(counts: tuple[int, ...], balanced: str | None) -> None:
    config = TrainConfig(data=DataConfig(root="lake"), model=ModelConfig())
    if balanced == "loss":
        config = replace(config, model=replace(config.model, class_weights=ClassWeights.balanced))
    if balanced == "sampling":
        config = replace(config, data=replace(config.data, sampling=Sampling.balanced))
    wanted = np.array(leaning(config, counts))
    if balanced is None:
        assert wanted.tolist() == adjustment(counts, config.model.logit_adjustment)
    draw = np.random.default_rng(10)
    natural, labels = honest(draw, 2, 1)  # what fits the images, of which the network took the leaning out
    found = fit_offsets(natural - wanted, labels, priors=wanted)
    assert np.ptp(found) < 0.15 < np.ptp(fit_offsets(natural - wanted, labels))


def test_a_loss_of_one_s_own_and_several_defects_get_none() -> None:
    config = TrainConfig(data=DataConfig(root="lake"), model=ModelConfig())
    assert leaning(config, [300] * CLASSES) is not None
    own = replace(config, model=replace(config.model, loss={"_target_": "torch.nn.MultiMarginLoss"}))
    several = replace(config, data=replace(config.data, multi_label=True))
    assert leaning(own, [300] * CLASSES) is leaning(several, [300] * CLASSES) is None


@pytest.mark.long
def test_checkpoint_scores_and_an_exported_network_have_the_same_ones(tmp_path: Path) -> None:
    write_lake(tmp_path / "v1", {"train": 6, "val": 4, "test": 2}, size=48)
    train_here(tmp_path, f"data.root={tmp_path}/v1", *TINY, "data.image_size=64", "trainer.max_epochs=2")
    run = run_here(tmp_path)
    best = run / "checkpoints" / "best.ckpt"
    inspector = Inspector.from_checkpoint(best)
    assert inspector.calibration is not None and np.ptp(inspector.calibration.offsets) > 0
    assert inspector.format == FORMAT == torch.load(best, weights_only=True)[MADE_AS]

    path = sorted((tmp_path / "v1" / "test").rglob("*.jpg"))[0]
    image = inspector.read(path.read_bytes(), path.name)
    recorded = Scores.read(run / "scores" / "test.parquet")
    place = recorded.keys.to_pylist().index(f"v1/{path.relative_to(tmp_path / 'v1')}")
    known = inspector.logits([image])
    np.testing.assert_array_equal(known[0], recorded.logits[place])
    bare = replace(inspector, calibration=None).logits([image])
    np.testing.assert_array_equal(known, bare + inspector.calibration.offsets)

    inspector.take_in_offsets()
    session = onnxruntime.InferenceSession(to_onnx(inspector.network, inspector.preprocessing.size))
    np.testing.assert_allclose(session.run(None, {"image": image[None].numpy()})[0], known, atol=1e-4)
    assert inspector.calibration.offsets == [] and inspector.offsets == 0.0
