"""Prediction, top to bottom: list, fetch, decode, classify, write; a batch at a time."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tyre_lightning.config import (
    Changed,
    OperatingPointConfig,
    OtherOperatingPointConfig,
    S3Config,
    to_predict_config,
)
from tyre_lightning.data.stream import batched
from tyre_lightning.decision.operating_point import OperatingPoint
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.answer import novelty_terms
from tyre_lightning.evaluation.ledger import Ledger
from tyre_lightning.evaluation.overlays import NEAREST, OVERLAY, overlay_folder, write_overlays
from tyre_lightning.evaluation.predictions import Writer, open_writer, tyre_columns
from tyre_lightning.evaluation.saliency import check_explainable
from tyre_lightning.evaluation.scoring import Image, Seen, look_at
from tyre_lightning.files import disk_errors
from tyre_lightning.kernels import check_kernels
from tyre_lightning.lake.formats import IMAGE_SUFFIXES
from tyre_lightning.lake.listing import is_image
from tyre_lightning.lake.reader import Reader, open_store
from tyre_lightning.lake.store import Entry, FolderStore, Store
from tyre_lightning.lake.tyres import find_tyre, tyre_of
from tyre_lightning.memory import memory_errors
from tyre_lightning.model.inspector import DEFECTS, NOVELTY, Inspector, Sighting, answer_columns, nothing_seen
from tyre_lightning.progress import progress_bar, say
from tyre_lightning.tracking.registry import exact_uri, load_inspector

Rows = list[dict[str, Any]]

_TOGETHER = 4096  # rows in memory at one time

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a prediction run found, and where the rows are.

    Args:
        output: a row for each picture.
        tyres_output: a row for each tyre, where the model tells tyres by their file names.
        classes: pictures by class.
        decisions: tyres by decision; without a pattern each picture is one.
        unreadable: pictures.
    """

    output: str
    tyres_output: str | None = None
    classes: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str | None] = field(default_factory=Counter)
    unreadable: int = 0

    @property
    def images(self) -> int:
        """All images, readable or not."""
        return self.classes.total() + self.unreadable


@dataclass(frozen=True)
class Source:
    """The images to predict on: everything below a store's root, or the named keys of it."""

    store: Store
    only: tuple[str, ...] | None = None

    def entries(self) -> Iterator[Entry]:
        """The images, as a stream; of named keys neither size nor tag is known."""
        if self.only is not None:
            yield from (Entry(key, 0, "") for key in self.only)
        else:
            base = len(self.store.key(""))  # a hidden folder above the root hides nothing
            yield from (entry for entry in self.store.list() if is_image(entry.key[base:]))

    def count(self, name: str) -> int:
        """How many there are; they are listed twice rather than kept, so that memory does not grow with them.

        Args:
            name: of the source, for the error.

        Raises:
            UserError: there are none.
        """
        total = sum(1 for _ in self.entries())
        if not total:
            raise UserError(f"{name} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        return total


@disk_errors()
@memory_errors("batch_size")
def predict(cfg: DictConfig) -> Summary:
    """Predict on a composed config and write a row for each image.

    Raises:
        UserError: the model, the images or the output cannot be used.
    """
    config = to_predict_config(cfg)
    source = open_source(str(config.input), config.s3)
    total = source.count(f"input={config.input}")
    device = find_device(config.accelerator)
    model = exact_uri(str(config.model), config.tracking_uri)
    inspector = load_inspector(model, config.tracking_uri)
    _promise(inspector, config.operating_point)
    if config.explain:
        check_explainable(inspector)
    check_names(inspector, source, total)
    inspector.network.to(device)
    summary = Summary(config.output)
    overlays = overlay_folder(config.output) if config.explain else None
    said = answer_columns(inspector.columns(), multi_label=inspector.multi_label)
    columns = ["key", *said, *([OVERLAY, NEAREST] if config.explain else [])]
    about = {"model": model, "root": source.store.root}
    with open_writer(config.output, columns, about) as writer, progress_bar() as progress:
        task = progress.add_task("predicting", total=total)
        batches = predict_batches(inspector, source.store, source.entries(), config.batch_size, overlays)
        watched = _watch(batches, summary, lambda rows: progress.advance(task, len(rows)))
        if inspector.group_pattern is None:
            for rows in watched:
                summary.decisions.update(row["decision"] for row in rows if row["error"] is None)
                writer.write(rows)
        else:
            _by_tyre(inspector, watched, columns, writer, summary)
    show(summary, inspector)
    return summary


def check_names(inspector: Inspector, source: Source, total: int) -> None:
    """Refuse files of which none is named as the model's training images were: no verdict would be on a tyre.

    Raises:
        UserError: names one of them.
    """
    pattern = inspector.group_pattern
    if pattern is not None and all(find_tyre(entry.key, pattern) is None for entry in source.entries()):
        example = next(source.entries()).key.rpartition("/")[2]
        raise UserError(
            f"the model tells tyres by data.group_pattern='{pattern}', which finds nothing in any of {total} file "
            f"names, such as '{example}': name the files as those that it was trained on"
        )


def _watch(batches: Iterable[Rows], summary: Summary, advance: Callable[[Rows], None]) -> Iterator[Rows]:
    """Pass batches of rows on, and count them."""
    for rows in batches:
        summary.classes.update(row["class"] for row in rows if row["error"] is None)
        summary.unreadable += sum(row["error"] is not None for row in rows)
        advance(rows)
        yield rows


def _by_tyre(
    inspector: Inspector, batches: Iterable[Rows], columns: Sequence[str], writer: Writer, summary: Summary
) -> None:
    """Write pictures with the verdicts on their tyres, and a table of the tyres.

    Pictures of one tyre may lie far apart in a listing, so that no verdict is known before the last picture: rows wait
    in a file, and what is known of each tyre in a database, both on the disk beside the output. Memory stays bounded.
    """
    path = Path(summary.output)
    summary.tyres_output = str(path.with_name(f"{path.stem}-tyres{path.suffix}"))
    with TemporaryDirectory(dir=path.absolute().parent, prefix=".tyres-") as folder:
        waiting = Path(folder, "pictures.parquet")
        with Ledger(Path(folder, "tyres.db"), inspector) as ledger:
            with open_writer(str(waiting), columns) as keep:
                for rows in batches:
                    ledger.add(rows)
                    keep.write(rows)
            for part in pq.ParquetFile(waiting).iter_batches(_TOGETHER):
                rows = part.to_pylist()
                sightings = ledger.get([row["tyre"] for row in rows])
                writer.write(
                    [row | inspector.verdict(sighting)._asdict() for row, sighting in zip(rows, sightings, strict=True)]
                )
            _warn_of_few_pictures(inspector, ledger.mean_pictures())
            with open_writer(summary.tyres_output, tyre_columns(inspector)) as tyres:
                for rows in batched(starmap(partial(tyre_row, inspector), ledger.tyres()), _TOGETHER):
                    summary.decisions.update(row["decision"] for row in rows)
                    tyres.write(rows)


def tyre_row(inspector: Inspector, name: str, sighting: Sighting) -> dict[str, Any]:
    """What is said of a tyre."""
    known = sighting.pictures > 0 and inspector.good_class is not None
    return {
        "tyre": name,
        "class": sighting.class_name,
        **({DEFECTS: sorted(sighting.defects)} if inspector.multi_label else {}),
        **inspector.verdict(sighting)._asdict(),
        "p_defective": sighting.score if known else None,
        NOVELTY: sighting.novelty,
        "n_pictures": sighting.pictures,
        "n_unreadable": sighting.unreadable,
        "key": sighting.key,
    }


def _warn_of_few_pictures(inspector: Inspector, mean: float) -> None:
    calibration = inspector.calibration
    if inspector.point is not None and calibration is not None and mean < calibration.mean_pictures * (1 - 1e-9):
        log.warning(
            "there are %.3g pictures of a tyre on average, and there were %.3g of the validation tyres: fewer pictures "
            "show fewer defects, so that more may escape than promised", mean, calibration.mean_pictures,
        )  # fmt: skip


def predict_batches(
    inspector: Inspector, store: Store, entries: Iterable[Entry], batch_size: int, overlays: Path | None = None
) -> Iterator[Rows]:
    """Rows (``key`` and :func:`answer_columns`) of entries, a batch at a time; verdicts on tyres come later.

    With ``overlays``, a folder, each readable image is drawn there too, with what the model looked at. Its row has the
    path as ``overlay`` and, as ``nearest``, the keys of the training pictures that look most alike to the network.

    While that works on one batch, the next is fetched and decoded.
    """
    reader = Reader(store, None, Changed.reread)
    for seen in look_at([inspector], reader, entries, batch_size, pictures=overlays is not None):
        rows = rows_of(inspector, seen)
        if overlays is not None:
            _draw(overlays, inspector, rows, seen)
        yield rows


def open_source(address: str, s3: S3Config) -> Source:
    """The images that an ``s3://`` address, a folder, a file or a glob names.

    Raises:
        UserError: there is nothing there.
    """
    if address.startswith("s3://"):
        return _s3_source(address, s3)
    path = os.path.expanduser(address)
    if os.path.isdir(path):
        return Source(FolderStore(path))
    files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if not files:
        raise UserError(f"input={address} is no file, folder, glob with a match, or s3:// address")
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    store = FolderStore(root)
    return Source(store, tuple(store.key(Path(os.path.abspath(f)).relative_to(root).as_posix()) for f in files))


def _s3_source(address: str, s3: S3Config) -> Source:
    """A prefix; or one object, when the address ends like an image."""
    folder, _, name = address.rpartition("/")
    if not is_image(name):
        return Source(open_store(address, s3))
    store = open_store(folder, s3)
    return Source(store, (store.key(name),))


def show(summary: Summary, inspector: Inspector) -> None:
    """Print how many images fell into each class."""
    table = Table(title=f"{summary.images} images")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("share", justify="right")
    rows = [(name, summary.classes[name]) for name in inspector.classes]
    for name, count in [*rows, ("unreadable", summary.unreadable)]:
        table.add_row(Text(name), str(count), f"{count / max(1, summary.images):.1%}")
    Console().print(table)
    point = inspector.point
    decisions = f"decisions: none, because {inspector.undecided()}" if point is None else _decisions(summary, point)
    say(decisions)
    if point is not None:
        say(_what_decides(inspector, point))
        if inspector.calibration is not None and inspector.reference is not None:
            say("  novelty: " + "\n    ".join(novelty_terms(point, inspector.calibration)))
    say(f"a row for each image is in {summary.output}")
    if summary.tyres_output is not None:
        say(f"a row for each tyre is in {summary.tyres_output}")


def _decisions(summary: Summary, point: OperatingPoint) -> str:
    counts = ", ".join(f"{name} {summary.decisions[name]}" for name in ("accept", "review", "reject"))
    return f"decisions: {counts}\n  {point.sentence()}"


def _what_decides(inspector: Inspector, point: OperatingPoint) -> str:
    """Why class and decision need not agree."""
    return (
        "  the class is the most probable one; the decision is by the promise: even what\n"
        f"  looks most like {inspector.good_class} is not accepted from a P(defective) of {point.threshold:.4g} on"
    )


def _promise(inspector: Inspector, asked: OtherOperatingPointConfig) -> None:
    """Where another promise is asked for, make it; what is not said stays as the model has it."""
    changes = asked.asked()
    if asked.max_novel_rate is not None and inspector.reference is None:
        raise UserError(
            f"operating_point.max_novel_rate={asked.max_novel_rate:g} cannot be kept: the model does not know what "
            "good tyres look like, since an older version made it; train it anew"
        )
    if changes:
        own = OperatingPointConfig() if inspector.point is None else inspector.point.promised
        inspector.promise(replace(own, **changes))


def rows_of(inspector: Inspector, seen: Seen) -> Rows:
    """What is said of pictures; one whose file name tells no tyre is a tyre of its own."""
    answers = iter(inspector.answers_to(seen.look.logits, inspector.distances(seen.look.features)))
    rows: Rows = []
    for entry, image in zip(seen.entries, seen.images, strict=True):
        row: dict[str, Any] = {"key": entry.key, "tyre": tyre_of(entry.key, inspector.group_pattern)}
        if isinstance(image, Image):
            row |= next(answers) | {"error": None}
        else:
            row |= nothing_seen(image.reason)
        rows.append(row | {"decision": row["picture_decision"]})
    return rows


def _draw(folder: Path, inspector: Inspector, rows: Rows, seen: Seen) -> None:
    """Write the overlays of readable images, and their paths and what looks most alike into the rows."""
    shown = [(row, image) for row, image in zip(rows, seen.images, strict=True) if isinstance(image, Image)]
    keys, views = [row["key"] for row, _ in shown], [image.view for _, image in shown]
    pictures = [image.picture for _, image in shown if image.picture is not None]
    nearest = inspector.nearest(seen.look.features)
    paths = write_overlays(folder, inspector, keys, views, pictures, nearest)
    for (row, _), path, examples in zip(shown, paths, nearest, strict=True):
        row |= {OVERLAY: path, NEAREST: [example.key for example in examples]}


def find_device(accelerator: str) -> torch.device:
    """Where a model is to run.

    Raises:
        UserError: it is to run on a GPU, and there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu, but PyTorch sees no GPU here: use accelerator=cpu")
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    check_kernels([device])
    return device
