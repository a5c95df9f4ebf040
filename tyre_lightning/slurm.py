"""A training as a job of SLURM: which job it is, what it may ask of SLURM, and how it is started again."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tyre_lightning.errors import first_line
from tyre_lightning.files import write_whole

JOB_FILE = "slurm_job"  # in a run's folder: which job it belongs to
JOB_TAG = "slurm_job"  # of the run in MLflow
_PATIENCE = 20.0  # seconds for SLURM's answer

log = logging.getLogger(__name__)


def job(environment: Mapping[str, str] = os.environ) -> str | None:
    """The job that this process runs in, the same after it was requeued; of an array, with the task."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID") or None


def started_again(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the job has run before, and was requeued."""
    return job(environment) is not None and environment.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def claim(folder: Path) -> None:
    """Write into a run's folder which job it belongs to, if to any."""
    if (name := job()) is not None:
        write_whole(folder / JOB_FILE, name)


@contextmanager
def requeued_when_told() -> Iterator[None]:
    """Inside, the signal of ``#SBATCH --signal=USR1@SECONDS`` ends a training as Ctrl-C does, and queues its job again.

    While Lightning trains, its present step is done first, and ``last.ckpt`` is written. Outside a job nothing changes.
    """
    name, owner, told = job(), os.getpid(), False
    if name is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if os.getpid() != owner:
            return  # a worker, which was forked: SLURM tells all processes
        told = True
        if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # Lightning's, which waits for the end of the step
            signal.raise_signal(signal.SIGTERM)
            return
        for process in multiprocessing.active_children():  # of several that train, none would end by itself
            process.kill()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, end)
    try:
        yield
    except KeyboardInterrupt:
        if told:
            _requeue(name)
        raise
    finally:
        signal.signal(signal.SIGUSR1, before)


def _requeue(name: str) -> None:
    """Ask SLURM to queue a job again; where it does not, a command of the user's can still go on with the run."""
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, timeout=_PATIENCE)
        failed = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        failed = first_line(error)
    if failed:
        log.warning("SLURM does not queue job %s again (%s): ckpt_path=last goes on with the run", name, failed)
    else:
        log.info("SLURM queues job %s again, which goes on with the run", name)
