"""``import tyre_lightning`` in a notebook: few names, quick to load, the numbers of predict.py."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tyre_lightning as tl
from tests.conftest import PROJECT, TINY, Trained, run_script
from tests.images import encode, picture
from tests.mlflow_server import lay_database
from tyre_lightning.api import Model


@pytest.fixture(scope="module")
def model(trained: Trained) -> Model:
    return tl.load(trained.model, tracking_uri=trained.tracking_uri)


@pytest.fixture(scope="module")
def files(trained: Trained) -> list[Path]:
    return sorted(trained.local.glob("test/*/*"))


def test_the_import_is_quick_and_misspelt_names_are_told() -> None:
    code = (
        "import sys, tyre_lightning as tl; assert 'load' in dir(tl); tl.UserError; "
        "assert not {'torch', 'lightning', 'mlflow', 'hydra', 'pandas'} & {*sys.modules}; tl.lode"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert "AttributeError: module 'tyre_lightning' has no attribute 'lode'" in done.stderr


def test_every_name_that_is_offered_is_there() -> None:
    for name in tl.__all__:
        assert getattr(tl, name).__doc__


def test_a_folder_gets_the_rows_of_predict(trained: Trained, model: Model, tmp_path: Path) -> None:
    output = tmp_path / "rows.parquet"
    arguments = (f"model={trained.model}", f"input={trained.local}/test", f"output={output}")
    done = run_script("predict.py", *arguments, cwd=tmp_path, environment=trained.environment)
    assert done.returncode == 0, done.stderr
    rows, written = model.predict(trained.local / "test"), pd.read_parquet(output)
    pd.testing.assert_frame_equal(rows, written, check_exact=True, check_dtype=False)  # of columns of text


def test_each_form_of_a_picture_gives_the_same_answer(model: Model, files: list[Path]) -> None:
    path = files[0]
    pixels = np.array(Image.open(path).convert("RGB"))
    forms: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "memoryview": memoryview(path.read_bytes()),
        "PIL": Image.open(path),
        "array": pixels,
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
        "list": [path],
        "glob": str(path.with_suffix(".*")),
    }
    rows = {name: model.predict(form).drop(columns=["key", "tyre"]) for name, form in forms.items()}
    for name, row in rows.items():
        assert len(row) == 1, name
        pd.testing.assert_frame_equal(row, rows["path"], check_exact=True)


def test_rows_keep_the_order_of_what_was_given(model: Model, files: list[Path]) -> None:
    given: list[Any] = [files[0].read_bytes(), files[1], Image.open(files[2]), b"no image", str(files[3].parent)]
    rows = model.predict(given)
    own = model.predict([*files[:3]])
    assert rows["key"].tolist()[:4] == ["picture 0", own["key"][1], str(files[2]), "picture 3"]
    assert rows["p_good"].tolist()[:3] == own["p_good"].tolist()
    assert rows["error"].notna().tolist()[:5] == [False, False, False, True, False]
    assert len(rows) == 4 + len([*files[3].parent.iterdir()])


def test_pictures_of_one_tyre_get_one_decision(model: Model, files: list[Path]) -> None:
    alone = model.predict([path.read_bytes() for path in files])
    worst, best = alone["p_good"].idxmin(), alone["p_good"].idxmax()
    pair = [files[worst], files[best]]
    rows = model.predict(pair, tyres=["T1", "T1"])
    assert rows["tyre"].tolist() == ["T1", "T1"]
    assert {*rows["decision"]} == {alone["decision"][worst]}
    assert rows["picture_decision"].tolist() == alone["picture_decision"][[worst, best]].tolist()
    assert {*model.predict(pair, tyres=[7, 7])["tyre"]} == {"7"}
    apart = model.predict(pair, tyres=[None, None])
    assert apart["decision"].tolist() == rows["picture_decision"].tolist()
    with pytest.raises(tl.UserError, match="2 pictures and 1 names of tyres"):
        model.predict(pair, tyres=["T1"])
    unknown = model.predict(pair, tyres=pd.Series([np.nan, np.nan]))  # as a table has what is missing
    assert unknown["decision"].tolist() == rows["picture_decision"].tolist() and unknown["tyre"].isna().all()
    assert {*model.predict(pair, tyres=(name for name in ("T1", "T1")))["tyre"]} == {"T1"}
    mistaken: Any
    for mistaken in ("T1", {"T1", "T2"}, {"T1": 1, "T2": 2}, 7):
        with pytest.raises(tl.UserError, match=r"tyres=.* is no list: give the name of a tyre for each picture"):
            model.predict(pair, tyres=mistaken)


def test_a_model_that_tells_tyres_reads_them_from_file_names(model: Model, files: list[Path]) -> None:
    telling = Model(replace(model.inspector, group_pattern=r"^(\d)"), "telling")
    rows = telling.predict(str(files[0].parents[1]))
    assert (rows.groupby("tyre")["decision"].nunique() == 1).all()
    assert rows["tyre"].nunique() < len(rows)
    unseen = telling.predict([b"no image"], tyres=[None])
    assert unseen["decision"].tolist() == ["review"]  # as predict.py has it of a file whose name tells no tyre
    assert model.predict([b"no image"], tyres=[None])["decision"].tolist() == [None]


@pytest.mark.parametrize(
    "picture",
    [
        *(np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 0, 3), np.uint8), np.zeros(4, np.uint8)),
        *(torch.zeros(4, 4), torch.zeros((3, 0, 4), dtype=torch.uint8), io.BytesIO(b"lines\n" * 3), None, 7),
        *(Image.new("RGB", (0, 4)), {"a": 1}.items, {"a": "tyre.jpg"}, pd.DataFrame({"path": ["tyre.jpg"]})),
    ],
)
def test_what_is_no_picture_is_one_sentence(model: Model, picture: Any) -> None:
    for given in (picture, [picture]):
        with pytest.raises(tl.UserError, match=r"^picture 0 is no picture but [^<\n]*: give uint8 pixels"):
            model.predict(given)
    with pytest.raises(tl.UserError, match=r"^picture 0 is no picture but [^<\n]*: give uint8 pixels"):
        model.explain(picture)


def test_pixels_that_may_not_be_written_are_taken_without_a_word(model: Model, files: list[Path]) -> None:
    pixels = np.asarray(Image.open(files[0]).convert("RGB"))
    assert not pixels.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.predict(pixels)["p_good"].tolist() == model.predict(files[0])["p_good"].tolist()


def test_what_is_not_there_is_one_sentence(model: Model, tmp_path: Path) -> None:
    with pytest.raises(tl.UserError, match="neither a models:/"):
        tl.load(tmp_path / "nowhere")
    (tmp_path / "tyre.jpg").write_bytes(encode(picture(1, (40, 40)), "JPEG"))
    with pytest.raises(tl.UserError, match=r"not a checkpoint of train\.py: it is no file of weights"):
        tl.load(tmp_path / "tyre.jpg")
    with pytest.raises(tl.UserError, match=r"missing\.jpg is no file"):
        model.predict(tmp_path / "missing.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(tl.UserError, match="holds no images"):
        model.predict(tmp_path / "empty")


def test_it_shows_what_it_looked_at_and_what_it_is(model: Model, files: list[Path]) -> None:
    shown = [model.explain(form) for form in (files[0], files[0].read_bytes(), Image.open(files[0]))]
    assert {(picture.size, picture.tobytes()) for picture in shown} == {(shown[0].size, shown[0].tobytes())}
    with pytest.raises(tl.UserError, match="cannot decode"):
        model.explain(b"no image")
    assert "at most 0.25 of defective tyres escape" in repr(model)
    assert "crack" in model._repr_html_()


def test_compose_gives_what_training_takes_and_open_data_its_images(trained: Trained) -> None:
    config = tl.compose("experiment=demo", f"data.root={trained.local}", "data.num_workers=0")
    assert (config.data.root, config.logger.experiment) == (str(trained.local), "tyre-demo")
    data = tl.open_data(config)
    assert (len(data.train) + len(data.val), len(data.test or ())) == (48, 20)
    for override, sentence in (
        ("data.rot=x", "did you mean 'data.root'"),
        ("+data.rot=x", "did you mean 'data.root'"),
        ("data.batch_size=0", "at least 1"),
        ("model=efficientnet_b99", "there is no model=efficientnet_b99"),
    ):
        with pytest.raises(tl.UserError, match=sentence):
            tl.compose(f"data.root={trained.local}", override)
    calls: list[Any] = [tl.compose, tl.train]
    mistaken: Any
    for call in calls:
        for mistaken in (3, ["data.root=x"], {"data": {}}):
            with pytest.raises(tl.UserError, match=f"give overrides as texts.*: {type(mistaken).__name__} is none"):
                call(mistaken)
    with pytest.raises(tl.UserError, match=r"a config that compose\(\) has made: str is none"):
        tl.open_data("lake/v1")  # type: ignore[arg-type]
    keys = data.train.keys()[:2]
    show: Any = tl.show
    for given, more, sentence in (
        ((data, []), {"columns": 0}, "columns=0 must be at least 1"),
        ((data, keys), {"columns": 1.5}, "columns=1.5 must be a whole number"),
        ((data, keys[0]), {}, r"keys='v1.*' must be a list of texts"),
        ((data, None), {}, "keys=None must be a list of texts"),
        ((data, keys, ["one"]), {}, "2 keys and 1 titles: give one for each"),
        ((data.train, keys), {}, r"the images that open_data\(\) has opened: Catalog is none"),
    ):
        with pytest.raises(tl.UserError, match=sentence):
            show(*given, **more)
    assert show(data, map(Path, keys), [1, 2]).width > 100


@pytest.mark.parametrize(
    ("callbacks", "sentence"),
    [
        (L.Callback(), "callbacks=Callback is no list"),
        ([L.Callback], "the class Callback"),
        ([3], "callbacks holds int"),
    ],
)
def test_what_is_no_callback_leaves_no_run(
    callbacks: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tl.UserError, match=sentence):
        tl.train("data.root=lake/v1", callbacks=callbacks)
    assert not [*tmp_path.iterdir()]


def test_a_server_that_was_named_once_is_not_that_of_the_next_call(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tl.load(trained.model, tracking_uri=trained.tracking_uri)
    assert tl.compose("data.root=lake/v1").logger.tracking_uri == "sqlite:///mlflow.db"
    lay_database(tmp_path / "mlflow.db")
    with pytest.raises(tl.UserError, match="not found"):
        tl.load(trained.model)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.tracking_uri)
    tl.load(trained.model)


@pytest.fixture(scope="module")
def result(trained: Trained) -> tl.Result:
    (run_id,) = tl.runs(trained.experiment, tracking_uri=trained.tracking_uri)["run_id"]
    return tl.open_run(run_id, tracking_uri=trained.tracking_uri)


def test_a_run_gives_the_rows_of_predict_with_the_true_classes(
    trained: Trained, result: tl.Result, model: Model
) -> None:
    rows = result.scores("test")
    predicted = model.predict(trained.local / "test")
    ordered = predicted.assign(key="v1/" + "test/" + predicted["key"].str.partition("test/")[2]).sort_values("key")
    columns = [name for name in predicted.columns if name != "tyre"]
    pd.testing.assert_frame_equal(rows[columns], ordered[columns].reset_index(drop=True), rtol=0, atol=1e-6)
    assert rows["true"].tolist() == rows["key"].str.split("/").str[-2].tolist()
    assert (rows["true"] == rows["class"]).mean() == pytest.approx(result.metrics["test/accuracy"])
    held_out = [int(count) for name, count in result.settings.items() if name.startswith("found.images.val.")]
    assert len(result.scores("val")) == sum(held_out)
    with pytest.raises(tl.UserError, match="no scores of usage=train: choose from test, val"):
        result.scores("train")


def test_a_run_shows_its_errors_its_report_and_its_curves(trained: Trained, result: tl.Result, tmp_path: Path) -> None:
    assert result.model_uri == trained.model
    sheet = result.errors(3, root=str(trained.local))
    assert sheet.width > sheet.height > 100
    with pytest.raises(tl.UserError, match="there is no folder"):
        result.errors(root="/nowhere")
    with pytest.raises(tl.UserError, match="count=-1 must be 0 or more"):
        result.errors(-1)
    count: Any
    for count in ("3", None, 1.5, True):
        with pytest.raises(tl.UserError, match=f"count={count!r} must be a whole number"):
            result.errors(count)
    assert result.errors(1, root=trained.local).tobytes() == result.errors(1, root=str(trained.local)).tobytes()
    report = result.report()
    assert "<html" in report.html and report._repr_html_().startswith("<iframe srcdoc=")
    assert "&lt;html" in report._repr_html_()
    with pytest.raises(tl.UserError, match=r"cannot write .*: Is a directory"):
        report.save(tmp_path)
    curves = result.curves()
    assert curves.index.tolist() == [1, 2] and {"val/f1", "val/loss"} <= {*curves.columns}
    assert result.confusion_matrix().width > 100
    assert result.run_id in repr(result) and f"{result.metrics['test/f1']:.3f}" in result._repr_html_()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("models:/tyre-demo", "; give models:/tyre-demo@challenger or models:/tyre-demo/1$"),
        ("models:/tyre-demo@champion", "; give models:/tyre-demo@challenger or models:/tyre-demo/1$"),
        ("models:/tyre-demo/v1", "; give models:/tyre-demo@challenger or models:/tyre-demo/1$"),
        ("models:/tire-demo/1", r"; did you mean models:/tyre-demo\?$"),
        ("models:/else/1", "; registered are tyre-demo$"),
        ("runs:/0123", "; the model of a run is runs:/RUN_ID/model$"),
        (
            "tyre-demo/1",
            "a file or folder that exists: give models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN_ID/model",
        ),
    ],
)
def test_what_names_no_model_is_told_what_does(given: str, sentence: str, trained: Trained) -> None:
    with pytest.raises(tl.UserError, match=sentence):
        tl.load(given, tracking_uri=trained.tracking_uri)


def test_the_folder_of_a_training_is_told_its_checkpoint(trained: Trained) -> None:
    (run,) = (trained.folder / "outputs" / "train").iterdir()
    best = run / "checkpoints" / "best.ckpt"
    for folder in (run, best.parent):
        with pytest.raises(tl.UserError, match=f"holds no inspector.json: give {best}$"):
            tl.load(folder)
    assert tl.load(best).inspector.classes == ["bulge", "crack", "flat_spot", "good"]


def test_who_reads_makes_no_database(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    reads: list[Any] = [lambda: tl.load(trained.model), lambda: tl.open_run("0123"), lambda: tl.runs("tyre-demo")]
    for read in reads:
        with pytest.raises(tl.UserError, match=f"no database {tmp_path}/mlflow.db that has runs and models: start in"):
            read()
    assert not [*tmp_path.iterdir()]


def test_a_run_stays_the_same_where_the_notebook_goes(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tl.open_run(tl.runs(trained.experiment)["run_id"][0])
    monkeypatch.chdir(tmp_path)
    assert run.model.predict(trained.local / "test")["p_good"].notna().all()
    assert len(run.scores()) == 20 and run.report().html


def test_a_notebook_shows_a_mistake_as_its_sentence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell: Any = cast(Any, InteractiveShell)()
    shown: list[str] = []
    monkeypatch.setattr(shell, "_showtraceback", lambda kind, error, lines: shown.extend(lines))
    shell.run_cell("import tyre_lightning as tl\ntl.compose('data.rot=lake')")
    assert shown == ["UserError: unknown config key 'data.rot': did you mean 'data.root'?"]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    shell.run_cell("tl.compose('data.rot=lake')")
    assert len("".join(shown).splitlines()) > 10


def test_what_is_not_a_run_is_one_sentence(trained: Trained) -> None:
    several: Any = tl.runs(trained.experiment, tracking_uri=trained.tracking_uri)
    with pytest.raises(
        tl.UserError, match=r"give a run_id, of which runs\(\) has a column of texts: DataFrame is none"
    ):
        tl.open_run(several, tracking_uri=trained.tracking_uri)
    with pytest.raises(tl.UserError, match=r"no runs yet: did you mean 'tyre-demo'\? \(looked in sqlite:///"):
        tl.runs("tire-demo", tracking_uri=trained.tracking_uri)
    with pytest.raises(tl.UserError, match="there is no run 0123"):
        tl.open_run("0123", tracking_uri=trained.tracking_uri)
    with pytest.raises(tl.UserError, match="the experiment 'none-yet' has no runs yet"):
        tl.runs("none-yet", tracking_uri=trained.tracking_uri)
    with pytest.raises(tl.UserError, match="newest=0 must be at least 1"):
        tl.runs(trained.experiment, newest=0, tracking_uri=trained.tracking_uri)


class Counting(L.Callback):
    batches = 0

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        self.batches += 1


@pytest.mark.long
def test_training_gives_a_result_and_calls_back(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = tmp_path / "v1"
    shutil.copytree(trained.local, lake)
    (lake / "test" / "good" / "bad.jpg").write_bytes(b"no image")
    lay_database(tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    counting = Counting()
    tracking = f"logger.tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    where = (f"data.root={lake}", "trainer.enable_progress_bar=false", "logger.system_metrics=false", tracking)
    run = tl.train(*where, *TINY, callbacks=[counting])
    learnt = [int(count) for name, count in run.settings.items() if name.startswith("found.images.train.")]
    assert counting.batches == -(-sum(learnt) // 4)  # images in a batch
    assert run.folder is not None and (run.folder / "checkpoints" / "best.ckpt").is_file()
    assert run.model.predict(lake / "test")["error"].notna().sum() == 1
    numbers = run.numbers().set_index(["usage", "metric", "class"])
    assert numbers.loc[("test", "f1", ""), "value"] == run.metrics["test/f1"]
    assert 0 <= numbers.loc[("test", "recall", "crack"), "value"] <= 1 and "test/recall/crack" not in run.metrics
    scores = run.scores()
    assert scores.loc[scores["error"].notna(), "key"].tolist() == ["v1/test/good/bad.jpg"]
    assert run.errors(2).width > 100
    with pytest.raises(tl.UserError, match="not both"):
        tl.train(tl.compose(*where), "seed=1")
