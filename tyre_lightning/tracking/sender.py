"""Sends a run's journal to MLflow, while the run goes on; a server that is away makes nothing wait but this."""

from __future__ import annotations

import logging
import threading
import time
from itertools import islice, takewhile
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.names import MLFLOW_LENGTH, as_override, mlflow_name
from tyre_lightning.tracking.journal import Journal, Record
from tyre_lightning.tracking.refusals import refusal, why_gone
from tyre_lightning.tracking.tables import is_detail

if TYPE_CHECKING:
    from mlflow import MlflowClient

_POLL_SECONDS = 1.0  # other processes append too
_LONGEST_PAUSE = 30.0  # between two tries
_TOGETHER = 500  # metrics in a request; MLflow takes 1,000
_PARAMS_TOGETHER = 100  # MLflow's own limit
_NAMES = ("name", "path", "usage", "status")  # what tells a record from others of its kind

log = logging.getLogger(__name__)


class UnderWay(UserError):
    """Another process sends this journal."""


def hold(journal: Journal) -> FileLock:
    """Be the one process that sends a journal; others can see whose run it is only once this holds it.

    Raises:
        UnderWay: another process sends it.
        UserError: it cannot be written.
    """
    lock = FileLock(journal.folder / "lock", timeout=0, thread_local=False)
    try:
        journal.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UnderWay(f"{journal.folder} belongs to a run that is under way") from None
    except OSError as error:
        raise UserError(f"cannot write in {journal.folder}: {error.strerror or error}") from error
    return lock


class Sender:
    """Sends what a journal has, in order, each record at least once; MLflow knows those that come twice as one.

    What MLflow will never take is set aside in the journal's folder, so that nothing waits for it.

    Args:
        journal: of the run.
        client: connected to the server of the run.
        run_id: MLflow's.
        lock: what :func:`hold` gave; it is let go at the end.
    """

    def __init__(self, journal: Journal, client: MlflowClient, run_id: str, lock: FileLock) -> None:
        self._journal = journal
        self._client = client
        self._run_id = run_id
        self.version: str | None = None  # of the registered model, once there is one
        self._all_are_metrics = journal.run().get("format", 1) <= 2  # an older version's, that has no tables
        self._gone: str | None = None  # why MLflow takes nothing of this run any more
        self._failing_since: float | None = None
        self._reason = ""
        self._wake = threading.Event()
        self._moved = threading.Condition()
        self._closing = False
        self._lock = lock
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
        self._thread.start()

    def flush(self, patience: float) -> None:
        """Wait until MLflow has everything.

        Args:
            patience: seconds for which tries may fail.

        Raises:
            UserError: they have failed for longer, since this was called.
        """
        begun = time.monotonic()
        with self._moved:
            while self._journal.waiting:
                since = self._failing_since
                if since is not None and time.monotonic() - max(since, begun) >= patience:
                    kept = as_override("folder", str(self._journal.folder.parent))
                    raise UserError(
                        f"the tracking server does not take what run {self._run_id} has recorded ({self._reason}); "
                        f"all of it is kept: python -m tyre_lightning.resend {kept}"
                    )
                self._wake.set()
                self._moved.wait(0.2)

    def close(self) -> None:
        """Stop after the request that is under way; what is left stays in the journal."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._lock.release()

    def _work(self) -> None:
        pause = 1.0
        while not self._closing:
            try:
                self._send_all()
                pause = 1.0
            except Exception as error:  # MLflow, its stores and their clients each raise their own
                self._note_failure(error)
                self._wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._wait(_POLL_SECONDS)

    def _wait(self, seconds: float) -> None:
        with self._moved:
            self._moved.notify_all()
        if self._failing_since is None:
            self._wake.wait(seconds)
            self._wake.clear()
        else:  # a run that wants to end must not shorten the pauses
            end = time.monotonic() + seconds
            while not self._closing and time.monotonic() < end:
                time.sleep(0.1)

    def _note_failure(self, error: Exception) -> None:
        self._reason = shorten(first_line(error), 160, placeholder=" ...")
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            what = "the tracking server does not answer as it should"
            if isinstance(error, UserError):  # this disk's
                what = "MLflow cannot be told more at present"
            log.warning(
                "%s (%s: %s); training goes on, and what it records waits in %s",
                what, type(error).__name__, self._reason, self._journal.folder,
            )  # fmt: skip

    def _send_all(self) -> None:
        while (batch := [*islice(self._journal.records(self._journal.sent), _TOGETHER)]) and not self._closing:
            metrics = [*takewhile(lambda item: item[0]["kind"] == "metrics", batch)]
            part = metrics or batch[:1]
            self._send_or_set_aside([record for record, _ in part])
            self._journal.sent = part[-1][1]
            if self._failing_since is not None:
                log.warning("the tracking server answers again after %.0f s", time.monotonic() - self._failing_since)
                self._failing_since = None

    def _send_or_set_aside(self, records: list[Record]) -> None:
        """Send records; of those that MLflow refuses, set no more aside than need be."""
        reason = self._gone or self._refused(records)
        if reason is None:
            return
        parts = _halves(records)
        if self._gone is None and len(parts) > 1:
            for part in parts:
                self._send_or_set_aside(part)
            return
        if self._gone is None:
            log.warning("%s: it is set aside in %s", _describe(records[0], reason), self._journal.folder)
        for record in records:
            self._journal.set_aside(record, reason)

    def _refused(self, records: list[Record]) -> str | None:
        """Send records; gives why MLflow will never take them, if it will not."""
        try:
            self._send(records)
        except Exception as error:
            if (reason := refusal(error)) is None:
                raise
            if self._gone is None and (gone := why_gone(self._client, self._run_id)):
                log.warning("%s: what it has recorded since is set aside in %s", gone, self._journal.folder)
                self._gone = gone
            return self._gone or reason
        return None

    def _send(self, records: list[Record]) -> None:
        """Send one record, or several of metrics."""
        from tyre_lightning.tracking.pages import show_as_table, write_notes
        from tyre_lightning.tracking.versions import create_version

        record, client, run_id = records[0], self._client, self._run_id
        match record["kind"]:
            case "unreadable":
                log.warning("a line of %s cannot be read: it is set aside", self._journal.folder)
                self._journal.set_aside(record, "it cannot be read")
            case "metrics":
                self._send_metrics(records)
            case "params":
                self._send_params(record)
            case "dataset":
                self._send_dataset(record)
            case "file":
                if (path := self._path(record)).is_file():
                    client.log_artifact(run_id, str(path), record["folder"])
                else:
                    log.warning("%s is gone, so that MLflow does not get it", path)
                self._journal.forget(path)
            case "table":
                if (path := self._path(record)).is_file():
                    client.log_artifact(run_id, str(path))
                    show_as_table(client, run_id, path.name)
                self._journal.forget(path)
            case "note":
                write_notes(client, run_id, record["text"])
            case "model":
                path = self._path(record)
                client.log_artifacts(run_id, str(path), path.name)
                self._journal.forget(path)
            case "version":
                asks = record.get("challenger", True)  # journals of older versions do not say
                about = record.get("about", "")
                self.version = create_version(client, run_id, record["name"], record["folder"], about, challenger=asks)
            case "end":
                client.set_terminated(run_id, record["status"], record["timestamp"])

    def _path(self, record: Record) -> Path:
        path: str = record["path"]
        return self._journal.folder.absolute() / path

    def _send_metrics(self, records: list[Record]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(mlflow_name(name), value, record["timestamp"], record["step"])
            for record in records
            for name, value in record["values"].items()
            if self._all_are_metrics or not is_detail(name)
        ]
        for start in range(0, len(metrics), _TOGETHER):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _TOGETHER])

    def _send_params(self, record: Record) -> None:
        from mlflow.entities import Param

        params = [Param(mlflow_name(name, MLFLOW_LENGTH), value) for name, value in record["values"].items()]
        for start in range(0, len(params), _PARAMS_TOGETHER):
            self._client.log_batch(self._run_id, params=params[start : start + _PARAMS_TOGETHER])

    def _send_dataset(self, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(**record["dataset"])
        self._client.log_inputs(
            self._run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", record["usage"])])]
        )


def _halves(records: list[Record]) -> list[list[Record]]:
    """Several records in two parts; one of several values too; else as they are."""
    if len(records) > 1:
        middle = len(records) // 2
        return [records[:middle], records[middle:]]
    record, values = records[0], [*records[0].get("values", {}).items()]
    middle = len(values) // 2
    return [[record | {"values": dict(part)}] for part in (values[:middle], values[middle:])] if middle else [records]


def _describe(record: Record, reason: str) -> str:
    """The sentence about a record that MLflow refuses."""
    file = {"path": Path(record["path"]).name} if "path" in record else {}
    named = [*record.get("values", {}), *(value for key, value in (record | file).items() if key in _NAMES)]
    what = {"version": "registered model"}.get(record["kind"], record["kind"])
    return f"MLflow refuses the {what} '{', '.join(named)}' for good ({shorten(reason, 200, placeholder=' ...')})"
