"""What a model says of each held-out picture: columns, which are kept whole and cost what they hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import write_images
from tests.images import encode, picture
from tyre_lightning.config import Changed, DataConfig, OperatingPointConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.operating_point import Calibration, OperatingPoint
from tyre_lightning.decision.outputs import Outputs
from tyre_lightning.evaluation.predictions import open_writer
from tyre_lightning.evaluation.scores import UNKNOWN, Scores
from tyre_lightning.lake.grouping import Grouping
from tyre_lightning.lake.listing import read_catalog
from tyre_lightning.lake.reader import Reader
from tyre_lightning.lake.store import FolderStore
from tyre_lightning.lake.texts import Texts, column, numbered
from tyre_lightning.lake.tyres import Shown
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.inspector import Inspector, answer_columns, decide_on_tyres
from tyre_lightning.prediction import predict_batches

CLASSES = ["bulge", "crack", "good"]
GOOD = 2
LONG = "v1/test/crack/" + "x" * 5000 + ".jpg"
ROWS = 2000
PREPROCESSING = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32)).to_dict()


def made(*, several: bool = False, named: bool = True) -> Scores:
    """Scores with one very long key, two unreadable images, an unknown class and an unknown distance."""
    draw = np.random.default_rng(0)
    keys = column([*(f"v1/test/bulge/{row:05}.jpg" for row in range(ROWS - 1)), LONG])
    tyres = column([f"tyre {row // 2}" for row in range(ROWS)]) if named else keys
    shows = draw.random((ROWS, 3)) < 0.4 if several else None
    labels = draw.integers(0, 3, ROWS)
    if shows is not None:
        shows[:, GOOD] = ~shows.any(axis=1)
        shows[5], labels[5] = False, UNKNOWN
    labels[7] = UNKNOWN
    far = draw.exponential(1, ROWS)
    far[3] = np.nan
    logits = draw.normal(0, 1, (ROWS, 3))
    logits[4, 1] = np.nan
    lost = ("v1/test/a.jpg", "v1/test/good/z.jpg")
    return Scores(keys, labels, logits, tyres, tyres, lost, outputs=Outputs(GOOD, several), shows=shows, far=far)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_what_is_written_is_read_and_written_again_the_same(tmp_path: Path, several: bool, named: bool) -> None:
    first = made(several=several, named=named)
    first.save(tmp_path / "first.parquet", CLASSES)
    again = Scores.read(tmp_path / "first.parquet", first.outputs)
    again.save(tmp_path / "again.parquet", CLASSES)
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert again.keys.equals(first.keys) and again.tyres.equals(first.tyres) and again.groups.equals(first.groups)
    assert again.unreadable == first.unreadable and again.keys.type == pa.large_string()
    for ours, theirs in ((again.labels, first.labels), (again.logits, first.logits), (again.far, first.far)):
        np.testing.assert_array_equal(ours, theirs)
    assert (again.shows is None) == (not several)
    if several:
        np.testing.assert_array_equal(again.shows, first.shows)


def test_other_tools_read_texts_lists_and_numbers_with_nulls(tmp_path: Path) -> None:
    first = made(several=True)
    first.save(tmp_path / "first.parquet", CLASSES)
    table = pq.read_table(tmp_path / "first.parquet")
    assert [str(kind) for kind in table.schema.types[:6]] == [*["string"] * 4, "list<element: string>", "double"]
    assert table["key"].to_pylist()[-2:] == [*first.unreadable] and table["tyre"].null_count == 2
    assert table["true"][7].as_py() is None and table["shows"][5].as_py() == []
    assert table["distance"][3].as_py() is None and np.isnan(table["logit_crack"][4].as_py())


@pytest.mark.parametrize("named", [False, True])
def test_a_long_key_costs_its_length_and_no_more(tmp_path: Path, named: bool) -> None:
    first = made(named=named)
    first.save(tmp_path / "first.parquet", CLASSES)
    again = Scores.read(tmp_path / "first.parquet")
    rest = again.without([LONG, "v1/test/good/z.jpg", "of another lake"])
    assert len(rest) == ROWS - 1 and rest.unreadable == ("v1/test/a.jpg",)
    kept = replace(made(named=named), logits=np.nan_to_num(first.logits))
    tyres = kept.counted(GOOD, 1.0)
    held = [again.keys, again.tyres, again.groups, rest.keys, rest.tyres, kept.keys, tyres.names]
    assert all(one.nbytes < 2 * len(LONG) + 40 * ROWS for one in held)
    assert LONG not in rest.keys.to_pylist() and (again.tyres is again.keys) == (not named)


def test_texts_are_numbered_in_their_order() -> None:
    texts = pa.chunked_array([["tyre é", "a", "tyre e"], ["a", "\U0001f600", "\uffee"]], pa.large_string())
    different, place = numbered(texts)
    assert different.to_pylist() == sorted({*texts.to_pylist()})
    assert different.take(pa.array(place)).to_pylist() == texts.to_pylist()
    assert numbered(texts[:0])[0].to_pylist() == []


def test_what_is_known_of_some_keys_stands_beside_the_others() -> None:
    keys = column(["a", "b", "c"])
    for of in ({"b": "tyre"}, Texts(column(["c", "b"]), column(["tyre", "tyre"]))):
        tyres, groups = Shown(of, {"a": "group"}).columns(keys)
        assert tyres.to_pylist() == ["a", "tyre", "c" if isinstance(of, dict) else "tyre"]
        assert groups.to_pylist() == ["group", *tyres.to_pylist()[1:]]
    assert Shown().columns(keys)[0] is keys


def inspector(pattern: str | None, *, several: bool) -> Inspector:
    """A network with random weights that tells pictures apart all the same."""
    made = Inspector.from_classifier(TyreClassifier("efficientnet_lite0", CLASSES, PREPROCESSING, "good"))
    for part in made.network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    made.network.train()(torch.stack([made.read(encode(picture(number, (40, 40)), "JPEG"), "") for number in range(9)]))
    made.network.eval()
    made.group_pattern, made.multi_label = pattern, several
    return made


@pytest.mark.parametrize("pattern", [None, r"^(\d)"])
@pytest.mark.parametrize("several", [False, True])
def test_answers_are_what_predict_writes(tmp_path: Path, pattern: str | None, several: bool) -> None:
    write_images(tmp_path / "v1", {"test": 6}, CLASSES)
    (tmp_path / "v1" / "test" / "crack" / "3.jpg").write_bytes(b"no picture")
    store = FolderStore(str(tmp_path / "v1"))
    catalog, reader = read_catalog(store, "test", (*CLASSES,), strict=True), Reader(store, None, Changed.reread)
    judged = inspector(pattern, several=several)
    shown = Grouping(pattern).shown(catalog)
    found = Scores.of(judged, reader, catalog.take(np.arange(len(catalog))[::-1]), shown)
    assert len(found) == 17 and found.keys.to_pylist() == sorted(found.keys.to_pylist())
    assert found.damaged == {"3" if pattern else "v1/test/crack/3.jpg"}
    low, high = np.quantile(found.defective(GOOD, 1.3), (0.4, 0.7))
    judged.calibration = Calibration(1.3, [], 0, [], 0, least_pictures=1)
    judged.point = OperatingPoint(float(low), float(high), OperatingPointConfig())
    rows = [row for batch in predict_batches(judged, store, catalog.entries(), 4) for row in batch]
    if pattern is not None:
        decide_on_tyres(judged, rows)
    columns = ["key", *answer_columns(judged.columns(), multi_label=several)]
    with open_writer(str(tmp_path / "rows.parquet"), columns) as writer:
        writer.write(sorted(rows, key=lambda row: str(row["key"])))
    theirs, ours = pq.read_table(tmp_path / "rows.parquet"), found.answers(judged)
    assert ours.column_names == ["key", "true", *(["shows"] if several else []), *columns[1:]]
    assert (
        ours.select(columns[:-1])
        .cast(theirs.schema.remove_metadata().remove(len(columns) - 1))
        .equals(theirs.select(columns[:-1]))
    )
    assert ours.schema.field("defects" if several else "novelty").type.equals(
        theirs.schema.field("defects" if several else "novelty").type
    )
    assert ours["error"].is_null().equals(theirs["error"].is_null()) and ours["error"].null_count == 17
    assert len({*ours["picture_decision"].to_pylist()} - {None}) == 3
    assert (ours["decision"].equals(ours["picture_decision"])) == (pattern is None)
    truth = [None if error else key.split("/")[-2] for key, error in zip(
        ours["key"].to_pylist(), ours["error"].to_pylist(), strict=True)]  # fmt: skip
    assert ours["true"].to_pylist() == truth
