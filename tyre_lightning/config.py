"""The schema of every config value: names, types, defaults and what they mean.

The dataclasses stand first in the defaults lists of ``conf/*.yaml``, so that an unknown or misspelt key fails wherever
it was written: on the command line, in an experiment file or behind ``+``. This module imports nothing heavy.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from tyre_lightning.errors import UserError, hide_passwords
from tyre_lightning.names import experiment_fault, model_fault, one_form, run_fault
from tyre_lightning.parts import check_spec, specs

_PACKAGE = Path(__file__).resolve().parent
# The config tree: beside the package in a checkout, within it where it is installed (pyproject.toml maps it there).
CONF = found if (found := _PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

BACKBONES = (
    *(f"efficientnet_b{i}" for i in range(8)),
    "efficientnet_v2_s",
    *(f"efficientnet_lite{i}" for i in range(3)),
)


# Lightning's names of what can be trained in; auto: bf16-mixed on GPUs, 32-true elsewhere.
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64")

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
ROW_FILES = (".parquet", ".csv", ".jsonl")  # what files of rows end in
MOST_SHARDS = 500  # a listing is written to as many files at once


class EvalCrop(Enum):
    """What of an image evaluation looks at."""

    whole = "whole"
    center = "center"


class Unreadable(Enum):
    """What happens when an image cannot be decoded."""

    skip = "skip"
    error = "error"


class Changed(Enum):
    """What happens when an image is no longer what the catalog lists."""

    reread = "reread"  # the new content is used, with a warning
    error = "error"


class Cache(Enum):
    """What is kept on the local disk between epochs and runs."""

    none = "none"
    files = "files"  # what was fetched from S3, byte for byte
    resized = "resized"  # pixels, decoded and made small: more disk, less work


class Sampling(Enum):
    """How often training sees an image."""

    natural = "natural"  # once an epoch
    balanced = "balanced"  # so often that all classes are seen equally often


class ClassWeights(Enum):
    """How classes weigh in the loss."""

    none = "none"
    balanced = "balanced"


class Library(Enum):
    """Whose networks there are to choose from."""

    torchvision = "torchvision"  # its EfficientNets, and Lite, which is made of their parts
    timm = "timm"  # which is to be installed


class WorkerStart(Enum):
    """How DataLoader workers are started; ``auto`` is the platform's own way."""

    auto = "auto"
    fork = "fork"
    forkserver = "forkserver"
    spawn = "spawn"


@dataclass
class S3Config:
    """Where the S3 service is. Credentials are never here: they come from the standard AWS chain."""

    endpoint_url: str | None = None  # null: AWS itself, or AWS_ENDPOINT_URL
    region: str | None = None  # null: as the AWS chain has it
    profile: str | None = None  # a profile of ~/.aws/config
    anonymous: bool = False  # requests are not signed: for buckets that are open to all
    path_style: bool | None = None  # null: path-style wherever an endpoint is given


@dataclass
class UsageConfig:
    """The folder names of the three usages below the root."""

    train: str = "train"  # the images to learn from
    val: str = "val"  # those that choose epoch, temperature and threshold
    test: str = "test"  # those that say how good the model is


@dataclass
class AugmentConfig:
    """Random changes of training images; evaluation never sees them."""

    min_scale: float = 0.5  # smallest share of the image's area that a random crop keeps
    flip: bool = True  # mirror left-right and top-bottom, each half of the time
    turn: bool = True  # by a quarter, half of the time; with both mirrorings all eight ways to lay a square
    brightness: float = 0.2  # at most this share more or less
    contrast: float = 0.2  # likewise
    saturation: float = 0.1  # likewise
    extra: dict[str, Any] = field(default_factory=dict)  # more, in order, each {_target_: ..., arguments} by a name


@dataclass
class DataConfig:
    """Which images, and how they reach the model."""

    root: str | None = None  # s3://bucket/prefix/version, or a folder with <usage>/<class>/... below it
    bucket: str | None = None  # with prefix, another way to write root: s3://<bucket>/<prefix>
    prefix: str | None = None  # the data version
    usage: UsageConfig = field(default_factory=UsageConfig)
    classes: list[str] | None = None  # null: every class folder below train
    good_class: str | None = None  # null: a class named good, ok, non_defective, ...
    multi_label: bool = False  # the same content in several class folders is one picture with several defects
    val_fraction: float = 0.2  # share of train held out where there is no val folder
    group_pattern: str | None = None  # what a file name's match says of the tyre, on which is decided
    near_copies: bool = True  # images that look the same, turned or cropped a little, stay on one side too
    looks: str | None = None  # a folder or s3://bucket/prefix where all machines keep what they saw of images
    folds: int | None = None  # of a cross-validation on the training images; one of them takes the place of test
    fold: int | None = None  # which one, from 0
    image_size: int | None = None  # pixels; null: 400, or what the images have; at least the backbone's own
    eval_crop: EvalCrop = EvalCrop.whole
    eval_views: int = 1  # 1, 2 or 4 mirrored views of an image, whose logits evaluation averages
    sampling: Sampling = Sampling.natural
    batch_size: int = 32  # images per optimiser step, over all devices together
    num_workers: int | None = None  # DataLoader processes per device; null: the cores, at most 8, and 16 for GPUs
    worker_start: WorkerStart = WorkerStart.auto
    unreadable: Unreadable = Unreadable.skip
    changed: Changed = Changed.reread
    cache: Cache = Cache.files
    cache_dir: str | None = None  # null: tyre-lightning in the user's cache folder
    cache_gb: float = 20.0  # the cache's bound; all runs with this folder share it
    catalog: str | None = None  # train on what this file lists: a path, or s3:// address, of a run's catalog.parquet
    from_run: str | None = None  # train on what this run trained on
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class OptimizerConfig:
    """AdamW, or an optimiser of one's own, with a linear warm-up and a cosine to zero."""

    backbone_lr: float = 5e-4  # the highest learning rate of the backbone
    head_lr: float = 3e-3  # the highest of the last layer
    weight_decay: float = 0.01  # of all weights but biases and norms
    warmup_fraction: float = 0.1  # share of all steps
    own: dict[str, Any] = field(default_factory=dict)  # {_target_: ..., arguments}: in place of AdamW, with these rates

    def rates(self) -> dict[str, float]:
        """All but the optimiser itself."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "own"}


@dataclass
class ModelConfig:
    """The classifier: backbone, weights, loss and optimiser."""

    library: Library = Library.torchvision
    name: str = "efficientnet_lite0"  # of the backbone in its library
    weights: str = "imagenet"  # imagenet, none, or a path or s3:// URI of a .ckpt, .pt, .pth or .safetensors file
    dropout: float | None = None  # null: the backbone's own
    label_smoothing: float = 0.1  # share of each label that is spread over all classes
    class_weights: ClassWeights = ClassWeights.none
    logit_adjustment: float = 0.5  # how far the loss makes up for rare classes: 0 not at all, 1 wholly
    outliers: float = 0.0  # pictures of no tyre that training makes and calls not good, for each of its own; try 0.125
    loss: dict[str, Any] = field(default_factory=dict)  # {_target_: ..., arguments}: in place of cross-entropy
    freeze_epochs: int = 0  # epochs in which only the head learns
    freeze_stages: int = 3  # of the backbone, from the stem on: they stay as the weights have them; 0 with weights=none
    channels_last: bool = True  # pixels before channels in memory, which is faster
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def backbone(self) -> str:
        """The backbone's name in models and checkpoints, which says its library too: ``timm/convnext_tiny``."""
        return f"timm/{self.name}" if self.library is Library.timm else self.name


@dataclass
class TrainerConfig:
    """What is passed to ``lightning.Trainer``, under the same names."""

    max_epochs: int | None = None  # times that training sees its images; null: 12, up to 36 where they are few
    accelerator: str = "auto"  # auto: a GPU where there is one; or cpu, gpu
    devices: Any = 1  # a count (-1: all) or a list of indices; more than one means a process each (DDP)
    num_nodes: int = 1  # machines, of as many devices each; torchrun or srun starts a process for each device
    precision: str = "auto"  # auto: bf16-mixed on GPUs, 32-true elsewhere
    accumulate_grad_batches: int = 1  # batches whose gradients are summed up for one step
    gradient_clip_val: float | None = 1.0  # the gradient's highest norm; null: any
    deterministic: bool = True  # the same seed gives the same run on the same machine
    log_every_n_steps: int = 10  # steps between two records of the training loss
    limit_train_batches: float | None = None  # of an epoch: a share (0.1) or a count (10); null: all
    limit_val_batches: float | None = None  # likewise
    limit_test_batches: float | None = None  # likewise
    enable_progress_bar: bool = True  # in the terminal


@dataclass
class CheckpointConfig:
    """Which checkpoints are kept: the best by ``monitor``, and the last."""

    monitor: str = "val/f1"  # any metric of validation
    mode: str = "max"  # to within a standard error the later epoch wins; see BestEpoch
    minutes: float = 10.0  # the last is kept so often within an epoch, and at its end


@dataclass
class EarlyStoppingConfig:
    """Stop when ``monitor`` has not improved for ``patience`` epochs; null: never."""

    monitor: str = "val/f1"  # any metric of validation
    mode: str = "max"  # max or min: which is better
    patience: int | None = None  # epochs


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, used for validation and for the saved model; null: off."""

    decay: float | None = 0.98  # over about 1 / (1 - decay) steps


@dataclass
class CallbacksConfig:
    """What watches the training."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    extra: dict[str, Any] = field(default_factory=dict)  # more, each {_target_: ..., arguments} by a name


@dataclass
class OperatingPointConfig:
    """What the line is promised: the threshold on P(defective) follows from it and from the validation images."""

    max_escape_rate: float = 0.05  # at most this share of defective tyres passes as good ...
    confidence: float = 0.95  # ... with this confidence
    max_overkill_rate: float | None = None  # with it, only as few good tyres are rejected; a person reviews the rest
    max_novel_rate: float | None = 0.01  # a person reviews what is more unlike good tyres than all but so few; null: no


@dataclass
class OtherOperatingPointConfig:
    """Another promise than the model was trained for; null: the model's own."""

    max_escape_rate: float | None = None  # at most this share of defective tyres passes as good ...
    confidence: float | None = None  # ... with this confidence
    max_overkill_rate: float | None = None  # with it, a person reviews what lies between
    max_novel_rate: float | None = None  # a person reviews what is more unlike good tyres than all but so few of them

    def asked(self) -> dict[str, float]:
        """What is not to stay as the model has it."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}


@dataclass
class LoggerConfig:
    """The MLflow server (or database file) that records runs and models."""

    tracking_uri: str = DEFAULT_TRACKING_URI  # a server's address, or a database's
    experiment: str = "tyre-defects"  # under which the run is found in MLflow
    run_name: str | None = None  # null: made of backbone, pixels, seed, and what a sweep's run was given
    registered_model: str | None = "tyre-defects"  # null: the model is logged, not registered
    system_metrics: bool = True  # record the load of processor, memory and GPU


@dataclass
class PathsConfig:
    """Where files go."""

    output_dir: str = "outputs"  # every run makes its own folder in it


@dataclass
class TrainConfig:
    """``python train.py``."""

    data: DataConfig = field(default_factory=DataConfig)
    s3: S3Config = field(default_factory=S3Config)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    operating_point: OperatingPointConfig = field(default_factory=OperatingPointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = 0  # of the split, the order of images, the head's first weights
    ckpt_path: str | None = None  # resume: a checkpoint's path, or last: of this experiment's newest run


@dataclass
class AuditConfig:
    """``python -m tyre_lightning.audit``."""

    data: DataConfig = field(default_factory=DataConfig)
    s3: S3Config = field(default_factory=S3Config)
    output: str = "audit"  # a folder
    shards: int = 1  # parts of the lake that processes can look at apart, beforehand; data.looks keeps what they saw
    shard: int | None = None  # the part that this process looks at, from 0 on; null: look at all, and judge


@dataclass
class PredictConfig:
    """``python predict.py``."""

    model: str | None = None  # models:/NAME/VERSION, models:/NAME@ALIAS, runs:/..., an inspector folder, a checkpoint
    input: str | None = None  # s3://bucket/prefix, a folder, a file, or a glob
    output: str = "predictions.parquet"  # .parquet, .csv or .jsonl; or a folder or s3://bucket/prefix for parts
    shards: int = 1  # parts of the whole that processes can do apart; more than one go to a folder or to S3
    shard: int | None = None  # the part that this process does, from 0 on; null: all that are not done yet
    explain: bool = False  # also draw where on each image the model saw a defect, and what looks most alike in training
    batch_size: int = 32  # images at a time
    accelerator: str = "auto"  # auto, cpu or gpu
    tracking_uri: str = DEFAULT_TRACKING_URI  # a server's address, or a database's
    operating_point: OtherOperatingPointConfig = field(default_factory=OtherOperatingPointConfig)
    s3: S3Config = field(default_factory=S3Config)


@dataclass
class ExportConfig:
    """``python -m tyre_lightning.export``."""

    model: str | None = None  # models:/NAME/VERSION, models:/NAME@ALIAS, runs:/..., an inspector folder, a checkpoint
    output: str = "tyre.onnx"  # the new file
    tracking_uri: str = DEFAULT_TRACKING_URI  # of the model registry


@dataclass
class ServeConfig:
    """``python -m tyre_lightning.serve``."""

    model: str | None = None  # models:/NAME@ALIAS, which is followed, or any that predict.py takes
    host: str = "127.0.0.1"  # the address to listen at; 0.0.0.0: all of this machine, and a token is needed
    port: int = 8080  # 0: any that is free
    open: bool = False  # whoever reaches the address may ask, without a token
    queue: int | None = None  # pictures that may wait, before more are refused; null: 512 a core
    tracking_uri: str = DEFAULT_TRACKING_URI  # a server's address, or a database's


@dataclass
class InboxConfig:
    """``python -m tyre_lightning.inbox``."""

    model: str | None = None  # models:/NAME@ALIAS, which is followed, or any that predict.py takes
    input: str | None = None  # where a camera puts its pictures: a folder, or s3://bucket/prefix
    output: str | None = None  # another folder, or s3://bucket/prefix, for the verdicts; null: beside the pictures
    pictures: int | None = None  # of a tyre, on which is decided as soon as they are there; null: it is not known
    wait: float = 10.0  # seconds after a tyre's last picture, when no more of it is expected
    tracking_uri: str = DEFAULT_TRACKING_URI  # a server's address, or a database's
    s3: S3Config = field(default_factory=S3Config)


@dataclass
class RecalibrateConfig:
    """``python -m tyre_lightning.recalibrate``."""

    model: str | None = None  # the registered version that stays as it is: models:/NAME/VERSION, models:/NAME@ALIAS
    root: str | None = None  # the data version whose validation tyres count, such as the one that accept has just made
    operating_point: OtherOperatingPointConfig = field(default_factory=OtherOperatingPointConfig)
    accelerator: str = "auto"  # auto, cpu or gpu
    tracking_uri: str = DEFAULT_TRACKING_URI  # a server's address, or a database's
    s3: S3Config = field(default_factory=S3Config)


@dataclass
class ResendConfig:
    """``python -m tyre_lightning.resend``."""

    folder: str = "outputs"  # of a run, or of many
    tracking_uri: str | None = None  # null: each run's own


@dataclass
class WatchConfig:
    """``python -m tyre_lightning.watch``."""

    model: str | None = None  # models:/NAME/VERSION, models:/NAME@ALIAS, runs:/..., an inspector folder, a checkpoint
    input: str | None = None  # the window: s3://bucket/prefix, a folder, a glob, or a predictions file of predict.py
    output: str = "watch.html"  # the page
    accept: bool = False  # or the word accept: this window is clean, and the baseline of those to come
    name: str | None = None  # of the window that is accepted
    baseline: str | None = None  # a file to keep the baseline in; null: with the registered version of the model
    group_by: str | None = None  # what a match in the key says of the line or camera: each is a window of its own
    time: str | None = None  # of the window, as 2026-11-25 or 2026-11-25T06:00; null: now
    tyres: int = 5000  # of a window that are looked at: at most so many are drawn
    batch_size: int = 32  # images at a time
    accelerator: str = "auto"  # auto, cpu or gpu
    mlflow_experiment: str = "tyre-line"  # under which windows are found in MLflow
    tracking_uri: str = DEFAULT_TRACKING_URI  # a server's address, or a database's
    s3: S3Config = field(default_factory=S3Config)


@dataclass
class GateConfig:
    """What a challenger must be to replace the champion."""

    margin: float = 0.03  # at most this share more of defective tyres escapes than with champion and anchor ...
    confidence: float = 0.9  # ... with this confidence, against each
    max_latency_ms: float | None = None  # for an image, on this machine
    max_escape_rate: float = 0.1  # these three hold for every challenger, the first one too
    max_overkill_rate: float = 0.3  # likewise
    min_f1: float = 0.8  # macro F1


@dataclass
class PromoteConfig:
    """``python -m tyre_lightning.promote``."""

    model: str | None = "tyre-defects"  # a registered model
    root: str | None = None  # where the test images are; null: where the challenger's training found them
    gate: GateConfig = field(default_factory=GateConfig)
    dry_run: bool = False  # compare, and change nothing
    rollback: bool = False  # return to the champion before, without a comparison
    anchor: bool = False  # make the champion the anchor, without a comparison
    tracking_uri: str = DEFAULT_TRACKING_URI  # a server's address, or a database's
    s3: S3Config = field(default_factory=S3Config)


@dataclass
class SelectConfig:
    """``python -m tyre_lightning.select``."""

    predictions: str | None = None  # what predict.py wrote of a window of the line, such as a week
    output: str = "queue.parquet"  # the tyres that a person should see
    budget: int = 300  # tyres
    model: str | None = None  # whose predictions they are; null: as they say; windows of one model are counted together
    root: str | None = None  # of the pictures, as predict.py's input; null: as the predictions say
    good_class: str | None = None  # null: a class named good, ok, non_defective, ...
    max_escape_rate: float = 0.05  # what is promised
    confidence: float = 0.95  # of the intervals
    width: float = 0.05  # of an interval of the escape rate: says how many tyres it takes
    seed: int = 0  # of the draws


class Tool(Enum):
    """Whose tasks and labels are exchanged."""

    label_studio = "label_studio"
    fiftyone = "fiftyone"


@dataclass
class ReviewConfig:
    """``python -m tyre_lightning.review``."""

    queue: str = "queue.parquet"  # what tyre select wrote
    answers: str = "answers"  # a folder, or s3://bucket/prefix, for what people say
    root: str | None = None  # of the pictures; null: as the queue says
    model: str | None = None  # whose looks are shown; null: as the queue says
    overlap: float = 0.0  # share of the tyres that two persons see, each by itself
    host: str = "127.0.0.1"  # the address to listen at; 0.0.0.0: all of this machine, and a token is needed
    port: int = 8090  # 0: any that is free
    name: str | None = None  # by which browsers call this machine, where that is neither its own name nor an IP address
    export_to: str | None = None  # write the queue's pictures as tasks of another tool, a JSON file; no page is served
    import_from: str | None = None  # read what was labelled there, a JSON file; no page is served
    tool: Tool = Tool.label_studio
    who: str | None = None  # who labelled, where the other tool does not say
    tracking_uri: str = DEFAULT_TRACKING_URI  # a server's address, or a database's
    s3: S3Config = field(default_factory=S3Config)


@dataclass
class RatesConfig:
    """``python -m tyre_lightning.rates``."""

    queue: str = "queue.parquet"  # what tyre select wrote: a file, or a glob of many windows
    answers: str = "answers"  # the folder, or s3://bucket/prefix, of what people said
    max_escape_rate: float | None = None  # what is promised; null: as the queue says
    confidence: float = 0.95  # of the intervals
    mlflow_experiment: str = "tyre-line"  # under which windows are found in MLflow
    tracking_uri: str | None = DEFAULT_TRACKING_URI  # a server's address, or a database's; null: no row is written
    s3: S3Config = field(default_factory=S3Config)


@dataclass
class AcceptConfig:
    """``python -m tyre_lightning.accept``."""

    answers: str = "answers"  # the folder of what people said
    queue: str = "queue.parquet"  # what tyre select wrote: a file, or a glob of many windows
    source: str | None = None  # or from=: the version before, as data.root: s3://bucket/prefix/version, or a folder
    to: str | None = None  # the new version, where nothing is yet
    group_pattern: str | None = None  # what a file name's match says of the tyre, as in training
    good_class: str | None = None  # null: a class named good, ok, non_defective, ...
    multi_label: bool = False  # a picture with several defects goes into the folder of each; else it is left out
    val: float = 0.25  # share of the tyres drawn by chance that is held out to validate, where there is a val folder
    test: float = 0.25  # share of them that is held out to test
    seed: int = 0  # of the chance by which tyres are held out
    usage: UsageConfig = field(default_factory=UsageConfig)
    left_out: str = "left-out.jsonl"  # a file for what the new version does not learn of, and why
    dry_run: bool = False  # say what would be done, and do nothing
    s3: S3Config = field(default_factory=S3Config)


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "audit": AuditConfig,
    "predict": PredictConfig,
    "promote": PromoteConfig,
    "export": ExportConfig,
    "resend": ResendConfig,
    "recalibrate": RecalibrateConfig,
    "select": SelectConfig,
    "review": ReviewConfig,
    "rates": RatesConfig,
    "accept": AcceptConfig,
    "watch": WatchConfig,
    "serve": ServeConfig,
    "inbox": InboxConfig,
}


def config_folder(command: str) -> Path:
    """Where the config of one of :data:`SCHEMAS` lies: in a folder of its own, or beside the groups that it is of."""
    own = CONF / command
    return own if own.is_dir() else CONF


@cache
def register_schemas() -> None:
    """Make schemas and logging known to Hydra, and have it leave texts as they are written; once in a process."""
    from tyre_lightning.messages import register_logging
    from tyre_lightning.written import SCHEMA, keep_texts

    register_logging()
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}{SCHEMA}", node=schema)
    # Hydra copies where it reads from at every composition, and with it, in vain, the one store of all schemas.
    setattr(ConfigStore, "__deepcopy__", lambda store, _: store)  # noqa: B010
    keep_texts()


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a schema, inner nodes included."""
    keys: list[str] = []
    for item in fields(schema):
        keys.append(prefix + item.name)
        default = item.default_factory if callable(item.default_factory) else None
        if isinstance(default, type) and is_dataclass(default):
            keys += known_keys(default, f"{prefix}{item.name}.")
    return keys


def unknown_key(key: str, schema: type, place: str = "") -> str:
    """The sentence about a key that no schema has, with the nearest that one has."""
    known = known_keys(schema)
    if key in known:
        return f"'{key}'{place} is written with dots: write each part below the one before, with a colon and indented"
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    asked = key.lower()
    leaf = difflib.get_close_matches(asked.rpartition(".")[2], list(leaves), n=1, cutoff=0.75)
    nearest = difflib.get_close_matches(asked, known, n=1, cutoff=0.75) or [leaves[name] for name in leaf]
    hint = f": did you mean '{nearest[0]}'?" if nearest else ": `--cfg job` shows those there are"
    return f"unknown config key '{key}'{place}{hint}"


def unknown_keys(node: Any, schema: type, prefix: str = "") -> Iterator[str]:
    """The keys of a composed config that its schema does not have."""
    defaults = {item.name: item.default_factory for item in fields(schema)}
    for name in node:
        factory: Any = defaults.get(str(name))
        if name not in defaults:
            yield prefix + str(name)
        elif isinstance(factory, type) and is_dataclass(factory):
            yield from unknown_keys(node[name], factory, f"{prefix}{name!s}.")


def _typed(cfg: Any) -> Any:
    """A composed config as an object; ``+key=value`` slips past Hydra's own check, and is not to be lost in silence."""
    schema: Any = OmegaConf.get_type(cfg) if OmegaConf.is_config(cfg) else type(cfg)
    if schema not in SCHEMAS.values():
        raise UserError(
            "the config has no schema, so that a misspelt key would go unseen: let Hydra compose it from conf/, or "
            "give OmegaConf.merge(OmegaConf.structured(TrainConfig), config)"
        )
    if not OmegaConf.is_config(cfg):
        return cfg
    for key in unknown_keys(cfg, schema):
        raise UserError(unknown_key(key, schema))
    return OmegaConf.to_object(cfg)


def to_train_config(cfg: Any) -> TrainConfig:
    """A composed config as typed, checked values.

    Raises:
        UserError: a key is unknown, a value is out of range, or something needed is missing.
    """
    config = _typed(cfg)
    assert isinstance(config, TrainConfig)
    if config.data.catalog and config.data.from_run:
        raise UserError("data.catalog and data.from_run both say which images to train on: give one of them")
    if config.data.root or config.data.bucket or not (config.data.catalog or config.data.from_run):
        config.data.root = data_root(config.data)
    for watched in (config.callbacks.checkpoint, config.callbacks.early_stopping):
        watched.monitor = one_form(watched.monitor)  # it may name a class
    check_ranges(config)
    return config


def to_audit_config(cfg: Any) -> AuditConfig:
    """Like :func:`to_train_config`, for the audit."""
    config = _typed(cfg)
    assert isinstance(config, AuditConfig)
    config.data.root = data_root(config.data)
    _check_classes(config.data)
    _check_pattern(config.data)
    _check_place("output", config.output)
    _check_place("data.cache_dir", config.data.cache_dir)
    _check_shard(config.shards, config.shard)
    if config.shards > 1 and config.shard is None:
        raise UserError(
            f"shards={config.shards} look at a part each: give shard=..., or -m 'shard=range({config.shards})', and "
            "when all have ended the same without shards, which judges"
        )
    if config.shard is not None and config.data.looks is None:
        raise UserError(
            f"shard={config.shard} sees a part of the lake: give data.looks=s3://bucket/prefix, or a folder, where all "
            "keep what they see"
        )
    return config


def _check_shard(shards: int, shard: int | None) -> None:
    _require("shards", shards, 1 <= shards <= MOST_SHARDS, f"from 1 to {MOST_SHARDS}")
    _require("shard", shard, shard is None or 0 <= shard < shards,
             f"from 0 to {shards - 1}, since there are shards={shards}")  # fmt: skip


def to_predict_config(cfg: Any) -> PredictConfig:
    """Like :func:`to_train_config`, for ``predict.py``."""
    config = _typed(cfg)
    assert isinstance(config, PredictConfig)
    _check_looking(config)
    _check_rows_output(config)
    _check_shard(config.shards, config.shard)
    _check_shares(config.operating_point)
    return config


def to_promote_config(cfg: Any) -> PromoteConfig:
    """Like :func:`to_train_config`, for the gate."""
    config = _typed(cfg)
    assert isinstance(config, PromoteConfig)
    if not config.model:
        raise UserError("model is not set: give model=NAME of a registered model")
    _check_name("model", config.model, model_fault)
    if config.rollback and config.anchor:
        raise UserError("rollback and anchor are two commands: give one of them")
    gate = config.gate
    _require("gate.confidence", gate.confidence, 0.5 < gate.confidence < 1, "between 0.5 and 1")
    for name in ("margin", "max_escape_rate", "max_overkill_rate", "min_f1"):
        _require(f"gate.{name}", getattr(gate, name), 0 < getattr(gate, name) < 1, "between 0 and 1")
    _require("gate.max_latency_ms", gate.max_latency_ms, gate.max_latency_ms is None or gate.max_latency_ms > 0,
             "more than 0")  # fmt: skip
    return config


def to_export_config(cfg: Any) -> ExportConfig:
    """Like :func:`to_train_config`, for the export."""
    config = _typed(cfg)
    assert isinstance(config, ExportConfig)
    if not config.model:
        raise UserError("model is not set: give model=models:/NAME/VERSION, a checkpoint or a saved folder")
    _check_place("output", config.output)
    return config


def to_serve_config(cfg: Any) -> ServeConfig:
    """Like :func:`to_train_config`, for the server of a model."""
    config = _typed(cfg)
    assert isinstance(config, ServeConfig)
    if not config.model:
        raise UserError("model is not set: give model=models:/NAME@ALIAS, or another that predict.py takes")
    _require("port", config.port, 0 <= config.port <= 65535, "from 0 to 65535")
    _require("queue", config.queue, config.queue is None or config.queue >= 1, "at least 1")
    return config


def to_inbox_config(cfg: Any) -> InboxConfig:
    """Like :func:`to_train_config`, for the folder of a camera."""
    config = _typed(cfg)
    assert isinstance(config, InboxConfig)
    for key in ("model", "input"):
        if not getattr(config, key):
            raise UserError(f"{key} is not set: give model=... and input=...")
    _require("pictures", config.pictures, config.pictures is None or config.pictures >= 1, "at least 1")
    _require("wait", config.wait, 0 < config.wait < math.inf, "more than 0")
    return config


def to_watch_config(cfg: Any) -> WatchConfig:
    """Like :func:`to_train_config`, for windows of the line."""
    config = _typed(cfg)
    assert isinstance(config, WatchConfig)
    _check_looking(config)
    if config.name is not None and not config.accept:
        raise UserError("name is that of a window that is accepted: give accept=true too")
    _require("tyres", config.tyres, 100 <= config.tyres <= 100_000, "from 100 to 100000")
    _check_regex("group_by", config.group_by)
    if config.time is not None:
        try:
            datetime.fromisoformat(config.time)
        except ValueError as error:
            raise UserError(f"time={config.time} must be written as 2026-11-25 or 2026-11-25T06:00") from error
    _check_place("output", config.output)
    _check_place("baseline", config.baseline)
    _check_name("mlflow_experiment", config.mlflow_experiment, experiment_fault)
    return config


def to_recalibrate_config(cfg: Any) -> RecalibrateConfig:
    """Like :func:`to_train_config`, for a model that gets a new threshold and no new weights."""
    config = _typed(cfg)
    assert isinstance(config, RecalibrateConfig)
    if not (config.model or "").startswith("models:/"):
        raise UserError(f"model={config.model} is no registered version: give model=models:/NAME/VERSION, or @ALIAS")
    if not config.root:
        raise UserError("root is not set: give root=s3://bucket/prefix/version or root=folder, of the data to go by")
    _check_accelerator("accelerator", config.accelerator)
    _check_shares(config.operating_point)
    return config


def to_resend_config(cfg: Any) -> ResendConfig:
    """Like :func:`to_train_config`, for what waits to be sent to MLflow."""
    config = _typed(cfg)
    assert isinstance(config, ResendConfig)
    if not os.path.isdir(config.folder):
        raise UserError(f"there is no folder {config.folder}: give folder=... of a run, or of many")
    return config


def to_select_config(cfg: Any) -> SelectConfig:
    """Like :func:`to_train_config`, for the choice of tyres that a person should see."""
    config = _typed(cfg)
    assert isinstance(config, SelectConfig)
    if not config.predictions:
        raise UserError("predictions is not set: give predictions=... of the file that predict.py wrote")
    _check_place("output", config.output)
    if not config.output.endswith(".parquet"):
        raise UserError(f"output={config.output} must end in .parquet")
    if config.model is not None and config.model.startswith("models:/") and "@" in config.model:
        raise UserError(
            f"model={config.model} is an alias, which moves on to other versions: give models:/NAME/VERSION"
        )
    _require("budget", config.budget, config.budget >= 1, "at least 1")
    for name in ("max_escape_rate", "confidence", "width"):
        _require(name, getattr(config, name), 0 < getattr(config, name) < 1, "between 0 and 1")
    _require("seed", config.seed, config.seed >= 0, "0 or more")
    return config


def to_review_config(cfg: Any) -> ReviewConfig:
    """Like :func:`to_train_config`, for the page on which people answer."""
    config = _typed(cfg)
    assert isinstance(config, ReviewConfig)
    _require("overlap", config.overlap, 0 <= config.overlap <= 1, "from 0 to 1")
    _require("port", config.port, 0 <= config.port <= 65535, "from 0 to 65535")
    if config.export_to and config.import_from:
        raise UserError("export_to and import_from are two commands: give one of them")
    _check_place("export_to", config.export_to)
    _check_place("import_from", config.import_from)
    return config


def to_rates_config(cfg: Any) -> RatesConfig:
    """Like :func:`to_train_config`, for the line's escape and overkill rates."""
    config = _typed(cfg)
    assert isinstance(config, RatesConfig)
    for name in ("max_escape_rate", "confidence"):
        value = getattr(config, name)
        _require(name, value, value is None or 0 < value < 1, "between 0 and 1")
    _check_name("mlflow_experiment", config.mlflow_experiment, experiment_fault)
    return config


def to_accept_config(cfg: Any) -> AcceptConfig:
    """Like :func:`to_train_config`, for the next data version."""
    config = _typed(cfg)
    assert isinstance(config, AcceptConfig)
    if not config.source or not config.to:
        missing, key = ("from", "the version before") if not config.source else ("to", "the new one")
        raise UserError(f"{missing} is not set: give {missing}=... of {key}, s3://bucket/prefix/version or a folder")
    _check_regex("group_pattern", config.group_pattern)
    for name in ("val", "test"):
        _require(name, getattr(config, name), 0 <= getattr(config, name) < 1, "at least 0 and less than 1")
    _require("val + test", config.val + config.test, config.val + config.test < 1, "less than 1: something is to train")
    _require("seed", config.seed, config.seed >= 0, "0 or more")
    _check_place("left_out", config.left_out)
    return config


def data_root(data: DataConfig) -> str:
    """The root from ``data.root``, or from ``data.bucket`` and ``data.prefix``.

    Raises:
        UserError: neither or both are given.
    """
    if data.root and data.bucket:
        raise UserError("data.root and data.bucket both say where the images are: give one of them")
    if data.bucket:
        return f"s3://{data.bucket}/{data.prefix or ''}".rstrip("/")
    if not data.root:
        raise UserError("data.root is not set: give data.root=s3://bucket/prefix/version or data.root=folder")
    return data.root if data.root.startswith("s3://") else os.path.expanduser(data.root)


def check_ranges(config: TrainConfig) -> None:
    """Raise a :class:`UserError` for the first value that no training can use."""
    data, model, trainer = config.data, config.model, config.trainer
    if model.library is Library.torchvision:
        if model.name not in BACKBONES:
            raise UserError(f"model.name='{model.name}' is not known: {backbone_choices()}")
        _require("model.freeze_stages", model.freeze_stages, model.freeze_stages <= 7, "from 0 to 7")
    _check_classes(data)
    _require("data.val_fraction", data.val_fraction, 0 < data.val_fraction < 1, "between 0 and 1")
    _check_folds(data)
    _require("data.batch_size", data.batch_size, data.batch_size >= 1, "at least 1")
    _require("data.num_workers", data.num_workers, data.num_workers is None or data.num_workers >= 0, "0 or more")
    _require("data.image_size", data.image_size, data.image_size is None or data.image_size >= 32, "at least 32")
    _require("data.eval_views", data.eval_views, data.eval_views in (1, 2, 4), "1, 2 or 4")
    _require("data.cache_gb", data.cache_gb, data.cache_gb > 0, "more than 0")
    _require("data.augment.min_scale", data.augment.min_scale, 0 < data.augment.min_scale <= 1, "in (0, 1]")
    _require("model.label_smoothing", model.label_smoothing, 0 <= model.label_smoothing < 1, "in [0, 1)")
    _require("model.outliers", model.outliers, 0 <= model.outliers <= 1, "in [0, 1]")
    _require("model.logit_adjustment", model.logit_adjustment, 0 <= model.logit_adjustment < math.inf, "0 or more")
    _require("model.freeze_epochs", model.freeze_epochs, model.freeze_epochs >= 0, "0 or more")
    _require("model.freeze_stages", model.freeze_stages, model.freeze_stages >= 0, "0 or more")
    _require("model.dropout", model.dropout, model.dropout is None or 0 <= model.dropout < 1, "in [0, 1)")
    for name in ("backbone_lr", "head_lr", "weight_decay"):
        _require(f"model.optimizer.{name}", value := getattr(model.optimizer, name), value >= 0, "0 or more")
    _require("model.optimizer.warmup_fraction", model.optimizer.warmup_fraction,
             0 <= model.optimizer.warmup_fraction < 1, "in [0, 1)")  # fmt: skip
    _require("trainer.max_epochs", trainer.max_epochs, trainer.max_epochs is None or trainer.max_epochs >= 1,
             "at least 1")  # fmt: skip
    _check_accelerator("trainer.accelerator", trainer.accelerator)
    _require("trainer.num_nodes", trainer.num_nodes, trainer.num_nodes >= 1, "at least 1")
    _require("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, trainer.accumulate_grad_batches >= 1,
             "at least 1")  # fmt: skip
    clip = trainer.gradient_clip_val
    _require("trainer.gradient_clip_val", clip, clip is None or clip >= 0, "0 or more")
    _require("trainer.precision", trainer.precision, trainer.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
    for name in ("limit_train_batches", "limit_val_batches"):
        limit = getattr(trainer, name)
        _require(f"trainer.{name}", limit, limit is None or limit > 0, "more than 0")
    _check_monitor("callbacks.checkpoint", config.callbacks.checkpoint)
    _check_monitor("callbacks.early_stopping", config.callbacks.early_stopping)
    patience = config.callbacks.early_stopping.patience
    _require("callbacks.early_stopping.patience", patience, patience is None or patience >= 0, "0 or more")
    minutes = config.callbacks.checkpoint.minutes
    _require("callbacks.checkpoint.minutes", minutes, minutes >= 0, "0 or more")
    decay = config.callbacks.ema.decay
    _require("callbacks.ema.decay", decay, decay is None or 0 < decay < 1, "between 0 and 1")
    for key, spec in specs(config).items():
        check_spec(key, spec)
    if model.loss and model.class_weights is not ClassWeights.none:
        raise UserError("model.class_weights weighs cross-entropy, and model.loss takes its place: give one of them")
    _check_shares(config.operating_point)
    _check_names(config.logger)
    _check_place("paths.output_dir", config.paths.output_dir)
    _check_place("data.cache_dir", data.cache_dir)


def backbone_choices() -> str:
    """The part of a sentence that says which backbones there are."""
    return f"choose from {', '.join(BACKBONES)}, or give model=timm for one of timm's"


def _check_names(logger: LoggerConfig) -> None:
    """Refuse now what MLflow would refuse when the training is done."""
    _check_name("logger.experiment", logger.experiment, experiment_fault)
    if logger.run_name:
        _check_name("logger.run_name", logger.run_name, run_fault)
    if logger.registered_model is not None:
        _check_name("logger.registered_model", logger.registered_model, model_fault)


def _check_name(key: str, name: str, fault: Callable[[str], str | None]) -> None:
    if hide_passwords(name) != name:  # MLflow shows names to everyone, and finds things by them
        raise UserError(f"{key}={name} holds what looks like a password: choose another name")
    if (found := fault(name)) is not None:
        raise UserError(f"{key}={name!r} {found}, which MLflow does not take: give another name")


def _check_place(key: str, path: str | None) -> None:
    if path is not None and "://" in path:
        raise UserError(f"{key}={path} is an address, and must be a place on this machine")


def is_one_file(output: str) -> bool:
    """Whether rows go to one file, by its ending, rather than to a folder of parts."""
    return "://" not in output and output.lower().endswith(ROW_FILES)


def _check_rows_output(config: PredictConfig) -> None:
    output, endings = config.output, ", ".join(ROW_FILES)
    source = os.path.realpath(str(config.input))
    if config.explain and os.path.isdir(source) and f"{os.path.realpath(output)}/".startswith(f"{source.rstrip('/')}/"):
        raise UserError(
            f"explain=true would draw pictures into input={config.input}, where the next prediction would look at them "
            "too: give output=... of another place"
        )
    if "://" in output:
        if not re.fullmatch(r"s3://[^/]+/.*[^/].*", output) or output.lower().endswith(ROW_FILES):
            raise UserError(
                f"output={output} must be a place on this machine, or s3://bucket/prefix, below which parts are written"
            )
        if config.explain:
            raise UserError("explain=true draws pictures on this machine: give output=... of a file or folder here")
    elif is_one_file(output):
        if config.shards > 1:
            raise UserError(
                f"output={output} is one file, and shards={config.shards} write a part each: give output=... of a "
                "folder, or s3://bucket/prefix"
            )
    elif config.shards == 1 and Path(output).suffix and not output.endswith("/") and not os.path.isdir(output):
        raise UserError(f"output={output} must end in one of {endings}, or in / if it is a folder")


def _check_monitor(key: str, options: CheckpointConfig | EarlyStoppingConfig) -> None:
    _require(f"{key}.mode", options.mode, options.mode in ("min", "max"), "min or max")
    best = "min" if options.monitor.endswith("loss") else "max"
    if options.mode != best:
        worst = "highest" if best == "min" else "lowest"
        raise UserError(f"{key}.mode={options.mode} takes the {worst} {options.monitor} for the best: give "
                        f"{key}.mode={best}")  # fmt: skip


def _check_classes(data: DataConfig) -> None:
    if data.classes is not None and len(set(map(one_form, data.classes))) < max(2, len(data.classes)):
        raise UserError(f"data.classes={data.classes} must name at least two classes, each once")


def _check_pattern(data: DataConfig) -> None:
    _check_regex("data.group_pattern", data.group_pattern)


def _check_regex(key: str, pattern: str | None) -> None:
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{key}='{pattern}' is no regular expression: {error}") from error


def _check_folds(data: DataConfig) -> None:
    _check_pattern(data)
    if data.folds is None and data.fold is None:
        return
    if data.folds is None or data.fold is None:
        raise UserError("data.folds and data.fold belong together: data.folds=5 data.fold=0,1,2,3,4 with -m")
    if data.catalog or data.from_run:
        raise UserError("data.folds divides what a listing finds: leave out data.catalog and data.from_run")
    _require("data.folds", data.folds, data.folds >= 2, "at least 2")
    _require("data.fold", data.fold, 0 <= data.fold < data.folds, f"from 0 to {data.folds - 1}")


def _check_looking(config: PredictConfig | WatchConfig) -> None:
    """That a model and what it is to look at are named, and some images at a time."""
    for key in ("model", "input"):
        if not getattr(config, key):
            raise UserError(f"{key} is not set: give model=... and input=...")
    _require("batch_size", config.batch_size, config.batch_size >= 1, "at least 1")
    _check_accelerator("accelerator", config.accelerator)


def _check_accelerator(key: str, value: str) -> None:
    _require(key, value, value in ("auto", "cpu", "gpu", "cuda"), "one of auto, cpu, gpu")


def _check_shares(point: OperatingPointConfig | OtherOperatingPointConfig) -> None:
    for item in fields(point):
        value = getattr(point, item.name)
        _require(f"operating_point.{item.name}", value, value is None or 0 < value < 1, "between 0 and 1")


def _require(key: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise UserError(f"{key}={value} must be {wanted}")
