"""What no training can use, found out before one begins."""

from __future__ import annotations

from torch import Tensor

from tyre_lightning.config import CallbacksConfig, TrainConfig, TrainerConfig
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.images import Images
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.metrics import class_weights
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.slurm import check_tasks
from tyre_lightning.tracking.runs import check_database, connect
from tyre_lightning.trainer import processes


def check_means(config: TrainConfig) -> None:
    """Refuse what nothing could be trained on or recorded in, before the lake is listed and every image looked at.

    Raises:
        UserError: a GPU is missing, SLURM starts several tasks, or the tracking server does not answer.
    """
    check_tasks()
    processes(config.trainer)
    if config.logger.tracking_uri.startswith("sqlite:///"):
        check_database(config.logger.tracking_uri)
    else:
        connect(config.logger.tracking_uri)


def check_monitors(options: CallbacksConfig, data: TyreDataModule) -> None:
    """Refuse to choose an epoch by what validation does not measure, or by what says nothing of how good it is.

    Raises:
        UserError: names those there are.
    """
    monitors = {"checkpoint": options.checkpoint.monitor}
    if options.early_stopping.patience is not None:
        monitors["early_stopping"] = options.early_stopping.monitor
    possible = measured(data)
    for name, monitor in monitors.items():
        if monitor not in possible:
            raise UserError(
                f"callbacks.{name}.monitor={monitor} cannot be used here: choose from {', '.join(possible)}"
            )


def measured(data: TyreDataModule) -> list[str]:
    """What every epoch's validation says of how good the model is; precision only of classes that it predicted."""
    occur = [name for name, images in data.val.counts().items() if images]
    names = ["loss", "accuracy", "f1", *(f"recall/{name}" for name in occur)]
    if len(occur) > 1:
        names += ["auroc", *(["auroc_defective"] if data.good_class in occur else [])]
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


def check_readable(data: TyreDataModule, options: TrainerConfig) -> None:
    """Refuse to train where not one image can be decoded, or to choose an epoch by none.

    Raises:
        UserError: names the images' usage.
    """
    images = Images(data.reader(), data.preprocessing, None)
    val = limited(data.val, options.limit_val_batches, data.config.batch_size)
    for usage, catalog in {"train": data.train, "val": val}.items():
        entries = (catalog.entry(index) for index in range(len(catalog)))
        if not any(isinstance(image, Tensor) for entry in entries for image in images.read([entry])):
            raise UserError(
                f"none of the {len(catalog)} {usage} images can be decoded: `python -m tyre_lightning.audit` says why"
            )


def limited(catalog: Catalog, limit: float | None, batch_size: int) -> Catalog:
    """The first images of a catalog: a share of them, or where the limit is above 1, as many batches."""
    if limit is None:
        return catalog
    count = int(limit) * batch_size if limit > 1 else round(limit * len(catalog))
    return catalog.take(list(range(min(count, len(catalog)))))
