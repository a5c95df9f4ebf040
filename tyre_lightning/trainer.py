"""Lightning's trainer as the config asks for it."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import callbacks as lc
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf

from tyre_lightning.checkpointing import (
    BEST,
    FOLDER,
    LAST,
    FreshStart,
    KeptGradients,
    LastCheckpoint,
    WholeCheckpoints,
    sound,
    sweep_up,
)
from tyre_lightning.config import TrainConfig, TrainerConfig
from tyre_lightning.ending import JoinedSignals, Together
from tyre_lightning.epochs import EpochRows
from tyre_lightning.errors import UserError
from tyre_lightning.joined import JoinedDDP
from tyre_lightning.messages import have_logs
from tyre_lightning.model.averaging import Averaging
from tyre_lightning.model.best_epoch import BestEpoch
from tyre_lightning.parts import make_callbacks
from tyre_lightning.ranks import here
from tyre_lightning.tracking.logger import RunLogger
from tyre_lightning.tracking.pruning import pruning
from tyre_lightning.tracking.runs import Run

_EPOCHS, _MOST_EPOCHS = 12, 36
_STEPS = 250  # of the optimiser, that training makes at least where epochs are left


def build_trainer(
    config: TrainConfig, run: Run, folder: Path, *, new: bool, callbacks: Sequence[L.Callback] = ()
) -> L.Trainer:
    """Lightning's trainer with this project's callbacks.

    Args:
        config: of the training.
        run: which to log to.
        folder: of the run.
        new: whether a checkpoint to begin with is of another run.
        callbacks: beside this project's.

    Raises:
        UserError: as :func:`processes`.
    """
    options = config.trainer
    gpu, count = processes(options)
    outside = here() is not None
    precision: Any = precision_of(options)
    # Other processes take part in fit alone, so that everything round it (a sweep, the registry) happens once;
    # Lightning's "ddp" would run the whole script again on every rank.
    begin = [FreshStart()] if new else []
    sweep_up(folder / FOLDER)
    strategy: Any = "auto"
    if several := outside or count > 1:
        kind = JoinedDDP if outside else SpawnedDDP
        strategy = kind(find_unused_parameters=config.model.freeze_epochs > 0)
    trainer = L.Trainer(
        accelerator="gpu" if gpu else "cpu" if options.accelerator == "auto" else options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy,
        precision=precision,
        max_epochs=options.max_epochs,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val,
        deterministic="warn" if options.deterministic else False,
        sync_batchnorm=gpu and several,
        log_every_n_steps=options.log_every_n_steps,
        limit_train_batches=_share(options.limit_train_batches),
        limit_val_batches=_share(options.limit_val_batches),
        enable_progress_bar=False,  # EpochRows draws one
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module's own sampler repeats no image in evaluation
        num_sanity_val_steps=0,
        logger=RunLogger(run),
        callbacks=[
            *begin,
            KeptGradients(),
            *build_callbacks(config, folder),
            *([] if several else pruning()),
            *([Together()] if outside else []),
            *callbacks,
            EpochRows(config.operating_point.max_escape_rate, bar=options.enable_progress_bar),
        ],
        default_root_dir=folder,
        # Unless it was told of others, this process starts them itself, also in a job of SLURM or another cluster.
        plugins=[WholeCheckpoints(), TorchElasticEnvironment() if outside else LightningEnvironment()],
    )
    if outside:
        trainer._signal_connector = JoinedSignals(trainer)
    return trainer


class SpawnedDDP(DDPStrategy):
    """A process for each device; each says what the first one would, and no more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(start_method="spawn", **options)

    def setup_environment(self) -> None:
        """Where a process of it begins."""
        have_logs()
        super().setup_environment()


def precision_of(options: TrainerConfig) -> str:
    """Lightning's name of the precision that is trained in.

    Raises:
        UserError: as :func:`processes`.
    """
    auto = "bf16-mixed" if uses_gpu(options.accelerator) else "32-true"
    return auto if options.precision == "auto" else options.precision


def build_callbacks(config: TrainConfig, folder: Path) -> list[L.Callback]:
    """Checkpoints (best and last), learning rates, the confusion matrix, and what is switched on beside them."""
    options = config.callbacks
    best, last = Path(BEST).stem, Path(LAST).stem
    found: list[L.Callback] = [
        BestEpoch(
            dirpath=folder / FOLDER,
            filename=best,
            monitor=options.checkpoint.monitor,
            mode=options.checkpoint.mode,
            enable_version_counter=False,
        ),
        # Apart from the best, so that what an interrupt leaves never takes the best one's place.
        LastCheckpoint(
            save_on_exception=True,
            save_on_train_epoch_end=True,
            filename=last,
            dirpath=folder / FOLDER,
            enable_version_counter=False,
        ),
        # Within an epoch too, against what leaves no time to save: a lost node, kill -9.
        lc.ModelCheckpoint(
            train_time_interval=timedelta(minutes=options.checkpoint.minutes),
            filename=last,
            dirpath=folder / FOLDER,
            enable_version_counter=False,
        ),
        lc.LearningRateMonitor(logging_interval="step"),
    ]
    stop = options.early_stopping
    if stop.patience is not None:
        found.append(lc.EarlyStopping(stop.monitor, mode=stop.mode, patience=stop.patience))
    if options.ema.decay is not None:
        found.append(Averaging(options.ema.decay))
    return [*found, *make_callbacks(options.extra)]


def processes(options: TrainerConfig) -> tuple[bool, int]:
    """Whether they use GPUs, and how many there are.

    Raises:
        UserError: there is no GPU, or the count is none.
    """
    gpu = uses_gpu(options.accelerator)
    return gpu, device_count(options.devices, gpu)


def gpus(options: TrainerConfig) -> list[torch.device]:
    """The GPUs that are used; none on a CPU.

    Raises:
        UserError: as :func:`processes`.
    """
    gpu, count = processes(options)
    if not gpu:
        return []
    listed = OmegaConf.is_list(options.devices) or isinstance(options.devices, list)
    return [torch.device("cuda", int(index)) for index in (options.devices if listed else range(count))]


def device_name(options: TrainerConfig) -> str:
    """What the devices are called, for people: ``2 x NVIDIA H100``, or a processor's own name.

    Raises:
        UserError: as :func:`processes`.
    """
    names = Counter(torch.cuda.get_device_name(device) for device in gpus(options))
    return ", ".join(f"{times} x {name}" if times > 1 else name for name, times in names.items()) or _processor()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"CPU, {line.partition(':')[2].strip()}"
    return f"CPU, {platform.processor() or platform.machine()}"


def uses_gpu(accelerator: str) -> bool:
    """Whether a GPU is used.

    Raises:
        UserError: one is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if accelerator in ("gpu", "cuda") and not available:
        raise UserError("trainer.accelerator=gpu, but PyTorch sees no GPU here: use trainer=cpu")
    return available and accelerator in ("gpu", "cuda", "auto")


def device_count(devices: Any, gpu: bool) -> int:
    """How many processes ``trainer.devices`` asks for.

    Raises:
        UserError: it is neither a count, -1 nor a list of indices.
    """
    if OmegaConf.is_list(devices) or isinstance(devices, list):
        return len(devices)
    if not isinstance(devices, int) or devices == 0 or devices < -1:
        raise UserError(f"trainer.devices={devices} must be a count, -1 for all, or a list of indices")
    if devices == -1:
        return torch.cuda.device_count() if gpu else 1
    return devices


def best_checkpoint(trainer: L.Trainer, folder: Path) -> Path:
    """The best checkpoint of a run; where it is damaged, the last.

    Raises:
        UserError: no checkpoint of the run is whole.
    """
    paths = [item.best_model_path for item in trainer.checkpoint_callbacks if isinstance(item, lc.ModelCheckpoint)]
    best = sound(Path(paths[0] or folder / FOLDER / BEST))
    if best is None:
        raise UserError(f"no checkpoint in {folder / FOLDER} is whole any more: train again")
    return best


def steps_done(trainer: L.Trainer, folder: Path) -> int:
    """The optimiser's steps of a fit that has ended: this process has not counted those of processes it spawned."""
    if trainer.global_step:
        return trainer.global_step
    return int(torch.load(folder / FOLDER / LAST, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def epochs_of(options: TrainerConfig, images: int, batch_size: int) -> int:
    """How often training sees its images: as asked, or 12 times; where these are few, until it has made 250 steps.

    A network needs steps to learn, however few the images are; but after 36 epochs it has seen enough of each.

    Args:
        options: what is asked for.
        images: to train on.
        batch_size: of an optimiser step's batch, over all devices together.
    """
    if options.max_epochs is not None:
        return options.max_epochs
    batches, limit = math.ceil(images / batch_size), _share(options.limit_train_batches)
    if limit is not None:
        batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    steps = math.ceil(batches / options.accumulate_grad_batches)
    return min(_MOST_EPOCHS, max(_EPOCHS, math.ceil(_STEPS / max(1, steps))))


def _share(limit: float | None) -> int | float | None:
    """Lightning takes a whole number as a count of batches and a fraction as a share."""
    return int(limit) if limit is not None and limit > 1 else limit
