"""A training pass as a CUDA graph; here without a GPU, with a stand-in for what PyTorch makes of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from tyre_lightning.config import DataConfig
from tyre_lightning.data.dataset import Batch
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.model import graph
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.graph import Graph


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Of which shapes graphs were used; the stand-in passes thrice first, as PyTorch does to make one."""
    shapes: list[torch.Size] = []

    def capture(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        for _ in range(3):
            torch.autograd.grad(module(example).sum(), [*module.parameters()])

        def run(images: Tensor) -> Tensor:
            shapes.append(images.shape)
            found: Tensor = module(images)
            return found

        return run

    monkeypatch.setattr(graph, "capture", capture)
    return shapes


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()


def learn(call: Callable[[Tensor], Tensor], model: nn.Module, sizes: list[int]) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    for size in sizes:
        optimizer.zero_grad()
        call(images[:size]).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    return model.state_dict()


def test_to_make_a_graph_changes_no_number(made: list[torch.Size]) -> None:
    plain, graphed = network(), network()
    sizes = [8, 8, 3, 8]
    torch.manual_seed(2)
    wanted = learn(plain, plain, sizes)
    torch.manual_seed(2)
    found = learn(Graph(graphed, torch.zeros(8, 4)), graphed, sizes)
    assert made == [torch.Size([8, 4])] * 3  # what is of another shape goes through the network itself
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


class Epoch:
    """Its batches; the last is smaller."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Batch]:
        for size in (4, 4, 2):
            images = torch.randint(255, (size, 3, 32, 32), generator=torch.Generator().manual_seed(size))
            yield Batch(images.byte(), torch.arange(size) % 2, torch.ones(size, 3), [""] * size, [], [])


def fitted(monkeypatch: pytest.MonkeyPatch, *, graphed: bool, **options: object) -> dict[str, Tensor]:
    monkeypatch.setattr(TyreClassifier, "_can_be_graphed", property(lambda _: graphed))
    L.seed_everything(0, verbose=False)
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32)).to_dict()
    rates = {"backbone_lr": 1e-3, "head_lr": 1e-3, "weight_decay": 0.01, "warmup_fraction": 0.1}
    given = {**preprocessing, "train_size": 32}
    model = TyreClassifier("efficientnet_lite0", ["a", "b"], given, good_class="a", optimizer=rates, **options)  # type: ignore[arg-type]
    model.batch_size = 4
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(model, Epoch())
    return model.state_dict()


@pytest.mark.parametrize(("share", "images"), [(0.0, 4), (0.25, 5)])
def test_a_training_by_a_graph_ends_with_the_same_weights(
    share: float, images: int, made: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, found = (fitted(monkeypatch, graphed=graphed, outliers=share) for graphed in (False, True))
    assert made == [torch.Size([images, 3, 32, 32])] * 4  # with outliers, which the last, smaller batch has none of
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
