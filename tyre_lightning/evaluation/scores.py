"""What a model says of every validation and test image: asked of the inspector, as predict.py asks it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from tyre_lightning.data.traits import TRAITS
from tyre_lightning.decision.outputs import ONE_CLASS, Outputs
from tyre_lightning.decision.tyres import Tyres
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.evaluation.scoring import look_at
from tyre_lightning.files import whole
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.tyres import Shown, tyre_of
from tyre_lightning.model.inspector import Inspector, decide_on_tyres, nothing_seen

Bools = NDArray[np.bool_]
Names = NDArray[np.object_]

SCORES = "scores"  # the folder of what the registered model said of each image of a run
SHOWS = "shows"  # the column of all true classes, where images may show several defects
DISTANCE = "distance"  # from what good tyres look like
UNKNOWN = -1
_BATCH = 32  # images in memory at one time; as many again are being fetched


@dataclass(frozen=True)
class Scores:
    """Images in the order of their keys, and the tyres that they show."""

    keys: list[str]
    labels: NDArray[np.int64]  # class indices, shape (N,); UNKNOWN where the model does not know the class
    logits: NDArray[np.float64]  # [N, classes]
    tyres: Names  # the name of the tyre that each shows, shape (N,)
    groups: Names  # the group of tyres of which near-copies were found, shape (N,); it counts once
    unreadable: tuple[str, ...] = ()  # keys of images that are not among them
    damaged: frozenset[str] = frozenset()  # tyres that they would show
    outputs: Outputs = ONE_CLASS  # what logits mean
    shows: Bools | None = None  # [N, classes], where images may show several defects; ``labels`` has one of them
    far: NDArray[np.float64] | None = None  # from what good tyres look like, shape (N,), where that is known
    traits: NDArray[np.float64] | None = None  # [N, TRAITS], where they were asked for

    @classmethod
    def of(
        cls,
        inspector: Inspector,
        reader: Reader,
        catalog: Catalog,
        shown: Shown,
        fail: Callable[[UnreadableImage], None] = lambda error: None,
        advance: Callable[[int], None] = lambda images: None,
        devices: Sequence[torch.device] = (),
        *,
        traits: bool = False,
    ) -> Scores:
        """Let an inspector look at every image of a catalog.

        Args:
            inspector: the model.
            reader: fetches.
            catalog: which images.
            shown: which tyres they show.
            fail: told of each image that cannot be decoded; may raise.
            advance: told how many more are done.
            devices: that share the images, none twice; none: where the inspector is.
            traits: whether it is wanted too what the images look like, see :mod:`tyre_lightning.data.traits`.

        Raises:
            UserError: an object cannot be fetched.
        """
        known = {name: index for index, name in enumerate(inspector.classes)}
        codes = catalog.codes({**dict.fromkeys(catalog.classes, UNKNOWN), **known})
        row = {key: place for place, key in enumerate(catalog.keys())}
        keys: list[str] = []
        unreadable: list[str] = []
        logits, distances = [np.empty((0, len(inspector.classes)))], [np.empty(0)]
        looks: list[tuple[float, ...]] = []
        for seen in look_at(inspector.on(devices), reader, catalog.entries(), _BATCH, traits=traits):
            for entry, image in zip(seen.entries, seen.images, strict=True):
                if isinstance(image, UnreadableImage):
                    fail(image)
                elif image.traits is not None:
                    looks.append(image.traits)
                (unreadable if isinstance(image, UnreadableImage) else keys).append(entry.key)
            logits.append(seen.look.logits)
            distances.append(inspector.distances(seen.look.features))
            advance(len(seen.entries))
        order = sorted(range(len(keys)), key=keys.__getitem__)
        keys = [keys[place] for place in order]
        rows = np.array([row[key] for key in keys], np.int64)
        damaged = frozenset(shown.tyre(key) for key in unreadable)
        table = np.concatenate(logits)[order]
        shows = catalog.truth(inspector.classes)[rows] if inspector.multi_label else None
        names = shown.names(keys)
        far = np.concatenate(distances)[order]
        measured = np.array(looks).reshape(-1, len(TRAITS))[order] if traits else None
        lost = tuple(sorted(unreadable))
        return cls(keys, codes[rows], table, *names, lost, damaged, inspector.outputs, shows, far, measured)

    def defective(self, good: int, temperature: float) -> NDArray[np.float64]:
        """P(defective) = 1 - P(good) of each image, shape (N,); ``good`` is the good class's index."""
        return np.asarray(1 - self.outputs.probabilities(self.logits, temperature)[:, good])

    def distances(self) -> NDArray[np.float64]:
        """Of each image from what good tyres look like, shape (N,); NaN where that is not known."""
        return np.full(len(self.keys), np.nan) if self.far is None else self.far

    def true(self) -> NDArray[np.int64]:
        """The class index that each image's likeliest class is compared with, shape (N,): that, if it shows it."""
        if self.shows is None:
            return self.labels
        said = self.outputs.likeliest(self.logits)
        return np.where(self.shows[np.arange(len(said)), said], said, self.labels)

    def counted(self, good: int, temperature: float) -> Tyres:
        """The tyres to count: of those whose pictures are near-copies of each other's, one."""
        defective = self.defective(good, temperature)
        tyres = Tyres.of(self.tyres, defective, self.labels, good, self.damaged, self.shows, self.distances())
        return tyres.one_of_each(self.groups[tyres.deciding])

    def save(self, path: Path, classes: Sequence[str]) -> None:
        """Write a row for each image as parquet: key, tyre, group, true class, distance from what good tyres look
        like, and a logit for each class.

        Those that could not be read come last, and have a key alone. Where images may show several defects, ``shows``
        lists all true classes.
        """
        missing = [None] * len(self.unreadable)
        true = [None if label == UNKNOWN else classes[label] for label in self.labels]
        names: dict[str, list[str | None]] = {"key": [*self.keys, *self.unreadable]}
        names |= {"tyre": [*self.tyres, *missing], "group": [*self.groups, *missing], "true": [*true, *missing]}
        columns = {name: pa.array(values, pa.string()) for name, values in names.items()}
        if self.shows is not None:
            listed = [[name for name, hit in zip(classes, row, strict=True) if hit] for row in self.shows]
            columns[SHOWS] = pa.array([*listed, *missing], pa.list_(pa.string()))
        columns[DISTANCE] = pa.array([*self.distances(), *missing], pa.float64(), from_pandas=True)
        for index, name in enumerate(classes):
            columns[f"logit_{name}"] = pa.array([*self.logits[:, index], *missing], pa.float64())
        with whole(path) as unfinished:
            pq.write_table(pa.table(columns), unfinished)

    @classmethod
    def read(cls, path: Path, outputs: Outputs = ONE_CLASS) -> Scores:
        """What :meth:`save` wrote; of the tyres that unreadable images would show nothing is known any more."""
        table = pq.read_table(path)
        seen = pc.is_valid(table["tyre"])
        unreadable = table.filter(pc.invert(seen))["key"].to_pylist()
        table = table.filter(seen)
        classes = [name.removeprefix("logit_") for name in table.column_names if name.startswith("logit_")]
        logits = np.stack([table[f"logit_{name}"].to_numpy() for name in classes], axis=1)
        places = {None: UNKNOWN} | {name: place for place, name in enumerate(classes)}
        labels = np.array([places[name] for name in table["true"].to_pylist()], np.int64)
        tyres, groups = (np.array(table[name].to_pylist(), dtype=object) for name in ("tyre", "group"))
        shows = None
        if SHOWS in table.column_names:
            shows = np.array([[name in row for name in classes] for row in table[SHOWS].to_pylist()], bool)
        keys = table["key"].to_pylist()
        far = table[DISTANCE].to_numpy() if DISTANCE in table.column_names else None
        return cls(keys, labels, logits, tyres, groups, tuple(unreadable), outputs=outputs, shows=shows, far=far)

    def answers(self, inspector: Inspector) -> list[dict[str, Any]]:
        """A row for each image in the order of keys: predict.py's columns, and ``true``, None where it is not known.

        Of an image that shows several defects ``true`` is the likeliest class, if it shows it; ``shows`` lists all.

        Args:
            inspector: the model, with its operating point.
        """
        classes = [*inspector.classes, None]  # the last for UNKNOWN
        answers = inspector.answers_to(self.logits, self.distances())
        rows: list[dict[str, Any]] = [
            {"key": key, "true": classes[label], "error": None, **answer}
            for key, label, answer in zip(self.keys, self.true(), answers, strict=True)
        ]
        for row, shown in zip(rows, [] if self.shows is None else self.shows, strict=False):
            row[SHOWS] = [name for name, hit in zip(inspector.classes, shown, strict=True) if hit]
        rows += [{"key": key, "true": None, **nothing_seen("it could not be read")} for key in self.unreadable]
        rows.sort(key=lambda row: str(row["key"]))
        for row in rows:
            row |= {"tyre": tyre_of(row["key"], inspector.group_pattern)}
            row["decision"] = row["picture_decision"]
        if inspector.group_pattern is not None:
            decide_on_tyres(inspector, rows)
        return rows

    def without(self, keys: Collection[str]) -> Scores:
        """The scores of all other images."""
        gone = set(keys)
        kept = np.array([key not in gone for key in self.keys], bool)
        rest = [key for key in self.keys if key not in gone]
        return replace(
            self, keys=rest, labels=self.labels[kept], logits=self.logits[kept], tyres=self.tyres[kept],
            groups=self.groups[kept], unreadable=tuple(key for key in self.unreadable if key not in gone),
            shows=None if self.shows is None else self.shows[kept], far=self.distances()[kept],
            traits=None if self.traits is None else self.traits[kept],
        )  # fmt: skip
