"""A run's journal outlives kills, full disks, other users, and what MLflow will never take."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from omegaconf import OmegaConf
from requests import HTTPError, Response

from tests.conftest import train_here
from tests.mlflow_server import lay_database
from tyre_lightning.config import LoggerConfig, ResendConfig
from tyre_lightning.errors import UserError
from tyre_lightning.resend import resend
from tyre_lightning.tracking.journal import FOLDER, Journal, unsent
from tyre_lightning.tracking.refusals import refusal
from tyre_lightning.tracking.runs import Run, connect, open_experiment, send_left, tracked_run

RUN_ID = "0" * 32


def steps(journal: Journal) -> list[int]:
    return sorted(journal.metric("a"))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The outputs folder of one run, of whose three records MLflow has two."""
    journal = Journal(tmp_path / "outputs" / "run" / FOLDER)
    journal.begin(RUN_ID, "name", "sqlite:///nowhere.db")
    for step in range(3):
        journal.add_metrics({"a": 1.0}, step)
    *_, (_, journal.sent), _ = journal.records()
    return tmp_path / "outputs"


@pytest.mark.parametrize("name", ["run.json", "records.jsonl", "sent"])
def test_a_file_that_was_cut_anywhere_costs_no_more_than_its_end(name: str, kept: Path, tmp_path: Path) -> None:
    content = (kept / "run" / FOLDER / name).read_bytes()
    for size in range(len(content)):
        folder = shutil.copytree(kept, tmp_path / str(size))
        (folder / "run" / FOLDER / name).write_bytes(content[:size])
        whole = content[:size].count(b"\n") if name == "records.jsonl" else 3
        found = unsent(folder)
        if name == "run.json":
            assert not found
        journal = Journal(folder / "run" / FOLDER)
        journal.mend()
        journal.add_metrics({"a": 1.0}, 9)
        assert steps(journal) == [*range(whole), 9]
        waiting = [record["step"] for record, _ in journal.records(journal.sent)]
        assert waiting[-1] == 9 and waiting[-2:-1] == [2][: whole // 3]
        shutil.rmtree(folder)


@contextmanager
def full_from(size: int) -> Iterator[None]:
    """No file grows beyond this: the system's own way to take half of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_is_full_at_any_byte_leaves_whole_records(kept: Path) -> None:
    (folder := kept / "run" / FOLDER).joinpath("files").mkdir()
    journal = Journal(folder)
    size = (folder / "records.jsonl").stat().st_size
    for room in range(90):
        with full_from(size + room):
            with suppress(UserError):
                journal.add_metrics({"a": 2.0}, 3)
            (folder / "files" / "note").write_bytes(b"")
        assert steps(journal) in ([0, 1, 2], [0, 1, 2, 3])
        journal.add_metrics({"a": 2.0}, 4)
        assert steps(journal) in ([0, 1, 2, 4], [0, 1, 2, 3, 4])
        with (folder / "records.jsonl").open("ab") as file:
            file.truncate(size)


@pytest.mark.parametrize("write", [
    lambda journal: journal.add_metrics({"a": 2.0}, 3),
    lambda journal: journal.add_text("x" * 500, "note.txt"),
    lambda journal: journal.add_file(__file__),
    lambda journal: journal.begin(RUN_ID, "name" * 100, "sqlite:///nowhere.db"),
    lambda journal: journal.set_aside({"kind": "end"}, "x" * 500),
])  # fmt: skip
def test_a_full_disk_is_one_sentence(write: Callable[[Journal], None], kept: Path) -> None:
    journal = Journal(kept / "run" / FOLDER)
    with full_from(230), pytest.raises(UserError, match=r"cannot write .*: File too large"):
        write(journal)
    assert journal.run()["name"] == "name" and steps(journal) == [0, 1, 2]
    assert not list(kept.rglob("files/*/*"))


def test_two_records_on_one_line_cost_only_the_half_one(kept: Path) -> None:
    """As earlier versions left them on a full disk."""
    journal = Journal(kept / "run" / FOLDER)
    with (journal.folder / "records.jsonl").open("ab") as file:
        file.write(b'{"kind": "metrics", "valu{"kind": "metrics", "values": {"a": 5.0}, "step": 5, "timestamp": 1}\n')
        file.write(b"\x00\x00\x00\n")
    journal.add_metrics({"a": 6.0}, 6)
    assert steps(journal) == [0, 1, 2, 5, 6]


def test_many_writers_mix_no_lines(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tyre_lightning.tracking.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(100): journal.add_metrics({sys.argv[2] * 3000: 1.0}, step)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(Journal(tmp_path).of_kind("metrics")) == 200


# MLflow


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty database, in the working folder."""
    monkeypatch.chdir(tmp_path)
    lay_database(tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def start(uri: str, folder: Path) -> Any:
    return tracked_run(LoggerConfig(tracking_uri=uri, system_metrics=False), folder, "name", {})


def broken_off(uri: str, folder: Path) -> str:
    """A run whose process was killed; gives its id."""
    with suppress(UserError), start(uri, folder) as run:
        run.log_metrics({"val/f1": 0.5})
        run.flush()
    for name in ("sent", "lock"):
        (folder / FOLDER / name).unlink(missing_ok=True)
    records = folder / FOLDER / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    assert isinstance(run, Run)
    return run.id


def refused(folder: Path) -> list[dict[str, Any]]:
    path = folder / FOLDER / "refused.jsonl"
    return [json.loads(line)["record"] for line in path.read_text().splitlines()] if path.exists() else []


def test_what_mlflow_refuses_is_set_aside_and_the_rest_goes_on(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    with start(uri, tmp_path / "run") as run:
        run.log_params({"found": {"images": {"x=1": 3}}})
        run.journal.append("params", values={f"p{index}": str(index) for index in range(5)})
        run.flush()
        run.journal.append("params", values={"p2": "another", "p9": "9"})
        run.journal.append("metrics", values={"a": 1.0, "b": "no number", "c": 3.0}, step=0, timestamp=1)
        run.log_metrics({"val/speed/it's": 0.5})
        run.journal.append("version", name="plant/tyres", folder="model", challenger=True)
        run.log_text("<html>", "report.html")
    assert time.monotonic() - begun < 30
    client = MlflowClient(uri)
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert {"a", "c", "val/speed/it_s-185ce31e"} == {*found.data.metrics}
    assert (found.data.params["p2"], found.data.params["p9"]) == ("2", "9")
    assert found.data.params["found.images.x_1-6b6482c0"] == "3"
    assert "report.html" in {item.path for item in client.list_artifacts(run.id)}
    params, metrics, version = refused(tmp_path / "run")
    assert (params["values"], metrics["values"], version["name"]) == (
        {"p2": "another"}, {"b": "no number"}, "plant/tyres",
    )  # fmt: skip
    for named in ("params 'p2'", "metrics 'b'", "registered model 'plant/tyres'"):
        assert f"MLflow refuses the {named}" in caplog.text
    assert not unsent(tmp_path)


@pytest.mark.parametrize("deleted", ["run", "experiment", "database"])
def test_a_run_that_is_gone_is_set_aside_once_and_for_all(
    deleted: str, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = broken_off(uri, tmp_path / "out" / "run")
    client = MlflowClient(uri)
    if deleted == "run":
        client.delete_run(run_id)
    elif deleted == "experiment":
        client.delete_experiment(client.get_run(run_id).info.experiment_id)
    else:
        uri = f"sqlite:///{tmp_path}/other.db"
        lay_database(tmp_path / "other.db")
        journal = Journal(tmp_path / "out" / "run" / FOLDER)
        journal.begin(run_id, "name", uri)
    begun = time.monotonic()
    send_left(tmp_path / "out", uri)
    assert time.monotonic() - begun < 8
    assert run_id in caplog.text and ("is deleted in MLflow" in caplog.text or "has no run" in caplog.text)
    assert {record["kind"] for record in refused(tmp_path / "out" / "run")} == {"metrics", "table", "end"}
    caplog.clear()
    send_left(tmp_path / "out", uri)
    assert not caplog.text


@pytest.mark.parametrize("moment", ["begin", "mend"])
def test_a_run_that_is_just_beginning_is_not_taken_for_one_whose_process_is_gone(
    moment: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep's runs that begin at once, each looks for what others have left."""
    if moment == "mend":
        broken_off(uri, tmp_path / "out" / "run")
    done: Callable[..., None] = getattr(Journal, moment)

    def others_look(journal: Journal, *values: Any) -> None:
        done(journal, *values)
        monkeypatch.undo()
        assert len(unsent(tmp_path / "out")) == 1
        send_left(tmp_path / "out", uri)

    monkeypatch.setattr(Journal, moment, others_look)
    config = LoggerConfig(uri, "sweep", system_metrics=False)
    with tracked_run(config, tmp_path / "out" / "run", "run", {}, go_on=moment == "mend") as run:
        assert run.journal.status() is None
        assert MlflowClient(uri).get_run(run.id).info.status == "RUNNING"
    assert MlflowClient(uri).get_run(run.id).info.status == "FINISHED"


def test_a_run_is_not_set_aside_for_a_wrong_address(uri: str, tmp_path: Path) -> None:
    run_id = broken_off(uri, tmp_path / "out" / "run")
    lay_database(tmp_path / "other.db")
    count, (error,) = resend(OmegaConf.structured(ResendConfig("out", f"sqlite:///{tmp_path}/other.db")))
    assert count == 1 and f"MLflow has no run {run_id}: give the address" in str(error)
    assert resend(OmegaConf.structured(ResendConfig("out"))) == (1, [])
    assert MlflowClient(uri).get_run(run_id).info.status == "KILLED"


def test_a_disk_that_has_no_room_for_the_end_leaves_a_failed_run(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(journal: Journal, kind: str, **values: Any) -> None:
        raise UserError("cannot write records.jsonl: No space left on device")

    with pytest.raises(UserError, match="No space left"), start(uri, tmp_path / "out" / "run") as run:
        monkeypatch.setattr(Journal, "append", full)
    assert MlflowClient(uri).get_run(run.id).info.status == "FAILED"
    monkeypatch.undo()
    send_left(tmp_path / "out", uri)
    assert not unsent(tmp_path / "out")


@pytest.mark.parametrize("fault", ["empty", "unreadable", "unwritable", "newer"])
def test_another_journal_costs_a_training_a_warning(
    fault: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken_off(uri, tmp_path / "out" / "run")
    folder = tmp_path / "out" / "run" / FOLDER
    denied = PermissionError(13, "Permission denied")
    if fault == "empty":
        (folder / "run.json").write_bytes(b"")
    elif fault == "newer":
        (folder / "run.json").write_text(json.dumps(Journal(folder).run() | {"format": 99}))
    else:  # to root nothing is denied
        name = {"unreadable": "pathlib.Path.read_text", "unwritable": "os.open"}[fault]
        real: Any = Path.read_text if fault == "unreadable" else __import__("os").open

        def deny(path: Any, *args: Any, **kwargs: Any) -> Any:
            if Path(path).name in ("run.json", "records.jsonl"):
                raise denied
            return real(path, *args, **kwargs)

        monkeypatch.setattr(name, deny)
    with caplog.at_level(logging.WARNING):
        send_left(tmp_path / "out", uri)
    assert str(folder) in caplog.text
    assert len(caplog.messages) == 1


def test_a_deleted_experiment_is_refused_before_the_lake_is_looked_at(uri: str, tmp_path: Path) -> None:
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match=r"logger\.experiment='gone' is deleted in MLflow: restore it"):
        train_here(tmp_path, "data.root=nowhere", "logger.experiment=gone")


def _begin_run(folder: Path) -> None:
    os.chdir(folder)
    client = connect("sqlite:///mlflow.db")
    client.create_run(open_experiment(client, "first"))


@pytest.mark.long
def test_processes_that_start_at_once_share_a_new_database(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_begin_run, args=(tmp_path,)) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(200)
    assert [process.exitcode for process in started] == [0] * 3
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("first")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 3


def http_error(status: int) -> HTTPError:
    (answer := Response()).status_code = status
    return HTTPError(f"{status} of a store", response=answer)


def rest(answer: dict[str, str]) -> Exception:
    made: Any = RestException
    error: Exception = made(answer)
    return error


ERRORS = [
    *((http_error(status), 400 <= status < 500 and status not in (401, 403, 408, 409, 429)) for status in
      (400, 401, 403, 404, 408, 409, 410, 413, 422, 429, 500, 502, 503)),
    (rest({"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}), True),
    (rest({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}), True),
    (rest({"error_code": "PERMISSION_DENIED", "message": "no"}), False),
    (rest({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "no"}), False),
    (rest({"message": "of a proxy"}), False),
    (MlflowException("API request to endpoint /x failed with error code 413 != 200. Response body: ''"), True),
    (MlflowException("API request to endpoint /x failed with error code 502 != 200. Response body: ''"), False),
    (MlflowException("no", error_code=INVALID_PARAMETER_VALUE), True),
    (MlflowException("database is locked", error_code=INTERNAL_ERROR), False),
    (MlflowException("later", error_code=TEMPORARILY_UNAVAILABLE), False),
    (ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}, "Error": {}}, "PutObject"), True),
    (ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}, "Error": {}}, "PutObject"), False),
    (ConnectionError("refused"), False),
    (UserError("cannot write: No space left on device"), False),
]  # fmt: skip


@pytest.mark.parametrize(("error", "final"), ERRORS, ids=str)
def test_a_refusal_is_told_from_an_outage(error: Exception, final: bool) -> None:
    assert (refusal(error) is not None) is final


def test_a_database_that_is_named_by_a_path_from_here_is_the_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a notebook goes to another folder, too; and where the folder before is gone."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        lay_database(tmp_path / name / "mlflow.db")
        monkeypatch.chdir(tmp_path / name)
        connect("sqlite:///mlflow.db").create_experiment(name)
    shutil.rmtree(tmp_path / "first")
    found = {one.name for one in connect("sqlite:///mlflow.db").search_experiments()}
    assert found == {"Default", "second"}
