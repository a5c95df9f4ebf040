"""Prediction, top to bottom: list, fetch, decode, classify, keep, join; a batch at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tyre_lightning.config import (
    Changed,
    OperatingPointConfig,
    OtherOperatingPointConfig,
    PredictConfig,
    to_predict_config,
)
from tyre_lightning.destination import Destination, check_terms, open_destination
from tyre_lightning.errors import UserError, hide_passwords
from tyre_lightning.evaluation.overlays import NEAREST, OVERLAY, overlay_folder, write_overlays
from tyre_lightning.evaluation.saliency import check_explainable
from tyre_lightning.evaluation.scoring import Image, Seen, look_at
from tyre_lightning.files import disk_errors
from tyre_lightning.kernels import check_kernels
from tyre_lightning.lake.manifest import Listing, Manifest, agree, find_manifest
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.source import Source, nothing_in, open_source
from tyre_lightning.lake.store import Entry, Store
from tyre_lightning.lake.tyres import find_tyre, tyre_of
from tyre_lightning.memory import memory_errors
from tyre_lightning.model.inspector import Inspector, answer_columns, nothing_seen
from tyre_lightning.progress import progress_bar, say
from tyre_lightning.shards import Look, Rows, Work
from tyre_lightning.summary import Summary, show, warn_of_few_pictures
from tyre_lightning.tracking.registry import exact_uri, load_inspector

_CHUNK = 2048  # images, at least, of which what was found is kept together: what a kill can cost


@disk_errors()
@memory_errors("batch_size")
def predict(cfg: DictConfig) -> Summary:
    """Predict on a composed config and write a row for each image; what is done already is not done again.

    Gives what was found in all, or, while other processes have not done their shards yet, in this one's.

    Raises:
        UserError: the model, the images or the output cannot be used.
    """
    config = to_predict_config(cfg)
    source, device = open_source(str(config.input), config.s3), find_device(config.accelerator)
    with open_destination(config) as there:
        inspector, manifest = _begin(config, source, there)
        inspector.network.to(device)
        work = _work(config, source, inspector, manifest, there)
        overlays = overlay_folder(config.output) if config.explain else None
        look = partial(predict_batches, inspector, source.store, batch_size=config.batch_size, overlays=overlays)
        try:
            _do(config, manifest, work, look)
        except KeyboardInterrupt:
            if kept := work.kept():
                say(f"{kept:,} of {sum(manifest.counts):,} images are done and kept: the same command goes on")
            raise
        return _end(config, inspector, manifest, work, there)


def _begin(config: PredictConfig, source: Source, there: Destination) -> tuple[Inspector, Manifest]:
    """The model, and what is to be done: both are those of the process that came first.

    Raises:
        UserError: they cannot be had, or are others here.
    """
    found = None if there.alone else find_manifest(there.place)
    asked = str(config.model)
    same = found is not None and found.asked == asked
    model = found.terms["model"] if found and same else exact_uri(asked, config.tracking_uri)
    inspector = load_inspector(model, config.tracking_uri)
    _promise(inspector, config.operating_point)
    if config.explain:
        check_explainable(inspector)
    terms = {
        "model": model,
        "promise": None if inspector.point is None else asdict(inspector.point.promised),
        "input": source.store.root if source.only is None else hide_passwords(_absolute(str(config.input))),
        "shards": config.shards,
        "explain": config.explain,
        "weights": inspector.digest(),
    }
    make = partial(_list, config, source, inspector, terms, there)
    if there.alone:
        return inspector, make(lambda: None)
    manifest = agree(there.place, make, say)
    if manifest.asked == asked and manifest.terms["model"] != model:  # the alias has moved in between
        return _begin(config, source, there)
    check_terms(manifest.terms, terms, config.output)
    return inspector, manifest


def _absolute(address: str) -> str:
    """A glob or file, from wherever it is asked for."""
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))


def _list(
    config: PredictConfig, source: Source, inspector: Inspector, terms: Mapping[str, Any], there: Destination,
    beat: Callable[[], None],
) -> Manifest:  # fmt: skip
    """List the images, and have the listing where all processes find it.

    Raises:
        UserError: there are none, their names tell the model no tyre, or the output has rows of something else.
    """
    pattern, size = inspector.group_pattern, config.batch_size
    there.output.check_new(tyres=pattern is not None)
    with there.place.scratch() as folder:
        listing = Listing(source.entries(), pattern, config.shards, Path(folder), beat)
        if not listing.total:
            raise nothing_in(f"input={config.input}")
        if pattern is not None and not listing.named:
            raise no_tyre_in(pattern, listing.total, listing.first)
        # A batch never lies in two chunks, so that whoever goes on looks at the same batches: on a GPU a last digit
        # depends on them.
        manifest = listing.manifest(terms, str(config.model), size * -(-_CHUNK // size))
        if there.alone and (kept := there.kept(manifest)) is not None:
            return kept
        return listing.publish(there.place, manifest)


def _work(config: PredictConfig, source: Source, inspector: Inspector, manifest: Manifest, there: Destination) -> Work:
    said = answer_columns(inspector.columns(), multi_label=inspector.multi_label)
    columns = ["key", *said, *([OVERLAY, NEAREST] if config.explain else [])]
    about = {"model": manifest.terms["model"], "root": source.store.root}
    return Work(there.place, manifest, there.output, inspector, columns, about)


def _do(config: PredictConfig, manifest: Manifest, work: Work, look: Look) -> None:
    """Do the shard that is asked for, or all, one after another."""
    shards = range(config.shards) if config.shard is None else [config.shard]
    with progress_bar() as progress:
        for shard in shards:
            which = f" shard {shard} of {config.shards}" if config.shards > 1 else ""
            task = progress.add_task(f"predicting{which}", total=manifest.counts[shard])
            work.do(shard, look, partial(progress.advance, task))
            progress.remove_task(task)


def _end(config: PredictConfig, inspector: Inspector, manifest: Manifest, work: Work, there: Destination) -> Summary:
    """Tell what was found; whoever finds all shards done writes the summary of all, the same as any other would."""
    done, tyres = work.done(), there.tyres if inspector.group_pattern is not None else None
    if len(done) == config.shards:
        whole = work.summary(done, config.output, tyres)
        there.finish(manifest, whole, inspector)
        if config.shard is None:
            warn_of_few_pictures(inspector, whole)
            show(whole, inspector)
            return whole
    if config.shard is None:
        raise UserError(f"parts of output={config.output} were deleted or changed meanwhile: give the same again")
    mine = work.summary({config.shard}, config.output, tyres)
    say(f"shard {config.shard} has {mine.images:,} images, of which {mine.unreadable:,} cannot be read")
    say(f"{len(done)} of {config.shards} shards are done")
    return mine


def check_names(inspector: Inspector, source: Source, total: int) -> None:
    """Refuse files of which none is named as the model's training images were: no verdict would be on a tyre.

    Raises:
        UserError: names one of them.
    """
    pattern = inspector.group_pattern
    if pattern is not None and all(find_tyre(entry.key, pattern) is None for entry in source.entries()):
        raise no_tyre_in(pattern, total, next(source.entries()).key)


def no_tyre_in(pattern: str, total: int, key: str) -> UserError:
    """That a pattern finds no tyre in any of some file names."""
    return UserError(
        f"the model tells tyres by data.group_pattern='{pattern}', which finds nothing in any of {total} file "
        f"names, such as '{key.rpartition('/')[2]}': name the files as those that it was trained on"
    )


def predict_batches(
    inspector: Inspector, store: Store, entries: Iterable[Entry], batch_size: int, overlays: Path | None = None
) -> Iterator[Rows]:
    """Rows (``key`` and :func:`answer_columns`) of entries, a batch at a time; verdicts on tyres come later.

    With ``overlays``, a folder, each readable image is drawn there too, with what the model looked at. Its row has the
    path as ``overlay`` and, as ``nearest``, the keys of the training pictures that look most alike to the network.

    While that works on one batch, the next is fetched and decoded. What was listed and is gone is unreadable.
    """
    reader = Reader(store, None, Changed.reread, vanishing=True)
    for seen in look_at([inspector], reader, entries, batch_size, pictures=overlays is not None):
        rows = rows_of(inspector, seen)
        if overlays is not None:
            _draw(overlays, inspector, rows, seen)
        yield rows


def _promise(inspector: Inspector, asked: OtherOperatingPointConfig) -> None:
    """Where another promise is asked for, make it; what is not said stays as the model has it."""
    changes = asked.asked()
    if asked.max_novel_rate is not None and inspector.reference is None:
        raise UserError(
            f"operating_point.max_novel_rate={asked.max_novel_rate:g} cannot be kept: the model does not know what "
            "good tyres look like, since an older version made it or training had too few of them; train it anew"
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
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"accelerator={accelerator}, but PyTorch sees no GPU here: use accelerator=cpu")
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    check_kernels([device])
    return device
