"""What windows are compared with: one that a person has accepted, or what validation looked like.

An accepted window is a file of a few thousand tyres. It is an artifact of the run in MLflow that has recorded the
window, where nothing overwrites it, and a tag of the registered version names this run: setting a tag is one request,
so that whoever reads finds the former baseline or the new one, and a new version of the model begins without one, since
it sees other features and scores. A model that is not registered has a file of one's own in its place.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from tyre_lightning.config import WatchConfig
from tyre_lightning.decision.sample import Sample
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.gallery import jpeg_bytes, thumbnails
from tyre_lightning.line.pictures import SHOWN, typical
from tyre_lightning.line.window import Window
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.tracking.line import refusals
from tyre_lightning.tracking.runs import fetch_artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FILE = "baseline.parquet"  # the artifact
TAG = "watch.baseline"  # of a registered version: the run that has the artifact
FEWEST = 50  # tyres of a window that can be accepted


@dataclass(frozen=True)
class Baseline:
    """Tyres to compare with.

    Args:
        sample: of them.
        accepted: whether they are of the line.
        about: what they are, for people.
    """

    sample: Sample
    accepted: bool
    about: str


def identity(inspector: Inspector) -> str:
    """What tells a model from others: a digest of all that it decides by."""
    return blake2b(inspector.spec().encode(), digest_size=8).hexdigest()


def find_baseline(
    config: WatchConfig, inspector: Inspector, client: MlflowClient, version: ModelVersion | None
) -> Baseline:
    """The configured file, else what was accepted with the version, else what validation looked like.

    Raises:
        UserError: there is none of them, or it is of another model.
    """
    if config.baseline is not None:
        path = Path(os.path.expanduser(config.baseline))
        if not path.is_file():
            raise UserError(f"baseline={config.baseline} is no file: `watch accept baseline=...` writes it")
        return _accepted(Sample.load(path), inspector, f"baseline={config.baseline}")
    if version is not None and (run_id := version.tags.get(TAG)):
        with tempfile.TemporaryDirectory() as folder:
            sample = Sample.load(fetch_artifact(client, run_id, FILE, folder))
        return _accepted(sample, inspector, f"the baseline of model={config.model}")
    if inspector.validation is not None:
        return Baseline(inspector.validation, False, f"{len(inspector.validation)} good tyres of validation")
    raise UserError(
        f"model={config.model} does not know what validation looked like (an older version made it, or it is a "
        "checkpoint): accept a window of the line that is clean, `watch accept model=... input=...`"
    )


def _accepted(sample: Sample, inspector: Inspector, where: str) -> Baseline:
    if sample.about.get("model") != identity(inspector):
        raise UserError(f"{where} was accepted with another model: accept a window with this one, `watch accept ...`")
    about = f"{len(sample)} tyres of {sample.about['input']}, accepted as '{sample.about['name']}'"
    return Baseline(sample, True, about)


def accept(config: WatchConfig, inspector: Inspector, window: Window, time: str) -> Sample:
    """A window as the baseline of those to come, with pictures of typical tyres where pictures were read.

    Raises:
        UserError: it has too few tyres.
    """
    (sample,) = window.samples.values()
    if len(sample) < FEWEST:
        raise UserError(
            f"input={config.input} has {len(sample)} tyres, and a baseline takes at least {FEWEST}: accept a longer "
            "window"
        )
    about = {**sample.about, "model": identity(inspector), "name": config.name or time, "time": time}
    keys = [] if window.store is None else typical(sample)[:SHOWN]
    tiles = [] if window.store is None else thumbnails(window.store, keys)
    return Sample(sample.table, about).with_pictures(dict(zip(keys, map(jpeg_bytes, tiles), strict=True)))


@refusals()
def keep(sample: Sample, config: WatchConfig, client: MlflowClient, version: ModelVersion | None, run_id: str) -> str:
    """Put a baseline where later windows find it; gives where that is, for people.

    Args:
        sample: the baseline.
        config: may name a file.
        client: of MLflow.
        version: of the model, where it is registered.
        run_id: that has recorded the window.

    Raises:
        UserError: there is no place for it.
    """
    if config.baseline is not None:
        sample.save(Path(os.path.expanduser(config.baseline)))
        return config.baseline
    assert version is not None  # `check_place` has seen to that
    with tempfile.TemporaryDirectory() as folder:
        sample.save(path := Path(folder, FILE))
        client.log_artifact(run_id, str(path))
    client.set_model_version_tag(version.name, str(version.version), TAG, run_id)
    return f"version {version.version} of {version.name}"


def check_place(config: WatchConfig, version: ModelVersion | None) -> None:
    """Refuse, before any picture is read, to accept what could not be kept.

    Raises:
        UserError: the model is not registered, and no file is given.
    """
    if config.accept and config.baseline is None and version is None:
        raise UserError(f"model={config.model} is no registered version to keep a baseline with: give baseline=FILE")
