"""A GPU that this PyTorch cannot compute on is one sentence, before anything is read or trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.conftest import train_here
from tyre_lightning.audit.embedding import COPIES, Embedder
from tyre_lightning.config import config_folder, register_schemas
from tyre_lightning.errors import UserError
from tyre_lightning.kernels import check_kernels, runs_on
from tyre_lightning.prediction import predict

BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 2016, as PyTorch tells of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce GTX 1080")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 6), "sm_86", True),
        ((8, 9), "sm_86", True),
        ((8, 0), "sm_86", False),
        ((9, 0), "sm_86", False),
        ((7, 5), "sm_80", False),
        ((9, 0), "sm_90a", True),
        ((9, 1), "sm_90a", False),
        ((10, 3), "sm_100f", True),
        ((12, 0), "sm_100f", False),
        ((12, 1), "sm_120", True),
        ((12, 0), "compute_90", True),  # PTX is compiled for what came later
        ((8, 9), "compute_90", False),
        ((12, 0), "compute_90a", False),
        ((9, 0), "gfx90a", False),
    ],
)
def test_what_runs_where(capability: tuple[int, int], built: str, runs: bool) -> None:
    assert runs_on(capability, built) is runs


SENTENCE = (
    r"^PyTorch \S+ has no kernels for NVIDIA GeForce GTX 1080 \(compute capability 6\.1\), but for sm_75, sm_80, .*: "
    r"install one that has, or use the CPU"
)


@pytest.mark.usefixtures("old_gpu")
def test_training_refuses_it_before_the_lake_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=SENTENCE):
        train_here(tmp_path, "data.root=there/is/none", "trainer=auto")


@pytest.mark.usefixtures("old_gpu")
def test_prediction_refuses_it_before_the_model_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("")
    register_schemas()
    with initialize_config_dir(str(config_folder("predict")), version_base="1.3"):
        cfg = compose("predict", overrides=["model=there/is/none", f"input={tmp_path}"])
    with pytest.raises(UserError, match=SENTENCE):
        predict(cfg)


@pytest.mark.usefixtures("old_gpu")
def test_looking_for_copies_refuses_it() -> None:
    with pytest.raises(UserError, match=SENTENCE):
        Embedder(COPIES)


@pytest.mark.usefixtures("old_gpu")
def test_a_cpu_and_a_gpu_of_another_maker_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernels([torch.device("cpu")])
    monkeypatch.setattr(torch.version, "hip", "6.4")
    check_kernels([torch.device("cuda", 0)])
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [*BUILT, "compute_60"])
    check_kernels([torch.device("cuda", 0)])
