"""timm's networks as backbones, and weights that are named as timm names them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from tests.cases import first_of
from tests.conftest import ONE_NETWORK, run_here, train_here, write_images
from tyre_lightning.config import DataConfig, EvalCrop, ExportConfig, ModelConfig, S3Config
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.calibration import softmax
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.saliency import explain, is_explainable
from tyre_lightning.export import export
from tyre_lightning.model.backbones import Network, build_backbone, preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.engine import Engine, check_export
from tyre_lightning.model.from_timm import torchvision_names
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.model.weights import load_weights
from tyre_lightning.prediction import predict
from tyre_lightning.tracking.registry import requirements

timm = pytest.importorskip("timm")

CONVNEXT, RESNET, VIT = "timm/convnext_atto", "timm/resnet18", "timm/vit_tiny_patch16_224"
NETWORKS = (CONVNEXT, RESNET, VIT, "timm/mobilenetv3_small_050")
CLASSES = ["bad", "good", "odd"]


def classifier(name: str, **options: object) -> TyreClassifier:
    torch.manual_seed(0)
    preprocessing = Preprocessing.of(preset(name), DataConfig(image_size=64)).to_dict()
    return TyreClassifier(name, CLASSES, preprocessing, good_class="good", **options)  # type: ignore[arg-type]


def noisy(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, with all its weights and statistics drawn anew, none 0 or 1 by chance."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn_like(value)
                value.copy_(torch.rand_like(value) + 0.5 if "var" in name else value * (1 + 0.1 * noise) + 0.01 * noise)
    return module.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_timm_is_rebuilt_from_its_name_and_says_the_same_everywhere(name: str, tmp_path: Path) -> None:
    before = Inspector.from_classifier(classifier(name))
    noisy(before.network)
    before.save(tmp_path / "model")
    after = Inspector.load(tmp_path / "model")
    assert after.name == name
    images = [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in range(3)]
    assert after.answers(images) == before.answers(images)
    with torch.inference_mode():
        expected = after.network(torch.stack(images)).double().softmax(1).numpy()
    assert np.abs(softmax(after.logits(images), 1.0) - expected).max() < 1e-5  # by ONNX Runtime
    export(OmegaConf.structured(ExportConfig(str(tmp_path / "model"), str(tmp_path / "tyre.onnx"))))
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "tyre.onnx", providers=["CPUExecutionProvider"])
    found, _ = session.run(None, {"image": torch.stack(images).numpy()})
    assert np.abs(softmax(found.astype(np.float64), 1.0) - expected).max() < 1e-5
    assert "timm" in requirements(after) and "timm" not in requirements(Inspector.from_classifier(own()))


def own() -> TyreClassifier:
    return classifier("efficientnet_lite0")


def test_a_training_with_timm_from_weights_to_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a file of timm's own naming, with an ImageNet head; what it leaves needs neither the file nor the hub."""
    write_images(root := tmp_path / "lake", {"train": 6, "val": 3, "test": 2}, ("crack", "good"))
    source = noisy(timm.create_model("convnext_atto", pretrained=False))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(timm, "create_model", _without_download(timm.create_model))
    train_here(
        tmp_path / "run", f"data.root={root}", "model=timm", "model.name=convnext_atto", "data.image_size=64",
        f"model.weights={tmp_path}/w.pth", "model.freeze_stages=5", "model.optimizer.backbone_lr=0",
        "callbacks.ema.decay=null", "logger.registered_model=null", "logger.system_metrics=false", ONE_NETWORK,
    )  # fmt: skip
    saved = torch.load(run_here(tmp_path / "run") / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["name"] == "timm/convnext_atto"
    stem = "stem.0.weight"
    assert torch.equal(saved["state_dict"][f"network.backbone.{stem}"], source.state_dict()[stem])
    (tmp_path / "w.pth").unlink()
    from omegaconf import OmegaConf

    from tyre_lightning.config import PredictConfig

    cfg = OmegaConf.structured(PredictConfig)
    cfg.model = str(run_here(tmp_path / "run") / "checkpoints" / "best.ckpt")
    cfg.input, cfg.output, cfg.accelerator = f"{root}/test", str(tmp_path / "p.csv"), "cpu"
    cfg.explain = True
    summary = predict(cfg)
    assert summary.images == 4 and not summary.unreadable
    assert len([*(tmp_path / "p-explained").rglob("*.jpg")]) == 4


def _without_download(create: object) -> object:
    def made(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        assert not pretrained, "nothing is to be downloaded"
        model: nn.Module = create(name, pretrained=False, **options)  # type: ignore[operator]
        return model

    return made


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", [CONVNEXT, VIT])
def test_weights_come_from_files_of_every_kind(name: str, ending: str, tmp_path: Path) -> None:
    """timm's own naming with the head of a thousand classes, and this project's with a head that fits."""
    size = 64
    whole = noisy(timm.create_model(name.removeprefix("timm/"), pretrained=False))
    mine = noisy(Network(name, 3, (0.5,) * 3, (0.5,) * 3, size=size))
    path, target = tmp_path / f"w{ending}", Network(name, 3, (0.5,) * 3, (0.5,) * 3, size=size)
    if ending == ".ckpt":
        torch.save({"state_dict": {f"network.{key}": value for key, value in mine.state_dict().items()}}, path)
        load_weights(target, name, str(path), S3Config())
        for key, value in mine.state_dict().items():
            assert torch.equal(target.state_dict()[key], value), key
        return
    state = {key: value.contiguous() for key, value in whole.state_dict().items()}
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    load_weights(target, name, str(path), S3Config())
    key = "head.norm.weight" if name == CONVNEXT else "norm.weight"  # a part of the backbone though named so
    assert torch.equal(target.backbone.state_dict()[key], state[key])
    if name == VIT:  # its positions were of 14 x 14 cells
        assert target.backbone.state_dict()["pos_embed"].shape == (1, 1 + 4 * 4, 192)


def test_a_whole_network_of_timm_says_what_its_backbone_and_our_preprocessing_say(tmp_path: Path) -> None:
    whole: Any = noisy(timm.create_model("resnet18", pretrained=False))
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    chosen = preset(RESNET)
    network = Network(RESNET, 1000, chosen.mean, chosen.std).eval()
    load_weights(network, RESNET, str(tmp_path / "w.pth"), S3Config())
    network.head[1].load_state_dict(whole.fc.state_dict())
    image = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8)
    config = timm.models.get_pretrained_cfg("resnet18")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    with torch.inference_mode():
        torch.testing.assert_close(network(image), whole((image / 255 - mean) / std), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("theirs", "ours", "options", "ending"),
    first_of(
        [
            ("efficientnet_b0", "efficientnet_b0", {}, ".safetensors"),
            ("efficientnet_lite0", "efficientnet_lite0", {"bn_eps": 1e-3}, ".pth"),
            ("efficientnet_b2", "efficientnet_b2", {}, ".pth"),
            ("efficientnet_b5", "efficientnet_b5", {"bn_eps": 1e-3}, ".pth"),
            ("efficientnetv2_s", "efficientnet_v2_s", {"bn_eps": 1e-3}, ".safetensors"),
            *((f"efficientnet_lite{i}", f"efficientnet_lite{i}", {"bn_eps": 1e-3}, ".pth") for i in (1, 2)),
        ],
        2,
    ),
)
def test_timm_s_names_fill_our_efficientnets(
    theirs: str, ours: str, options: dict[str, float], ending: str, tmp_path: Path
) -> None:
    """Equal outputs of timm's network and ours with the same weights; a file's order of tensors does not matter."""
    source = noisy(timm.create_model(theirs, pretrained=False, **options))
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    path = tmp_path / f"w{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(dict(reversed(state.items())), path)
    network = Network(ours, 3, (0.0,) * 3, (1 / 255,) * 3).eval()
    load_weights(network, ours, str(path), S3Config())
    image = torch.rand(2, 3, 64, 64).double()
    source, backbone = source.double(), network.backbone.double()
    with torch.inference_mode():
        expected = source.forward_head(source.forward_features(image), pre_logits=True)  # type: ignore[operator]
        assert expected.std() > 1e-3
        torch.testing.assert_close(backbone(image), expected)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0"])
def test_torchvision_s_names_fill_timm_s_efficientnets(name: str, tmp_path: Path) -> None:
    torch.save(noisy(source := build_backbone(name)).state_dict(), tmp_path / "w.pth")
    network = Network(f"timm/{name}", 3, (0.0,) * 3, (1 / 255,) * 3)
    load_weights(network, f"timm/{name}", str(tmp_path / "w.pth"), S3Config())
    there = torchvision_names(network.backbone.state_dict())
    assert len(there) == len(network.backbone.state_dict()) == len({*there.values()})
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[there[key]]), key


def test_the_preset_of_timm_is_used(tmp_path: Path) -> None:
    values = preset("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert (values.mean, values.std, values.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    fixed = Preprocessing.of(values, DataConfig())
    assert (fixed.size, fixed.train_size) == (224, 224)  # it takes no other, in training too
    free = Preprocessing.of(preset("timm/resnet18.tv_in1k"), DataConfig())
    assert (free.size, free.train_size, free.interpolation) == (256, 224, "bilinear")
    cropped = Preprocessing.of(preset("timm/resnet18.tv_in1k"), DataConfig(eval_crop=EvalCrop.center))
    assert (cropped.size, cropped.train_size, cropped.resize) == (224, 224, 256)
    asked = Preprocessing.of(preset(VIT), DataConfig(image_size=64))
    assert (asked.size, asked.train_size) == (64, 64)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("convnext_tny", "model.name='convnext_tny' is none of timm's networks: did you mean 'convnext_tiny'?"),
        ("resnet18.tv_in2k", "did you mean 'resnet18.tv_in1k'?"),
        ("hf-hub:someone/thing", "is none of timm's networks"),
        ("local-dir:/tmp", "is none of timm's networks"),
        ("qqqqqqqqqqqqqqqq", r"is none of timm's networks: `timm.list_models\(\)` lists them"),
        ("vit_base_patch16_sapiens2", "takes pictures of 768 x 1024 pixels, not square ones"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        preset(f"timm/{name}")


def test_a_size_that_a_network_cannot_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"nest_tiny cannot be built for pictures of 65 pixels .*=224, its own"):
        Network("timm/nest_tiny", 3, (0.5,) * 3, (0.5,) * 3, size=65)
    for name, size in (("timm/test_vit", 65), ("timm/test_convnext", 8)):
        with pytest.raises(UserError, match=f"{name} cannot look at pictures of {size} pixels .*other data.image_size"):
            check_export(Network(name, 3, (0.5,) * 3, (0.5,) * 3, size=size), name, size)


def test_weights_that_cannot_be_had_name_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    network = Network(RESNET, 3, (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(UserError, match=r"weights of resnet18 cannot be had from the hub \(Network is unreach.*=none$"):
        load_weights(network, RESNET, "imagenet", S3Config())
    with pytest.raises(UserError, match=r"timm has no weights for model.name=vit_base_patch16_18x2_224: give"):
        load_weights(network, "timm/vit_base_patch16_18x2_224", "imagenet", S3Config())
    torch.save(timm.create_model("resnet34", pretrained=False).state_dict(), tmp_path / "w.pth")
    for name, target in ((RESNET, network), (VIT, Network(VIT, 3, (0.5,) * 3, (0.5,) * 3))):
        with pytest.raises(UserError, match=f"does not fit {name}: .* tensors are missing, [1-9].* unknown"):
            load_weights(target, name, str(tmp_path / "w.pth"), S3Config())


def test_pretrained_weights_are_timm_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's file, which is a stand-in here, with its head of a thousand classes."""
    hub = noisy(timm.create_model("resnet18", pretrained=False)).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(hub))
    network = Network(RESNET, 3, (0.5,) * 3, (0.5,) * 3)
    load_weights(network, RESNET, "imagenet", S3Config())
    assert torch.equal(network.backbone.state_dict()["layer4.1.bn2.running_var"], hub["layer4.1.bn2.running_var"])


@pytest.mark.parametrize(("name", "count"), [(CONVNEXT, 2), (RESNET, 2), (VIT, 3)])
def test_frozen_stages_of_timm_neither_learn_nor_move_their_statistics(name: str, count: int) -> None:
    model = classifier(name, freeze_stages=count)
    model.on_train_epoch_start()
    stages = model.network.stages()
    before = {key: value.clone() for key, value in model.network.backbone.state_dict().items() if "running" in key}
    model(torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)).sum().backward()
    assert all(p.grad is None for stage in stages[:count] for p in stage)
    assert all(p.grad is not None for stage in stages[count:] for p in stage)
    assert sum(map(len, stages)) == len([*model.network.backbone.parameters()])
    state = model.network.backbone.state_dict()
    moved = {key.split(".")[0] for key, value in before.items() if not torch.equal(state[key], value)}
    assert moved == ({"layer2", "layer3", "layer4"} if name == RESNET else set())
    rates = model.network.parameters()
    assert {id(p) for p in rates} >= {id(p) for stage in stages for p in stage}
    with pytest.raises(UserError, match=rf"freeze_stages={len(stages)} leaves nothing of {name} to learn"):
        classifier(name, freeze_stages=len(stages))


@pytest.mark.parametrize("name", [CONVNEXT, RESNET, "timm/swin_tiny_patch4_window7_224", "timm/efficientnet_b0"])
def test_convolutional_networks_and_their_like_can_be_explained(name: str) -> None:
    model = classifier(name)
    noisy(model.network)
    images = [*torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)]
    heats = explain(Inspector.from_classifier(model), images)
    assert heats.shape == (2, 64, 64) and heats.min() >= 0
    assert set(heats.max(axis=(1, 2)).round(6)) <= {0.0, 1.0} and heats.max() > 0
    assert all(p.requires_grad for p in model.network.head.parameters())


def test_what_cannot_be_explained_is_refused_in_one_sentence() -> None:
    inspector = Inspector.from_classifier(classifier(VIT))
    assert not is_explainable(inspector)
    with pytest.raises(UserError, match="nothing can show what timm/vit_tiny_patch16_224 looked at"):
        explain(inspector, [torch.zeros(3, 64, 64, dtype=torch.uint8)])


def test_one_that_cannot_be_exported_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(RESNET, 3, (0.5,) * 3, (0.5,) * 3).train()
    check_export(network, RESNET, 64)
    assert network.training

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("Unsupported: ONNX export of operator roll")

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(UserError, match=r"timm/resnet18 cannot be trained here, .*operator roll"):
        check_export(network, RESNET, 64)
    check_export(network, "efficientnet_b0", 64)  # which needs no look


def test_without_timm_the_efficientnets_work_and_timm_s_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Inspector.from_classifier(classifier(CONVNEXT)).save(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "timm.models", None)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    assert len(Inspector.from_classifier(own()).answers([image])) == 1
    for use in (lambda: preset(RESNET), lambda: Inspector.load(tmp_path)):
        with pytest.raises(UserError, match=r"^timm is not installed, .*`pip install timm`$"):
            use()


def test_a_model_file_names_a_network_and_nothing_else_is_built(tmp_path: Path) -> None:
    """timm itself would fetch and build what a hub's address or a local folder says."""
    Inspector.from_classifier(own()).save(tmp_path)
    spec = json.loads((tmp_path / "inspector.json").read_text())
    for name in ("timm/hf-hub:someone/thing", f"timm/local-dir:{tmp_path}", "hf-hub:someone/thing"):
        (tmp_path / "inspector.json").write_text(json.dumps({**spec, "backbone": name}))
        with pytest.raises(UserError, match=r"is none of timm's networks|is not known"):
            Inspector.load(tmp_path)


def test_the_name_says_the_library() -> None:
    from tyre_lightning.config import Library

    assert ModelConfig(name="resnet18", library=Library.timm).backbone == RESNET
    assert ModelConfig().backbone == "efficientnet_lite0"


def test_engines_agree_where_a_network_has_its_own_size() -> None:
    """Swin shifts its windows, which an export must not fix to one batch."""
    name = "timm/swin_tiny_patch4_window7_224"
    inspector = Inspector.from_classifier(classifier(name))
    noisy(inspector.network)
    images = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        expected = inspector.network(images).double().softmax(1).numpy()
    found = softmax(Engine(inspector.network, 64)(images.numpy())[0].astype(np.float64), 1.0)
    assert np.abs(found - expected).max() < 1e-5
