"""Trainings in a notebook: start one, open one that has ended, and look at what it came to."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from tyre_lightning.api import Model, check_count, compose, html_table, load, tracking
from tyre_lightning.config import S3Config
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.evaluation.figures import confusion_figure
from tyre_lightning.evaluation.gallery import as_picture, contact_sheet, thumbnails
from tyre_lightning.evaluation.judgement import confusion
from tyre_lightning.evaluation.scores import SCORES, Scores
from tyre_lightning.files import write_whole
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.store import Store
from tyre_lightning.telling import tell_start
from tyre_lightning.tracking.registry import run_model
from tyre_lightning.tracking.runs import CONFIG, REPORT, called, connect, fetch_artifact, whole_uri
from tyre_lightning.tracking.sweeps import PARENT_TAG, QUALITY, leaderboard, newest_trainings
from tyre_lightning.tracking.tables import METRICS_TABLE

if TYPE_CHECKING:
    import lightning as L
    from mlflow import MlflowClient
    from mlflow.entities import Run

_SHOWN = {  # in a notebook, where they were recorded
    "macro F1": "test/f1",
    "accuracy": "test/accuracy",
    "AUROC (defective)": "test/auroc_defective",
    "escape rate": "test/escape_rate",
    "overkill rate": "test/overkill_rate",
}
_CURVES = ("train/loss_epoch", "val/loss", "val/f1", "val/accuracy")


def train(*given: str | DictConfig, callbacks: Sequence[L.Callback] = ()) -> Result:
    """Train, test and register a model, as ``python train.py`` does.

    Args:
        given: a config of :func:`tyre_lightning.compose`, or what you would write behind ``python train.py``.
        callbacks: Lightning's, or your own, beside those of this project.

    Raises:
        UserError: something in the config, the lake or the addresses it names cannot be used.
    """
    composed = [one for one in given if isinstance(one, DictConfig)]
    if composed and len(given) > 1:
        raise UserError("give train() one config or several overrides, not both")
    config = composed[0] if composed else compose(*given)  # type: ignore[arg-type]  # it says what is no text
    tell_start(config)
    check_callbacks(callbacks)
    from tyre_lightning.training import train as train_on

    done = train_on(config, callbacks)
    return open_run(done.run_id, tracking_uri=config.logger.tracking_uri, folder=done.folder.absolute())


def check_callbacks(callbacks: object) -> None:
    """Raise a :class:`UserError` unless these are several of Lightning's callbacks."""
    from lightning.pytorch import Callback

    if not isinstance(callbacks, Sequence):
        raise UserError(f"callbacks={type(callbacks).__name__} is no list: give callbacks=[...]")
    for one in callbacks:
        if not isinstance(one, Callback):
            what = f"the class {one.__name__}, not one of it" if isinstance(one, type) else type(one).__name__
            raise UserError(f"callbacks holds {what}: give objects of Lightning's Callback")


def open_run(run_id: str, *, tracking_uri: str | None = None, folder: Path | None = None) -> Result:
    """What a run has left in MLflow.

    Args:
        run_id: of a run, or of a sweep, which stands for the best of its runs.
        tracking_uri: see :func:`tyre_lightning.load`.
        folder: where it ran, if that is known.

    Raises:
        UserError: there is no such run.
    """
    uri = whole_uri(tracking(tracking_uri))  # a notebook may go to another folder
    if not isinstance(run_id, str):
        raise UserError(f"give a run_id, of which runs() has a column of texts: {type(run_id).__name__} is none")
    client = connect(uri, new=False)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        where = f"{called(client)}: give what the column run_id of runs() has"
        raise UserError(f"there is no run {run_id} in {where} ({first_line(error)})") from error
    if PARENT_TAG not in run.data.tags:
        return Result(client, run, uri, folder)
    if (best := run.data.tags.get("best_run")) is None:
        raise UserError(f"{run_id} is a sweep of which no run has finished: open one of its runs")
    return open_run(best, tracking_uri=uri)


def runs(experiment: str, *, newest: int = 20, tracking_uri: str | None = None) -> pd.DataFrame:
    """The newest trainings of an experiment, those that have finished first, the best by ``val/f1`` above.

    A row for each: ``run`` (its name), ``run_id``, ``status``, the settings in which they differ, the metrics that a
    sweep's table has, and ``minutes``. Sweeps are not among them, but their runs are.

    Raises:
        UserError: there is no such experiment, or no run in it.
    """
    check_count("newest", newest, 1)
    client = connect(tracking(tracking_uri), new=False)
    found = client.get_experiment_by_name(experiment)
    started = newest_trainings(client, found.experiment_id, newest) if found else []
    if not started:
        others = [one.name for one in client.search_experiments() if one.name != experiment]
        near = difflib.get_close_matches(str(experiment), others, n=1)
        way = f"did you mean '{near[0]}'?" if near else f"train with logger.experiment={experiment}"
        raise UserError(f"the experiment '{experiment}' has no runs yet: {way} (looked in {called(client)})")
    table = leaderboard(started).assign(minutes=[_minutes(run) for run in started])
    ended = table["status"] == "FINISHED"  # what others recorded last is of no model that they keep
    ranked = table.assign(ended=ended).sort_values(["ended", QUALITY], ascending=False, kind="stable")
    return ranked.drop(columns="ended").reset_index(drop=True)


class Result:
    """A training that has ended.

    Args:
        client: of MLflow.
        run: in MLflow.
        tracking_uri: of MLflow.
        folder: where it ran, if that is known.
    """

    def __init__(self, client: MlflowClient, run: Run, tracking_uri: str, folder: Path | None) -> None:
        self._client = client
        self._run = run
        self._tracking_uri = tracking_uri
        self.folder = folder
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name
        self.metrics: dict[str, float] = dict(run.data.metrics)
        self.settings: dict[str, str] = dict(run.data.params)
        self.judged_on = "test" if "test/f1" in self.metrics else "val"  # the usage that says how good it is

    @cached_property
    def model_uri(self) -> str:
        """What ``predict.py model=`` takes."""
        made = self._client.search_model_versions(f"run_id = '{self.run_id}'")
        return f"models:/{made[0].name}/{made[0].version}" if made else run_model(self.run_id)

    @cached_property
    def model(self) -> Model:
        """The trained model."""
        return load(self.model_uri, tracking_uri=self._tracking_uri)

    def scores(self, usage: str | None = None) -> pd.DataFrame:
        """What the model says of each image: predict.py's columns, and ``true``, its folder (``shows``: all of them).

        Args:
            usage: ``test`` or ``val``; None: the test images, where there are some.

        Raises:
            UserError: the run has no such images.
        """
        table = self._scores(usage).answers(self.model.inspector)
        return pd.DataFrame(table.to_pylist(), columns=table.column_names)  # of the kinds that predict gives

    def errors(self, count: int = 12, usage: str | None = None, root: str | Path | None = None) -> Image.Image:
        """A contact sheet of the images that the model gets most wrong: those where it is surest of another class.

        Args:
            count: of images at most, 0 or more.
            usage: see :meth:`scores`.
            root: where the lake lies by now; None: where training found it.

        Raises:
            UserError: the run has no such images, or they are not there any more.
        """
        check_count("count", count, 0)
        table = self.scores(usage)
        table = table[table["error"].isna() & table["true"].notna()]
        sure = table[self.model.inspector.columns()].max(axis=1)
        wrong = table.assign(sure=sure)[table["class"] != table["true"]].sort_values("sure", ascending=False)
        worst = wrong.head(count)
        of_all = f"{len(wrong)} of {len(table)} {usage or self.judged_on} images are called something else"
        titles = [
            f"{Path(row['key']).name}\ntrue: {row['true']}\nsaid: {row['class']}, {row['sure']:.0%}"
            for row in worst.to_dict("records")
        ]
        tiles = [*thumbnails(self._store(root), worst["key"])]
        return contact_sheet(tiles, titles, f"{of_all}; {len(worst)} are shown")

    def report(self) -> Report:
        """The run's report, which shows itself in a notebook.

        Raises:
            UserError: the run has none.
        """
        with TemporaryDirectory() as folder:
            return Report(self._artifact(REPORT, folder).read_text(encoding="utf-8"))

    def numbers(self) -> pd.DataFrame:
        """Every number that the run ended with: usage, metric, class, value, and the ends of its interval.

        Raises:
            UserError: the run has not ended, or an older version made it, whose :attr:`metrics` have all of them.
        """
        with TemporaryDirectory() as folder:
            return pd.DataFrame(**json.loads(self._artifact(METRICS_TABLE, folder).read_text(encoding="utf-8")))

    def curves(self) -> pd.DataFrame:
        """Loss, macro F1 and accuracy, a row for each epoch, counted from 1."""
        epochs = {point.step: int(point.value) + 1 for point in self._client.get_metric_history(self.run_id, "epoch")}
        columns = {
            name: {epochs[point.step]: point.value for point in points if point.step in epochs}
            for name in _CURVES
            if (points := self._client.get_metric_history(self.run_id, name))
        }
        return pd.DataFrame(columns).sort_index().rename_axis("epoch")

    def confusion_matrix(self, usage: str | None = None) -> Image.Image:
        """Of the images of a usage, see :meth:`scores`.

        Raises:
            UserError: the run has no such images.
        """
        found = self._scores(usage)
        return as_picture(confusion_figure(confusion(found), self.model.inspector.classes))

    def _scores(self, usage: str | None) -> Scores:
        if usage not in (None, "test", "val"):
            raise UserError(f"there are no scores of usage={usage}: choose from test, val")
        with TemporaryDirectory() as folder:
            path = self._artifact(f"{SCORES}/{usage or self.judged_on}.parquet", folder)
            return Scores.read(path, self.model.inspector.outputs)

    def _artifact(self, name: str, folder: str) -> Path:
        return fetch_artifact(self._client, self.run_id, name, folder)

    def _store(self, root: str | Path | None) -> Store:
        with TemporaryDirectory() as folder:
            recorded = OmegaConf.load(self._artifact(CONFIG, folder))
        s3 = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(S3Config), recorded.s3))
        assert isinstance(s3, S3Config)
        return open_store(str(root or self.settings["found.root"]), s3)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value}" for name, value in self._shown().items())
        return f"Result({self.name}, run {self.run_id}: {shown})"

    def _repr_html_(self) -> str:
        rows = {**self._shown(), "model": self.model_uri, "run": self.run_id}
        return html_table(self.name, rows)

    def _shown(self) -> dict[str, str]:
        return {name: f"{self.metrics[key]:.3f}" for name, key in _SHOWN.items() if key in self.metrics}


class Report:
    """A page that a notebook shows inline.

    Args:
        html: of the whole page.
    """

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: str | Path) -> None:
        """Write it as a file, for a browser.

        Raises:
            Unwritable: the disk is full, or the place is none for a file.
        """
        write_whole(path, self.html)

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html)}" width="100%" height="800" style="border: 0"></iframe>'


def _minutes(run: Run) -> float | None:
    return (run.info.end_time - run.info.start_time) / 60_000 if run.info.end_time else None
