"""What a training tells whoever started it: what it is about to do with what, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tyre_lightning.errors import hide_passwords
from tyre_lightning.progress import say

if TYPE_CHECKING:  # the first line is said before any of it is loaded
    from omegaconf import DictConfig

    from tyre_lightning.config import LoggerConfig, OperatingPointConfig, TrainConfig, TrainerConfig
    from tyre_lightning.data.datamodule import TyreDataModule
    from tyre_lightning.evaluation.scores import Scores
    from tyre_lightning.model.classifier import TyreClassifier
    from tyre_lightning.model.inspector import Inspector
    from tyre_lightning.tracking.runs import Run

_MOST_CLASSES = 8  # that are counted one by one


def tell_start(cfg: DictConfig) -> None:
    """Say at once that a training begins, and on what."""
    data = cfg.data
    pinned = data.catalog or (f"the images of run {data.from_run}" if data.from_run else None)
    source = data.root or (f"s3://{data.bucket}/{data.prefix or ''}" if data.bucket else pinned)
    say(hide_passwords(f"training {cfg.model.name} on {source}, {cfg.trainer.max_epochs} epochs at most"))


def tell_device(options: TrainerConfig) -> None:
    """Say what it runs on, before the images are looked at.

    Raises:
        UserError: a GPU is asked for and there is none, or the count of devices is none.
    """
    import torch

    from tyre_lightning.trainer import gpus, precision_of, processes

    gpu, count = processes(options)
    names = Counter(torch.cuda.get_device_name(device) for device in gpus(options))
    cards = ", ".join(f"{times} x {name}" if times > 1 else name for name, times in names.items())
    threads = torch.get_num_threads()
    cpu = f"CPU, {count} x {threads} threads" if count > 1 else f"CPU, threads: {threads}"
    say(_line("device", f"{cards if gpu else cpu}; precision {precision_of(options)}"))


def tell_work(config: TrainConfig, data: TyreDataModule, model: TyreClassifier, folder: Path) -> None:
    """Say what is trained on which images, and where the results go."""
    for usage, catalog in data.catalogs().items():
        tyres = len({*data.shown(usage).tyres.values()})
        ignored = f"; {data.ignored[usage]} other files are ignored" if usage in data.ignored else ""
        say(_line(usage, f"{len(catalog):,} images of {tyres:,} tyres: {_counts(catalog.counts())}{ignored}"))
    every = sum(part.numel() for part in model.network.parameters())
    learning = sum(part.numel() for part in model.network.parameters() if part.requires_grad)
    size = f"{data.preprocessing.size} x {data.preprocessing.size} pixels"
    say(_line("model", f"{every:,} parameters, of which {learning:,} learn; sees {size}"))
    say(_line("results", near(folder)))
    say(_line("", f"and experiment {config.logger.experiment} of {_server(config.logger)}"))
    if data.good_class is not None:
        share = f"{100 * config.operating_point.max_escape_rate:.3g}%"
        say(f"  escape@{share}: the share of defective validation images that pass")
        say(f"  where at most {share} of the good ones are rejected")


def tell_end(
    run: Run,
    inspector: Inspector,
    scores: Mapping[str, Scores],
    wanted: OperatingPointConfig,
    data: TyreDataModule,
) -> None:
    """Say what came of it, where that is, and what to do next.

    Args:
        run: which MLflow has whole.
        inspector: its model.
        scores: what it said of images, by usage.
        wanted: the promise that was asked for.
        data: the images.
    """
    from tyre_lightning.evaluation.answer import answer
    from tyre_lightning.tracking.registry import model_uri
    from tyre_lightning.tracking.report import find_report

    seen = {usage: data.shared_with_train(usage) for usage in ("val", "test")}
    uri = model_uri(run)
    say("\n" + answer(inspector, scores, wanted, seen) + "\n")
    say(_line("run", f"{run.id} of {_server(run.config)}"))
    say(_line("report", near(find_report(run))))
    say(_line("model", uri))
    say(_line("next", f"python predict.py model={uri} input=FOLDER"))


def near(path: str | Path) -> str:
    """A path below the present folder as seen from it, any other as it is."""
    inside = Path(path).is_absolute() and Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd()) if inside else path)


def _counts(counts: Mapping[str, int]) -> str:
    if len(counts) > _MOST_CLASSES:
        return f"{len(counts)} classes of {min(counts.values()):,} to {max(counts.values()):,}"
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _server(logger: LoggerConfig) -> str:
    return hide_passwords(logger.tracking_uri)


def _line(name: str, text: str) -> str:
    return f"  {name:<9}{text}"
