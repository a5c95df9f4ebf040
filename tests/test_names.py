"""Free text at the border: no two texts become one file, and no cell of a CSV file is computed."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import PROJECT
from tyre_lightning.evaluation.overlays import overlay_path
from tyre_lightning.evaluation.predictions import open_writer
from tyre_lightning.names import csv_cell, csv_text, file_name

LOOK_ALIKE = [
    ("x.png", "x.png.jpg", "x.png.jpg.jpg", "x", "x.jpg", "x.JPG", "X.jpg", "x.jpg~", "x.jpg "),
    (
        "v1/a.png",
        "v1/a.png.jpg/b.png",
        "v1/a.png.jpg",
        "v1//a.png",
        "v1/./a.png",
        "v1/../a.png",
        "v1_a.png",
        "V1/a.png",
    ),
    ("riß", "RISS", "riss", "Riß"),
    ("bür", unicodedata.normalize("NFD", "bür"), "BÜR", "bu_r"),
    ("con", "con.jpg", "CON.png", "_con", "nul .png", "com1", "lpt9.x", "aux."),
    ("a:b", "a?b", "a*b", "a|b", "a\\b", 'a"b', "a<b", "a\nb", "a\0b", "a_b", "a\u202eb"),
    ("", ".", "..", " ", "a", "a.", "a ", " a", ".a", "-a", "~", "\udc80"),
    ("k" * 300 + "1.jpg", "k" * 300 + "2.jpg", "裂" * 90, "裂" * 91, "k" * 255, "k" * 251, "k" * 252),
]


def _one_file(path: Path) -> str:
    """What a file system that tells neither case nor form takes a path for."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


@pytest.mark.parametrize("keys", LOOK_ALIKE)
def test_no_two_keys_share_an_overlay(keys: tuple[str, ...], tmp_path: Path) -> None:
    paths = [overlay_path(tmp_path, key) for key in keys]
    assert len({_one_file(path) for path in paths}) == len(keys)
    for key, path in zip(keys, paths, strict=True):
        assert path.resolve().is_relative_to(tmp_path) and path.suffix == ".jpg", key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode(errors="replace"))  # no folder stands in a file's way either
    assert [path.read_bytes() for path in paths] == [key.encode(errors="replace") for key in keys]


@pytest.mark.parametrize("text", [text for group in LOOK_ALIKE for text in group])
def test_a_file_name_is_one_on_every_system(text: str) -> None:
    name = file_name(text, ".jpg")
    assert len(name.encode()) <= 255
    assert name.isprintable() and not set(name) & set('<>:"/\\|?*')
    assert name[0] not in ". -" and file_name(text)[-1] not in ". "
    assert name.partition(".")[0].strip().lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}


def test_a_file_name_is_readable() -> None:
    for text in ("0001.jpg", "worn & torn (deep)", "裂纹", "riss ü, 100%+", "it's"):
        assert file_name(text) == text
    assert file_name("IMG_0001.JPG", ".jpg").startswith("IMG_0001.JPG~")


COMPUTED = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", "'=1", '=HYPERLINK("http://x";"y")']
HARMLESS = ["good", "a=b", "v1/train/x.jpg", "", "'quoted'", "100 %", None, -1.5, -1, float("-inf"), True]


@pytest.mark.parametrize("value", COMPUTED)
def test_a_spreadsheet_computes_no_text(value: str) -> None:
    assert csv_cell(value) == f"'{value}"


@pytest.mark.parametrize("value", HARMLESS)
def test_other_cells_stay_as_they_are(value: object) -> None:
    assert csv_cell(value) is value


def _predictions(folder: Path, text: str) -> str:
    with open_writer(str(folder / "rows.csv"), ["key", "class", "p_a"]) as writer:
        writer.write([{"key": text, "class": text, "p_a": -0.5}])
    return (folder / "rows.csv").read_bytes().decode()


def _table(folder: Path, text: str) -> str:
    return csv_text(pd.DataFrame({"key": [text], "class": [text], "p_a": [-0.5]}))


@pytest.mark.parametrize("text", COMPUTED)
@pytest.mark.parametrize("write", [_predictions, _table])
def test_no_file_for_spreadsheets_has_a_formula(write: Callable[[Path, str], str], text: str, tmp_path: Path) -> None:
    (row,) = csv.DictReader(io.StringIO(write(tmp_path, text), newline=""))
    assert row == {"key": f"'{text}", "class": f"'{text}", "p_a": "-0.5"}


def test_what_machines_read_has_the_text_itself(tmp_path: Path) -> None:
    rows = [{"key": text} for text in COMPUTED]
    for ending in ("parquet", "jsonl"):
        with open_writer(str(tmp_path / f"rows.{ending}"), ["key"]) as writer:
            writer.write(rows)
    assert pd.read_parquet(tmp_path / "rows.parquet")["key"].tolist() == COMPUTED
    assert [json.loads(line)["key"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == COMPUTED


def test_every_file_for_spreadsheets_is_written_by_these_two() -> None:
    files = [*PROJECT.glob("*.py"), *PROJECT.glob("tyre_lightning/**/*.py")]
    found = {
        path.name for path in files for way in ("to_csv(", "csv.writer", "csv.DictWriter") if way in path.read_text()
    }
    assert found == {"names.py", "predictions.py"}
