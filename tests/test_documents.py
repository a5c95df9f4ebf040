"""The documentation says what is so: its Python runs, its tables are whole, its pictures are small."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from docs.hooks import turned
from docs.notebooks import small, write
from docs.reference import groups, page
from tests.conftest import PROJECT, TINY, Trained, use_server
from tests.images import picture
from tests.mlflow_server import lay_database
from tyre_lightning import api, results
from tyre_lightning.config import SCHEMAS
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.demo.server import S3Server

DOCS = PROJECT / "docs"
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


def blocks(path: Path) -> list[str]:
    """The Python of a page."""
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def plant(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder, with the bucket and the pictures that the pages name; trainings in it are tiny."""
    use_server(s3_server, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    bucket = s3_server.folder / "plant"
    write_lake(bucket / "tyres" / "v1", {"train": 12, "test": 3}, size=64)
    first, second, *_ = sorted(bucket.glob("tyres/v1/test/*/*"))
    for folder in (bucket / "new", tmp_path / "new"):
        folder.mkdir()
        shutil.copy(first, folder)
    shutil.copy(first, tmp_path / "tyre.jpg")
    shutil.copy(second, tmp_path / "left.jpg")
    lay_database(tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    composed = api.compose
    quiet = ("trainer.enable_progress_bar=false", "logger.system_metrics=false")
    for module in (api, results):
        monkeypatch.setattr(module, "compose", lambda *overrides: composed(*overrides, *TINY, *quiet))
    yield tmp_path
    shutil.rmtree(bucket)


@pytest.mark.long
@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_python_of_a_page_runs_from_top_to_bottom(name: str, plant: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(PROJECT / name):
        exec(block, names)
    assert names["run"].metrics["test/f1"] >= 0
    if name == "docs/python.md":
        assert len(names["scores"]) == 12
        assert (plant / "report.html").is_file() and (plant / "looked-at.png").is_file()


def test_the_request_of_the_page_is_answered(
    trained: Trained, plant: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By MLflow's own server, in this process."""
    import mlflow
    from mlflow.pyfunc.scoring_server import invocations

    mlflow.set_tracking_uri(trained.tracking_uri)
    model = mlflow.pyfunc.load_model(trained.model)

    def answer(request: urllib.request.Request) -> BytesIO:
        assert request.full_url.endswith(":8080/invocations") and isinstance(request.data, bytes)
        kind = request.get_header("Content-type")
        schema = model.metadata.get_input_schema()
        reply = invocations(request.data, kind, model, schema)  # type: ignore[no-untyped-call]
        return BytesIO(reply.response.encode())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    (block,) = blocks(DOCS / "deploy.md")
    exec(block, {})
    (row,) = json.loads(capsys.readouterr().out)["predictions"]
    assert row["decision"] in ("accept", "review", "reject") and row["error"] is None


def test_every_key_of_every_config_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert text == page(), "config.py has changed: python docs/reference.py"
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(\S+)` \| (.+) \| (`.*`) \| (.+) \|$", text, re.MULTILINE)}
    assert len(rows) > 90
    for schema in SCHEMAS.values():
        inner = {prefix for prefix, _ in groups(schema)}
        for prefix, group in groups(schema):
            for item in fields(group):
                if (key := f"{prefix}.{item.name}".strip(".")) not in inner:
                    values, _, meaning = rows[key]
                    assert values and meaning.strip(), key


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_of_a_notebook_has_its_code_and_its_pictures(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    shown = DOCS / "notebooks" / f"{notebook.stem}.md"
    code = ["".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code"]
    assert blocks(shown) == code, "the notebook has changed: make notebooks, then python docs/notebooks.py"
    pictures = re.findall(r"!\[.+\]\((\S+)\)", shown.read_text(encoding="utf-8"))
    assert len(pictures) >= 4
    assert {*pictures} == {path.name for path in shown.parent.glob(f"{notebook.stem}-*.webp")}


def test_pictures_are_small() -> None:
    found = [path for path in DOCS.rglob("*") if path.suffix in (".webp", ".png", ".jpg")]
    assert found
    for path in found:
        assert path.stat().st_size <= (200_000 if path.name == "report.png" else 60_000), path


def test_an_executed_notebook_becomes_a_page(tmp_path: Path) -> None:
    picture(1, (2000, 1500)).save(png := BytesIO(), "PNG")
    assert len(small(png.getvalue())) <= 60_000
    data = {"image/png": b64encode(png.getvalue()).decode()}
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Tyres"},
        {
            "cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1, "source": "show()",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": "two\n"},
                {"output_type": "display_data", "metadata": {}, "data": data},
                {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<style>x</style>\n<b>3</b>"}},
            ],
        },
    ]  # fmt: skip
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    write(notebook, tmp_path / "pages")
    text = (tmp_path / "pages" / "n.md").read_text()
    assert text == "# Tyres\n\n```python\nshow()\n```\n\n```text\ntwo\n```\n\n![Tyres](n-1.webp)\n\n<b>3</b>\n"
    assert Image.open(tmp_path / "pages" / "n-1.webp").width <= 960


def test_links_lead_to_pages_and_sources_become_text() -> None:
    assert turned("[a](docs/train.md#x) [b](benchmarks/README.md)", "index.md") == "[a](train.md#x) [b](benchmarks.md)"
    assert turned("[a](../tyre_lightning/config.py)", "reference.md") == "a"
    assert turned("[a](../../notebooks/x.ipynb) [b](../train.md)", "notebooks/x.md") == "a [b](../train.md)"
    assert turned("![a](docs/images/report.png)", "index.md") == "![a](images/report.png)"


def test_the_documentation_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "make demo" in home and 'href="promise.html"' in home
    for path in (tmp_path / "site").rglob("*.html"):  # read without a network
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', path.read_text(encoding="utf-8")), path
