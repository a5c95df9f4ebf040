"""A user's own parts: the recipes of docs/extend.md, what is refused, and what never runs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from omegaconf import OmegaConf
from torch import Tensor, nn

from tests.conftest import PROJECT, run_here, train_here, write_images
from tyre_lightning.command_line import check_config
from tyre_lightning.config import AugmentConfig, DataConfig, PredictConfig, register_schemas, to_train_config
from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.transforms import Augmentation, Preprocessing
from tyre_lightning.errors import UserError
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.parts import check_parts, make
from tyre_lightning.prediction import predict
from tyre_lightning.resuming import check_checkpoint

DOC = (PROJECT / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", DOC, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", DOC, re.DOTALL) for line in block.splitlines()]
RECIPES = ("blur", "bell", "sgd", "focal")
HERE = "tests.test_parts"
PREPROCESSING = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32))
UNTRACKED = ("logger.registered_model=null", "logger.system_metrics=false")


class Beep(L.Callback):
    def __init__(self, times: int) -> None:
        self.times = times


class Cut:
    """No augmentation: the picture loses its last row."""

    def __call__(self, picture: Tensor) -> Tensor:
        return picture[:, :-1]


class Learning(nn.Module):
    """No loss: it has a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


def mean_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.mean(1)


def leave() -> None:
    sys.exit(3)


def give(function: str) -> Any:
    return globals()[function]


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The documentation's files, in the folder where the command is started."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def composed(*overrides: str) -> Any:
    register_schemas()
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        return compose("train", overrides=["data.root=lake", *overrides])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_documentation_compose_and_their_parts_can_be_used(command: str, recipes: Path) -> None:
    python, script, *arguments = shlex.split(command)
    assert (python, script) == ("python", "train.py")
    if arguments[0] == "--config-dir":
        arguments = [f"hydra.searchpath=[file://{recipes / arguments[1]}]", *arguments[2:]]
    cfg = composed(*arguments)
    check_config(cfg)
    check_parts(to_train_config(cfg))


def test_recipes_are_short() -> None:
    assert {f"mine/experiment/{name}.yaml" for name in RECIPES} < {*FILES}
    for name, content in FILES.items():
        assert len(content.splitlines()) <= (12 if name.endswith(".py") else 10), name


@pytest.mark.long
def test_all_recipes_train_and_predict_needs_none_of_them(recipes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_images(root := recipes / "lake", {"train": 4, "val": 2, "test": 2}, ("crack", "good"))
    every = "\n".join(["# @package _global_", "defaults:", *(f"- {name}" for name in RECIPES)])
    (recipes / "mine" / "experiment" / "every.yaml").write_text(every)
    train_here(
        recipes, f"data.root={root}", f"hydra.searchpath=[file://{recipes}/mine]", "experiment=every",
        *UNTRACKED, "data.num_workers=1",
    )  # fmt: skip
    assert "\a\atrained for 1 epochs" in capfd.readouterr().out
    checkpoint = run_here(recipes) / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint.with_name("last.ckpt"), weights_only=True)
    assert "momentum" in content["optimizer_states"][0]["param_groups"][0]  # SGD's
    assert content["optimizer"] == "torch.optim.SGD"
    assert "_target_" not in str(content["hyper_parameters"])
    assert _recorded(recipes) == {
        "callbacks.extra.bell._target_": "tyre_parts.Bell",
        "data.augment.extra.blur._target_": "torchvision.transforms.v2.RandomApply",
        "model.loss._target_": "tyre_losses.Focal",
        "model.optimizer.own._target_": "torch.optim.SGD",
    }
    for name in ("tyre_parts", "tyre_losses"):
        sys.modules.pop(name, None)
        (recipes / f"{name}.py").unlink()
    cfg = OmegaConf.structured(PredictConfig)
    cfg.model, cfg.input, cfg.output, cfg.accelerator = str(checkpoint), f"{root}/test", f"{recipes}/p.csv", "cpu"
    assert predict(cfg).images == 4


def _recorded(folder: Path) -> dict[str, str]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tyre-defects")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return {key: value for key, value in run.data.params.items() if key.endswith("._target_") and "[" not in key}


WRONG = [
    ("callbacks.extra", "nowhere.Beep", {}, "nowhere.Beep cannot be used (there is no module nowhere: install it"),
    ("callbacks.extra", f"{HERE}.Bep", {}, "(tests.test_parts has no Bep)"),
    ("callbacks.extra", f"{HERE}.Beep", {}, "missing 1 required positional argument: 'times'"),
    ("callbacks.extra", f"{HERE}.Beep", {"tmes": 1}, "got an unexpected keyword argument 'tmes'"),
    ("callbacks.extra", f"{HERE}.Cut", {}, "callbacks.extra.x: tests.test_parts.Cut gives Cut, which is no"),
    ("callbacks.extra", "Beep", {}, "callbacks.extra.x must say what to call: give call"),
    ("data.augment.extra", f"{HERE}.Cut", {}, "data.augment.extra.x makes torch.uint8 [3, 47, 48] of tor"),
    ("data.augment.extra", "torchvision.transforms.v2.CenterCrop", {"size": 8}, "makes torch.uint8 [3, 8, 8] of"),
    ("data.augment.extra", "torchvision.transforms.v2.ToDtype", {"dtype": "x"}, "data.augment.extra.x: "),
    ("model.optimizer.own", "torch.optim.SGD", {"momentum": -1}, "model.optimizer.own: torch.optim.SGD cannot be"),
    ("model.optimizer.own", f"{HERE}.Cut", {}, "model.optimizer.own: tests.test_parts.Cut cannot be used (Cut() ta"),
    ("model.loss", f"{HERE}.Learning", {}, "model.loss: tests.test_parts.Learning has weights to learn"),
    ("model.loss", "torch.nn.CrossEntropyLoss", {"wieght": 1}, "got an unexpected keyword argument 'wieght'"),
    ("model.loss", "torch.Size", {}, "model.loss: torch.Size gives Size, which cannot be called"),
    ("callbacks.extra", f"{HERE}.leave", {}, "callbacks.extra.x: tests.test_parts.leave cannot be used (3)"),
    ("callbacks.extra", f"{HERE}.Beep", {"_partial_": True}, "callbacks.extra.x: leave out _partial_, with which"),
    ("model.optimizer.own", "torch.optim.SGD", {"_partial_": True}, "model.optimizer.own: leave out _partial_, with"),
    ("model.optimizer.own", "torch.optim.LBFGS", {}, "LBFGS doesn't support per-parameter options"),
    ("model.loss", "os.system", {"command": "touch ran"}, "model.loss: os.system cannot be used"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "target", "options", "said"), WRONG)
def test_a_part_that_cannot_be_used_is_refused_before_anything_is_read(
    key: str, target: str, options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg, spec = composed(), {"_target_": target, **options}
    OmegaConf.update(cfg, key, {"x": spec} if "extra" in key else spec, force_add=True)
    with pytest.raises(UserError) as caught:
        check_parts(to_train_config(cfg))
    assert str(caught.value).startswith(key) and said in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"_target_": "torch.nn.NLLLoss", "reduction": "none"}, "model.loss: torch.nn.NLLLoss must give one number"),
        ({"_target_": f"{HERE}.give", "function": "mean_of_logits"}, "must give one number"),
        ({"_target_": "torch.nn.L1Loss"}, r"L1Loss fails on logits \[3, 2\] and labels \[3\]: "),
    ],
)
def test_a_loss_is_tried_on_the_classes_there_are(spec: dict[str, Any], said: str) -> None:
    model = TyreClassifier("efficientnet_lite0", ["bad", "good"], PREPROCESSING.to_dict(), "good")
    with pytest.raises(UserError, match=said):
        model.use(spec, {})


def test_everything_else_stays_strict() -> None:
    for override in (
        "+callbacks.own={}",
        "+model.optimizer._target_=torch.optim.SGD",
        "+data._target_=x.y",
        "+_target_=x.y",
    ):
        with pytest.raises(UserError, match="unknown config key"):
            check_config(composed(override))
    with pytest.raises(UserError, match=r"model\.class_weights weighs cross-entropy, and model.loss takes its place"):
        check_config(composed("+model.loss._target_=torch.nn.CrossEntropyLoss", "model.class_weights=balanced"))


class Draw:
    """Adds what torch, NumPy and Python draw."""

    def __call__(self, picture: Tensor) -> Tensor:
        drawn = (int(torch.randint(0, 50, (1,))), int(np.random.randint(0, 50)), random.randint(0, 50))
        return (picture.int() + torch.tensor(drawn)[:, None, None]).clamp(0, 255).to(torch.uint8)


def test_what_a_transform_draws_follows_from_the_image_s_seed_alone() -> None:
    change = Augmentation(AugmentConfig(extra={"draw": {"_target_": f"{HERE}.Draw"}}), PREPROCESSING)
    plain = Augmentation(AugmentConfig(), PREPROCESSING)
    image = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    first, again, other = (change(image, seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]
    assert change(image, 5)[1] == plain(image, 5)[1]  # nothing else is drawn anew
    assert {float(v) for v in (first - plain(image, 5)[0]).float().std((1, 2))} == {0.0}


def test_transforms_come_in_order_and_fail_in_one_sentence() -> None:
    spec = {"_target_": "torchvision.transforms.v2.RandomInvert", "p": 1.0}
    dark = {"_target_": "torchvision.transforms.v2.RandomPosterize", "bits": 1, "p": 1.0}
    image = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    views = [
        Augmentation(AugmentConfig(extra=extra), PREPROCESSING)(image, 1)[0].amax().item()
        for extra in ({"a": spec, "b": dark}, {"b": dark, "a": spec})
    ]
    assert views == [128, 255]
    broken = Augmentation(AugmentConfig(extra={"cut": {"_target_": f"{HERE}.Cut"}}), PREPROCESSING)
    with pytest.raises(UserError, match=r"^data.augment.extra.cut makes torch.uint8 \[3, 27, 28\] of"):
        broken(image, 1)


def classifier() -> TyreClassifier:
    rates = {"backbone_lr": 1e-3, "head_lr": 1e-3, "weight_decay": 0.0, "warmup_fraction": 0.0}
    return TyreClassifier("efficientnet_lite0", ["bad", "good"], PREPROCESSING.to_dict(), "good", optimizer=rates)


def test_a_loss_of_one_s_own_is_what_is_gone_down_and_leaves_nothing_in_the_checkpoint() -> None:
    model = classifier()
    before = {*model.state_dict()}
    model.use({"_target_": "torch.nn.CrossEntropyLoss", "weight": {"_target_": "torch.ones", "size": [2]}}, {})
    model.use({"_target_": "torch.nn.MultiMarginLoss"}, {})
    model.on_fit_start()
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    model.eval()
    loss = model.training_step(Batch(images, labels, torch.ones(4, 3), [], [], []), 0)
    torch.testing.assert_close(loss, nn.MultiMarginLoss()(model(images).float(), labels), rtol=1e-4, atol=1e-5)
    assert {*model.state_dict()} == before


def test_a_checkpoint_of_another_optimiser_is_not_gone_on_with(tmp_path: Path) -> None:
    model = classifier()
    content: dict[str, Any] = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    content |= {"pytorch-lightning_version": L.__version__, "loops": _loops(1)}
    model.on_save_checkpoint(content)
    torch.save(content, path := tmp_path / "x.ckpt")
    check_checkpoint(path, model, 2)
    model.use({}, {"_target_": "torch.optim.SGD"})
    with pytest.raises(UserError, match=r"was trained by torch.optim.AdamW, whose state says nothing to torch"):
        check_checkpoint(path, model, 2)


def _loops(done: int) -> dict[str, Any]:
    return {"fit_loop": {"epoch_progress": {"current": {"processed": done}}}}


def test_what_a_model_file_names_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``_target_`` wherever a checkpoint or a saved folder has room for one; whatever is made of it, nothing ran."""
    monkeypatch.chdir(tmp_path)
    planted = {"_target_": "os.mkdir", "path": "ran"}
    model = classifier()
    for name in model.hparams:
        _poisoned_checkpoint(model, {**model.hparams, name: planted})
    _poisoned_checkpoint(model, {**model.hparams, "loss": planted, "own": planted, "callbacks": {"x": planted}})
    _poisoned_checkpoint(model, {**model.hparams, **planted})
    places = ("judgement", "optimizer", "callbacks", "_instantiator")
    plants: list[dict[str, Any]] = [planted, *({key: planted} for key in places)]
    for more in plants:
        _poisoned_checkpoint(model, model.hparams, **more)
        _opened(lambda: check_checkpoint(Path("x.ckpt"), model, 2))
    Inspector.from_classifier(model).save("saved")
    saved = json.loads(Path("saved/inspector.json").read_text())
    for key in [*saved, "_target_", "loss", "own"]:
        Path("saved/inspector.json").write_text(json.dumps({**saved, key: planted}))
        _opened(lambda: Inspector.load("saved"))
    assert not os.path.exists("ran")
    with contextlib.suppress(UserError):
        make("x", planted)
    assert os.path.exists("ran")  # in a config it would run


def _poisoned_checkpoint(model: TyreClassifier, hyper_parameters: Any, **more: Any) -> None:
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(hyper_parameters), "loops": _loops(1), **more}
    torch.save({"pytorch-lightning_version": L.__version__, **content}, "x.ckpt")
    _opened(lambda: Inspector.from_checkpoint("x.ckpt"))


def _opened(use: Any) -> None:
    """Read a file; it may be refused, but only as what it is."""
    try:
        use()
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return
