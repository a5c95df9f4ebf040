"""Training, top to bottom: data, model, fit, test, judge, register."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch.multiprocessing.spawn import ProcessRaisedException

from tyre_lightning.checkpointing import BEST, model_alone, save_whole
from tyre_lightning.checks import balanced_weights, check_means, check_monitors, check_readable
from tyre_lightning.config import (
    ClassWeights,
    TrainConfig,
    to_train_config,
)
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.decision.operating_point import JUDGEMENT
from tyre_lightning.errors import UserError
from tyre_lightning.files import disk_errors
from tyre_lightning.joined import joined, meet
from tyre_lightning.judging import Trained, find_shared, hand_over, settle
from tyre_lightning.memory import memory_errors
from tyre_lightning.messages import quiet
from tyre_lightning.model.classifier import MADE_AS, REFERENCE, TyreClassifier
from tyre_lightning.model.engine import check_export
from tyre_lightning.model.examples import EXAMPLES
from tyre_lightning.model.imbalance import log_priors
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.model.weights import load_weights
from tyre_lightning.opening import open_data
from tyre_lightning.ranks import check_ranks
from tyre_lightning.recording import (
    describe,
    record_data,
    record_setup,
    run_tags,
)
from tyre_lightning.resuming import check_checkpoint, done_before, find_checkpoint, run_folder, starting_point
from tyre_lightning.slurm import claim, requeued_when_told
from tyre_lightning.telling import tell_device, tell_end, tell_work
from tyre_lightning.titles import run_name
from tyre_lightning.tracking.journal import Journal
from tyre_lightning.tracking.registry import model_uri, run_model
from tyre_lightning.tracking.runs import send_left, tracked_run
from tyre_lightning.tracking.sweeps import in_sweep
from tyre_lightning.trainer import best_checkpoint, build_trainer, epochs_of, processes, steps_done

log = logging.getLogger(__name__)


@disk_errors()
@memory_errors("data.batch_size or data.image_size")
@requeued_when_told()
@joined()
def train(cfg: DictConfig, callbacks: Sequence[L.Callback] = ()) -> Trained:
    """Train on a composed config, judge the best checkpoint and register it.

    Args:
        cfg: the config.
        callbacks: beside this project's.

    Raises:
        UserError: something in the config, the lake or the addresses it names cannot be used.
    """
    config = to_train_config(cfg)
    check_ranks(config.trainer.num_nodes, config.trainer.devices, sweep=in_sweep())
    quiet()
    gpu, count = processes(config.trainer)
    meet(count, gpu=gpu)
    asked = find_checkpoint(config)
    check_means(config)
    tell_device(config.trainer)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = open_data(config)
    epochs = epochs_of(config.trainer, len(data.train), config.data.batch_size)
    config = replace(config, trainer=replace(config.trainer, max_epochs=epochs))
    catalogs = data.tagged()
    setup = describe(cfg, data, catalogs, epochs)
    if (done := done_before(config, setup)) is not None:
        send_left(Path(config.paths.output_dir), config.logger.tracking_uri)
        return finished_before(done)
    resume, unfinished = starting_point(config, asked, setup)
    check_monitors(config.callbacks, data)
    model = build_model(config, data, pretrained=resume is None)
    if resume is not None:
        check_checkpoint(resume, model, None if unfinished else epochs)
    folder = unfinished or run_folder(config)
    tell_work(config, data, model, folder)
    if unfinished is None:
        send_left(Path(config.paths.output_dir), config.logger.tracking_uri)
    name, tags = run_name(config, data.preprocessing.size), run_tags(config.trainer, setup["found"])
    tracked = tracked_run(config.logger, folder, name, tags, go_on=unfinished is not None)
    with tracked as run, requeued_when_told():  # before MLflow is waited for
        claim(folder)
        record_setup(run, cfg, setup)
        record_data(run, data, catalogs)
        run.flush()  # a server that takes nothing is a reason to stop now, and none later
        seen = find_shared(data)
        check_readable(data, config)
        trainer = build_trainer(config, run, folder, new=unfinished is None, callbacks=callbacks)
        fit(trainer, model, data, resume)
        best = best_checkpoint(trainer, folder)
        inspector = replace(Inspector.from_checkpoint(best), group_pattern=config.data.group_pattern)
        scores, metrics = settle(run, inspector, data, config, seen, steps_done(trainer, folder) + 1)
        add_judgement(best, inspector)
        said, cost = hand_over(run, inspector, data, config, scores, seen, setup["found"])
    tell_end(run, said)
    found = {name: float(value) for name, value in (trainer.callback_metrics | metrics | cost).items()}
    return Trained(run.id, folder, model_uri(run), found)


def finished_before(journal: Journal) -> Trained:
    """What a run that is not done again has left."""
    run_id = journal.run()["run_id"]
    return Trained(run_id, journal.folder.parent, run_model(run_id), journal.metrics())


def build_model(config: TrainConfig, data: TyreDataModule, *, pretrained: bool) -> TyreClassifier:
    """The classifier for a data set; ``pretrained`` fills it with the configured weights.

    Raises:
        UserError: the weights cannot be had.
    """
    options = config.model
    balanced = options.class_weights is ClassWeights.balanced
    model = TyreClassifier(
        name=options.backbone,
        classes=list(data.classes),
        preprocessing=data.preprocessing.to_dict(),
        good_class=data.good_class,
        dropout=options.dropout,
        label_smoothing=options.label_smoothing,
        class_weights=balanced_weights(data) if balanced else None,
        freeze_epochs=options.freeze_epochs,
        freeze_stages=0 if options.weights == "none" else options.freeze_stages,
        channels_last=options.channels_last,
        optimizer=options.optimizer.rates(),
        multi_label=config.data.multi_label,
        log_priors=log_priors(config, [*data.train.counts().values()]),
        outliers=options.outliers,
    )
    model.use(options.loss, options.optimizer.own)
    model.batch_size = config.data.batch_size
    if pretrained:
        load_weights(model.network, options.backbone, options.weights, config.s3)
    check_export(model.network, options.backbone, data.preprocessing.size)
    return model


def fit(trainer: L.Trainer, model: TyreClassifier, data: TyreDataModule, resume: Path | None) -> None:
    """Fit; Ctrl-C and SIGTERM leave ``last.ckpt`` and go on as the KeyboardInterrupt that Lightning makes an exit of.

    Raises:
        UserError: also where one of several processes raised it, of which torch only hands on the traceback's text.
    """
    try:
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        if trainer.received_sigterm:  # when the last step was done
            raise SystemExit
    except SystemExit:
        raise KeyboardInterrupt from None
    except ProcessRaisedException as error:
        found = re.search(rf"^{re.escape(UserError.__module__)}\.\w+: (.+)", str(error), re.MULTILINE)
        if found is None:
            raise
        raise UserError(found[1]) from None


def add_judgement(checkpoint: Path, inspector: Inspector) -> None:
    """Write what decides into a checkpoint, so that it answers as the registered model does.

    The best one keeps the model alone, since a training goes on from the last.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = model_alone(content) if checkpoint.name == BEST else content
    judged: dict[str, Any] = {JUDGEMENT: inspector.judgement(), MADE_AS: max(kept.get(MADE_AS, 1), inspector.format)}
    if inspector.reference is not None:
        judged |= {REFERENCE: inspector.reference_tensors(), EXAMPLES: inspector.example_tensors()}
    save_whole({**kept, **judged}, checkpoint)
