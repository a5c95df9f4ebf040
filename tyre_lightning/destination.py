"""Where predictions go: one file that one process writes, or a folder of parts that many write, here or on S3."""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from tyre_lightning.config import PredictConfig, is_one_file
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.predictions import SUMMARY
from tyre_lightning.lake.manifest import FOLDER, Manifest, find_manifest
from tyre_lightning.lake.place import FolderPlace, Place, open_place
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.progress import say
from tyre_lightning.summary import Summary, told


class Files(NamedTuple):
    """What a part is written to: the rows of pictures, and those of tyres."""

    pictures: str
    tyres: str

    def written(self, *, tyres: bool) -> tuple[str, ...]:
        """Those that are written."""
        return (self.pictures, self.tyres) if tyres else (self.pictures,)


def sizes_of(files: Iterable[str]) -> tuple[int, ...]:
    """The bytes of files."""
    return tuple(os.path.getsize(file) for file in files)


class Output(ABC):
    """Takes parts."""

    @abstractmethod
    def check_new(self, *, tyres: bool) -> None:
        """See that no rows lie there that would be among those that are written.

        Raises:
            UserError: some do.
        """

    @abstractmethod
    def there(self, *, tyres: bool) -> dict[int, tuple[int, ...]]:
        """The shards whose parts are there, with those of tyres where they are wanted, and the bytes of each part."""

    @abstractmethod
    def writing(self, shard: int, *, tyres: bool) -> AbstractContextManager[Files]:
        """The files to write; at the context's end they are where they belong, the pictures last."""


class OneFile(Output):
    """A file of rows, and one of tyres beside it."""

    def __init__(self, pictures: str, tyres: str) -> None:
        self._files = Files(pictures, tyres)

    def check_new(self, *, tyres: bool) -> None:
        """See :meth:`Output.check_new`: what lies there is replaced."""

    def there(self, *, tyres: bool) -> dict[int, tuple[int, ...]]:
        """See :meth:`Output.there`."""
        wanted = self._files.written(tyres=tyres)
        return {0: sizes_of(wanted)} if all(Path(file).is_file() for file in wanted) else {}

    @contextmanager
    def writing(self, shard: int, *, tyres: bool) -> Iterator[Files]:
        """See :meth:`Output.writing`."""
        yield self._files


class Parts(Output):
    """A folder of parquet files that is one data set, and one of tyres beside it.

    Args:
        pictures: the folder.
        tyres: the other.
        shards: how many parts there will be.
    """

    def __init__(self, pictures: Place, tyres: Place, shards: int) -> None:
        self._pictures, self._tyres, self._shards = pictures, tyres, shards

    def check_new(self, *, tyres: bool) -> None:
        """See :meth:`Output.check_new`. Whoever reads the folder takes all its parquet files for one data set."""
        for place in (self._pictures, *([self._tyres] if tyres else [])):
            strange = sorted(name for name in place.names("") if name.endswith(".parquet") and name[0] != "_")
            if strange:
                raise UserError(
                    f"{place.root} has {strange[0]} already, whose rows would be among those of this prediction: empty "
                    "the folder, or give another output"
                )

    def there(self, *, tyres: bool) -> dict[int, tuple[int, ...]]:
        """See :meth:`Output.there`."""
        sizes = [place.sizes("") for place in (self._pictures, *([self._tyres] if tyres else []))]
        parts = {shard: self._name(shard) for shard in range(self._shards)}
        return {
            shard: tuple(one[name] for one in sizes)
            for shard, name in parts.items()
            if all(name in one for one in sizes)
        }

    @contextmanager
    def writing(self, shard: int, *, tyres: bool) -> Iterator[Files]:
        """See :meth:`Output.writing`."""
        with self._pictures.scratch() as folder:
            files = Files(f"{folder}/pictures.parquet", f"{folder}/tyres.parquet")
            yield files
            if tyres:
                self._tyres.take(Path(files.tyres), self._name(shard))
            self._pictures.take(Path(files.pictures), self._name(shard))

    def _name(self, shard: int) -> str:
        return f"part-{shard:05d}-of-{self._shards:05d}.parquet"


@dataclass(frozen=True)
class Destination:
    """Where rows go, and where is kept meanwhile what was found.

    Args:
        place: keeps it.
        output: takes the rows.
        tyres: where those of tyres are.
        alone: whether one process writes one file.
    """

    place: Place
    output: Output
    tyres: str
    alone: bool

    def kept(self, wanted: Manifest) -> Manifest | None:
        """What an earlier run of one file was of, where it was of the same; what another has kept is deleted."""
        found = find_manifest(self.place)
        if found is not None and found.id == wanted.id:
            return found
        if found is not None:
            say("what an interrupted run has kept is of other images or settings: it is not used")
            self.place.remove([f"{FOLDER}/manifest.json"])
            shutil.rmtree(Path(self.place.root, FOLDER, found.id), ignore_errors=True)
        return None

    def finish(self, manifest: Manifest, summary: Summary, inspector: Inspector) -> None:
        """All is done: say so beside the parts, for programs.

        Raises:
            UserError: it cannot be written.
        """
        if self.alone:
            return
        about = {
            "images": summary.images,
            "unreadable": summary.unreadable,
            "classes": {name: summary.classes[name] for name in inspector.classes},
            "decisions": {str(name): count for name, count in sorted(summary.decisions.items(), key=str)},
            "tyres": summary.tyres if inspector.group_pattern is not None else None,
            **{name: value for name, value in manifest.terms.items() if name != "weights"},
            "listed": manifest.listed,
            "told": [*told(summary, inspector)],
        }
        self.place.put(SUMMARY, json.dumps(about, ensure_ascii=False, indent=1).encode())


@contextmanager
def open_destination(config: PredictConfig) -> Iterator[Destination]:
    """Where a prediction goes; what it keeps beside one file goes when that is there, or when it is nothing.

    Raises:
        UserError: another process writes the same file.
    """
    if not is_one_file(config.output):
        tyres = tyres_of(config.output)
        pictures = open_place(config.output, config.s3)
        parts = Parts(pictures, open_place(tyres, config.s3), config.shards)
        try:
            yield Destination(pictures, parts, tyres, alone=False)
        finally:
            with suppress(OSError):  # they are not empty: something came of it
                os.rmdir(Path(pictures.root, FOLDER))
                os.rmdir(pictures.root)
        return
    path = Path(config.output)
    file = OneFile(config.output, tyres := str(path.with_name(f"{path.stem}-tyres{path.suffix}")))
    folder = path.absolute().with_name(f".{path.name}-unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            whole = False
            try:
                yield Destination(FolderPlace(str(folder)), file, tyres, alone=True)
                whole = True
            finally:
                if whole or not [*folder.glob(f"{FOLDER}/*/*/[0-9]*.parquet")]:
                    shutil.rmtree(folder, ignore_errors=True)
    except Timeout as error:
        raise UserError(
            f"another process writes output={config.output} now: wait for it, or give another output"
        ) from error


def tyres_of(output: str) -> str:
    """Where the tyres of a folder of parts are: beside it."""
    return f"{output.rstrip('/')}-tyres"


def check_terms(theirs: Mapping[str, Any], ours: Mapping[str, Any], output: str) -> None:
    """Refuse to go on with what others began on other terms.

    Raises:
        UserError: names both.
    """
    for name, mine in ours.items():
        if (other := theirs.get(name)) == mine:
            continue
        if name == "weights":
            raise UserError(
                f"model={ours['model']} is not what it was when output={output} was begun: give the same model, or "
                "another output"
            )
        raise UserError(
            f"output={output} was begun with {name}={_shown(other)}, and this process has {name}={_shown(mine)}: give "
            "the same, or another output"
        )


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
