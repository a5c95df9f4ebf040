"""predict.py: every image gets a row, from wherever it comes, and the served model gives the same numbers."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from PIL import Image

from tests import warm
from tests.conftest import Trained, run_script
from tests.images import encode, picture
from tyre_lightning.config import DataConfig, OperatingPointConfig, S3Config
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.calibration import softmax
from tyre_lightning.decision.operating_point import Calibration
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.predictions import open_writer, read_about
from tyre_lightning.lake.source import open_source
from tyre_lightning.lake.store import Entry, FolderStore
from tyre_lightning.model.backbones import preset
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.prediction import predict_batches
from tyre_lightning.summary import Summary, show
from tyre_lightning.tracking.registry import load_inspector

PROBABILITIES = ["p_bulge", "p_crack", "p_flat_spot", "p_good"]
COLUMNS = ["key", "tyre", "class", "decision", "picture_decision", "reason", "novelty", *PROBABILITIES, "error"]
DECIDED = ["decision", "picture_decision"]
READERS = {"parquet": pd.read_parquet, "csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True)}


@pytest.fixture(scope="module")
def inspector(trained: Trained) -> Inspector:
    return load_inspector(trained.model, trained.tracking_uri)


def predict(trained: Trained, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script("predict.py", *arguments, cwd=folder, environment=trained.environment)


@pytest.mark.parametrize("kind", READERS)
def test_every_image_of_a_prefix_gets_a_row(trained: Trained, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "deep" / f"rows.{kind}"
    alias = trained.model.replace("/1", "@challenger")
    done = predict(trained, tmp_path, f"model={alias}", f"input={trained.root}/test", f"output={output}")
    assert done.returncode == 0, done.stderr
    rows = READERS[kind](output)
    assert list(rows.columns) == COLUMNS
    assert len(rows) == rows["key"].nunique() == 20
    assert rows["error"].isna().all()
    if kind == "parquet":  # of the version that the alias named
        assert read_about(str(output)) == {"model": trained.model, "root": f"{trained.root}/test"}
    probabilities = rows[PROBABILITIES]
    assert (probabilities.sum(axis=1) - 1).abs().max() < 1e-6
    assert (probabilities.idxmax(axis=1).str.removeprefix("p_") == rows["class"]).all()
    assert "20 images" in done.stdout
    assert not list(output.parent.glob("*.part"))


@pytest.mark.parametrize(
    ("good", "calibrated", "why"),
    [
        (None, True, "no class is known to be the good one (train with data.good_class=...)"),
        ("good", False, "it was not calibrated: training could read no validation image"),
        ("good", True, "takes more validation tyres than its 2 defective and 1 good ones"),
    ],
)
def test_a_model_that_decides_nothing_says_why(
    good: str | None, calibrated: bool, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=32)).to_dict()
    undecided = Inspector.from_classifier(TyreClassifier("efficientnet_lite0", ["crack", "good"], options, good))
    undecided.calibration = Calibration(1.0, [0.8, 0.9], 2, [0.1], 1) if calibrated else None
    show(Summary("rows.csv"), undecided)
    said = " ".join(capsys.readouterr().out.split())
    assert "decisions: none, because " in said and why in said


def test_decisions_follow_the_promise(trained: Trained, inspector: Inspector, tmp_path: Path) -> None:
    assert inspector.point is not None and inspector.calibration is not None
    given = [f"model={trained.model}", f"input={trained.local}/test", "output=rows.parquet"]
    done = predict(trained, tmp_path, *given)
    assert "decisions: " in done.stdout
    assert (
        f"looks most like good is not accepted from a P(defective) of {inspector.point.threshold:.4g} on" in done.stdout
    )
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    assert ((1 - rows["p_good"] >= inspector.point.threshold) == (rows["decision"] == "reject")).all()
    assert set(rows["decision"]) <= {"accept", "reject"}
    done = predict(trained, tmp_path, *given, "operating_point.max_escape_rate=0.6")
    assert done.returncode == 0, done.stderr
    others = pd.read_parquet(tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(rows.drop(columns=DECIDED), others.drop(columns=DECIDED), check_exact=True)
    wanted = OperatingPointConfig(max_escape_rate=0.6, confidence=0.8)
    threshold = inspector.calibration.operating_point(wanted).threshold
    assert threshold > inspector.point.threshold
    assert ((1 - rows["p_good"] >= threshold) == (others["decision"] == "reject")).all()
    done = predict(trained, tmp_path, *given, "operating_point.max_escape_rate=0.01")
    assert done.returncode == 1
    assert "it takes 161 defective validation tyres, and there are 7: add tyres" in done.stderr


def test_s3_folder_and_checkpoint_agree(trained: Trained, tmp_path: Path) -> None:
    (best,) = trained.folder.glob("outputs/train/*/checkpoints/best.ckpt")
    ways = {
        "s3": (trained.model, f"{trained.root}/test"),
        "folder": (trained.model, str(trained.local / "test")),
        "checkpoint": (str(best), str(trained.local / "test")),
    }
    tables = {}
    for name, (model, source) in ways.items():
        output = tmp_path / f"{name}.parquet"
        done = predict(trained, tmp_path, f"model={model}", f"input={source}", f"output={output}", "batch_size=7")
        assert done.returncode == 0, done.stderr
        tables[name] = pd.read_parquet(output)
        assert read_about(str(output)) == {"model": model, "root": source}
    pd.testing.assert_frame_equal(tables["s3"], tables["folder"], check_exact=True)
    pd.testing.assert_frame_equal(tables["s3"], tables["checkpoint"], check_exact=True)


def test_what_cannot_be_read_gets_its_reason_and_exit_code_3(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(picture()))
    (folder / "b.jpg").write_bytes(b"<html>")
    (folder / "notes.txt").write_text("no image")
    done = predict(trained, tmp_path, f"model={trained.model}", f"input={folder}")
    assert done.returncode == 3, done.stderr
    rows = pd.read_parquet(tmp_path / "predictions.parquet").set_index("key")
    assert list(rows.index) == ["new/a.png", "new/b.jpg"]
    assert rows.loc["new/b.jpg", "error"] == "it is not an image file"
    assert rows.loc["new/b.jpg", ["class", "decision", "p_good"]].isna().all()
    assert rows.loc["new/a.png", "class"] in {"bulge", "crack", "flat_spot", "good"}


def test_what_the_model_looked_at_is_drawn_beside_the_rows(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    (folder / "line 3").mkdir(parents=True)
    (folder / "line 3" / "a.png").write_bytes(encode(picture(size=(1000, 250))))
    (folder / "b.JPG").write_bytes(encode(picture(1), "JPEG"))
    (folder / "c.jpg").write_bytes(b"<html>")
    done = predict(trained, tmp_path, f"model={trained.model}", f"input={folder}", "output=rows.csv", "explain=true")
    assert done.returncode == 3, done.stderr
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("key")
    assert list(rows.columns) == [*COLUMNS[1:], "overlay", "nearest"]
    assert rows.loc["new/line 3/a.png", "overlay"] == "rows-explained/new/line 3/a.png.jpg"
    assert rows.loc["new/b.JPG", "overlay"].startswith("rows-explained/new/b.JPG~")  # not b.jpg's, on any disk
    for column in ("overlay", "nearest"):
        assert rows[column].isna().tolist() == [key == "new/c.jpg" for key in rows.index]
    drawn = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "rows-explained").rglob("*.*")}
    assert drawn == set(rows["overlay"].dropna())
    with Image.open(tmp_path / rows.loc["new/line 3/a.png", "overlay"]) as image:
        assert image.width == 640 and image.height > 160  # below is what looks most alike


def test_files_and_globs(tmp_path: Path) -> None:
    for name in ("v1/a/x.png", "v1/b/y.jpg", "v1/b/z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    s3 = S3Config()

    def keys(address: str) -> list[str]:
        return [entry.key for entry in open_source(address, s3).entries()]

    assert keys(str(tmp_path / "v1")) == ["v1/a/x.png", "v1/b/y.jpg"]
    assert keys(str(tmp_path / "v1" / "a" / "x.png")) == ["a/x.png"]
    assert keys(str(tmp_path / "v1" / "*" / "*.[jp][pn]g")) == ["v1/a/x.png", "v1/b/y.jpg"]
    assert keys(str(tmp_path / "v1" / "*" / "*.png")) == ["v1/a/x.png"]  # one key, whatever else is there
    assert keys("s3://b/v1/a/x.JPG") == ["a/x.JPG"]
    with pytest.raises(UserError, match="is no file, folder, glob with a match"):
        open_source(str(tmp_path / "*.gif"), s3)


def test_memory_does_not_grow_with_the_images(inspector: Inspector, tmp_path: Path) -> None:
    """Entries are drawn only a batch ahead of the rows that are given out."""
    (tmp_path / "x.png").write_bytes(encode(picture()))
    drawn = 0

    def entries() -> Iterator[Entry]:
        nonlocal drawn
        for _ in range(40):
            drawn += 1
            yield Entry(f"{tmp_path.name}/x.png", 0, "")

    seen = 0
    for rows in predict_batches(inspector, FolderStore(str(tmp_path)), entries(), batch_size=4):
        seen += len(rows)
        assert drawn <= seen + 4
    assert seen == 40


def test_a_broken_run_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with open_writer(str(tmp_path / "rows.csv"), ["key", "class", "p_a", "error"]) as writer:
            writer.write([{"key": "k", "class": "a", "p_a": 1.0, "error": None}])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=models:/tyre-demo/99"], "model=models:/tyre-demo/99 cannot be found"),
        (["model=models:/nothing/1"], "model=models:/nothing/1 cannot be found"),
        (["model=gone.ckpt"], "model=gone.ckpt is neither a models:/ or runs:/ URI nor a file or folder that exists"),
        (["model=MODEL", "output=rows.xlsx"], "output=rows.xlsx must end in one of .parquet, .csv, .jsonl"),
        (["model=MODEL", "input=s3://no-such-bucket/x"], "there is no such bucket"),
        (["model=MODEL", "input=nowhere"], "input=nowhere is no file, folder, glob with a match, or s3:// address"),
        (["model=MODEL", "accelerator=tpu"], "accelerator=tpu must be one of auto, cpu, gpu"),
        (["modle=MODEL"], "unknown config key 'modle': did you mean 'model'?"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    trained: Trained, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [argument.replace("MODEL", trained.model) for argument in arguments]
    source = [] if any(argument.startswith("input=") for argument in given) else [f"input={trained.local}/test"]
    done = predict(trained, tmp_path, *source, *given)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]


def test_the_served_model_answers_with_predict_s_numbers(trained: Trained, tmp_path: Path) -> None:
    files = sorted((trained.local / "test").rglob("*.jpg"))[::3]
    broken = b"<html>"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = ["mlflow", "models", "serve", "-m", trained.model, "--env-manager", "local", "-p", str(port)]
    command = [sys.executable, "-m", *serve]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=activated({**trained.environment, "TYRE_SERVE_S3": "s3://elsewhere s3://drawn/v1"}),
            cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            images = [base64.b64encode(data).decode() for data in (*(path.read_bytes() for path in files), broken)]
            answers = ask(port, "image", images, tmp_path / "log")
            uris = [f"s3://drawn/{'/'.join(path.parts[-4:])}" for path in files]
            fetched = ask(port, "uri", [*uris, "s3://drawn/v1/none.jpg", "s3://drawn/v10/x.jpg"], tmp_path / "log")
        finally:
            stop(server)
    output = tmp_path / "rows.jsonl"
    done = predict(trained, tmp_path, f"model={trained.model}", f"input={trained.local}/test", f"output={output}")
    assert done.returncode == 0, done.stderr
    rows = {row["key"]: row for row in map(json.loads, output.read_text().splitlines())}
    for path, answer in zip(files, answers, strict=False):
        expected = rows["/".join(path.parts[-3:])]
        assert {name: answer[name] for name in COLUMNS[2:]} == {name: expected[name] for name in COLUMNS[2:]}
    assert answers[-1]["error"] == "it is not an image file"
    assert answers[-1]["class"] is None
    assert fetched[:-2] == answers[:-1]
    assert "s3://drawn/v1/none.jpg" in fetched[-2]["error"] and "no such object" in fetched[-2]["error"]
    assert "s3://drawn/v10/x.jpg is below none of the addresses that TYRE_SERVE_S3 lists" in fetched[-1]["error"]


def test_a_served_model_refuses_a_file_that_is_too_large(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(trained.tracking_uri)
    served = mlflow.pyfunc.load_model(trained.model).unwrap_python_model()
    monkeypatch.setattr("tyre_lightning.tracking.asked.LARGEST", 100)
    table = served.predict(None, pd.DataFrame({"image": [b"x" * 101, b"x"]}))
    assert list(table["error"]) == ["101 bytes are more than the 100 that a file may have", "it is not an image file"]


def test_an_onnx_file_gives_predict_s_probabilities(trained: Trained, tmp_path: Path) -> None:
    """As another program would use it: with its runtime, an image library and what the file says of itself."""
    command = ["-m", "tyre_lightning.export", f"model={trained.model}", "output=tyre.onnx"]
    done = warm.run(command, tmp_path, trained.environment, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"wrote tyre\.onnx \(\d+\.\d MB\): image uint8 \[N, 3, (\d+), \1\] to logits float32 \[N, 4\], of .*good.*\n",
        done.stdout,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tyre.onnx"]
    session: Any = onnxruntime.InferenceSession(str(tmp_path / "tyre.onnx"))
    about = json.loads(session.get_modelmeta().custom_metadata_map["inspector"])
    path = next((trained.local / "test").rglob("*.jpg"))
    size = about["preprocessing"]["size"]
    resized = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    logits, _ = session.run(None, {"image": np.asarray(resized).transpose(2, 0, 1)[None]})
    found = softmax(logits.astype(np.float64), about["judgement"]["calibration"]["temperature"])[0]
    output = tmp_path / "row.jsonl"
    assert predict(trained, tmp_path, f"model={trained.model}", f"input={path}", f"output={output}").returncode == 0
    (row,) = map(json.loads, output.read_text().splitlines())
    expected = [row[f"p_{name}"] for name in about["classes"]]
    np.testing.assert_allclose(found, expected, atol=0.02)  # Pillow and torchvision resize a little differently
    wrong = warm.run([*command[:2], "model=models:/none/1"], tmp_path, trained.environment, timeout=100)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: model=models:/none/1 cannot be loaded")


def test_of_a_model_in_mlflow_its_code_is_not_fetched(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each file an artifact store is asked by itself, and of a model's code there are hundreds."""
    download, fetched = mlflow.artifacts.download_artifacts, []

    def watched(artifact_uri: str, dst_path: str) -> str:
        folder = str(download(artifact_uri=artifact_uri, dst_path=dst_path))
        fetched.append({path.name for path in Path(dst_path).rglob("*") if path.is_file()})
        return folder

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", watched)
    run = mlflow.MlflowClient(trained.tracking_uri).get_model_version("tyre-demo", "1").run_id
    inspector = f"runs:/{run}/model/artifacts/inspector"
    for model in (trained.model, "models:/tyre-demo@challenger", f"runs:/{run}/model", inspector):
        assert load_inspector(model, trained.tracking_uri).classes == ["bulge", "crack", "flat_spot", "good"]
    assert fetched == [{"inspector.json", "validation.parquet", "weights.safetensors"}] * 4
    with pytest.raises(UserError, match=f"^model=runs:/{run}/scores holds no inspector.json: it was not made by"):
        load_inspector(f"runs:/{run}/scores", trained.tracking_uri)
    with pytest.raises(UserError, match=f"^model=runs:/{run}/none cannot be loaded: .*none"):
        load_inspector(f"runs:/{run}/none", trained.tracking_uri)
    with pytest.raises(UserError, match=r"^model=models:/tyre-demo cannot be loaded: .*'tyre-demo' not found"):
        load_inspector("models:/tyre-demo", trained.tracking_uri)


def activated(environment: dict[str, str]) -> dict[str, str]:
    """The virtual environment's programs are found, as after ``source .venv/bin/activate``: mlflow starts uvicorn."""
    return {**environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}


def ask(port: int, column: str, values: list[str], log: Path) -> list[dict[str, Any]]:
    """Post images to a served model as the documentation says; waits until it is up."""
    body = json.dumps({"dataframe_split": {"columns": [column], "data": [[value] for value in values]}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                answers: list[dict[str, Any]] = json.load(reply)["predictions"]
                return answers
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode() + log.read_text()) from error
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server with the processes that it started."""
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(timeout=30)
