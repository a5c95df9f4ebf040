"""Recipes are compared by what they are said to be: rare defects are rare in training alone, views are of one model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ablation
import folds
import numpy as np
import pytest

from tests.conftest import Trained, write_images
from tyre_lightning.config import DataConfig, S3Config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.inspector import Inspector


def test_rare_defects_are_rare_in_training_alone(tmp_path: Path) -> None:
    root = tmp_path / "v1"
    write_images(root, {"train": 24}, (folds.GOOD, folds.CRACKS))

    def counts() -> list[dict[str, int]]:
        options = DataConfig(root=str(root), near_copies=False, folds=folds.FOLDS, fold=1, image_size=32)
        data = TyreDataModule(options, S3Config(), preset("efficientnet_lite0"))
        assert data.test is not None
        return [Counter(data.train.counts()) + Counter(data.val.counts()), data.test.counts()]

    (all_images, held_out) = counts()
    with folds.regime_in_use("rare"):
        (thinned, still_held_out) = counts()
    assert all_images == {folds.GOOD: 16, folds.CRACKS: 16} and held_out == {folds.GOOD: 8, folds.CRACKS: 8}
    assert thinned == {folds.GOOD: 16, folds.CRACKS: folds.RARE} and still_held_out == held_out


@pytest.mark.slow
def test_one_view_says_what_the_run_recorded(trained: Trained) -> None:
    (run,) = (trained.folder / "outputs" / "train").iterdir()
    scores = Scores.read(run / "scores" / "test.parquet")
    assert scores is not None
    inspector = Inspector.from_checkpoint(run / "checkpoints" / "best.ckpt")
    one, two = (ablation.mirrored(inspector, scores, trained.local, views) for views in (1, 2))
    np.testing.assert_allclose(one.logits, scores.logits, atol=1e-4)
    assert np.abs(two.logits - scores.logits).max() > 0.01
