"""What so many pictures cost after the last step: ``python benchmarks/ten_million.py --after``, which see.

What a model says of the held-out pictures, one in twenty, is made up: logits in eight classes, distances, keys of some
60 characters with one of 1,000 among them. It goes through what a training, its report and the gate do with it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from catalog_memory import CLASSES

if TYPE_CHECKING:
    from tyre_lightning.lake.catalog import Catalog
    from tyre_lightning.model.inspector import Inspector

PATTERN = "_([0-9a-f]{12})_"
LONGEST = 1000  # characters of a key: S3 takes 1,024 bytes
GOOD = CLASSES.index("good")


def names(rows: int) -> list[str]:
    """Keys in order; the last three show one tyre."""
    rng = np.random.default_rng(0)
    tyres = rng.bytes(6 * rows).hex()
    found = [f"v1/test/{CLASSES[row * 8 // rows]}/line2_20250{1 + row % 9}_{tyres[12 * row : 12 * row + 12]}_{row:08}"
             for row in range(rows)]  # fmt: skip
    shown = found[-1].split("_")[-2]
    found[-3:] = [f"{key.rpartition('/')[0]}/line2_202509_{shown}_{row:08}" for row, key in enumerate(found[-3:])]
    found[0] = found[0].ljust(LONGEST, "0")
    return sorted(f"{key}.jpg" for key in found)


def write(path: Path, rows: int, *, named: bool) -> None:
    """What a run records of its test pictures."""
    rng, keys = np.random.default_rng(1), pa.array(names(rows), pa.string())
    labels = rng.integers(0, len(CLASSES), rows)
    logits = rng.normal(0, 1, (rows, len(CLASSES))) + 4 * np.eye(len(CLASSES))[labels]
    tyres = pa.array([key.as_py().split("_")[-2] for key in keys]) if named else keys
    groups = pa.array([f"id {name}" for name in tyres.to_pylist()]) if named else keys
    columns = {"key": keys, "tyre": tyres, "group": groups, "true": pa.array(CLASSES).take(pa.array(labels))}
    columns["distance"] = pa.array(rng.exponential(1, rows))
    columns |= {f"logit_{name}": pa.array(logits[:, place].copy()) for place, name in enumerate(CLASSES)}
    pq.write_table(pa.table(columns), path)


def made(*, named: bool) -> Inspector:
    """A small network with random weights, which is asked for no picture but the first."""
    from tyre_lightning.config import DataConfig
    from tyre_lightning.data.transforms import Preprocessing
    from tyre_lightning.model.backbones import Network, preset
    from tyre_lightning.model.inspector import Inspector

    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32))
    network = Network("efficientnet_lite0", len(CLASSES), preprocessing.mean, preprocessing.std).eval()
    pattern = PATTERN if named else None
    return Inspector(network, "efficientnet_lite0", [*CLASSES], preprocessing, "good", group_pattern=pattern)


def catalog_of(path: Path) -> Catalog:
    """The pictures as they were listed."""
    from tyre_lightning.lake.catalog import Catalog

    table = pq.read_table(path, columns=["key", "true"])
    label = pa.DictionaryArray.from_arrays(
        pa.array(np.searchsorted(CLASSES, table["true"].to_numpy()), pa.int32()), pa.array(CLASSES, pa.string())
    )
    keys = table["key"].cast(pa.large_string())
    rows = {"key": keys, "label": label, "size": np.ones(len(keys), np.int64), "etag": keys}
    return Catalog(pa.table(rows), CLASSES)


def looked(found: dict[str, Any], *_: Any, **__: Any) -> Iterator[Any]:
    """In place of looking at pictures: what was made up, a batch at a time."""
    from tyre_lightning.evaluation.scoring import Image, Seen
    from tyre_lightning.model.inspector import Look

    entries, logits = found["catalog"].entries(), found["logits"]
    for start in range(0, len(logits), 32):
        part = logits[start : start + 32]
        batch = [next(entries) for _ in range(len(part))]
        picture = Image(None, None, (0.5,) * found["traits"])  # type: ignore[arg-type]
        yield Seen(batch, [picture] * len(part), Look(part, np.zeros((len(part), 4), np.float32)))


def give_back() -> None:
    """Give freed memory back, or the next room would be measured by what the last one took."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)


def after(measured: Callable[[str, Callable[[], Any]], Any], folder: Path, rows: int, *, named: bool) -> None:
    """All of it."""
    from tyre_lightning.config import GateConfig, OperatingPointConfig
    from tyre_lightning.data.traits import TRAITS
    from tyre_lightning.evaluation import scores as module
    from tyre_lightning.evaluation.answer import answer
    from tyre_lightning.evaluation.figures import decision_figure
    from tyre_lightning.evaluation.judgement import class_metrics, confusion, decision_metrics, fit_calibration
    from tyre_lightning.evaluation.report.page import Facts, build_page
    from tyre_lightning.evaluation.sampling import sample_of
    from tyre_lightning.evaluation.scores import Scores
    from tyre_lightning.lake.grouping import Grouping
    from tyre_lightning.promote.comparison import escape_bound, judge_tyres, performance
    from tyre_lightning.tracking.tables import predictions_table

    def watch(name: str, work: Callable[[], Any]) -> Any:
        give_back()
        return measured(name, work)

    def read(keys: Sequence[str]) -> list[bytes]:
        return [picture for _ in keys]

    def settled() -> OperatingPointConfig:
        wanted = OperatingPointConfig(0.02, 0.95, max_novel_rate=0.01)
        inspector.calibration = fit_calibration(scores, GOOD)
        inspector.promise(wanted)
        return wanted

    from decoding import drawn

    picture = drawn((64, 64))[0]
    path, inspector = folder / "test.parquet", made(named=named)
    write(path, rows, named=named)
    scores = watch("scores read", lambda: Scores.read(path))
    watch("scores written", lambda: scores.save(folder / "again.parquet", CLASSES))
    catalog = catalog_of(path)
    shown = Grouping(inspector.group_pattern).shown(catalog)
    found = {"catalog": catalog, "logits": scores.logits, "traits": len(TRAITS)}
    with patch.object(module, "look_at", lambda *a, **k: looked(found)):
        other = watch("a pass over the pictures", lambda: Scores.of(inspector, None, catalog, shown, traits=True))  # type: ignore[arg-type]
    seen = [str(key) for key in catalog.table["key"][: rows // 10]]
    watch("a tenth left out", lambda: scores.without(seen))
    watch("metrics, confusion matrix", lambda: (class_metrics(scores, CLASSES, "good"), confusion(scores)))
    wanted = watch("calibration, threshold", settled)
    about = (CLASSES, "good", inspector.calibration, inspector.point, 0.9)
    watch("metrics of decisions", lambda: decision_metrics(scores, *about))
    tyres = watch("tyres", lambda: scores.counted(GOOD, inspector.temperature))
    figure = folder / "figure.png"
    watch("figure of decisions", lambda: decision_figure(tyres.labels != GOOD, tyres.scores, 0.5).savefig(figure))
    watch("sample of validation", lambda: sample_of(inspector, other))
    watch("answers", lambda: scores.answers(inspector))
    watch("table of predictions", lambda: predictions_table(scores, inspector))
    watch("what is said", lambda: answer(inspector, {"test": scores}, wanted, {}))
    facts = Facts("a run", "0123", "2026", "2026", "v1", {"test": dict.fromkeys(CLASSES, rows // 8)})
    page = watch("report", lambda: build_page(inspector, scores, "test", wanted, facts, read))
    print(f"  the report has {len(page) / 1e6:.1f} MB", flush=True)
    mine = performance(watch("verdicts of a gate", lambda: judge_tyres(inspector, scores, scores.labels != GOOD)), 1, 1)
    last = performance(judge_tyres(inspector, other, other.labels != GOOD), 1, 1)
    watch("bound of a gate", lambda: escape_bound(mine, last, GateConfig()))
