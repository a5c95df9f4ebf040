"""A training of several processes that torchrun or srun has started: of which this machine has the first here.

Of SLURM there are the variables, the signal and a stand-in for ``scontrol``; the processes are real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from tests import warm
from tests.cases import first_of
from tests.conftest import PROJECT, TINY, run_script, untracked_environment, write_images
from tests.mlflow_server import lay_database
from tests.once import once
from tests.radosgw import free_port
from tests.test_one_scoring_path import CLASSES, assert_predict_agrees
from tests.test_slurm import SCONTROL
from tyre_lightning.company import export
from tyre_lightning.errors import UserError
from tyre_lightning.ranks import Rank, check_ranks, here

TRAIN = str(PROJECT / "train.py")
PROMISE = ("operating_point.max_escape_rate=0.5", "operating_point.confidence=0.6")
OPTIONS = (*TINY, *PROMISE, "data.image_size=64", "trainer.devices=2", "trainer.max_epochs=2",
           "logger.system_metrics=false")  # fmt: skip
UNREGISTERED = "logger.registered_model=null"
# A callback of the user's, which does what befalls processes.
BEFALLS = """
import multiprocessing, os, signal
import lightning as L
from tyre_lightning.errors import UserError

if os.environ.get("BEFALLS") == "elsewhere" and os.environ["SLURM_PROCID"] == "1":
    os.chdir("/")

class Befall(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        what, _, rank = os.environ.get("BEFALLS", "").partition(" ")
        if (trainer.current_epoch, batch_idx) != (1, 1) or rank not in ("", str(trainer.global_rank)):
            return
        if what == "error":
            raise UserError(f"process {rank} has a mistake")
        if what == "SIGTERM":  # as torchrun sends it
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGTERM)
        if what.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, what))
"""
BEFALL = "+callbacks.extra.befall._target_=befalls.Befall"
GOES_ON = "another of the 2 processes has ended, or has not answered for 10 minutes"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training images of each class, of which some are held out, and 11 test images, which two cannot share alike."""
    root = tmp_path_factory.mktemp("lakes") / "lake" / "v1"
    write_images(root, {"train": 8, "test": 4}, CLASSES)
    (root / "test" / "good" / "0.jpg").unlink()
    return root


@pytest.fixture(scope="module")
def together(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """What two processes by torchrun have left and said; each process of the tests has its copy."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command = [*torchrun, TRAIN, f"data.root={lake}", *OPTIONS]

    def train(made: Path) -> None:
        (folder := made / "run").mkdir()
        lay_database(folder / "mlflow.db")
        env = {**untracked_environment(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
        (made / "done.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))

    made = once("together", train)
    folder = shutil.copytree(made / "run", tmp_path_factory.mktemp("together") / "run")
    return folder, subprocess.CompletedProcess(command, *json.loads((made / "done.json").read_text()))


def by_srun(
    folder: Path, *options: str, tasks: int = 2, variables: Mapping[str, str] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """What ``srun train.py`` starts."""
    (folder / "befalls.py").write_text(BEFALLS)
    lay_database(folder / "mlflow.db")
    common = {**untracked_environment(), "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "12345", "SLURM_NTASKS": str(tasks),
              "SLURM_STEP_NUM_TASKS": str(tasks), "MASTER_PORT": str(free_port()), **(variables or {})}  # fmt: skip
    each = [{**common, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} for number in range(tasks)]
    return warm.run_together([TRAIN, *options], folder, each, timeout=120)


def runs(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.get_experiment_by_name("tyre-defects")
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def only_folder(folder: Path) -> Path:
    """Of the run; where it goes on, Hydra makes another for the log of the command."""
    (found,) = (folder / "outputs" / "train").glob("*/checkpoints")
    return found.parent


def weights(folder: Path) -> dict[str, Any]:
    best = torch.load(only_folder(folder) / "checkpoints" / "best.ckpt", weights_only=True)
    return dict(best["state_dict"])


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.long
def test_of_two_processes_one_speaks_and_records(
    together: tuple[Path, subprocess.CompletedProcess[str]], lake: Path
) -> None:
    folder, done = together
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert len(re.findall(r"^epoch  train loss", done.stdout, re.MULTILINE)) == 1
    assert len(re.findall(r"^    [12]  ", done.stdout, re.MULTILINE)) == 2
    assert done.stdout.count("training efficientnet_lite0") == 1 and "CPU, 2 x 1 threads" in done.stdout
    (run,) = runs(folder)
    assert run.info.status == "FINISHED" and run.data.metrics["test/images"] == 11
    assert {path.name for path in folder.iterdir()} <= {"mlflow.db", "mlflow.db.lock", "mlruns", "outputs"}
    assert {path.name for path in (folder / "outputs").iterdir()} == {"train"}
    assert_predict_agrees(folder, only_folder(folder), lake)


@pytest.mark.slow
@pytest.mark.long
def test_they_end_with_the_weights_of_processes_that_one_has_started(
    together: tuple[Path, subprocess.CompletedProcess[str]], lake: Path, tmp_path: Path
) -> None:
    env = {**untracked_environment(), "OMP_NUM_THREADS": "1"}
    given = [f"data.root={lake}", *OPTIONS, "trainer=ddp_cpu"]
    done = run_script("train.py", *given, cwd=tmp_path, environment=env)
    assert done.returncode == 0, done.stderr
    assert_same(weights(together[0]), weights(tmp_path))
    ours, theirs = ({**run.data.metrics} for folder in (together[0], tmp_path) for run in runs(folder))
    for name in ours:
        if name.startswith(("test/", "train/")):
            assert ours[name] == theirs[name], name


@pytest.mark.slow  # of one task: test_slurm
@pytest.mark.long
def test_a_job_of_two_tasks_is_requeued_once_and_goes_on(
    together: tuple[Path, subprocess.CompletedProcess[str]], lake: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(SCONTROL.format(log=tmp_path / "asked", code=0))
    scontrol.chmod(0o755)
    path = {"PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    given = [f"data.root={lake}", *OPTIONS, UNREGISTERED, BEFALL]
    first, other = by_srun(tmp_path, *given, variables=path | {"BEFALLS": "SIGUSR1"})
    assert (first.returncode, other.returncode) == (130, 130), first.stderr
    assert (tmp_path / "asked").read_text() == "requeue 12345\n"
    assert other.stdout + other.stderr == "" and "Traceback" not in first.stderr
    left = torch.load(only_folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    done = left["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"]
    assert (left["epoch"], done) == (1, 2)
    assert [run.info.status for run in runs(tmp_path)] == ["KILLED"]
    first, other = by_srun(tmp_path, *given, variables={"SLURM_RESTART_COUNT": "1"})
    assert (first.returncode, other.returncode) == (0, 0), first.stderr
    assert [run.info.status for run in runs(tmp_path)] == ["FINISHED"]
    assert_same(weights(tmp_path), weights(together[0]))
    first, other = by_srun(tmp_path, *given, variables={"SLURM_RESTART_COUNT": "1"})  # of two commands, it was done
    assert (first.returncode, other.returncode, len(runs(tmp_path))) == (0, 0, 1)


def test_a_process_that_is_killed_ends_all(lake: Path, tmp_path: Path) -> None:
    given = [f"data.root={lake}", *OPTIONS, UNREGISTERED, BEFALL]
    first, other = by_srun(tmp_path, *given, variables={"BEFALLS": "SIGKILL 1"})
    assert (first.returncode, other.returncode) == (1, -9)
    assert first.stderr.startswith(f"error: {GOES_ON}") and "Traceback" not in first.stderr
    assert (only_folder(tmp_path) / "checkpoints" / "last.ckpt").is_file()
    assert [run.info.status for run in runs(tmp_path)] == ["FAILED"]
    first, other = by_srun(tmp_path, *given, "ckpt_path=last", variables={"BEFALLS": "SIGKILL 0"})
    assert (first.returncode, other.returncode) == (-9, 1)
    assert other.stdout + other.stderr == ""


@pytest.mark.parametrize("workers", first_of(["0", "1"]))
def test_one_that_is_told_to_end_ends_all(lake: Path, tmp_path: Path, workers: str) -> None:
    given = [f"data.root={lake}", *OPTIONS, UNREGISTERED, BEFALL, f"data.num_workers={workers}"]
    first, other = by_srun(tmp_path, *given, variables={"BEFALLS": f"SIGTERM {workers}"})
    assert (first.returncode, other.returncode) == (130, 130), first.stderr + other.stderr
    assert first.stderr == "\ninterrupted; to go on: the same command of srun with ckpt_path=last\n"
    assert other.stdout + other.stderr == ""
    assert (only_folder(tmp_path) / "checkpoints" / "last.ckpt").is_file()
    assert [run.info.status for run in runs(tmp_path)] == ["KILLED"]
    if workers == "0":
        first, other = by_srun(tmp_path, *given, "ckpt_path=last", variables={"BEFALLS": "elsewhere"})
        assert (first.returncode, other.returncode) == (1, 1)
        assert re.fullmatch(r"error: outputs\S+/last\.ckpt is not there on \S+: all nodes must see .*\n", first.stderr)


@pytest.mark.parametrize("rank", first_of(["1", "0"]))
def test_a_mistake_in_any_process_is_one_sentence_of_the_first(lake: Path, tmp_path: Path, rank: str) -> None:
    given = [f"data.root={lake}", *OPTIONS, UNREGISTERED, BEFALL]
    first, other = by_srun(tmp_path, *given, variables={"BEFALLS": f"error {rank}"})
    assert (first.returncode, other.returncode) == (1, 1)
    assert first.stderr == f"error: process {rank} has a mistake\n"
    assert other.stdout + other.stderr == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["trainer.devices=1"], "srun has started 2 processes, but trainer.num_nodes=1 with trainer.devices=1 on each "
                                "makes 1: give trainer.devices=2"),
        (["-m", "seed=0,1"], "srun has started 2 processes, each of which would sweep: start a sweep alone"),
        (["data.root=gone"], "there is no folder 'gone'"),
        (["trainer.num_nodes=2", "trainer.devices=1"], " has 2 of the processes, but trainer.devices=1 is asked for"),
        (["trainer.nodes=2"], "unknown config key 'trainer.nodes'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence_of_the_first(
    lake: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    first, other = by_srun(tmp_path, f"data.root={lake}", *OPTIONS, *options)
    assert (first.returncode, other.returncode) == (1, 1), first.stderr
    assert said in first.stderr and first.stderr.count("\n") == 1 and first.stderr.startswith("error: ")
    assert other.stdout + other.stderr == ""
    assert not (tmp_path / "outputs").exists()


def test_processes_of_torchrun_and_of_srun_know_which_they_are() -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "GROUP_RANK": "1",
                "GROUP_WORLD_SIZE": "2"}  # fmt: skip
    srun = {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
            "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_NAME": "interactive"}  # fmt: skip
    assert here(torchrun) == Rank("torchrun", number=5, world=8, local=1, node=1, nodes=2)
    assert here(srun) == Rank("srun", number=5, world=8, local=1, node=1, nodes=2)
    assert here(srun | torchrun | {"SLURM_NTASKS": "2"}) == here(torchrun)  # torchrun as the task of each node
    for alone in (
        {},
        {"SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "4"},  # sbatch without srun, or a shell of salloc
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"},
        srun | {"SLURM_PTY_PORT": "33000"},  # a shell
        srun | {"SLURM_STEP_NUM_TASKS": "1"},
        torchrun | {"WORLD_SIZE": "1"},
        {"TORCHELASTIC_RUN_ID": "none", "RANK": "5"},  # a program that one of its processes has started
    ):
        assert here(alone) is None, alone


@pytest.mark.parametrize(
    ("variables", "nodes", "devices", "said"),
    [
        ({}, 2, 4, r"trainer\.num_nodes=2, but this process was started alone: use `srun --nodes=2 --ntasks-per-node=4"
                   r" python train\.py \.\.\.`, or on each node `torchrun --nnodes=2 --node-rank=0 --nproc-per-node=4"),
        ({"SLURM_NTASKS": "4"}, 1, 1, r"SLURM_NTASKS=4, but this process was started alone: use `srun python"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0",
          "GROUP_WORLD_SIZE": "1"}, 1, 2, r"torchrun has started one process, .* give it --nproc-per-node"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, 1, 1, "^OMPI_COMM_WORLD_SIZE=2: neither torchrun"),
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, 1, 1, "^WORLD_SIZE=4: .* would train alone: use one"),
        ({"SLURM_NTASKS": "1", "PMI_SIZE": "1", "WORLD_SIZE": ""}, 1, 1, None),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "2"}, 1, 8, None),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "2"}, 1, -1, None),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "2"}, 1, [0, 1],
         r"devices=2 on each makes 2: give trainer\.num_nodes=2 trainer\.devices=4$"),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "2"}, 2, 2,
         r"makes 4: start as many on each of the 2 nodes$"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, 2, 2,
         r"makes 4: give trainer\.num_nodes=1 trainer\.devices=2$"),
    ],
)  # fmt: skip
def test_a_number_of_processes_has_to_be_that_of_the_config(
    variables: dict[str, str], nodes: int, devices: Any, said: str | None
) -> None:
    if said is None:
        check_ranks(nodes, devices, sweep=False, environment=variables)
        return
    with pytest.raises(UserError, match=said):
        check_ranks(nodes, devices, sweep=False, environment=variables)


@pytest.mark.parametrize(
    ("nodes", "address"), [("gpu[07-09,12]", "gpu07"), ("a1,b2", "a1"), ("", "127.0.0.1"), ("x[3]", "x3")]
)
def test_tasks_of_srun_find_the_first_node(nodes: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2"})
    export(Rank("srun", number=5, world=8, local=1, node=1, nodes=2))
    found = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["RANK"], os.environ["LOCAL_RANK"]
    assert found == (address, str(15_000 + 125_456 % 17_000), "5", "1")


def test_a_large_catalog_travels_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    from tyre_lightning.lake import mapped
    from tyre_lightning.lake.catalog import Catalog

    monkeypatch.setattr(mapped, "LARGE", 10)
    keys = pa.array([f"v1/train/good/{number}.jpg" for number in range(100)], pa.large_string())
    catalog = Catalog(pa.table({"key": keys}), ("good",))
    with mapped.in_full():
        sent = pickle.dumps(catalog, 5)
    assert not mapped._files and pickle.loads(sent).table.equals(catalog.table)
    pickle.dumps(catalog, 5)
    assert len(mapped._files) == 1
