"""The served model takes every form of request that MLflow knows, and needs nothing but its requirements."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from importlib.metadata import distributions
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.images import encode, picture
from tyre_lightning.config import DataConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.tracking.registry import _save_pyfunc

LITE = "efficientnet_lite0"
JSON = "application/json"
DAMAGED = b64encode(b"<html>").decode()

Rows = list[dict[str, Any]]
Form = Callable[[Rows], tuple[str, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as MLflow's registry has it."""
    options = Preprocessing.of(preset(LITE), DataConfig(image_size=32)).to_dict()
    inspector = Inspector.from_classifier(TyreClassifier(LITE, ["crack", "good"], options, "good"))
    inspector.save(inner := tmp_path_factory.mktemp("inspector"))
    _save_pyfunc(outer := tmp_path_factory.mktemp("served") / "model", inner, inspector)
    return outer


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return mlflow.pyfunc.load_model(str(folder))


def _split(rows: Rows) -> tuple[str, bytes]:
    columns = list(rows[0])
    return _json(dataframe_split={"columns": columns, "data": [[row[name] for name in columns] for row in rows]})


def _columns(rows: Rows) -> tuple[str, bytes]:
    return _json(inputs={name: [row[name] for row in rows] for name in rows[0]})


def _json(**body: Any) -> tuple[str, bytes]:
    return JSON, json.dumps(body).encode()


def _parquet(rows: Rows) -> tuple[str, bytes]:
    pd.DataFrame(rows).to_parquet(buffer := BytesIO())
    return "application/vnd.apache.parquet", buffer.getvalue()


FORMS: dict[str, Form] = {
    "dataframe_split": _split,
    "dataframe_records": lambda rows: _json(dataframe_records=rows),
    "instances": lambda rows: _json(instances=rows),
    "inputs by column": _columns,
    "inputs by row": lambda rows: _json(inputs=rows),
    "csv": lambda rows: ("text/csv", pd.DataFrame(rows).to_csv(index=False).encode()),
    "parquet": _parquet,
}


def ask(model: Any, kind: str, body: bytes) -> Rows:
    """What the server of a model answers."""
    answer = invocations(body, kind, model, model.metadata.get_input_schema())  # type: ignore[no-untyped-call]
    assert answer.status == 200, answer.response
    found: Rows = json.loads(answer.response)["predictions"]
    return found


@pytest.fixture(scope="module")
def image() -> bytes:
    return encode(picture())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_request_gives_a_row_for_each_image(form: Form, model: Any, image: bytes) -> None:
    text = b64encode(image).decode()
    images = [text, None, "no base64!", DAMAGED, "a", text]
    tyres = ["0123", "7", None, "7", None, "0123"]
    answers = ask(model, *form([{"image": one, "tyre": tyre} for one, tyre in zip(images, tyres, strict=True)]))
    assert [answer["tyre"] for answer in answers] == tyres
    expected = model.predict(pd.DataFrame({"image": [image]})).iloc[0]
    assert expected["error"] is None
    for place in (0, 5):
        assert {name: answers[place][name] for name in ("class", "p_crack", "p_good", "error")} == {
            name: expected[name] for name in ("class", "p_crack", "p_good", "error")
        }
    errors = [answer["error"] for answer in answers[1:5]]
    assert errors[0].startswith("the row has no image and no uri: send an image file's bytes as base64 text")
    assert errors[1].startswith("the row's image is not base64")
    assert errors[2] == "it is not an image file"
    assert errors[3].startswith("the row's image is not base64")
    assert all(answer["class"] is None for answer in answers[1:5])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_request_takes_addresses(form: Form, model: Any) -> None:
    rows: Rows = [
        {"uri": "s3://elsewhere/me.jpg", "image": None},
        {"uri": None, "image": None},
        {"uri": "x", "image": DAMAGED},
    ]
    errors = [answer["error"] for answer in ask(model, *form(rows))]
    assert errors[0].startswith("s3://elsewhere/me.jpg is below none of the addresses that TYRE_SERVE_S3 lists")
    assert errors[1].startswith("the row has no image and no uri")
    assert errors[2].startswith("the row has both an image and a uri")


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"data": [["x"]]}},
        {"dataframe_split": {"columns": ["picture"], "data": [["x"]]}},
        {"dataframe_records": [{"img": "x"}]},
        {"instances": ["x"]},
        {"instances": [{"b64": "x"}]},
        {"inputs": "x"},
        {"inputs": ["x", "y"]},
        {"inputs": {"tyre": ["x"]}},
        {"messages": [{"role": "user", "content": "x"}]},
    ],
)
def test_a_request_without_images_is_told_what_to_send(body: dict[str, Any], model: Any) -> None:
    with pytest.raises(MlflowException) as caught:
        ask(model, *_json(**body))
    refusal: Any = caught.value
    assert refusal.get_http_status_code() == 400
    sentence = "the request has neither a column 'image' nor a column 'uri': send an image file's bytes as base64"
    assert sentence in refusal.message


@pytest.mark.parametrize("value", [5, 1.5, True, {"b64": "x"}])
def test_a_value_of_another_kind_is_an_error_in_its_row(value: Any, model: Any) -> None:
    for form in (_split, FORMS["dataframe_records"], FORMS["instances"], _columns):
        first, last = ask(model, *form([{"image": value}, {"image": DAMAGED}]))
        assert first["error"] and first["class"] is None
        assert last["error"] == "it is not an image file"


def test_numbers_name_tyres_too(model: Any) -> None:
    answers = ask(model, *_split([{"image": DAMAGED, "tyre": tyre} for tyre in (7, None, 8)]))
    assert [answer["tyre"] for answer in answers] == ["7", None, "8"]


LOADS = """
import sys, mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
import tyre_lightning
assert tyre_lightning.__file__.startswith(sys.argv[1]), tyre_lightning.__file__
images = pandas.DataFrame({"image": [open(sys.argv[2], "rb").read(), None], "uri": [None, "s3://plant/x.jpg"]})
print(*model.predict(images)["error"], sep=";")
"""


@pytest.mark.slow
@pytest.mark.long
def test_the_model_needs_nothing_but_its_requirements(folder: Path, image: bytes, tmp_path: Path) -> None:
    """In an environment that has what they bring, and nothing else of what is installed here."""
    needed = _closure((folder / "requirements.txt").read_text().splitlines())
    site = tmp_path / "site"
    site.mkdir()
    for one in distributions():
        if canonicalize_name(one.name) in needed:
            for name in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
                if not (site / name).exists():
                    (site / name).symlink_to(str(one.locate_file(name)))
    assert (site / "torch").exists() and not (site / "faiss").exists() and not (site / "pytest").exists()
    (tmp_path / "x.png").write_bytes(image)
    environment = {"PYTHONPATH": str(site), "TYRE_SERVE_S3": "s3://plant", "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
                   "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "HOME": str(tmp_path)}  # fmt: skip
    command = [sys.executable, "-S", "-c", LOADS, str(folder), str(tmp_path / "x.png")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().splitlines()[-1].split(";")
    assert first == "None" and "the endpoint does not answer" in second


def _closure(lines: list[str]) -> set[str]:
    """The names of what requirements bring: they, and what they require in turn."""
    installed = {canonicalize_name(one.name): one for one in distributions()}
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        wanted = waiting.pop()
        item = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if item in found or item[0] not in installed:
            continue
        found.add(item)
        for other in map(Requirement, installed[item[0]].requires or []):
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")):
                waiting.append(other)
    return {name for name, _ in found}
