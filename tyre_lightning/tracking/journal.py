"""What a run has to tell MLflow, written to this disk first, so that nothing depends on a server that answers.

A journal is a folder: ``run.json`` says which run it is, ``records.jsonl`` has a record a line, ``sent`` says how much
of it MLflow has, and ``files`` holds artifacts that have no other place. Any process may append; one sends.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyre_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 2  # of a journal; in format 1, which has no number, every version asks to become the champion
FOLDER = "tracking"  # a journal's folder in that of its run

Record = dict[str, Any]


class Journal:
    """One run's records, in the order in which they were made.

    Args:
        folder: of the journal; it is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._records = folder / "records.jsonl"
        self._records.touch()
        self._sent = folder / "sent"

    @classmethod
    def at(cls, folder: Path) -> Journal | None:
        """The journal that the folder of a run has, if it has one."""
        return cls(folder / FOLDER) if (folder / FOLDER / "run.json").is_file() else None

    def mend(self) -> None:
        """Cut off the line that a killed process half wrote."""
        content = self._records.read_bytes()
        os.truncate(self._records, content.rfind(b"\n") + 1)

    def begin(self, run_id: str, name: str, tracking_uri: str) -> None:
        """Say which run this is; the address must be free of passwords."""
        values = {
            "format": FORMAT,
            "run_id": run_id,
            "name": name,
            "tracking_uri": tracking_uri,
            "start_time": time.time(),
        }
        (self.folder / "run.json").write_text(json.dumps(values), encoding="utf-8")

    def run(self) -> dict[str, Any]:
        """What :meth:`begin` was told, and when; empty where it was not.

        Raises:
            UserError: a newer version made it.
        """
        try:
            found: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        if (made := found.get("format", 1)) > FORMAT:
            raise UserError(f"{self.folder} has format {made}, and this version knows up to {FORMAT}: update")
        return found

    # Writing

    def append(self, kind: str, **values: Any) -> None:
        """Add a record. One write, which the system appends whole, so that processes do not mix their lines."""
        line = json.dumps({"kind": kind, **values}) + "\n"
        file = os.open(self._records, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def add_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics of a step, with the present time."""
        self.append("metrics", values=dict(values), step=step, timestamp=int(time.time() * 1000))

    def add_file(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file as an artifact; a copy is kept unless it lies in the run's own folder."""
        path = Path(path).absolute()
        if not path.is_relative_to(self.folder.parent.absolute()):
            path = Path(shutil.copy(path, self.new_place(path.name)))
        self.append("file", path=self.relative(path), folder=folder)

    def add_text(self, text: str, name: str) -> None:
        """Record a text as an artifact."""
        (path := self.new_place(name)).write_text(text, encoding="utf-8")
        self.add_file(path)

    def add_figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as an artifact."""
        figure.savefig(path := self.new_place(name))
        self.add_file(path)

    def relative(self, path: Path) -> str:
        """A path for a record: one in this folder, which may be renamed, without it."""
        folder = self.folder.absolute()
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    def new_place(self, name: str) -> Path:
        """A new path in ``files`` for an artifact of this name."""
        (folder := self.files.absolute() / uuid.uuid4().hex).mkdir()
        return folder / name

    # Reading

    def records(self, start: int = 0) -> Iterator[tuple[Record, int]]:
        """The records from a byte offset on, each with the offset at its end; a line that is half written is left."""
        with self._records.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield json.loads(line), start

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
        with self._records.open("rb") as file:
            file.seek(max(0, self._records.stat().st_size - 4096))  # where this record is short, as an end is
            last = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        found: str | None = json.loads(last)["status"] if last.startswith(b'{"kind": "end"') else None
        return found

    # Sending

    @property
    def sent(self) -> int:
        """Up to which offset MLflow has everything."""
        try:
            return int(self._sent.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0

    @sent.setter
    def sent(self, offset: int) -> None:
        new = self._sent.with_suffix(".new")
        new.write_text(str(offset), encoding="utf-8")
        new.replace(self._sent)

    @property
    def waiting(self) -> bool:
        """Whether there is something that MLflow does not have."""
        return self._records.stat().st_size > self.sent

    def forget(self, path: Path) -> None:
        """Delete the copy of an artifact that has been sent."""
        if path.is_relative_to(self.files.absolute()):
            shutil.rmtree(path.parent, ignore_errors=True)


def put_aside(folder: Path) -> None:
    """Rename the journal of another run that the folder of a run has, so that nothing of it is lost."""
    if (old := Journal.at(folder)) is not None:
        old.folder.rename(folder / f"{FOLDER}-{old.run()['run_id']}")


def unsent(folder: Path) -> Sequence[Journal]:
    """The journals of all runs below a folder that have something left to send, or no end, the oldest first."""
    paths = sorted(folder.rglob(f"{FOLDER}*/run.json"), key=os.path.getmtime)
    return [found for found in (Journal(path.parent) for path in paths) if found.waiting or found.status() is None]
