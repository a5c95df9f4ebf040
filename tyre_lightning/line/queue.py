"""The queue: the pictures that a person should see, and with which probability each tyre was drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.evaluation.predictions import ABOUT
from tyre_lightning.files import whole

if TYPE_CHECKING:
    from pandas import DataFrame

REVIEWED, AUDITED, REJECTS, LEARN = "review", "audit", "rejected", "learn"  # why a tyre is in a queue
FORMAT = 2  # in format 1 there is no root
COLUMNS = ("tyre", "key", "why", "stratum", "probability", "decision", "class", "novelty")


@dataclass(frozen=True)
class Stratum:
    """How many tyres of a window are in it, and how many of these were drawn."""

    why: str
    total: int
    drawn: int


@dataclass(frozen=True)
class Queue:
    """A window's queue.

    Args:
        pictures: a row each, with :data:`COLUMNS` and the probabilities of the classes.
        model: the URI of the model, if it is known.
        root: of the store in which the pictures lie, if it is known.
        source: the predictions file.
        time: when the window was predicted, ISO 8601, UTC.
        seed: of the draws.
        good_class: the class of good tyres.
        max_escape_rate: what is promised.
        strata: by name.
        multi_label: whether a picture may show several defects.
    """

    pictures: DataFrame
    model: str | None
    root: str | None
    source: str
    time: str
    seed: int
    good_class: str
    max_escape_rate: float
    strata: Mapping[str, Stratum]
    multi_label: bool = False

    def write(self, path: str) -> None:
        """Write it whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        about = {name: value for name, value in vars(self).items() if name not in ("pictures", "strata")}
        about |= {"format": FORMAT, "strata": {name: asdict(stratum) for name, stratum in self.strata.items()}}
        numbers = {name for name in self.pictures.columns if name.startswith("p_")} | {"probability", "novelty"}
        fields = [(name, pa.float64() if name in numbers else pa.string()) for name in self.pictures.columns]
        table = pa.Table.from_pandas(self.pictures, schema=pa.schema(fields), preserve_index=False)
        table = table.replace_schema_metadata({ABOUT: json.dumps(about, ensure_ascii=False).encode()})
        with whole(path) as unfinished:
            pq.write_table(table, unfinished)

    @classmethod
    def read(cls, path: str | Path) -> Queue:
        """Read what :meth:`write` wrote.

        Raises:
            UserError: it is no queue, or one of a newer version.
        """
        try:
            table = pq.read_table(path)
            about: dict[str, Any] = json.loads((table.schema.metadata or {})[ABOUT])
            if (made := about.pop("format")) > FORMAT:
                raise UserError(f"{path} is a queue of format {made}, and this version knows up to {FORMAT}: update")
            about.setdefault("root", None)
            strata = {name: Stratum(**values) for name, values in about.pop("strata").items()}
            return cls(table.to_pandas(), strata=strata, **about)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(f"{path} is no queue that tyre select wrote: {first_line(error)}") from error
