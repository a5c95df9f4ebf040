"""The images that a config names, as training has them: one way for training and for whoever looks at it later."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tyre_lightning.audit.copies import read_copies
from tyre_lightning.audit.memory import open_memory
from tyre_lightning.config import TrainConfig
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.model.backbones import preset
from tyre_lightning.tracking.runs import fetch_catalog


def open_data(config: TrainConfig) -> TyreDataModule:
    """The data module of a checked config; the same config gives the same split.

    Raises:
        UserError: there is no such lake, run or catalog, or the folders do not make a data set.
    """
    copies = partial(read_copies, open_memory(config.data, config.s3)) if config.data.near_copies else None
    with TemporaryDirectory() as scratch:
        data = config.data
        if data.from_run is not None:
            data = replace(data, catalog=fetch_catalog(data.from_run, config.logger.tracking_uri, Path(scratch)))
        return TyreDataModule(data, config.s3, preset(config.model.backbone), config.seed, copies)
