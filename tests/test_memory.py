"""Memory that is not enough, of a GPU or of the machine, is a sentence that says what to make smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from tests.conftest import ONE_NETWORK, train_here, write_images
from tests.test_training import only_run
from tyre_lightning.errors import UserError
from tyre_lightning.memory import memory_errors
from tyre_lightning.model.classifier import TyreClassifier

GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.18 GiB of which 1.06 GiB is free"
)
MORE = (
    f"{GPU}. Process 1 has 78.12 GiB memory in use. See documentation (https://pytorch.org/docs/stable/notes/cuda.html)"
)


def fail(error: Exception) -> Callable[..., Any]:
    def step(*_: object) -> None:
        raise error

    return step


FULL: dict[str, tuple[Callable[[], Any], str]] = {
    "a GPU": (fail(torch.OutOfMemoryError(MORE)), GPU),
    "a GPU that others fill": (
        fail(RuntimeError("CUDA error: out of memory\nCompile with X")),
        "CUDA error: out of memory",
    ),
    "a library's own": (
        fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`")),
        "CUBLAS_STATUS_",
    ),
    "a process that was started": (
        fail(
            ProcessRaisedException(f"\n\n-- Process 1 terminated:\nTraceback:\ntorch.OutOfMemoryError: {MORE}\n", 1, 2)
        ),
        GPU,
    ),
    "PyTorch": (lambda: torch.zeros(10**15), "allocate memory: you tried to allocate 4000000000000000 bytes"),
    "numpy": (lambda: np.zeros(10**15), "Unable to allocate"),
    "Python": (fail(MemoryError()), "out of memory"),
    "the system": (fail(OSError(12, "Cannot allocate memory")), "Cannot allocate memory"),
}


@pytest.mark.parametrize("name", FULL)
def test_memory_that_is_not_enough_is_one_sentence(name: str) -> None:
    take, said = FULL[name]
    with pytest.raises(UserError) as caught, memory_errors("data.batch_size"):
        take()
    message = str(caught.value)
    assert said in message and message.endswith("): give a smaller data.batch_size")
    assert "\n" not in message and "Process 1" not in message


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), UserError("no such key: out of memory")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_errors("data.batch_size"):
        raise error
    assert caught.value is error


def test_a_training_whose_gpu_is_full_says_what_to_make_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(root := tmp_path / "lake" / "v1", {"train": 10}, ("crack", "good"))
    monkeypatch.setattr(TyreClassifier, "training_step", fail(torch.OutOfMemoryError(MORE)))
    with pytest.raises(UserError) as caught:
        train_here(tmp_path, f"data.root={root}", ONE_NETWORK, "logger.system_metrics=false")
    assert str(caught.value) == f"the memory is not enough ({GPU}): give a smaller data.batch_size or data.image_size"
    assert only_run(tmp_path).info.status == "FAILED"
