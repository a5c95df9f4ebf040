"""A training of several processes that were started from outside: the first trains, the others join its fit.

The first process does what a process alone does. What it would send to processes that it spawns for ``fit`` it sends to
those that are there: trainer, model and data. So they need no folder, no config and no list of images, and nothing is
decided or written twice. They leave when the fit is done.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.fabric.utilities.seed import _collect_rng_states
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.launcher import _Launcher
from lightning.pytorch.strategies.launchers.multiprocessing import _GlobalStateSnapshot
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistError

from tyre_lightning.company import Company, Lost, gather, present
from tyre_lightning.ending import JoinedSignals
from tyre_lightning.errors import UserError
from tyre_lightning.lake.mapped import forget_all
from tyre_lightning.memory import memory_errors
from tyre_lightning.messages import show_logs
from tyre_lightning.ranks import here, leave_signals_to_first

FAILED, INTERRUPTED = 1, 130  # exit codes
PATIENCE = timedelta(minutes=10)  # until all are there, and in fit until each has answered
_SHORT = timedelta(minutes=1)  # for those that are only to be told to leave
_SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # variables by which Lightning seeds a process and its workers
_THREADS = "OMP_NUM_THREADS"
_GONE = re.compile("gloo|NCCL|ProcessGroup")

_met = _parted = False  # whether the first process has met the others, and told them to leave


@dataclass(frozen=True)
class Before:
    """What the first process sends before its work: what that needs to be read, and how to begin it."""

    path: list[str]  # where Python finds a user's own parts
    seeds: dict[str, str]
    state: _GlobalStateSnapshot

    @classmethod
    def here(cls) -> Before:
        """As it is in this process."""
        seeds = {name: os.environ[name] for name in _SEEDS if name in os.environ}
        state = replace(_GlobalStateSnapshot.capture(), rng_states=_collect_rng_states(include_cuda=False))
        return cls([*filter(None, sys.path), os.getcwd()], seeds, state)

    def take_over(self) -> None:
        """Make it so in this process."""
        sys.path += [place for place in self.path if place not in sys.path]
        os.environ |= self.seeds
        self.state.restore()


@dataclass(frozen=True)
class Work:
    """A fit, as the first process begins it."""

    trainer: L.Trainer
    function: Callable[..., Any]
    args: Any

    def join(self) -> None:
        """Do as the first process does."""
        with suppress(SIGTERMException):
            call._call_and_handle_interrupt(self.trainer, self.function, *self.args)


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the first of several processes trains; the others take part in that, and end. One alone does as ever.

    Also for a whole function, as its decorator.
    """
    rank = here()
    if rank is not None and not rank.first:
        leave_signals_to_first()
        raise SystemExit(take_part())
    code = FAILED
    try:
        yield
        code = 0
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise
    finally:
        part(code)


def meet(devices: int, *, gpu: bool) -> None:
    """In the first of several processes, wait until all are there. One alone waits for nobody.

    Args:
        devices: of each node.
        gpu: whether each process is to use one.

    Raises:
        UserError: one does not come, or they do not lie on their nodes as they should.
    """
    global _met
    if (rank := here()) is None:
        return
    try:
        company = gather(rank, PATIENCE)
    except Lost as error:
        raise UserError(str(error)) from error
    _met = True
    company.check(devices, gpu=gpu)


def part(code: int) -> None:
    """In the first of several processes, let the others, if they still wait, end with an exit code."""
    global _parted
    rank = here()
    if rank is None or _parted:
        return
    _parted = True
    with suppress(Lost):
        company = present() if _met else gather(rank, _SHORT)
        company.send(code)
        company.let_go()


def take_part() -> int:
    """What a process does that is not the first: it joins its fit, quietly; gives the exit code."""
    rank = here()
    assert rank is not None
    show_logs()
    try:
        company = gather(rank, PATIENCE)
        company.end_with_first(lambda: _leave(FAILED))
        while not isinstance(work := company.receive(), int):
            if isinstance(work, Before):
                work.take_over()
                continue
            _check_seen(work, company)
            company.any(False)
            work.join()
        company.wait_for_first()
    except Lost:  # of which the first one says more, if it can
        return FAILED
    return work


def _check_seen(work: Work, company: Company) -> None:
    """End where a checkpoint to go on from is not seen from here."""
    for path in work.args:
        if isinstance(path, Path) and not path.is_file():
            said = f"{path} is not there on {socket.gethostname()}: all nodes must see the folder of a run that goes on"
            _end(company, work.trainer, UserError(said))


class Joining(_Launcher):
    """Has a fit run in all processes that were started from outside."""

    @property
    def is_interactive_compatible(self) -> bool:
        """No notebook is one of several processes."""
        return False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        """Run it here; the first process sends it to the others before, and lets them go after it.

        Raises:
            UserError: another process has failed, and maybe said why, or is gone.
        """
        company, first = present(), present().rank.first
        assert trainer is not None and isinstance(trainer._signal_connector, JoinedSignals)
        try:
            if first:
                company.send(Before.here())
                company.send(Work(trainer, function, args))
                company.any(False)  # all have it
            with memory_errors("data.batch_size or data.image_size"), _share_of_cores(trainer):
                result = function(*args, **kwargs)
        except SIGTERMException:  # in all of them at once
            raise
        except BaseException as error:
            if not first:
                _end(company, trainer, error)
            with suppress(Exception):  # so that nothing waits for the others from here on
                torch.distributed.destroy_process_group()
            trainer._signal_connector.over = True
            if _gone(error):
                raise company.reported() or _lost(company) from error
            if _terminated(trainer, error):
                raise SIGTERMException from error
            raise
        if first:
            trainer._signal_connector.received_sigterm = trainer._signal_connector.told
            torch.distributed.destroy_process_group()
            part(0)
        return result

    def kill(self, signum: Any) -> None:
        """Each process hears of a signal by itself."""


@contextmanager
def _share_of_cores(trainer: L.Trainer) -> Iterator[None]:
    """Inside, a process on a CPU takes its share of the cores of its node."""
    before, named = torch.get_num_threads(), os.environ.get(_THREADS)
    assert isinstance(trainer.strategy, JoinedDDP)
    _set_num_threads_if_needed(num_processes=trainer.strategy.num_processes)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if named is None:
            os.environ.pop(_THREADS, None)


def _gone(error: BaseException | None) -> bool:
    """Whether an error, or what it came in the midst of, says that another process is gone, or does not answer."""
    if error is None:
        return False
    said = isinstance(error, RuntimeError) and _GONE.search(str(error)) is not None
    return said or isinstance(error, Lost | DistError) or _gone(error.__context__)


def _terminated(trainer: L.Trainer, error: BaseException) -> bool:
    """Whether this process and its workers were told to end, as torchrun and SLURM tell all processes of a group."""
    assert isinstance(trainer._signal_connector, JoinedSignals)
    return trainer._signal_connector.told and isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _lost(company: Company) -> UserError:
    return UserError(
        f"another of the {company.rank.world} processes has ended, or has not answered for "
        f"{PATIENCE.total_seconds() / 60:.0f} minutes: look at what it or its node says; ckpt_path=last goes on"
    )


def _end(company: Company, trainer: L.Trainer, error: BaseException) -> NoReturn:
    """End a process that is not the first at an error, which the first one is to say if it is a user's.

    At once, so that all others hear of it.
    """
    if isinstance(error, UserError):
        company.report(error)
    elif _terminated(trainer, error):
        company.report(SIGTERMException())
        _leave(INTERRUPTED)
    elif not _gone(error):
        traceback.print_exception(error)
    _leave(FAILED)


def _leave(code: int) -> NoReturn:
    """End without what Python and the libraries do at their end, which may wait for the others."""
    forget_all()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class JoinedDDP(DDPStrategy):
    """A process for each device, on each node, of those that were started from outside."""

    def __init__(self, **options: Any) -> None:
        super().__init__(timeout=PATIENCE, **options)

    def _configure_launcher(self) -> None:
        self._launcher = Joining()
