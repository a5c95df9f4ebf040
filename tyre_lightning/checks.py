"""What no training can use, found out before one begins."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from torch import Tensor

from tyre_lightning.config import CallbacksConfig, TrainConfig
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.images import Images
from tyre_lightning.errors import UserError
from tyre_lightning.kernels import check_kernels
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.model.imbalance import class_weights
from tyre_lightning.parts import check_parts
from tyre_lightning.tracking.runs import check_database, check_experiment, connect
from tyre_lightning.trainer import gpus


def check_means(config: TrainConfig) -> None:
    """Refuse what nothing could be trained on or recorded in, before the lake is listed and every image looked at.

    Raises:
        UserError: a part of one's own cannot be used, a GPU is missing or of no use, the tracking server does not
            answer, or the experiment is deleted there.
    """
    check_parts(config)
    check_kernels(gpus(config.trainer))
    uri = config.logger.tracking_uri
    if uri.startswith("sqlite:///"):
        check_database(uri)
    if not uri.startswith("sqlite:") or os.path.exists(uri.partition("///")[2]):  # making one takes seconds
        check_experiment(connect(uri), config.logger.experiment)


def check_monitors(options: CallbacksConfig, data: TyreDataModule, occur: Sequence[str] | None = None) -> None:
    """Refuse to choose an epoch by what validation does not measure, or by what says nothing of how good it is.

    Args:
        options: what is monitored.
        data: with the validation images.
        occur: the classes that validation sees; None: those it has images of.

    Raises:
        UserError: names those there are.
    """
    monitors = {"checkpoint": options.checkpoint.monitor}
    if options.early_stopping.patience is not None:
        monitors["early_stopping"] = options.early_stopping.monitor
    occur = [name for name, images in data.val.counts().items() if images] if occur is None else occur
    possible = measured(occur, data.good_class, multi_label=data.config.multi_label)
    for name, monitor in monitors.items():
        if monitor not in possible:
            raise UserError(
                f"callbacks.{name}.monitor={monitor} cannot be used here: choose from {', '.join(possible)}"
            )


def measured(occur: Sequence[str], good_class: str | None, *, multi_label: bool = False) -> list[str]:
    """What validation on some classes says of how good the model is; precision only of classes that it predicted."""
    names = ["loss", "accuracy", "f1", *(f"recall/{name}" for name in occur)]
    if len(occur) > 1:
        names += ["auroc", *(["auroc_defective"] if good_class in occur else [])]
    if multi_label and (defects := [name for name in occur if name != good_class]):
        names += ["average_precision", *(f"average_precision/{name}" for name in defects)]
    return [f"val/{name}" for name in names]


def balanced_weights(data: TyreDataModule) -> list[float]:
    """The weight of each class in the loss.

    Raises:
        UserError: a class has no training image, so that no weight is enough.
    """
    counts = data.train.counts()
    for name, images in counts.items():
        if not images:
            raise UserError(
                f"model.class_weights=balanced cannot weigh class '{name}', of which no image is left to train on: add "
                "some, or give model.class_weights=none"
            )
    return class_weights([*counts.values()])


def check_readable(data: TyreDataModule, config: TrainConfig) -> None:
    """Refuse to train where not one image can be decoded, or to choose an epoch by what no image tells.

    Raises:
        UserError: names the images' usage, or the monitor.
    """
    options, batch_size = config.trainer, data.config.batch_size
    limits = {"train": options.limit_train_batches, "val": options.limit_val_batches}
    for usage, limit in limits.items():
        _check_limit(f"trainer.limit_{usage}_batches", limit, math.ceil(len(data.catalogs()[usage]) / batch_size))
    val = limited(data.val, options.limit_val_batches, batch_size)
    occur = {
        "train": _readable(data, data.train, 1),
        "val": _readable(data, val, sum(map(bool, val.counts().values()))),
    }
    for usage, found in occur.items():
        if not found:
            count = len(val if usage == "val" else data.train)
            raise UserError(
                f"none of the {count} {usage} images can be decoded: `python -m tyre_lightning.audit` says why"
            )
    check_monitors(config.callbacks, data, occur["val"])


def _check_limit(key: str, limit: float | None, batches: int) -> None:
    """Refuse a share of the batches that is less than one."""
    least = math.ceil(1000 / batches) / 1000
    if limit is not None and limit <= 1 and int(batches * limit) < 1:
        raise UserError(f"{key}={limit:g} leaves none of {batches} batches: give at least {least:g}")


def _readable(data: TyreDataModule, catalog: Catalog, most: int) -> list[str]:
    """Classes of which an image can be decoded, until ``most`` are found; of each no more are read than it takes."""
    images, found = Images(data.reader(), data.preprocessing, None), set[str]()
    shows = catalog.truth(data.classes)
    for index in range(len(catalog)):
        if len(found) == most:
            break
        names = {data.classes[place] for place in shows[index].nonzero()[0]}
        if not names <= found and isinstance(images.read([catalog.entry(index)])[0], Tensor):
            found |= names
    return [name for name in data.classes if name in found]


def limited(catalog: Catalog, limit: float | None, batch_size: int) -> Catalog:
    """The first images of a catalog: a share of them, or where the limit is above 1, as many batches."""
    if limit is None:
        return catalog
    count = int(limit) * batch_size if limit > 1 else round(limit * len(catalog))
    return catalog.take(list(range(min(count, len(catalog)))))
