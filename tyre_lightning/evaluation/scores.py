"""What a model says of every validation and test image: asked of the inspector, as predict.py asks it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from tyre_lightning.decision.calibration import Floats
from tyre_lightning.decision.outputs import ONE_CLASS, Outputs
from tyre_lightning.decision.tyres import Tyres
from tyre_lightning.errors import UnreadableImage
from tyre_lightning.evaluation.predictions import SHOWS, row_schema
from tyre_lightning.evaluation.scoring import look_at
from tyre_lightning.files import whole
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.texts import are_among, column, numbered, one_after_other, one_piece
from tyre_lightning.lake.tyres import Shown, tyre_names
from tyre_lightning.model.inspector import Inspector, answer_columns, decide_on_tyres, nothing_seen

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

SCORES = "scores"  # the folder of what the registered model said of each image of a run
DISTANCE = "distance"  # from what good tyres look like
UNKNOWN = -1
_BATCH = 32  # images in memory at one time; as many again are being fetched
_TOGETHER = 4096  # answers that are Python objects at one time, and the rest of the last one's tyre


@dataclass(frozen=True)
class Scores:
    """Images in the order of their keys, and the tyres that they show, as columns: half a million fit.

    Texts are columns of large_string; where every image shows a tyre of its own, the three are the same column.
    """

    keys: pa.ChunkedArray  # N texts
    labels: NDArray[np.int64]  # class indices, shape (N,); UNKNOWN where the model does not know the class
    logits: NDArray[np.float64]  # [N, classes]
    tyres: pa.ChunkedArray  # the name of the tyre that each shows, N texts
    groups: pa.ChunkedArray  # the group of tyres of which near-copies were found, N texts; it counts once
    unreadable: tuple[str, ...] = ()  # keys of images that are not among them
    damaged: frozenset[str] = frozenset()  # tyres that they would show
    outputs: Outputs = ONE_CLASS  # what logits mean
    shows: Bools | None = None  # [N, classes], where images may show several defects; ``labels`` has one of them
    far: NDArray[np.float64] | None = None  # from what good tyres look like, shape (N,), where that is known
    traits: NDArray[np.float64] | None = None  # [N, TRAITS], where they were asked for

    def __len__(self) -> int:
        return len(self.keys)

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
        places_of = {name: index for index, name in enumerate(inspector.classes)}
        codes = catalog.codes({**dict.fromkeys(catalog.classes, UNKNOWN), **places_of})
        keys = catalog.table["key"]
        rank, readable = numbered(keys)[1], np.zeros(len(catalog), bool)
        logits, far = np.empty((len(catalog), len(inspector.classes))), np.empty(len(catalog))
        looks, start = np.empty((len(catalog) if traits else 0, len(TRAITS))), 0
        for seen in look_at(inspector.on(devices), reader, catalog.entries(), _BATCH, traits=traits):
            for image in seen.images:
                if isinstance(image, UnreadableImage):
                    fail(image)
            known = [not isinstance(image, UnreadableImage) for image in seen.images]
            places = rank[start : start + len(known)][known]
            readable[places], logits[places] = True, seen.look.logits
            far[places] = inspector.distances(seen.look.features)
            if traits and len(places):
                looks[places] = [image.traits for image in seen.images if not isinstance(image, UnreadableImage)]
            start += len(known)
            advance(len(known))
        named = keys, *shown.columns(keys)
        order = np.argsort(rank)
        rows, unread = order[readable], pa.array(order[~readable])
        kept = slice(None) if readable.all() else readable  # without a copy
        return cls(
            **_taken(dict(zip(_TEXTS.values(), named, strict=True)), rows),
            labels=codes[rows],
            logits=logits[kept],
            unreadable=tuple(keys.take(unread).to_pylist()),
            damaged=frozenset(named[1].take(unread).to_pylist()),
            outputs=inspector.outputs,
            shows=catalog.truth(inspector.classes)[rows] if inspector.multi_label else None,
            far=far[kept],
            traits=looks[kept] if traits else None,
        )

    def defective(self, good: int, temperature: float) -> NDArray[np.float64]:
        """P(defective) = 1 - P(good) of each image, shape (N,); ``good`` is the good class's index."""
        return np.asarray(1 - self.outputs.probabilities(self.logits, temperature)[:, good])

    def distances(self) -> NDArray[np.float64]:
        """Of each image from what good tyres look like, shape (N,); NaN where that is not known."""
        return np.full(len(self), np.nan) if self.far is None else self.far

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
        return tyres.one_of_each(self.groups.take(pa.array(tyres.deciding)))

    def save(self, path: Path, classes: Sequence[str]) -> None:
        """Write a row for each image as parquet: key, tyre, group, true class, distance from what good tyres look
        like, and a logit for each class.

        Those that could not be read come last, and have a key alone. Where images may show several defects, ``shows``
        lists all true classes.
        """
        names = pa.array(classes, pa.string())
        texts = {name: getattr(self, of).cast(pa.string()) for name, of in _TEXTS.items()}
        columns = {**texts, "true": names.take(pa.array(self.labels, mask=self.labels == UNKNOWN))}
        if self.shows is not None:
            columns[SHOWS] = _listed(self.shows, names)
        columns[DISTANCE] = pa.array(self.distances(), from_pandas=True)
        for index, name in enumerate(classes):
            columns[f"logit_{name}"] = pa.array(self.logits[:, index])
        lost = pa.table({"key": pa.array(self.unreadable, pa.string())})
        with whole(path) as unfinished:
            pq.write_table(pa.concat_tables([pa.table(columns), lost], promote_options="default"), unfinished)

    @classmethod
    def read(cls, path: Path, outputs: Outputs = ONE_CLASS) -> Scores:
        """What :meth:`save` wrote; of the tyres that unreadable images would show nothing is known any more."""
        with pq.ParquetFile(path) as file:  # column by column: all at once would be twice the memory
            there = file.schema_arrow.names
            classes = pa.array([name.removeprefix("logit_") for name in there if name.startswith("logit_")])
            seen = file.read(["tyre"])["tyre"].is_valid()
            all_seen = pc.all(seen).as_py()

            def column_of(name: str) -> pa.ChunkedArray:
                values = file.read([name])[name]
                return values if all_seen else values.filter(seen)

            texts: dict[str, pa.ChunkedArray] = {}
            for name, of in _TEXTS.items():
                one = column_of(name).cast(pa.large_string())
                texts[of] = texts["keys"] if texts and one.equals(texts["keys"]) else one
            labels = pc.index_in(column_of("true"), value_set=classes).fill_null(UNKNOWN).to_numpy().astype(np.int64)
            logits = np.empty((len(labels), len(classes)))
            for place, name in enumerate(classes.to_pylist()):
                logits[:, place] = column_of(f"logit_{name}").to_numpy()
            return cls(
                **texts,
                labels=labels,
                logits=logits,
                unreadable=tuple(file.read(["key"])["key"].filter(pc.invert(seen)).to_pylist()),
                outputs=outputs,
                shows=_unlisted(column_of(SHOWS), classes) if SHOWS in there else None,
                far=column_of(DISTANCE).to_numpy() if DISTANCE in there else None,
            )

    def answers(self, inspector: Inspector) -> pa.Table:
        """A row for each image in the order of keys: ``key``, ``true``, null where it is not known, and what predict.py
        says of it, in columns of its kinds.

        Of an image that shows several defects ``true`` is the likeliest class, if it shows it; ``shows`` lists all.

        Args:
            inspector: the model, with its operating point.
        """
        several = [] if self.shows is None else [SHOWS]
        said = answer_columns(inspector.columns(), multi_label=inspector.multi_label)
        schema = row_schema(["key", "true", *several, *said])
        keys = one_piece(one_after_other([self.keys, column(self.unreadable)]))
        tyres = tyre_names(keys, inspector.group_pattern)
        order, shown = (numbered(one)[1] for one in (keys, tyres))
        parts = [schema.empty_table()]
        for rows in self._answered(inspector, _whole_tyres(np.lexsort((order, shown)), shown), keys, tyres):
            if inspector.group_pattern is not None:
                decide_on_tyres(inspector, rows)
            parts.append(pa.Table.from_pylist(rows, schema))
        table = pa.concat_tables(parts)
        return table if inspector.group_pattern is None else table.take(pc.sort_indices(table["key"]))

    def _answered(
        self, inspector: Inspector, parts: Iterable[Ints], keys: pa.ChunkedArray, tyres: pa.ChunkedArray
    ) -> Iterator[list[dict[str, Any]]]:
        """What is said of single images, some at a time; those of the last places could not be read."""
        classes, names = [*inspector.classes, None], pa.array(inspector.classes)  # None for UNKNOWN
        true, far, unread = self.true(), self.distances(), nothing_seen("it could not be read")
        for places in parts:
            seen = places[places < len(self)]
            listed = iter([] if self.shows is None else _listed(self.shows[seen], names).to_pylist())
            said = (
                {"true": classes[label], "error": None, SHOWS: next(listed, None), **answer}
                for answer, label in zip(inspector.answers_to(self.logits[seen], far[seen]), true[seen], strict=True)
            )
            rows = [next(said) if readable else {**unread} for readable in places < len(self)]
            named = (one.take(pa.array(places)).to_pylist() for one in (keys, tyres))
            for row, key, tyre in zip(rows, *named, strict=True):
                row |= {"key": key, "tyre": tyre, "decision": row["picture_decision"]}
            yield rows

    def take(self, places: Ints) -> Scores:
        """Some of the images that could be read, and all that could not."""
        return replace(
            self, **_taken({of: getattr(self, of) for of in _TEXTS.values()}, places),
            labels=self.labels[places], logits=self.logits[places],
            shows=None if self.shows is None else self.shows[places],
            far=None if self.far is None else self.far[places],
            traits=None if self.traits is None else self.traits[places],
        )  # fmt: skip

    def shifted(self, offsets: Floats | float) -> Scores:
        """As scored by a model that adds offsets, shape (classes,), to the logits."""
        return replace(self, logits=self.logits + offsets)

    def without(self, keys: Collection[str]) -> Scores:
        """The scores of all other images."""
        gone = {*keys}
        kept = self.take(np.flatnonzero(~are_among(self.keys, keys)))
        return replace(kept, unreadable=tuple(key for key in self.unreadable if key not in gone))


_TEXTS = {"key": "keys", "tyre": "tyres", "group": "groups"}  # attributes by their columns in a file


def _taken(columns: Mapping[str, pa.ChunkedArray], places: Ints) -> dict[str, pa.ChunkedArray]:
    """Some rows of columns, by name; a column that is there twice is taken once."""
    taken = {id(one): one.take(pa.array(places)) for one in columns.values()}
    return {name: taken[id(one)] for name, one in columns.items()}


def _listed(shows: Bools, classes: pa.Array) -> pa.ListArray:
    """The names of the classes that each of N images shows."""
    ends = pa.array(np.r_[0, shows.sum(axis=1).cumsum()], pa.int32())
    return pa.ListArray.from_arrays(ends, classes.take(pa.array(np.nonzero(shows)[1])))


def _unlisted(listed: pa.ChunkedArray, classes: pa.Array) -> Bools:
    """The inverse of :func:`_listed`, [N, classes]."""
    lists = listed.combine_chunks()
    shows = np.zeros((len(lists), len(classes)), bool)
    shows[pc.list_parent_indices(lists).to_numpy(), pc.index_in(lists.flatten(), value_set=classes).to_numpy()] = True
    return shows


def _whole_tyres(order: Ints, tyres: Ints) -> Iterator[Ints]:
    """Places of images in an order by tyres, some at a time; all of a tyre's come together.

    Args:
        order: shape (N,).
        tyres: a number for the tyre that each image shows, shape (N,).
    """
    ends = np.flatnonzero(np.diff(tyres[order], append=-1)) + 1  # of each tyre
    start = 0
    while start < len(order):
        end = int(ends[np.searchsorted(ends, min(start + _TOGETHER, len(order)))])
        yield order[start:end]
        start = end
