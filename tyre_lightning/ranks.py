"""Which of several processes this is, where torchrun or srun has started them for one training; whether they fit."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tyre_lightning.errors import UserError

# How many processes there are, by mpirun (Open MPI, MPICH) and by what starts PyTorch's in its own way.
_OTHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")


@dataclass(frozen=True)
class Rank:
    """One of the processes of a training.

    Args:
        by: what has started them: torchrun or srun.
        number: of this one, from 0.
        world: how many there are.
        local: its number among those of its node, from 0.
        node: its node's number, from 0.
        nodes: how many nodes there are.
    """

    by: str
    number: int
    world: int
    local: int
    node: int
    nodes: int

    @property
    def first(self) -> bool:
        """Whether it is the one that trains as one alone would, while the others take part in its fit."""
        return self.number == 0


def here(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """Which one this process is; None where it is alone, and starts others itself if there are to be any."""
    if environment.get("TORCHELASTIC_RUN_ID"):
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE")
        numbers = [environment.get(name, "") for name in names]
        if not all(map(str.isdecimal, numbers)):  # a program of a process of torchrun's, without all that it was told
            return None
        rank = Rank("torchrun", *map(int, numbers))
        return rank if rank.world > 1 else None
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or "1"  # what srun sets, and sbatch does not
    if tasks == "1" or "SLURM_PROCID" not in environment or "SLURM_PTY_PORT" in environment:  # a shell in the first
        return None
    number, local, node, nodes = (
        int(environment.get(f"SLURM_{name}") or default)
        for name, default in (("PROCID", 0), ("LOCALID", 0), ("NODEID", 0), ("STEP_NUM_NODES", 1))
    )
    return Rank("srun", number, int(tasks), local, node, nodes)


def check_ranks(nodes: int, devices: Any, *, sweep: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a number of processes that is not what the config asks for.

    Args:
        nodes: ``trainer.num_nodes``.
        devices: ``trainer.devices``, those of each node.
        sweep: whether the training is one of a sweep's.
        environment: of the process.

    Raises:
        UserError: says what to give instead.
    """
    rank = here(environment)
    check_sweep(rank, sweep=sweep)
    if rank is None:
        _check_alone(nodes, devices, environment)
    elif (count := _count(devices)) is not None and nodes * count != rank.world:
        raise UserError(
            f"{rank.by} has started {rank.world} processes, but trainer.num_nodes={nodes} with trainer.devices="
            f"{count} on each makes {nodes * count}: {_fitting(rank, nodes)}"
        )


def check_sweep(rank: Rank | None, *, sweep: bool) -> None:
    """Refuse a sweep of several processes, or a run of it.

    Raises:
        UserError: each would sweep.
    """
    if rank is not None and sweep:
        raise UserError(
            f"{rank.by} has started {rank.world} processes, each of which would sweep: start a sweep alone, and each "
            "of its runs as one task (a training starts its own processes by trainer.devices)"
        )


def check_apart(rank: Rank | None, shard: int | None) -> None:
    """Refuse several processes of what one does, unless each has a shard of it.

    Raises:
        UserError: each would do all of it.
    """
    if rank is not None and shard is None:
        raise UserError(
            f"{rank.by} has started {rank.world} processes, each of which would do all of it: start one alone, or have "
            f"each predict or look at its own part, by shards={rank.world} 'shard=${{oc.env:SLURM_PROCID}}' with srun"
        )


def _check_alone(nodes: int, devices: Any, environment: Mapping[str, str]) -> None:
    if environment.get("TORCHELASTIC_RUN_ID") and (nodes, _count(devices)) != (1, 1):
        raise UserError(
            f"torchrun has started one process, but trainer.num_nodes={nodes} and trainer.devices={devices} ask for "
            "several: give it --nproc-per-node, or leave it out"
        )
    if nodes > 1:
        each = _count(devices) or "N"
        raise UserError(
            f"trainer.num_nodes={nodes}, but this process was started alone: use `srun --nodes={nodes} "
            f"--ntasks-per-node={each} python train.py ...`, or on each node `torchrun --nnodes={nodes} "
            f"--node-rank=0 --nproc-per-node={each} --master-addr=NODE train.py ...`, with its own --node-rank"
        )
    others = [name for name in _OTHERS if environment.get(name, "1") not in ("", "0", "1")]
    if others:
        raise UserError(
            f"{others[0]}={environment[others[0]]}: neither torchrun nor srun has started these processes, each of "
            "which would train alone: use one of those"
        )
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
    if tasks != "1" and not environment.get("TORCHELASTIC_RUN_ID"):
        raise UserError(
            f"SLURM_NTASKS={tasks}, but this process was started alone: use `srun python train.py ...`, with "
            "trainer.num_nodes and trainer.devices; or give SLURM --ntasks=1 (and --cpus-per-task, --gpus)"
        )


def _fitting(rank: Rank, asked: int) -> str:
    """What to give where there are so many processes, and so many nodes are asked for."""
    if rank.world % rank.nodes:
        return f"start as many on each of the {rank.nodes} nodes"
    nodes = f"trainer.num_nodes={rank.nodes} " if max(rank.nodes, asked) > 1 else ""
    return f"give {nodes}trainer.devices={rank.world // rank.nodes}"


def _count(devices: Any) -> int | None:
    """How many they are; None where only a look at the GPUs says so, or they are no number at all."""
    if isinstance(devices, list):
        return len(devices)
    return devices if isinstance(devices, int) and devices > 0 else None


def leave_signals_to_first() -> None:
    """Have Ctrl-C and SLURM's USR1, which all processes get, end this one by way of the first."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
