"""A training step on a GPU that is not there: of its tensors there are shapes, types and devices, and no values."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tyre_lightning.config import DataConfig
from tyre_lightning.data import transforms
from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier

GPU = torch.device("cuda", 0)


class Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What is asked of PyTorch: names, and the types and devices of what comes of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, torch.dtype, str]] = []
        self.copies: list[dict[str, Any]] = []  # from one device to another

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            name = func.overloadpacket.__name__
            self.seen.append((name, found.dtype, found.device.type))
            given = [one.device.type for one in args if isinstance(one, Tensor)]
            if given and given[0] != found.device.type:
                self.copies.append({"name": name, "to": found.device.type, **(kwargs or {})})
        return found

    def types(self, name: str) -> set[torch.dtype]:
        return {dtype for op, dtype, _ in self.seen if op == name}


class Event:
    """Of CUDA: the GPU is never ready."""

    def record(self) -> None:
        """Nothing."""

    def query(self) -> bool:
        return False


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(TyreClassifier, "log", lambda *given, **options: None)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(transforms, "_luma", cache(transforms._luma.__wrapped__))  # a mode has its own
    return FakeTensorMode()


def learning(**options: Any) -> TyreClassifier:
    given = {**Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32)).to_dict(), "train_size": 32}
    return TyreClassifier("efficientnet_lite0", ["crack", "flat_spot", "good"], given, "good", **options).train()


def moved(model: TyreClassifier) -> TyreClassifier:
    """To the GPU, within the mode, in which a module's own method is not possible."""
    for module in model.modules():
        tensors: list[dict[str, Any]] = [module._parameters, module._buffers]
        for kept in tensors:
            for name, value in kept.items():
                if value is not None:
                    there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)
                    kept[name] = nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there
    return model


def batch(label: Tensor) -> Batch:
    images = torch.empty(len(label), 3, 32, 32, dtype=torch.uint8, device=GPU)
    return Batch(images, label, torch.empty(len(label), 3, device=GPU), [""] * len(label), [], [])


def step(model: TyreClassifier, gpu: FakeTensorMode, *more: int) -> Ops:
    """What a step is made of, for 8 images; its gradients would take a GPU."""
    ops = Ops()
    with gpu:
        transforms._luma(GPU)  # once, in a whole training
    with gpu, ops:
        label = torch.zeros(8, *more, dtype=torch.long, device=GPU)
        with torch.autocast("cuda", torch.bfloat16):
            loss = moved(model).training_step(batch(label), 0)
    assert loss.dtype == torch.float32 and loss.device == GPU and loss.requires_grad
    return ops


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"class_weights": [1.0, 2.0, 3.0], "label_smoothing": 0.1}, id="weighted"),
        pytest.param({"log_priors": [0.0, 1.0, 2.0], "freeze_stages": 2}, id="adjusted"),
        pytest.param({"multi_label": True, "class_weights": [1.0, 2.0, 3.0]}, id="several defects"),
    ],
)
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(gpu: FakeTensorMode, options: dict[str, Any]) -> None:
    """To ask for a value would fail here; the loss alone goes to the CPU, and nobody waits for it."""
    ops = step(learning(**options), gpu, *([3] if options.get("multi_label") else []))
    (loss,) = ops.copies
    assert loss["to"] == "cpu" and loss["non_blocking"]


def test_what_costs_is_done_in_bfloat16_and_the_loss_in_float32(gpu: FakeTensorMode) -> None:
    ops = step(learning(), gpu)
    assert ops.types("convolution") == ops.types("addmm") == {torch.bfloat16}
    assert ops.types("_log_softmax") == ops.types("nll_loss_forward") | {torch.float32} == {torch.float32}


def test_a_step_that_asks_for_a_value_would_be_found(gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TyreClassifier, "_watch", lambda model, loss: model._check(float(loss)))
    with pytest.raises(DataDependentOutputException):
        step(learning(), gpu)


def test_a_tensor_that_is_left_on_the_cpu_would_be_found(gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(transforms, "_luma", lambda device: torch.ones(3)[:, None, None])
    with pytest.raises(Exception, match="cpu"):
        step(learning(), gpu)
