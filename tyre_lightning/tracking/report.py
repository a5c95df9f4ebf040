"""The page that a finished run leaves as an artifact: gathers what it shows, and never fails the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.errors import UnreadableImage, first_line, hide_passwords
from tyre_lightning.evaluation.report.page import Facts, build_page
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.progress import progress_bar
from tyre_lightning.tracking.runs import REPORT, Run

_CURVES = {
    "Loss": {"training": "train/loss_epoch", "validation": "val/loss"},
    "Validation score": {"macro F1": "val/f1", "accuracy": "val/accuracy"},
}

log = logging.getLogger(__name__)


def log_report(
    run: Run,
    inspector: Inspector,
    data: TyreDataModule,
    scores: Mapping[str, Scores],
    wanted: OperatingPointConfig,
    *,
    progress: bool,
) -> None:
    """Record the report of a run; what goes wrong with it is a warning, since the model is done and registered.

    Args:
        run: the run, with everything else recorded.
        inspector: its model.
        data: its images.
        scores: of the best checkpoint, by usage.
        wanted: the promise that was asked for.
        progress: whether to draw a progress bar.
    """
    try:
        if not scores:
            log.warning("the run has no %s: neither a test nor a validation image could be read", REPORT)
            return
        usage = "test" if "test" in scores else "val"
        with progress_bar(progress) as bar:
            task = bar.add_task(REPORT, total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            page = build_page(inspector, scores[usage], usage, wanted, _facts(run, data), _Files(data, usage), advance)
        with TemporaryDirectory() as scratch:
            Path(scratch, REPORT).write_text(page, encoding="utf-8")
            run.log_file(Path(scratch, REPORT))
    except Exception as error:  # whatever it is, it must not cost the run its end
        log.warning(
            "the run has no %s (%s: %s); the model is not affected", REPORT, type(error).__name__, first_line(error)
        )


class _Files:
    """Reads the files of some keys of one usage."""

    def __init__(self, data: TyreDataModule, usage: str) -> None:
        self._catalog = data.catalogs()[usage]
        self._reader = data.reader()

    def __call__(self, keys: Sequence[str]) -> list[bytes | UnreadableImage]:
        return self._reader.read([self._catalog.entry(int(place)) for place in self._catalog.places(keys)])


def _facts(run: Run, data: TyreDataModule) -> Facts:
    about, catalogs = run.journal.run(), data.catalogs()
    return Facts(
        name=about["name"],
        id=run.id,
        started=_date(datetime.fromtimestamp(about["start_time"])),
        reported=_date(datetime.now()),
        root=hide_passwords(data.store.root),
        labels="" if data.provenance is None else str(data.provenance),
        counts={usage: catalog.counts() for usage, catalog in catalogs.items()},
        further={usage: len(catalog.further()[0]) for usage, catalog in catalogs.items()},
        ignored=data.ignored,
        shared=len(data.shared_with_train("test")),
        unreadable={usage: int(_last(run, f"{usage}/unreadable")) for usage in catalogs},
        curves={
            title: {line: _by_epoch(run, name) for line, name in names.items()} for title, names in _CURVES.items()
        },
    )


def _last(run: Run, name: str) -> float:
    """What a metric was last, 0 where it was not recorded."""
    values = run.journal.metric(name)
    return values[max(values)] if values else 0.0


def _by_epoch(run: Run, name: str) -> list[tuple[float, float]]:
    """A metric that was recorded once an epoch, as pairs of epoch, counted from 1, and value."""
    epochs = {step: value + 1 for step, value in run.journal.metric("epoch").items()}
    return sorted((epochs[step], value) for step, value in run.journal.metric(name).items() if step in epochs)


def _date(moment: datetime) -> str:
    return moment.astimezone().isoformat(" ", "minutes")
