"""Where a training begins: anew, from a checkpoint, or in the run that was broken off."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from tyre_lightning.config import TrainConfig
from tyre_lightning.errors import UserError
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.tracking.journal import Journal
from tyre_lightning.tracking.runs import as_params
from tyre_lightning.tracking.sweeps import in_sweep

log = logging.getLogger(__name__)


def done_before(setup: Mapping[str, Any]) -> dict[str, float] | None:
    """The metrics of a run of a sweep that has been continued, where that run has finished already."""
    journal = Journal.at(Path(HydraConfig.get().runtime.output_dir)) if in_sweep() else None
    if journal is None or journal.status() != "FINISHED" or different(journal, setup):
        return None
    log.info("this run has finished before: %s", journal.run()["run_id"])
    return journal.metrics()


def starting_point(config: TrainConfig, resume: str | None, setup: Mapping[str, Any]) -> tuple[str | None, Path | None]:
    """The checkpoint that training begins with, and the folder of the unfinished run that goes on with it, if any.

    Args:
        config: of the training.
        resume: the checkpoint that was found.
        setup: what the run's parameters would be.
    """
    unfinished = unfinished_run(resume, setup)
    if config.ckpt_path is None and unfinished is None:
        return None, None
    return resume, unfinished


def find_checkpoint(config: TrainConfig) -> str | None:
    """The checkpoint to resume from: the one that is asked for, or what a sweep that is continued has left here.

    Raises:
        UserError: there is none.
    """
    if config.ckpt_path is None:
        left = run_folder(config) / "checkpoints" / "last.ckpt"
        return str(left) if in_sweep() and left.is_file() else None
    if config.ckpt_path != "last":
        if not os.path.isfile(config.ckpt_path):
            raise UserError(f"ckpt_path={config.ckpt_path} does not exist: give a checkpoint's path, or last")
        return config.ckpt_path
    found = sorted(Path(config.paths.output_dir, "train").glob("*/checkpoints/last.ckpt"), key=os.path.getmtime)
    if not found:
        raise UserError(f"ckpt_path=last: no run in {config.paths.output_dir}/train has left a checkpoint yet")
    log.info("resuming from %s", found[-1])
    return str(found[-1])


def check_checkpoint(path: str, model: TyreClassifier, epochs: int | None) -> None:
    """Refuse to begin with another model's checkpoint, or with one that leaves a new run nothing to train.

    Args:
        path: of the checkpoint.
        model: to be trained.
        epochs: of a new run; None for the run that left the checkpoint.

    Raises:
        UserError: the file is no checkpoint, its backbone or classes differ, or its run had as many epochs.
    """
    saved = Inspector.from_checkpoint(path)
    for key, theirs, ours in (
        ("model.name", saved.name, model.hparams["name"]),
        ("data.classes", saved.classes, model.hparams["classes"]),
    ):
        if theirs != ours:
            raise UserError(f"{path} was trained with {key}={theirs}, not {ours}: give that, or another ckpt_path")
    if epochs is None:
        return
    loops = torch.load(path, map_location="cpu", weights_only=True)["loops"]
    done = loops["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done >= epochs:
        raise UserError(f"{path} is of a run that has done its {done} epochs: give a greater trainer.max_epochs")


def unfinished_run(resume: str | None, setup: Mapping[str, Any]) -> Path | None:
    """The folder of the run that left a checkpoint and goes on now: it did not finish, and its parameters are these."""
    folder = None if resume is None else Path(resume).absolute().parent.parent
    journal = None if folder is None else Journal.at(folder)
    if journal is None or journal.status() == "FINISHED":
        return None
    if differing := different(journal, setup):
        log.info("this is a new run, because %s is not what run %s had", ", ".join(differing), journal.run()["run_id"])
        return None
    return folder


def different(journal: Journal, setup: Mapping[str, Any]) -> list[str]:
    """The names of the parameters in which a run differs from the one that a journal is of."""
    recorded, given = journal.params(), as_params(setup)
    return sorted(key for key in recorded | given if recorded.get(key) != given.get(key) and key != "ckpt_path")


def run_folder(config: TrainConfig) -> Path:
    """The folder of a run: Hydra's, of a script that trains once; else a new one each time, where that would be too."""
    if HydraConfig.initialized():
        folder = Path(HydraConfig.get().runtime.output_dir)
        if in_sweep() or Journal.at(folder) is None:
            return folder
    return Path(config.paths.output_dir, "train", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
