"""Recalibration, top to bottom: find the version, its run and new validation tyres, judge as a training does, register.

The network stays as it is. What follows from tyres that it has not learnt from is made anew: what good tyres look like
to it, its temperature, its threshold. That takes one pass over the images in the place of a training.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tyre_lightning.config import RecalibrateConfig, TrainConfig, to_recalibrate_config, to_train_config
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.files import disk_errors
from tyre_lightning.judging import Trained, find_shared, hand_over, settle
from tyre_lightning.lake.pinned import load as load_pinned
from tyre_lightning.messages import quiet
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.names import one_form
from tyre_lightning.opening import open_data
from tyre_lightning.progress import say
from tyre_lightning.promote.unseen import Past, unseen
from tyre_lightning.recording import describe, record_data, record_setup, run_tags
from tyre_lightning.resuming import run_folder
from tyre_lightning.telling import tell_end
from tyre_lightning.tracking.registry import load_inspector, model_uri
from tyre_lightning.tracking.runs import CATALOG, CONFIG, LEARNT, connect, fetch_artifact, tracked_run
from tyre_lightning.tracking.versions import ORIGIN, find_version, version_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)


@disk_errors()
def recalibrate(cfg: DictConfig) -> Trained:
    """Judge a registered version by another data version, and register it anew with what it may now promise.

    Raises:
        UserError: the version, its run or the images cannot be used.
    """
    config = to_recalibrate_config(cfg)
    quiet()
    client = connect(config.tracking_uri, new=False)
    version = find_version(client, str(config.model))
    assert version is not None  # the config's check has seen that it is of the registry
    inspector = load_inspector(version_uri(version), config.tracking_uri)
    if inspector.good_class is None:
        raise UserError(f"model={config.model} decides nothing, since no class is known to be that of good tyres")
    with tempfile.TemporaryDirectory() as scratch:
        learnt = fetch_learnt(client, version, Path(scratch))
        return judge_anew(settings(config, client, version, inspector), inspector, version, learnt)


def judge_anew(cfg: DictConfig, inspector: Inspector, version: ModelVersion, learnt: Path) -> Trained:
    """As a training does once it has fitted.

    Args:
        cfg: see :func:`settings`.
        inspector: the version.
        version: in the registry.
        learnt: the list of images that its weights were learnt from.

    Raises:
        UserError: see :func:`recalibrate`.
    """
    config, uri = to_train_config(cfg), version_uri(version)
    data = open_data(config)
    warn_of_strangers(data, inspector)
    keep_new(data, learnt, config)
    catalogs = data.tagged()
    setup = describe(cfg, data, catalogs, 0)
    name, tags = f"{version.name} {version.version} recalibrated", run_tags(config.trainer, setup["found"])
    then = inspector.point
    with tracked_run(config.logger, run_folder(config), name, tags | {ORIGIN: uri}) as run:
        record_setup(run, cfg, setup)
        record_data(run, data, catalogs)
        run.log_file(learnt)
        seen = find_shared(data)
        scores, metrics = settle(run, inspector, data, config, seen, 0)
        if (now := inspector.point) is None:
            raise UserError(f"{len(data.val)} validation images are new to {uri}, too few for this promise: see above")
        said, cost = hand_over(run, inspector, data, config, scores, seen, setup["found"])
    was = "without one" if then is None else f"{then.threshold:.4f}"
    say(f"threshold by {len(data.val)} validation images that are new to {uri}: {now.threshold:.4f} (before: {was})")
    tell_end(run, said)
    return Trained(run.id, run.journal.folder.parent, model_uri(run), metrics | cost)


def settings(
    config: RecalibrateConfig, client: MlflowClient, version: ModelVersion, inspector: Inspector
) -> DictConfig:
    """The config of a version's training, on the other data version and with the other promise.

    Raises:
        UserError: its run has none that this version of the package knows.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = fetch_artifact(client, str(version.run_id), CONFIG, folder)
        try:
            found = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(path))
        except OmegaConfBaseException as error:
            raise UserError(f"the config of run {version.run_id} cannot be used: {first_line(error)}") from error
    here: dict[str, Any] = {
        "data": {
            "root": config.root, "bucket": None, "prefix": None, "catalog": None, "from_run": None, "folds": None,
            "fold": None, "classes": inspector.classes, "image_size": inspector.preprocessing.size,
        },
        "trainer": {"accelerator": config.accelerator, "devices": 1},
        "logger": {"tracking_uri": config.tracking_uri, "registered_model": version.name, "run_name": None},
        "operating_point": config.operating_point.asked(),
        "s3": config.s3,
    }  # fmt: skip
    merged = OmegaConf.merge(found, here)
    assert isinstance(merged, DictConfig)
    return merged


def fetch_learnt(client: MlflowClient, version: ModelVersion, folder: Path) -> Path:
    """Copy the list of images that a version's weights were learnt from into a folder; gives its path.

    Raises:
        UserError: its run has none.
    """
    run = client.get_run(str(version.run_id))
    found = fetch_artifact(client, run.info.run_id, LEARNT if ORIGIN in run.data.tags else CATALOG, folder)
    return found.rename(folder / LEARNT)


def warn_of_strangers(data: TyreDataModule, inspector: Inspector) -> None:
    """Name the classes that a network does not know: nothing is promised of them."""
    usages = data.config.usage.train, data.config.usage.val, data.config.usage.test
    there = {one_form(name) for usage in usages for name in data.store.prefixes(usage)}
    if strangers := sorted(there - {*inspector.classes}):
        log.warning(
            "the network does not know %s: their pictures do not count, and nothing is promised of them",
            ", ".join(f"'{name}'" for name in strangers),
        )


def keep_new(data: TyreDataModule, learnt: Path, config: TrainConfig) -> None:
    """Leave out the validation images of tyres that the weights were learnt from.

    Args:
        data: of the other version.
        learnt: the list of images.
        config: of both.

    Raises:
        UserError: none is left.
    """
    pinned = load_pinned(str(learnt), config.s3)
    trained = replace(pinned, catalogs={"train": pinned.catalogs["train"]})  # by val no weight was changed
    past = {"network": Past(trained, config.data.group_pattern, config.data.near_copies)}
    pair, shown = (data.val, data.tagged()["val"]), data.shown("val")
    kept = unseen(data.reader(), pair, shown, config.data.group_pattern, past, config.s3, "validation")
    data.val = data.val.take(kept)
    if not len(data.val):
        raise UserError(f"the network has learnt from all tyres of the validation images in {config.data.root}")
