"""How several processes of one training, on one machine or many, reach each other beside what PyTorch has for them."""

from __future__ import annotations

import json
import os
import pickle
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo, ReduceOp, Store
from torch.distributed.rendezvous import rendezvous

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.lake.mapped import in_full
from tyre_lightning.ranks import Rank

_LONG = timedelta(days=365)  # the others wait while the first looks at its images; if it ends, they hear of it
_TOGETHER = 256 << 20  # bytes that are sent at one time
_LOWEST_PORT, _PORTS = 15_000, 17_000  # below those that Linux gives away by itself


_company: Company | None = None  # of this process


class Lost(Exception):
    """A process does not answer any more, or has never come."""


class Company:
    """The processes of a training, connected.

    Args:
        rank: which one this is.
        patience: until all are there.

    Raises:
        Lost: they are not; says so.
    """

    def __init__(self, rank: Rank, patience: timedelta) -> None:
        self.rank = rank
        export(rank)
        try:
            self._store = self._meet(patience)
            self._group = self._connect("work")
            self._watch = self._connect("watch")
        except (RuntimeError, OSError, ValueError) as error:
            raise Lost(f"the {rank.world} processes cannot reach each other at {_place()} ({first_line(error)}): "
                       "MASTER_ADDR and MASTER_PORT may name another place") from error  # fmt: skip

    def _meet(self, patience: timedelta) -> Store:
        """Wait until all are there."""
        rank = self.rank
        store = PrefixStore("tyre", next(rendezvous("env://", rank.number, rank.world, timeout=patience))[0])
        found = {
            "node": rank.node,
            "local": rank.local,
            "host": socket.gethostname(),
            "gpus": torch.cuda.device_count(),
        }
        store.set(f"here/{rank.number}", json.dumps(found))
        if not rank.first:
            store.wait(["all"], patience)
            return store
        keys = [f"here/{number}" for number in range(rank.world)]
        try:
            store.wait(keys, patience)
        except RuntimeError as error:
            missing = [number for number, key in enumerate(keys) if not store.check([key])]
            raise Lost(
                f"of {rank.world} processes {len(missing)} did not come within {patience.total_seconds():.0f} seconds "
                f"(RANK {', '.join(map(str, missing))}): look at what they or their nodes say"
            ) from error
        store.set("all", "")
        return store

    def _connect(self, name: str) -> Any:
        return ProcessGroupGloo(PrefixStore(name, self._store), self.rank.number, self.rank.world, _LONG)

    def check(self, devices: int, *, gpu: bool) -> None:
        """Refuse processes that do not lie on their nodes as the config has it.

        Args:
            devices: of each node.
            gpu: whether each process is to use one.

        Raises:
            UserError: names the first node where it is not so.
        """
        found = [json.loads(self._store.get(f"here/{number}")) for number in range(self.rank.world)]
        counts = Counter(one["node"] for one in found)
        for one in found:
            if (count := counts[one["node"]]) != devices:
                raise UserError(f"{one['host']} has {count} of the processes, but trainer.devices={devices} is asked "
                                "for on each node: start as many on each")  # fmt: skip
            if gpu and one["gpus"] < devices:
                raise UserError(
                    f"a process on {one['host']} sees {one['gpus']} GPUs, but trainer.devices={devices} takes as many "
                    "on each node: give fewer, or let each process see all (SLURM: --gpus-per-node, not per task)"
                )

    def send(self, thing: Any) -> None:
        """Send a thing to all others, which :meth:`receive` it. Its columns and arrays are sent without a copy.

        Raises:
            Lost: one is gone.
        """
        buffers: list[memoryview] = []
        with in_full():
            whole = pickle.dumps(thing, 5, buffer_callback=lambda one: buffers.append(one.raw()))
        parts = [memoryview(whole), *buffers]
        self._broadcast(torch.tensor([len(parts)]))
        self._broadcast(torch.tensor([part.nbytes for part in parts]))
        for part in parts:
            self._move(part)

    def receive(self) -> Any:
        """What the first process sends next, however long that takes.

        Raises:
            Lost: it is gone.
        """
        self._broadcast(count := torch.zeros(1, dtype=torch.int64))
        self._broadcast(sizes := torch.zeros(int(count), dtype=torch.int64))
        parts = [bytearray(int(size)) for size in sizes]
        for part in parts:
            self._move(memoryview(part))
        whole, *buffers = parts
        return pickle.loads(whole, buffers=buffers)

    def _move(self, part: memoryview) -> None:
        for start in range(0, part.nbytes, _TOGETHER):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not writable.*")  # and it is only read
                self._broadcast(torch.frombuffer(part[start : start + _TOGETHER], dtype=torch.uint8))

    def _broadcast(self, numbers: Tensor) -> None:
        self._together(partial(self._group.broadcast, numbers, 0))

    def any(self, said: bool) -> bool:
        """Whether any process says so; all have to be asked.

        Raises:
            Lost: one is gone.
        """
        numbers = torch.tensor([int(said)])
        self._together(partial(self._group.allreduce, numbers, ReduceOp.MAX))
        return bool(numbers)

    def _together(self, do: Callable[[], Any]) -> None:
        try:
            do().wait()
        except RuntimeError as error:
            raise Lost(first_line(error)) from error

    def end_with_first(self, end: Callable[[], None]) -> None:
        """Call a function, in a thread, when the first process is gone without having said so."""

        def watch() -> None:
            try:
                self._watch.recv([torch.zeros(1)], 0, 0).wait()
            except RuntimeError:
                end()

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()

    def wait_for_first(self) -> None:
        """Until it has said that it goes on alone."""
        self._thread.join()

    def let_go(self) -> None:
        """In the first process: the others may go on without it."""
        for number in range(1, self.rank.world):
            self._together(partial(self._watch.send, [torch.zeros(1)], number, 0))

    def report(self, error: BaseException) -> None:
        """Leave for the first process why this one ends."""
        self._store.set("failed", pickle.dumps(error).hex())

    def reported(self) -> BaseException | None:
        """Why another has ended, if it has said so."""
        try:
            if self._store.check(["failed"]):
                found: BaseException = pickle.loads(bytes.fromhex(self._store.get("failed").decode()))
                return found
        except RuntimeError:  # the store is gone with a node
            pass
        return None


def gather(rank: Rank, patience: timedelta) -> Company:
    """Meet the others, as :class:`Company` does."""
    global _company
    _company = Company(rank, patience)
    return _company


def present() -> Company:
    """What :func:`gather` gave."""
    assert _company is not None
    return _company


def export(rank: Rank) -> None:
    """Set the variables that torchrun would have set, where srun has started the processes."""
    if rank.by == "torchrun":
        return
    nodes = next((found for name in ("STEP_NODELIST", "NODELIST") if (found := os.environ.get(f"SLURM_{name}"))), "")
    address = SLURMEnvironment.resolve_root_node_address(nodes) if nodes else "127.0.0.1"
    digits = [
        int(text) if (text := os.environ.get(f"SLURM_{name}", "")).isdecimal() else 0 for name in ("JOB_ID", "STEP_ID")
    ]
    port = _LOWEST_PORT + (digits[0] + 1000 * digits[1]) % _PORTS  # all know it, and jobs that share a node have others
    os.environ |= {
        "RANK": str(rank.number),
        "WORLD_SIZE": str(rank.world),
        "LOCAL_RANK": str(rank.local),
        "GROUP_RANK": str(rank.node),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", address),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(port)),
    }


def _place() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
