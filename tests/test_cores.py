"""A process uses the cores that it may use, and no other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tyre_lightning.cores import cores, threads

ENGINE = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
import numpy as np
from tyre_lightning.model.backbones import Network, preset
from tyre_lightning.model.engine import Engine

name = "efficientnet_lite0"
engine = Engine(Network(name, 2, preset(name).mean, preset(name).std).eval(), 32)
engine(np.zeros((4, 3, 32, 32), np.uint8))
print({core for thread in os.listdir("/proc/self/task") for core in os.sched_getaffinity(int(thread))})
"""

bound = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to cores here")


@pytest.mark.parametrize(
    ("asked", "given"), [("1", 1), ("1,2", 1), ("1000", None), ("0", None), ("", None), ("x", None)]
)
def test_a_computation_has_as_many_threads_as_are_asked_for(
    asked: str, given: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads() == (cores() if given is None else given)


@bound
def test_a_process_that_is_bound_to_a_core_has_one() -> None:
    command = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from tyre_lightning.cores import cores; print(cores())"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@bound
@pytest.mark.skipif(cores() < 2, reason="there is one core, so that no thread can be on another")
def test_the_network_stays_on_the_cores_that_are_the_process_s() -> None:
    core = min(os.sched_getaffinity(0))  # ONNX Runtime itself leaves the first to the main thread
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(core)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == f"{{{core}}}"
