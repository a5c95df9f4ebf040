"""One training as a run in MLflow: what is recorded, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from tyre_lightning.config import LoggerConfig
from tyre_lightning.errors import Pruned, UserError, first_line, hide_passwords, without_passwords
from tyre_lightning.names import mlflow_name
from tyre_lightning.surroundings import set_variable
from tyre_lightning.tracking.journal import FOLDER, Journal, put_aside, unsent
from tyre_lightning.tracking.pages import furnish
from tyre_lightning.tracking.passwords import hand_over_password
from tyre_lightning.tracking.refusals import why_gone
from tyre_lightning.tracking.sender import Sender, UnderWay, hold
from tyre_lightning.tracking.sweeps import SWEEP_TAG, parent_of
from tyre_lightning.tracking.system import SystemMonitor
from tyre_lightning.tracking.tables import EPOCHS_TABLE, METRICS_TABLE, epochs_table, metrics_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

CONFIG = "config.yaml"  # the artifact that has a run's config
CATALOG = "catalog.parquet"  # the artifact that lists a run's images
LEARNT = "learnt.parquet"  # of a run that has made no weights: what lists the images that they were learnt from
REPORT = "report.html"  # the artifact that shows what a run came to
_PATIENCE = 60.0  # seconds without the server, at the end of a run
_DATABASE_TRIES = 6  # with pauses of 6 s in all; MLflow's own ten have 100
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_TRIES = os.environ.get(_RETRIES, "3")  # MLflow's own (7, minutes in all) keep a mistyped address looking alive

log = logging.getLogger(__name__)


def connect(tracking_uri: str, *, new: bool = True) -> MlflowClient:
    """A client of the tracking server (or database file), which is made the default for this process.

    Args:
        tracking_uri: its address.
        new: whether a database that is not there is made: who only reads would find nothing in it.

    Raises:
        UserError: nothing answers there.
    """
    if not tracking_uri.strip():
        raise UserError("the tracking URI is empty: give the address of a server, or sqlite:///mlflow.db")
    if not new and (path := _file(tracking_uri)) and not os.path.exists(path):
        raise UserError(
            f"there is no database {path} that has runs and models: start in the folder of the training, or give the "
            "tracking URI it had"
        )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # its warnings are of what is tried again
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # the sender says it once
    os.environ[_RETRIES] = _TRIES
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it draws over ours
    try:
        return _open(tracking_uri)
    except Exception as error:  # MLflow's constructors, its stores and their drivers each raise their own
        raise UserError(
            f"the tracking URI {hide_passwords(tracking_uri)} does not answer as an MLflow server or "
            f"database ({_explain(error)}): start it, or use sqlite:///mlflow.db"
        ) from error


def _open(tracking_uri: str) -> MlflowClient:
    import mlflow

    uri = hand_over_password(whole_uri(tracking_uri))
    if not uri.startswith("http"):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = _DATABASE_TRIES
    with _alone(uri):
        client = mlflow.MlflowClient(uri)
        with _kept("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(uri)
        client.search_experiments(max_results=1)
    return client


def whole_uri(uri: str) -> str:
    """An address with the whole path, of a database in a file: MLflow keeps what it has opened, by its address.

    By a path from here it would go on with the folder before, where a notebook has gone to another.
    """
    before, scheme, path = uri.partition("sqlite:///")
    if before or not path or path.startswith((":memory:", "file:")):
        return uri
    return f"{scheme}{Path(path).absolute()}"


@contextmanager
def _kept(name: str) -> Iterator[None]:
    """A variable of the environment has afterwards what it had: MLflow's address there is the user's to choose."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        set_variable(name, before)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time on a database in a file: of several that lay its tables at once, all but one would fail."""
    path = _file(uri)
    if path is None or not _can_be_made(f"{path}.lock"):
        yield
        return
    with FileLock(f"{path}.lock"):
        yield


def _file(uri: str) -> str | None:
    """The file of a database that is in one."""
    from sqlalchemy.engine import make_url

    path = make_url(whole_uri(uri)).database if uri.startswith("sqlite") else None
    return None if path in (None, "", ":memory:") else path


def _can_be_made(path: str) -> bool:
    """Whether a file can be opened or made: FileLock tries for ever where no file can be."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
    except OSError:
        return False
    return True


def check_database(tracking_uri: str) -> None:
    """Refuse a database file that may not be written, without opening it: a new one takes MLflow seconds to make.

    Raises:
        UserError: names it.
    """
    path = Path(tracking_uri.removeprefix("sqlite:///")).absolute()
    place = next(one for one in (path, *path.parents) if one.exists())
    if not os.access(place, os.W_OK):
        raise UserError(f"the tracking URI {tracking_uri} cannot be used: {place} may not be written here")


class Run:
    """A run that has been started. What it records goes to its journal, from which it is sent to MLflow.

    Args:
        id: MLflow's run id.
        client: connected to the server that has the run.
        config: what the run was asked to log to.
        journal: of this run.
        lock: what :func:`tyre_lightning.tracking.sender.hold` gave.
    """

    def __init__(self, id: str, client: MlflowClient, config: LoggerConfig, journal: Journal, lock: FileLock) -> None:
        self.id = id
        self.client = client
        self.config = config
        self.journal = journal
        _ask_once()  # the sender repeats what failed, and looks before it creates
        self._sender = Sender(journal, client, id, lock)

    @property
    def version(self) -> str | None:
        """Of the registered model, once MLflow has it."""
        return self._sender.version

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record nested values as parameters with dotted names; those that are recorded already stay."""
        known = self.journal.params()
        self.journal.append("params", values={key: text for key, text in as_params(values).items() if key not in known})

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record final metrics by name."""
        recorded = self.journal.recorded()
        new = {name: float(value) for name, value in values.items() if (name, step) not in recorded}
        self.journal.add_metrics(new, step)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as an artifact."""
        self.journal.add_figure(figure, name)

    def log_text(self, text: str, name: str) -> None:
        """Record a text as an artifact."""
        self.journal.add_text(hide_passwords(text), name)

    def log_table(self, text: str, name: str) -> None:
        """Record a table, as MLflow writes one, as an artifact that it shows as a table."""
        self.journal.add_table(hide_passwords(text), name)

    def log_note(self, text: str) -> None:
        """Describe the run, in Markdown; its experiment too, where nobody has but another run."""
        self.journal.append("note", text=hide_passwords(text))

    def log_dataset(self, usage: str, digest: str, root: str, images: int, counts: Mapping[str, int]) -> None:
        """Record a set of images as an input of the run; ``counts`` are of those that show each class."""
        root = hide_passwords(root)
        dataset = {
            "name": f"{root.rstrip('/').rpartition('/')[2]}/{usage}",
            "digest": digest,
            "source_type": "s3" if root.startswith("s3:") else "local",
            "source": json.dumps({"uri": root}),
            "profile": json.dumps({"images": images, "classes": counts}),
        }
        self.journal.append("dataset", usage=usage, dataset=dataset)

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file as an artifact, if it exists."""
        if os.path.isfile(path):
            self.journal.add_file(path, folder)

    def flush(self, patience: float = 10.0) -> None:
        """Wait until MLflow has all of it.

        Args:
            patience: seconds for which the server may fail to answer.

        Raises:
            UserError: it fails for longer.
        """
        self._sender.flush(patience)

    def end(self, status: str) -> None:
        """End the run, and wait until MLflow has everything.

        Raises:
            UserError: the server is away, and what it lacks is kept; or the disk is full.
        """
        try:
            self._record_end(status)
            self.flush(_PATIENCE)
        finally:
            self.close()

    def _record_end(self, status: str) -> None:
        try:
            _finish(self.journal, status)
        except (OSError, UserError):  # a full disk; MLflow may have another one
            with suppress(Exception):
                self.client.set_terminated(self.id, "FAILED" if status == "FINISHED" else status)
            raise

    def close(self) -> None:
        """Send no more; what is left stays in the journal."""
        self._sender.close()


def as_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as MLflow has them: texts by dotted names, without passwords."""
    return {key: hide_passwords(str(value)) for key, value in flatten(values)}


def find_artifact(client: MlflowClient, run_id: str, name: str) -> str:
    """Where an artifact of a run is, for whoever wants to open it: a file, or which artifact of which run."""
    where = urlsplit(str(client.get_run(run_id).info.artifact_uri))
    path = Path(url2pathname(where.path), name)
    here = where.scheme in ("", "file") and path.is_file()
    return str(path) if here else f"{name}, an artifact of run {run_id} in MLflow"


def fetch_artifact(client: MlflowClient, run_id: str, name: str, folder: str | Path) -> Path:
    """Copy an artifact of a run into a folder; gives its path.

    Raises:
        UserError: there is no such run, or it has none of this name.
    """
    from mlflow.exceptions import MlflowException

    try:
        return Path(client.download_artifacts(run_id, name, str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id} of {called(client)} has no {name}: {first_line(error)}") from error


def called(client: MlflowClient) -> str:
    """The address of a client's server or database, as it is called from here, without a password."""
    return hide_passwords(client.tracking_uri).replace(f"{whole_uri('sqlite:///.')}/", "sqlite:///", 1)


def fetch_catalog(run_id: str, tracking_uri: str, folder: Path) -> str:
    """Copy the catalog that a run recorded into a folder; gives its path.

    Raises:
        UserError: there is no such run, or it recorded none.
    """
    return str(fetch_artifact(connect(tracking_uri, new=False), run_id, CATALOG, folder))


@contextmanager
def tracked_run(
    config: LoggerConfig, folder: Path, name: str, tags: Mapping[str, str], *, go_on: bool = False
) -> Iterator[Run]:
    """Start a run, and end it as FINISHED; KILLED after Ctrl-C, SIGTERM or pruning; FAILED after any other error.

    Args:
        config: where runs are recorded.
        folder: of the run; its journal goes there.
        go_on: whether the run whose journal is there goes on.
        name: of a new run.
        tags: of a new run.

    Raises:
        UserError: the tracking server does not answer, at the start or for too long at the end.
    """
    client = connect(config.tracking_uri)
    config = replace(config, tracking_uri=hand_over_password(config.tracking_uri))
    run = _go_on(client, config, folder) if go_on else _begin(client, config, folder, name, tags)
    journal = run.journal
    monitor = SystemMonitor(journal) if config.system_metrics else None
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit, Pruned):
        status = "KILLED"  # Lightning turns Ctrl-C into SystemExit, after the checkpoint is written
        raise
    finally:
        if monitor:
            monitor.finish()
        _end(run, status)


def _ask_once() -> None:
    """Keep MLflow from making a request again whose answer is late, which would create what it asks for twice."""
    os.environ[_RETRIES] = "0"


def _begin(client: MlflowClient, config: LoggerConfig, folder: Path, name: str, tags: Mapping[str, str]) -> Run:
    """A new run and its journal."""
    from mlflow.exceptions import MlflowException

    _ask_once()
    try:
        run_id = _create(client, config, name, tags)
    except MlflowException as error:
        where = hide_passwords(config.tracking_uri)
        raise UserError(f"{where} does not take a new run: {first_line(error)}") from error
    journal = Journal(folder / FOLDER)
    try:
        put_aside(folder)
        lock = hold(journal)  # before others can find the journal, and take the run for one whose process is gone
        with _let_go(lock):
            journal.begin(run_id, hide_passwords(name), hide_passwords(config.tracking_uri))
            return Run(run_id, client, config, journal, lock)
    except UserError:
        with suppress(Exception):
            client.set_terminated(run_id, "FAILED")
        raise


def _go_on(client: MlflowClient, config: LoggerConfig, folder: Path) -> Run:
    """The run that a folder has the journal of."""
    from mlflow.exceptions import MlflowException

    journal = Journal(folder / FOLDER)
    run_id: str = journal.run()["run_id"]
    with _let_go(lock := hold(journal)):
        try:
            client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            way = "restore it in MLflow, or train anew"
            raise UserError(f"run {run_id} of {folder} cannot go on ({first_line(error)}): {way}") from error
        journal.mend()
        run = Run(run_id, client, config, journal, lock)
    log.info("run %s goes on", run_id)
    return run


@contextmanager
def _let_go(lock: FileLock) -> Iterator[None]:
    """Inside, a failure lets a lock go."""
    try:
        yield
    except BaseException:
        lock.release()
        raise


def _finish(journal: Journal, status: str) -> None:
    """Record the tables of all numbers, and the end."""
    journal.add_table(metrics_table(journal.metrics()), METRICS_TABLE)
    journal.add_table(epochs_table(journal), EPOCHS_TABLE)
    journal.append("end", status=status, timestamp=int(time.time() * 1000))


def _end(run: Run, status: str) -> None:
    """End a run; that MLflow cannot be told of one that has failed is a warning beside its error."""
    try:
        run.end(status)
    except (OSError, UserError) as error:
        if status == "FINISHED":
            raise
        log.warning("%s", error)


def resend(journal: Journal, tracking_uri: str | None = None) -> None:
    """Send what a run has left; a run whose process is gone without an end is ended as KILLED.

    Raises:
        UnderWay: the run is.
        UserError: the server does not answer, another one than before does not have the run, or the journal cannot be
            written.
    """
    about = journal.run()
    uri = tracking_uri or about["tracking_uri"]
    config = LoggerConfig(tracking_uri=hand_over_password(uri))
    client = connect(uri)
    if hide_passwords(uri) != about["tracking_uri"] and (gone := why_gone(client, about["run_id"])):
        raise UserError(f"{hide_passwords(uri)}: {gone}: give the address of the server that has it")
    with _let_go(lock := hold(journal)):
        journal.mend()
        run = Run(about["run_id"], client, config, journal, lock)
    try:
        if journal.status() is None:
            _finish(journal, "KILLED")
        run.flush()
    finally:
        run.close()
    log.info("run %s: MLflow has all of it (%s)", run.id, journal.folder.parent)


def send_left(folder: Path, tracking_uri: str) -> None:
    """Send what other runs below a folder could not send to this server; what cannot be sent now stays."""
    for journal in unsent(folder):
        if journal.run()["tracking_uri"] == hide_passwords(tracking_uri):
            try:
                resend(journal, tracking_uri)
            except UnderWay:
                pass
            except UserError as error:
                log.warning("what an earlier run recorded is not sent: %s", error)


def _create(client: MlflowClient, config: LoggerConfig, name: str, tags: Mapping[str, str]) -> str:
    experiment = open_experiment(client, config.experiment)
    parent = parent_of(client, experiment, tags[SWEEP_TAG]) if SWEEP_TAG in tags else None
    nested = {} if parent is None else {"mlflow.parentRunId": parent.info.run_id}
    source = {"mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL", "mlflow.user": _user(), **_commit()}
    shown = without_passwords({**source, **tags, **nested})
    run_id: str = client.create_run(experiment, run_name=hide_passwords(name), tags=shown).info.run_id
    return run_id


def open_experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is made if there is none of this name.

    Raises:
        UserError: it has been deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            client.create_experiment(name)
        except MlflowException:  # another run has just made it, or it cannot be made
            if client.get_experiment_by_name(name) is None:
                raise
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
    _check_active(experiment)
    furnish(client, experiment)
    return str(experiment.experiment_id)


def check_experiment(client: MlflowClient, name: str) -> None:
    """Refuse an experiment that takes no run, long before there is one.

    Raises:
        UserError: it has been deleted, or the server refuses to say.
    """
    from mlflow.exceptions import MlflowException

    try:
        _check_active(client.get_experiment_by_name(name))
    except MlflowException as error:
        raise UserError(f"logger.experiment='{name}' cannot be used: {first_line(error)}") from error


def _check_active(experiment: Experiment | None) -> None:
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        name = experiment.name
        raise UserError(f"logger.experiment='{name}' is deleted in MLflow: restore it or choose another name")


def _commit() -> dict[str, str]:
    """The git commit of the code, where it lies in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": found.stdout.strip()}


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _explain(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(first_line(error), 200, placeholder=' ...')}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of a dotted name that MLflow accepts, and value."""
    for key, value in values.items():
        name = prefix + mlflow_name(str(key))
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value
