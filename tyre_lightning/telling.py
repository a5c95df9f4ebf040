"""What a training tells whoever started it: what it is about to do with what, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tyre_lightning.errors import hide_passwords
from tyre_lightning.progress import say

if TYPE_CHECKING:  # the first line is said before any of it is loaded
    from omegaconf import DictConfig

    from tyre_lightning.config import LoggerConfig, TrainConfig, TrainerConfig
    from tyre_lightning.data.datamodule import TyreDataModule
    from tyre_lightning.data.detail import Detail
    from tyre_lightning.model.classifier import TyreClassifier
    from tyre_lightning.tracking.runs import Run

_MOST_CLASSES = 8  # that are counted one by one


def tell_start(cfg: DictConfig) -> None:
    """Say at once that a training begins, and on what."""
    data = cfg.data
    pinned = data.catalog or (f"the images of run {data.from_run}" if data.from_run else None)
    source = data.root or (f"s3://{data.bucket}/{data.prefix or ''}" if data.bucket else pinned)
    epochs = cfg.trainer.max_epochs
    # Else how many there are to be, the images will say.
    most = "" if epochs is None else f", {epochs} epoch{'s' if epochs > 1 else ''} at most"
    say(hide_passwords(f"training {cfg.model.name} on {source}{most}"))


def tell_device(options: TrainerConfig) -> None:
    """Say what it runs on, before the images are looked at.

    Raises:
        UserError: a GPU is asked for and there is none, or the count of devices is none.
    """
    import torch

    from tyre_lightning.trainer import device_name, precision_of, processes

    gpu, count = processes(options)
    threads = torch.get_num_threads()
    cpu = f"CPU, {count} x {threads} threads" if count > 1 else f"CPU, threads: {threads}"
    nodes = f"{options.num_nodes} nodes, each " if options.num_nodes > 1 else ""
    say(_line("device", f"{nodes}{device_name(options) if gpu else cpu}; precision {precision_of(options)}"))


def tell_work(config: TrainConfig, data: TyreDataModule, model: TyreClassifier, folder: Path) -> None:
    """Say what is trained on which images, how long at most, and where the results go."""
    for usage, catalog in data.catalogs().items():
        tyres = data.grouping.count(catalog)
        ignored = f"; {data.ignored[usage]} other files are ignored" if usage in data.ignored else ""
        several = f"; {catalog.several():,} with several defects" if data.config.multi_label else ""
        counts = _counts(catalog.counts())
        say(_line(usage, f"{len(catalog):,} images of {tyres:,} tyres: {counts}{several}{ignored}"))
    if data.provenance is not None:
        say(_line("labels", str(data.provenance)))
    every = sum(part.numel() for part in model.network.parameters())
    learning = sum(part.numel() for part in model.network.parameters() if part.requires_grad)
    size = data.preprocessing.size
    say(_line("model", f"{every:,} parameters, of which {learning:,} learn; sees {size} x {size} pixels"))
    if (lost := data.lost) is not None:
        _tell_detail(lost)
    say(_line("epochs", f"{config.trainer.max_epochs} at most, by batches of {config.data.batch_size}"))
    say(_line("results", near(folder)))
    say(_line("", f"and experiment {config.logger.experiment} of {_server(config.logger)}"))
    if data.good_class is not None:
        from tyre_lightning.epochs import escape_heading

        heading = escape_heading(config.operating_point.max_escape_rate)
        say(f"  {heading}: the share of defective validation images that pass")
        say(f"  where at most {heading.partition('@')[2]} of the good ones are rejected")


def _tell_detail(lost: Detail) -> None:
    """Say that pictures are larger than the network sees them, and what it would cost to see all."""
    which = "" if lost.larger == lost.looked else f"{lost.larger} of {lost.looked} "
    pictures, size = f"{which}pictures of about {lost.width} x {lost.height}", lost.size
    shown, more = "them" if lost.whole else "their middle", " or more" if lost.more else ""
    say(_line("", f"of {pictures}: data.image_size={size} would show all"))
    say(_line("", f"of {shown}, at {lost.times:.1f} times the time{more}"))


def tell_end(run: Run, said: str) -> None:
    """Say what came of it, where that is, and what to do next.

    Args:
        run: which MLflow has whole.
        said: what :func:`tyre_lightning.evaluation.answer.answer` says of its model.
    """
    from tyre_lightning.tracking.pages import run_list
    from tyre_lightning.tracking.registry import model_uri
    from tyre_lightning.tracking.runs import REPORT, find_artifact

    uri, server = model_uri(run), _server(run.config)
    experiment = run.client.get_run(run.id).info.experiment_id
    say("\n" + said + "\n")
    say(_line("run", f"{run.id} of {server}"))
    say(_line("report", near(find_artifact(run.client, run.id, REPORT))))
    if not server.startswith("http"):
        say(_line("compare", f"mlflow ui --backend-store-uri {server}"))
    place = server if server.startswith("http") else "http://localhost:5000"
    say(_line("" if place != server else "compare", f"{place.rstrip('/')}/{run_list(experiment)}"))
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
