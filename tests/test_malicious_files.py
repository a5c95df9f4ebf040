"""A model file from somewhere else runs no code, whichever way it comes in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.conftest import TINY, write_images
from tests.images import encode, picture
from tyre_lightning.checkpointing import FOLDER, LAST
from tyre_lightning.config import DataConfig, S3Config, config_folder, register_schemas
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.errors import UserError
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.weights import read_state
from tyre_lightning.prediction import predict
from tyre_lightning.training import train

PREPROCESSING = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32)).to_dict()


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, int]]:
        return os.mkdir, (self.mark, 0o700)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What exists when code has run; the module ``planted`` makes it too, when imported or called."""
    mark, module = tmp_path / "mark", tmp_path / "planted" / "planted.py"
    module.parent.mkdir()
    module.write_text(f"import os\ndef run(*args, **kwargs):\n    os.mkdir({str(mark)!r})\nrun()\n")
    monkeypatch.syspath_prepend(str(module.parent))
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    return mark


def honest() -> dict[str, Any]:
    """A checkpoint as training leaves it, of a network that has learned nothing."""
    model = TyreClassifier("efficientnet_lite0", ["crack", "good"], PREPROCESSING, "good")
    return {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": L.__version__,
        "epoch": 0,
        "global_step": 1,
        "loops": {},
        "callbacks": {},
    }


def with_instantiator(mark: Path) -> dict[str, Any]:
    """Lightning before 2.6.6 imports and calls what is named so, in spite of ``weights_only=True``."""
    content = honest()
    content["hyper_parameters"]["_instantiator"] = "planted.run"
    return content


def with_pickle(mark: Path) -> dict[str, Any]:
    return {**honest(), "extra": Payload(mark)}


def with_pickled_parameter(mark: Path) -> dict[str, Any]:
    content = honest()
    content["hyper_parameters"]["dropout"] = Payload(mark)
    return content


CRAFTED = (with_instantiator, with_pickle, with_pickled_parameter)


@pytest.fixture(params=CRAFTED, ids=lambda craft: craft.__name__)
def crafted(request: pytest.FixtureRequest, mark: Path, tmp_path: Path) -> Path:
    path = tmp_path / FOLDER / LAST
    path.parent.mkdir()
    torch.save(request.param(mark), path)
    return path


def test_prediction_runs_nothing(crafted: Path, mark: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.jpg").write_bytes(encode(picture(1, (40, 40)), "JPEG"))
    register_schemas()
    with initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
        cfg = compose("predict", overrides=[f"model={crafted}", f"input={tmp_path}/new", "accelerator=cpu"])
    with pytest.raises(UserError, match=f"{crafted} is not a checkpoint of train.py: "):
        predict(cfg)
    assert not mark.exists()


def test_a_training_that_goes_on_runs_nothing(
    crafted: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "lake", {"train": 4}, ("crack", "good"))
    monkeypatch.chdir(tmp_path)
    register_schemas()
    given = [f"data.root={tmp_path}/lake", f"ckpt_path={crafted}", "data.near_copies=false", "model.weights=none"]
    with initialize_config_dir(str(config_folder("train")), version_base="1.3"):
        cfg = compose("train", overrides=[*given, *TINY])
    with pytest.raises(UserError, match=f"{crafted} is not a checkpoint of train.py: "):
        train(cfg)
    assert not mark.exists()


def test_starting_weights_run_nothing(crafted: Path, mark: Path) -> None:
    """Only the tensors are taken, where nothing pickled stands beside them."""
    with suppress(UserError):  # which says that there is more than tensors
        assert read_state(str(crafted), S3Config()).keys() == honest()["state_dict"].keys()
    assert not mark.exists()


@pytest.mark.parametrize("craft", CRAFTED[1:])
def test_the_files_are_dangerous(craft: Callable[[Path], dict[str, Any]], mark: Path, tmp_path: Path) -> None:
    """Read with trust they do run code: else the tests above would prove nothing."""
    torch.save(craft(mark), tmp_path / "x.ckpt")
    torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert mark.exists()


def test_an_honest_file_loads(mark: Path, tmp_path: Path) -> None:
    """The files above are refused for what was planted in them, and for nothing else."""
    torch.save(honest(), tmp_path / "x.ckpt")
    TyreClassifier.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert not mark.exists()
