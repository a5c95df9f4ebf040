"""What a run has to tell MLflow, written to this disk first, so that nothing depends on a server that answers.

A journal is a folder: ``run.json`` says which run it is, ``records.jsonl`` has a record a line, ``sent`` says how much
of it MLflow has, ``refused.jsonl`` has what MLflow will never take, and ``files`` holds artifacts that have no other
place. Any process may append; one sends. A kill or a full disk at any moment costs at most the record in its middle.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyre_lightning.errors import Unwritable, UserError
from tyre_lightning.files import whole, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a journal. In format 1, which has no number, every version asks to become the champion; up to 2 all of its numbers
# are metrics in MLflow.
FORMAT = 3
FOLDER = "tracking"  # a journal's folder in that of its run
_RUN = "run.json"
_BEGIN = b'{"kind": '  # of every record
_BLOCK = 1 << 16  # bytes that are read at a time

Record = dict[str, Any]

log = logging.getLogger(__name__)


class Journal:
    """One run's records, in the order in which they were made.

    Args:
        folder: of the journal; it is made when the first thing is written to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self._records = folder / "records.jsonl"
        self._sent = folder / "sent"
        self._refused = folder / "refused.jsonl"
        self._unwritten: int | None = None  # what ``sent`` would say on a disk that is not full

    @classmethod
    def at(cls, folder: Path) -> Journal | None:
        """The journal that the folder of a run has, if it has one that says which run it is."""
        found = cls(folder / FOLDER)
        try:
            return found if found.run() else None
        except Damaged as error:
            log.warning("%s", error)
            return None

    def mend(self) -> None:
        """Cut off the line that a killed process half wrote.

        Raises:
            UserError: the journal cannot be written.
        """
        with self._open(self._records) as file:
            end = _cut_off(file)
        if self._told() > end:  # the disk has lost what MLflow has
            self.sent = end

    def begin(self, run_id: str, name: str, tracking_uri: str) -> None:
        """Say which run this is; the address must be free of passwords."""
        values = {
            "format": FORMAT,
            "run_id": run_id,
            "name": name,
            "tracking_uri": tracking_uri,
            "start_time": time.time(),
        }
        write_whole(self.folder / _RUN, json.dumps(values))

    def run(self) -> dict[str, Any]:
        """What :meth:`begin` was told, and when; empty where it was not.

        Raises:
            Damaged: it cannot be read.
            UserError: a newer version made it.
        """
        try:
            found: Any = json.loads((self.folder / _RUN).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise Damaged(self.folder / _RUN, error) from error
        if isinstance(found, dict) and (made := found.get("format", 1)) > FORMAT:
            raise UserError(f"{self.folder} has format {made}, and this version knows up to {FORMAT}: update")
        if not isinstance(found, dict) or not {"run_id", "tracking_uri"} <= {*found}:
            raise Damaged(self.folder / _RUN, ValueError("it names no run"))
        return found

    # Writing

    def append(self, kind: str, **values: Any) -> None:
        """Add a record: a whole line, or nothing.

        Raises:
            UserError: the disk is full, or the journal cannot be written for another reason.
        """
        self._write_line(self._records, {"kind": kind, **values})

    def _write_line(self, path: Path, values: Record) -> None:
        line = (json.dumps(values) + "\n").encode()
        with self._open(path) as file:
            end = _cut_off(file)
            try:
                _write_all(file, line)
            except OSError:
                os.ftruncate(file, end)
                raise

    @contextmanager
    def _open(self, path: Path) -> Iterator[int]:
        """A file to append lines to, while no other process does.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                with suppress(OSError):  # not every file system has locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield file
            finally:
                os.close(file)  # and unlock
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error

    def add_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics of a step, with the present time."""
        self.append("metrics", values=dict(values), step=step, timestamp=int(time.time() * 1000))

    def add_table(self, text: str, name: str) -> None:
        """Record a table, as MLflow writes one, as an artifact that it shows as a table."""
        write_whole(path := self.new_place(name), text)
        self.append("table", path=self.relative(path))

    def add_file(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file as an artifact; a copy is kept unless it lies in the run's own folder."""
        path = Path(path).absolute()
        if not path.is_relative_to(self.folder.parent.absolute()):
            with whole(place := self.new_place(path.name)) as copy:
                shutil.copyfile(path, copy)
            path = place
        self.append("file", path=self.relative(path), folder=folder)

    def add_text(self, text: str, name: str) -> None:
        """Record a text as an artifact."""
        write_whole(path := self.new_place(name), text)
        self.add_file(path)

    def add_figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as an artifact."""
        with whole(path := self.new_place(name)) as unfinished:
            figure.savefig(unfinished)
        self.add_file(path)

    def relative(self, path: Path) -> str:
        """A path for a record: one in this folder, which may be renamed, without it."""
        folder = self.folder.absolute()
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def new_place(self, name: str) -> Path:
        """A new path in ``files`` for an artifact of this name, in a folder that is still to be made."""
        return self.files.absolute() / uuid.uuid4().hex / name

    # Reading

    def records(self, start: int = 0) -> Iterator[tuple[Record, int]]:
        """The records from a byte offset on, each with the offset at its end; a line that is half written is left.

        Offsets within a line are taken for its end. A line that nothing can be read of is a record of its text.
        """
        if not self._records.exists():
            return
        with self._records.open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()
            while (line := file.readline()).endswith(b"\n"):
                yield _parse(line) or {"kind": "unreadable", "text": repr(line)}, file.tell()

    def of_kind(self, kind: str) -> list[Record]:
        """All records of a kind."""
        return [record for record, _ in self.records() if record["kind"] == kind]

    def metric(self, name: str) -> dict[int, float]:
        """What a metric was at each step."""
        found = self.of_kind("metrics")
        return {record["step"]: record["values"][name] for record in found if name in record["values"]}

    def metrics(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for record in self.of_kind("metrics") for name, value in record["values"].items()}

    def recorded(self) -> set[tuple[str, int]]:
        """The names and steps of all metrics."""
        return {(name, record["step"]) for record in self.of_kind("metrics") for name in record["values"]}

    def params(self) -> dict[str, str]:
        """All parameters."""
        return {name: value for record in self.of_kind("params") for name, value in record["values"].items()}

    def status(self) -> str | None:
        """How the run ended, if it did after its last other record."""
        if not (size := self._size()):
            return None
        with self._records.open("rb") as file:
            file.seek(max(0, size - 4096))  # where this record is short, as an end is
            last = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        record = _parse(last) if last.startswith(_BEGIN) else None
        found: str | None = record["status"] if record is not None and record["kind"] == "end" else None
        return found

    # Sending

    @property
    def sent(self) -> int:
        """Up to which offset MLflow has everything."""
        return min(self._told(), self._size())

    @sent.setter
    def sent(self, offset: int) -> None:
        try:
            write_whole(self._sent, str(offset))
            self._unwritten = None
        except Unwritable:  # MLflow is told on, and after this process some of it twice
            self._unwritten = offset

    @property
    def waiting(self) -> bool:
        """Whether there is something that MLflow does not have."""
        return self._size() > self.sent

    def _told(self) -> int:
        if self._unwritten is not None:
            return self._unwritten
        try:
            return int(self._sent.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # all is sent again, which MLflow knows as one
            return 0

    def _size(self) -> int:
        try:
            return self._records.stat().st_size
        except FileNotFoundError:
            return 0

    def set_aside(self, record: Record, reason: str) -> None:
        """Keep a record that MLflow will never take, and why, apart from those that wait."""
        self._write_line(self._refused, {"reason": reason, "record": record})

    def forget(self, path: Path) -> None:
        """Delete the copy of an artifact that has been sent."""
        if path.is_relative_to(self.files.absolute()):
            shutil.rmtree(path.parent, ignore_errors=True)


class Damaged(UserError):
    """A journal that cannot be read.

    Args:
        path: of the file.
        error: what is wrong with it.
    """

    def __init__(self, path: Path, error: Exception) -> None:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        super().__init__(f"{path} cannot be read ({why}): what the run recorded stays where it is, and is not sent")


def put_aside(folder: Path) -> None:
    """Rename the journal that the folder of a new run has of another, so that nothing of it is lost.

    Raises:
        UserError: it is another user's.
    """
    found = Journal(folder / FOLDER)
    if not found.folder.is_dir():
        return
    try:
        name = found.run().get("run_id")
    except UserError:
        name = None
    try:
        found.folder.rename(folder / f"{FOLDER}-{name or uuid.uuid4().hex}")
    except OSError as error:
        raise UserError(f"cannot rename {found.folder}: {error.strerror or error}") from error


def unsent(folder: Path) -> Sequence[Journal]:
    """The journals of all runs below a folder that have something left to send, or no end, the oldest first.

    Those that cannot be read, another user's or a damaged one, are named in a warning.
    """
    found = []
    for path in folder.rglob(f"{FOLDER}*"):
        journal = Journal(path)
        try:
            if journal.run() and (journal.waiting or journal.status() is None):
                found.append((os.path.getmtime(path / _RUN), journal))
        except OSError as error:
            log.warning("%s", Damaged(path, error))
        except UserError as error:
            log.warning("%s", error)
    return [journal for _, journal in sorted(found, key=itemgetter(0))]


def _parse(line: bytes) -> Record | None:
    """The record of a line, also where what a short write left of another stands before it; None: there is none."""
    for start in (0, max(0, line.rfind(_BEGIN))):
        try:
            record: Any = json.loads(line[start:])
        except ValueError:
            continue
        if isinstance(record, dict) and "kind" in record:
            return record
    return None


def _cut_off(file: int) -> int:
    """Cut off what stands behind the last whole line of a file; gives its length then."""
    end = size = os.fstat(file).st_size
    while end and os.pread(file, 1, end - 1) != b"\n":
        end = max(0, end - _BLOCK)
        end += os.pread(file, min(_BLOCK, size - end), end).rfind(b"\n") + 1
    if end < size:
        os.ftruncate(file, end)
    return end


def _write_all(file: int, content: bytes) -> None:
    """Write all of it: a write may take only a part, as where a disk is full, and say so at the next."""
    while content:
        content = content[os.write(file, content) :]
