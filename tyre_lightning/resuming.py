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

from tyre_lightning.checkpointing import FOLDER, LAST, LOOPS, sound
from tyre_lightning.config import TrainConfig
from tyre_lightning.errors import UserError
from tyre_lightning.model.classifier import OPTIMIZER, TyreClassifier
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.parts import ADAMW
from tyre_lightning.slurm import JOB_FILE, job, started_again
from tyre_lightning.tracking.journal import Journal
from tyre_lightning.tracking.runs import as_params
from tyre_lightning.tracking.sweeps import in_sweep

# Settings that change neither the model nor what is measured of it. With others of them a run that was broken off goes
# on as the same run; with another of any other setting it is a new one.
CHANGE_NOTHING = frozenset(
    {
        "ckpt_path",
        "data.num_workers",
        "data.worker_start",
        "data.cache_dir",
        "data.cache_gb",
        "data.looks",
        "s3.endpoint_url",  # the fingerprint says whether the images are the same
        "s3.region",
        "s3.profile",
        "s3.anonymous",
        "s3.path_style",
        "trainer.log_every_n_steps",
        "trainer.enable_progress_bar",
        "callbacks.checkpoint.minutes",
        "logger.system_metrics",
        "paths.output_dir",
    }
)

log = logging.getLogger(__name__)


def done_before(config: TrainConfig, setup: Mapping[str, Any]) -> Journal | None:
    """The run that has finished already, of a sweep that is continued or a job that is started again."""
    for folder in [run_folder(config)] if in_sweep() else runs_of_job(config) if started_again() else []:
        journal = Journal.at(folder)
        if journal is not None and journal.status() == "FINISHED" and not different(journal, setup):
            log.info("this run has finished before: %s", journal.run()["run_id"])
            return journal
    return None


def starting_point(
    config: TrainConfig, asked: Path | None, setup: Mapping[str, Any]
) -> tuple[Path | None, Path | None]:
    """The checkpoint that training begins with, and the folder of the unfinished run that goes on with it, if any.

    A sweep that is continued, and a job of SLURM that is started again, go on with what they have left.

    Args:
        config: of the training.
        asked: the checkpoint that is asked for.
        setup: what the run's parameters would be.
    """
    if asked is not None and is_unfinished(folder := asked.absolute().parent.parent, setup):
        return asked, folder
    for folder in [run_folder(config)] if in_sweep() else runs_of_job(config):
        if is_unfinished(folder, setup) and (left := sound(folder / FOLDER / LAST)) is not None:
            return left, folder
    return asked, None


def find_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint that is asked for; where it is damaged, the one before it.

    Raises:
        UserError: there is none.
    """
    if config.ckpt_path is None:
        return None
    path = _newest(config) if config.ckpt_path == "last" else Path(config.ckpt_path)
    if not path.is_file():
        raise UserError(f"ckpt_path={path} does not exist: give a checkpoint's path, or last")
    if (found := sound(path)) is None:
        raise UserError(f"{path} is damaged or no checkpoint, and no whole one lies beside it: give another ckpt_path")
    log.info("resuming from %s", found)
    return found


def _newest(config: TrainConfig) -> Path:
    """The newest last checkpoint of this experiment's runs."""
    place, experiment = Path(config.paths.output_dir, "train"), config.logger.experiment
    for path in sorted(place.glob(f"*/{FOLDER}/{LAST}"), key=os.path.getmtime, reverse=True):
        journal = Journal.at(path.parents[1])
        if journal is not None and journal.params().get("logger.experiment") == experiment:
            return path
    raise UserError(
        f"ckpt_path=last: no run of experiment '{experiment}' in {place} has left a checkpoint yet: give a "
        "checkpoint's path, or leave ckpt_path out"
    )


def runs_of_job(config: TrainConfig) -> list[Path]:
    """The folders of the runs that the present job of SLURM has begun, the newest first."""
    files = sorted(Path(config.paths.output_dir, "train").glob(f"*/{JOB_FILE}"), key=os.path.getmtime, reverse=True)
    return [file.parent for file in files if file.read_text(encoding="utf-8") == job()]


def check_checkpoint(path: Path, model: TyreClassifier, epochs: int | None) -> None:
    """Refuse to begin with another model's checkpoint, one without progress, or one that leaves nothing to train.

    Args:
        path: of the checkpoint.
        model: to be trained.
        epochs: of a new run; None for the run that left the checkpoint.

    Raises:
        UserError: the file is no checkpoint or has the model alone, its backbone, classes, kind of outputs or optimiser
            differ, or its run had as many epochs.
    """
    saved = Inspector.from_checkpoint(path)
    for key, theirs, ours in (
        ("model.name", saved.name, model.hparams["name"]),
        ("data.classes", saved.classes, model.hparams["classes"]),
        ("data.multi_label", saved.multi_label, model.hparams["multi_label"]),
    ):
        if theirs != ours:
            raise UserError(f"{path} was trained with {key}={theirs}, not {ours}: give that, or another ckpt_path")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if LOOPS not in content:
        raise UserError(
            f"{path} keeps the model of a training that is done, and nothing to go on from: that takes its {LAST}, or "
            f"begin anew with model.weights={path}"
        )
    if epochs is None:
        return
    if (theirs := content.get(OPTIMIZER, ADAMW)) != model.optimizer_name:
        raise UserError(f"{path} was trained by {theirs}, whose state says nothing to {model.optimizer_name}: give "
                        "that as model.optimizer.own, or model.weights=PATH to begin with its weights")  # fmt: skip
    done = content[LOOPS]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done >= epochs:
        raise UserError(f"{path} is of a run that has done its {done} epochs: give a greater trainer.max_epochs")


def is_unfinished(folder: Path, setup: Mapping[str, Any]) -> bool:
    """Whether a folder's run goes on now: it did not finish, and its parameters are these."""
    journal = Journal.at(folder)
    if journal is None or journal.status() == "FINISHED":
        return False
    if differing := different(journal, setup):
        log.info("this is a new run, because %s is not what run %s had", ", ".join(differing), journal.run()["run_id"])
    return not differing


def different(journal: Journal, setup: Mapping[str, Any]) -> list[str]:
    """The names of the parameters in which a run differs from the one that a journal is of."""
    recorded, given = journal.params(), as_params(setup)
    keys = (recorded.keys() | given.keys()) - CHANGE_NOTHING
    return sorted(key for key in keys if recorded.get(key) != given.get(key))


def run_folder(config: TrainConfig) -> Path:
    """The folder of a run: Hydra's, of a script that trains once; else a new one each time, where that would be too."""
    if HydraConfig.initialized():
        folder = Path(HydraConfig.get().runtime.output_dir)
        if in_sweep() or Journal.at(folder) is None:
            return folder
    return Path(config.paths.output_dir, "train", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
