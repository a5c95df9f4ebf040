"""A training run: what it records, that it can be repeated, resumed, interrupted and divided."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, Run

from tests import warm
from tests.conftest import (
    ONE_NETWORK,
    PROJECT,
    SMALL,
    TINY,
    Trained,
    run_script,
    table_of,
    train_here,
    untracked_environment,
    write_images,
)
from tyre_lightning.model.classifier import TyreClassifier
from tyre_lightning.tracking.sweeps import PARENT_TAG

CLASSES = ("crack", "good")


def only_run(folder: Path, experiment: str = "tyre-defects") -> Run:
    (run,) = runs(folder, experiment)
    return run


def runs(folder: Path, experiment: str = "tyre-defects") -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    every = client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])
    return [run for run in every if PARENT_TAG not in run.data.tags]


def datasets(run: Run) -> dict[str, Dataset]:
    """The inputs of a run by their usage."""
    assert run.inputs is not None
    return {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """A local lake of two classes: 10 train and 5 test images each, 10 test images in all less one."""
    write_images(tmp_path / "lake" / "v1", {"train": 10, "test": 5}, CLASSES)
    (tmp_path / "lake" / "v1" / "test" / "good" / "4.jpg").unlink()
    return str(tmp_path / "lake" / "v1")


def test_what_a_run_records(trained: Trained) -> None:
    client = MlflowClient(trained.tracking_uri)
    run = only_run(trained.folder, trained.experiment)
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert params["model.name"] == "efficientnet_lite0"
    assert params["data.root"] == trained.root
    assert params["data.eval_crop"] == "whole"
    assert params["found.classes"] == "['bulge', 'crack', 'flat_spot', 'good']"
    assert params["found.good_class"] == "good"
    assert (params["found.images.train.crack"], params["found.images.val.crack"]) == ("10", "2")
    assert params["found.images.test.crack"] == "5"
    assert len([name for name in params if name.startswith("trainer.")]) >= 10
    metrics = run.data.metrics
    for name in ("accuracy", "f1", "auroc_defective", "loss", "unreadable", "ece"):
        assert f"test/{name}" in metrics
    shown = [name for name in metrics if not name.startswith("system/")]
    assert len(shown) <= 40 and not [name for name in shown if "_low" in name or "_high" in name or "crack" in name]
    assert metrics["test/images"] == 20
    assert metrics["temperature"] > 0
    assert 0 < metrics["threshold"] == metrics["reject_from"] < 1
    table = table_of(client, run.info.run_id, "metrics.json")
    rows = table.set_index(["usage", "metric", "class"])
    for name, of_class in (
        ("escape_rate", ""),
        ("overkill_rate", ""),
        ("escape_rate", "crack"),
        ("auroc_defective", ""),
    ):
        low, rate, high = rows.loc[("test", name, of_class), ["low", "value", "high"]]
        assert low <= rate <= high
        assert of_class or rate == metrics[f"test/{name}"]
    for usage in ("val", "test"):
        for name in ("ece", "ece_uncalibrated", "brier", "brier_uncalibrated", "auroc"):
            assert rows.loc[(usage, name, ""), "value"] >= 0
        assert 0 <= rows.loc[(usage, "recall", "crack"), "value"] <= 1
    assert metrics["val/escape_rate"] == 0  # six images allow for none
    assert len(client.get_metric_history(run.info.run_id, "val/f1")) == 3  # two epochs, and the kept checkpoint
    assert any(name.startswith("lr-AdamW") for name in metrics)
    assert any(name.startswith("system/") for name in metrics)
    commit = subprocess.run(
        ["git", "-C", str(PROJECT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert run.data.tags.get("mlflow.source.git.commit", "") == commit.stdout.strip()


def test_artifacts_of_a_run(trained: Trained) -> None:
    client = MlflowClient(trained.tracking_uri)
    run = only_run(trained.folder, trained.experiment)
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names >= {"catalog.parquet", "config.yaml", "confusion_matrix.png", "model"}
    assert names >= {"metrics.json", "epochs.json", "predictions.json", "scores"}
    assert names >= {"val_decisions.png", "test_decisions.png"}
    saved = [*trained.folder.glob("outputs/train/*/checkpoints/*")]
    assert {path.name for path in saved} == {"best.ckpt", "last.ckpt"}
    for path in saved:
        torch.load(path, weights_only=True)
        assert TyreClassifier.load_from_checkpoint(path, weights_only=True).hparams["classes"][0] == "bulge"


def test_the_report_of_a_run_has_its_numbers(trained: Trained, tmp_path: Path) -> None:
    client = MlflowClient(trained.tracking_uri)
    run = only_run(trained.folder, trained.experiment)
    page = Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    data = json.loads(found[1])
    metrics = run.data.metrics
    table = table_of(client, run.info.run_id, "metrics.json")
    escape = table.set_index(["usage", "metric", "class"]).loc[("test", "escape_rate", "")]
    threshold, defective, good = data["start"], data["defective"], data["good"]
    assert threshold == metrics["threshold"]
    escapes = sum(score < threshold for score in defective["scores"])
    assert escapes / len(defective["scores"]) == metrics["test/escape_rate"]
    assert data["intervals"]["escape"]["high"][escapes] == pytest.approx(escape["high"])
    assert sum(score >= threshold for score in good["scores"]) / len(good["scores"]) == metrics["test/overkill_rate"]
    assert sorted({*defective["keys"], *good["keys"]}) == sorted(
        f"v1/{path.relative_to(trained.local).as_posix()}" for path in trained.local.glob("test/*/*.jpg")
    )
    assert all(defective["pictures"]) and all(defective["overlays"])
    assert "<figcaption>Loss</figcaption>" in page and "<figcaption>Validation score</figcaption>" in page
    assert "20 test images" in page and run.info.run_id in page and trained.root in page


def test_a_report_that_fails_costs_no_model(
    lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tyre_lightning.tracking.report.build_page", fail)
    metrics = train_here(tmp_path, f"data.root={lake}", ONE_NETWORK, "logger.system_metrics=false")
    run = only_run(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/f1"] == pytest.approx(metrics["test/f1"])
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_model_version("tyre-defects", "1").run_id == run.info.run_id
    assert "report.html" not in {item.path for item in client.list_artifacts(run.info.run_id)}
    assert "the run has no report.html (OSError: [Errno 28] No space left on device)" in caplog.text


def test_the_images_of_a_run_are_its_inputs(trained: Trained) -> None:
    run = only_run(trained.folder, trained.experiment)
    inputs = datasets(run)
    assert sorted(inputs) == ["test", "train", "val"]
    assert inputs["train"].name == "v1/train"
    assert json.loads(inputs["train"].source) == {"uri": trained.root}
    counts = {"bulge": 5, "crack": 5, "flat_spot": 5, "good": 5}
    assert json.loads(inputs["test"].profile or "") == {"images": 20, "classes": counts}
    assert len({dataset.digest for dataset in inputs.values()} | {run.data.params["found.fingerprint"]}) == 4


@pytest.mark.long
def test_a_run_is_repeated_on_the_same_images(trained: Trained, tmp_path: Path) -> None:
    """Here on a copy, of which an image has gone."""
    shutil.copytree(trained.local, tmp_path / "v1")
    lost = min((tmp_path / "v1" / "test" / "good").iterdir())
    lost.unlink()
    first = only_run(trained.folder, trained.experiment)
    done = run_script(
        "train.py", "experiment=demo", f"data.from_run={first.info.run_id}", f"data.root={tmp_path}/v1", *SMALL,
        f"logger.tracking_uri={trained.tracking_uri}", "logger.experiment=again", "logger.registered_model=null",
        cwd=tmp_path, environment=trained.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        f"of the images to train on, 1 gone (v1/test/good/{lost.name}); training goes on" in done.stdout + done.stderr
    )
    assert "the model gets no operating point: operating_point.max_escape_rate=0.05 with" in done.stdout + done.stderr
    assert "it takes 59 defective validation tyres, and there are 7: add tyres" in done.stdout + done.stderr
    second = only_run(trained.folder, "again")
    before, after = ({usage: item.digest for usage, item in datasets(run).items()} for run in (first, second))
    assert before["train"] == after["train"]
    assert before["val"] == after["val"]
    assert before["test"] != after["test"]


def test_the_model_is_registered_with_its_signature(trained: Trained) -> None:
    import mlflow

    client = MlflowClient(trained.tracking_uri)
    version = client.get_model_version("tyre-demo", "1")
    assert version.run_id == only_run(trained.folder, trained.experiment).info.run_id
    mlflow.set_tracking_uri(trained.tracking_uri)
    signature = mlflow.models.get_model_info(trained.model).signature
    given = [(column.name, str(column.type), column.required) for column in signature.inputs]
    assert given == [(name, "DataType.string", False) for name in ("image", "uri", "tyre")]  # an image is base64
    assert [column.name for column in signature.outputs] == [
        "tyre", "class", "decision", "picture_decision", "reason", "novelty", "p_bulge", "p_crack", "p_flat_spot",
        "p_good", "error",
    ]  # fmt: skip
    folder = Path(mlflow.artifacts.download_artifacts(trained.model))
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".ckpt"}]
    assert "predict.py model=models:/tyre-demo/1" in trained.output


@pytest.mark.long
def test_a_seed_makes_a_run_repeatable(lake: str, tmp_path: Path) -> None:
    options = (f"data.root={lake}", ONE_NETWORK, "logger.registered_model=null", "logger.system_metrics=false")
    first, again, other = (
        train_here(tmp_path / name, *options, f"seed={seed}") for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    for metrics in (first, again, other):
        assert metrics.pop("model/latency_ms") > 0  # all but this
    assert first == again
    assert first != other
    assert first["test/images"] == 9


def test_options_of_the_recipe_work_together(lake: str, tmp_path: Path) -> None:
    """EMA, balanced weights, a frozen start, early stopping and gradient accumulation, in one short run."""
    metrics = train_here(
        tmp_path,
        f"data.root={lake}",
        ONE_NETWORK,
        "callbacks.ema.decay=0.9",
        "callbacks.early_stopping.patience=5",
        "model.class_weights=balanced",
        "model.freeze_epochs=1",
        "trainer.max_epochs=2",
        "trainer.accumulate_grad_batches=2",
        "data.eval_crop=center",
        "data.classes=[good,crack]",
        "logger.registered_model=null",
    )
    assert metrics["test/images"] == 9
    assert only_run(tmp_path).data.params["found.classes"] == "['good', 'crack']"


def test_an_unreadable_image_is_counted_or_ends_the_run(lake: str, tmp_path: Path) -> None:
    Path(lake, "train", "good", "torn.jpg").write_bytes(b"<html>")
    options = [f"data.root={lake}", *TINY, ONE_NETWORK, "logger.registered_model=null", "data.val_fraction=0.1"]
    skipped = run_script("train.py", *options, cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    assert (
        "cannot decode image 'v1/train/good/torn.jpg': it is not an image file; it is left out"
        in skipped.stdout + skipped.stderr
    )
    (counted,) = runs(tmp_path)
    assert counted.data.metrics["train/unreadable"] + counted.data.metrics["val/unreadable"] == 1
    failed = run_script("train.py", *options, "data.unreadable=error", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1] == (
        "error: cannot decode image 'v1/train/good/torn.jpg': it is not an image file"
    )
    assert "Traceback" not in failed.stderr
    assert [run.info.status for run in runs(tmp_path)] == ["FINISHED", "FAILED"]


@pytest.mark.long
def test_a_run_resumes_from_its_last_checkpoint(lake: str, tmp_path: Path) -> None:
    options = [f"data.root={lake}", *TINY, ONE_NETWORK, "logger.registered_model=null"]
    none = run_script("train.py", *options, "ckpt_path=last", cwd=tmp_path)
    assert none.stderr.strip().endswith(
        "ckpt_path=last: no run of experiment 'tyre-defects' in outputs/train has left a checkpoint yet: give a "
        "checkpoint's path, or leave ckpt_path out"
    )
    assert run_script("train.py", *options, cwd=tmp_path).returncode == 0
    done = run_script("train.py", *options, "trainer.max_epochs=3", "ckpt_path=last", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = runs(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    epochs = [[int(m.value) for m in client.get_metric_history(r.info.run_id, "epoch")] for r in (first, second)]
    assert set(epochs[0]) <= {0, 1}
    assert min(epochs[1]) == 1
    assert max(epochs[1]) >= 2
    rates = [metric.value for metric in client.get_metric_history(second.info.run_id, "lr-AdamW/head")]
    assert min(rates) > 0  # the further epochs learn: the first one's schedule ended at 0
    other = run_script("train.py", *options, "model=efficientnet_lite1", "ckpt_path=last", cwd=tmp_path)
    assert other.returncode == 1
    assert "was trained with model.name=efficientnet_lite0" in other.stderr.strip().splitlines()[-1]


@pytest.mark.long
def test_ctrl_c_leaves_a_checkpoint_and_a_killed_run(lake: str, tmp_path: Path) -> None:
    options = [f"data.root={lake}", *TINY, ONE_NETWORK, "trainer.max_epochs=1000", "logger.registered_model=null"]
    command = [str(PROJECT / "train.py"), *options]
    with warm.running(command, tmp_path, untracked_environment(), tmp_path / "said", tmp_path / "errors") as process:
        deadline = time.monotonic() + 180
        while not list(tmp_path.glob("outputs/train/*/checkpoints/last.ckpt")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert only_run(tmp_path).info.status == "KILLED"
    (last,) = tmp_path.glob("outputs/train/*/checkpoints/last.ckpt")
    left = torch.load(last, weights_only=True)
    assert left["global_step"] > 0
    epochs = f"trainer.max_epochs={left['epoch'] + 2}"
    again = [f"data.root={lake}", *TINY, ONE_NETWORK, epochs, f"ckpt_path={last}", "logger.registered_model=null"]
    assert run_script("train.py", *again, cwd=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_ends_with_a_table_of_its_runs(lake: str, tmp_path: Path) -> None:
    options = [f"data.root={lake}", *TINY, "logger.registered_model=null"]
    done = run_script("train.py", "-m", "model=efficientnet_lite0,efficientnet_lite1", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(runs(tmp_path)) == 2
    table = done.stdout[done.stdout.index("runs of this sweep") :]
    assert "efficientnet_lite0" in table
    assert "efficientnet_lite1" in table
    assert all(len(line.rstrip()) <= 80 for line in table.splitlines() if "predict.py" not in line)
    assert "the best of them is 1, run " in table
    assert re.search(r"^  python predict.py model=runs:/[0-9a-f]{32}/model input=FOLDER$", table, re.MULTILINE)


@pytest.mark.long
def test_a_run_that_fails_costs_a_sweep_no_other(lake: str, tmp_path: Path) -> None:
    options = [f"data.root={lake}", *TINY, ONE_NETWORK, "logger.registered_model=null"]
    done = run_script("train.py", "-m", "model.weights=none,gone.ckpt,none", *options, cwd=tmp_path)
    assert done.returncode == 1
    table = done.stdout[done.stdout.index("runs of this sweep") :]
    assert re.findall(r"^ ?(\d) +0\.\d{3} ", table, re.MULTILINE) == ["1", "2"]
    assert "error: run 1 of the sweep: " in done.stderr and "Traceback" not in done.stderr
    failed = next(line for line in done.stderr.splitlines() if line.startswith("failed: "))
    assert "/1: " in failed and "gone.ckpt" in failed


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_give_one_process_s_test_metrics(lake: str, tmp_path: Path) -> None:
    """With the backbone frozen, training itself is the same; nine test images stay nine; each trial runs once."""
    options = [
        f"data.root={lake}", *TINY, "data.val_fraction=0.2", "model.freeze_epochs=1", "model.dropout=0",
        "logger.registered_model=null",
    ]  # fmt: skip
    alone = run_script("train.py", *options, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    together = run_script("train.py", "-m", "seed=0,1", *options, "trainer=ddp_cpu", cwd=tmp_path)
    assert together.returncode == 0, together.stderr
    assert together.stderr == ""
    for noise in ("sync_dist", "LeafSpec", "Initializing", "GLOBAL_RANK", "distributed_backend", "GPU available"):
        assert noise not in together.stdout
    assert len(re.findall(r"^epoch  train loss", together.stdout, re.MULTILINE)) == 2  # one process speaks for both
    assert len(re.findall(r"^    1  ", together.stdout, re.MULTILINE)) == 2
    one, two, other = runs(tmp_path)
    assert two.data.params["seed"] == "0"
    assert other.data.params["seed"] == "1"
    names = [name for name in one.data.metrics if name.startswith(("test/", "val/"))]
    assert one.data.metrics["test/images"] == 9
    for name in names:
        assert two.data.metrics[name] == pytest.approx(one.data.metrics[name], abs=1e-4), name


@pytest.mark.slow
@pytest.mark.long
def test_folds_are_swept(lake: str, tmp_path: Path) -> None:
    options = [f"data.root={lake}", *TINY, "data.val_fraction=0.2", "logger.registered_model=null"]
    done = run_script("train.py", "-m", "data.folds=2", "data.fold=0,1", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [run.data.metrics["test/images"] for run in runs(tmp_path)] == [10, 10]  # of the 20 for training
    first, second = (datasets(run)["test"].digest for run in runs(tmp_path))
    assert first != second
    assert "mean of 2" in done.stdout and re.search(r" ±\d\.\d\d\d ", done.stdout)


def test_tyres_that_training_saw_are_counted_out(lake: str, tmp_path: Path) -> None:
    """Numbers 0 to 2 are those of tyres in both folders; each file of another number is a tyre of its own."""
    options = [f"data.root={lake}", *TINY, "data.val_fraction=0.2", "logger.registered_model=null"]
    done = run_script("train.py", r"data.group_pattern='^([0-2])\.'", *options, "logger.experiment=ids", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 of 9 test images are of tyres that training sees too (v1/test/crack/0.jpg, ...)" in (
        done.stdout + done.stderr
    )
    metrics = only_run(tmp_path, "ids").data.metrics
    assert (metrics["test/images"], metrics["test_unshared/images"]) == (9, 3)
    assert "test_unshared/f1" in metrics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.folds=3"], "data.folds and data.fold belong together"),
        (["data.folds=3", "data.fold=3"], "data.fold=3 must be from 0 to 2"),
        (["data.group_pattern='('"], "data.group_pattern='(' is no regular expression: missing )"),
        (["data.from_run=0123"], "run 0123 of sqlite:///mlflow.db has no catalog.parquet: Run with id=0123 not found"),
        (["data.from_run=a", "data.catalog=b"], "data.catalog and data.from_run both say which images to train on"),
        (["operating_point.confidence=1"], "operating_point.confidence=1.0 must be between 0 and 1"),
        (["data.cache_gb=0"], "data.cache_gb=0.0 must be more than 0"),
        (["model.weights=nowhere.pth"], "model.weights=nowhere.pth is neither 'imagenet', 'none' nor a file"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(lake: str, tmp_path: Path, options: list[str], message: str) -> None:
    environment = {**untracked_environment(), "CUDA_VISIBLE_DEVICES": ""}  # no GPU to be seen, on any machine
    done = run_script("train.py", f"data.root={lake}", *options, cwd=tmp_path, environment=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("trainer=gpu", "trainer.accelerator=gpu, but PyTorch sees no GPU here: use trainer=cpu"),
        ("trainer.devices=none", "trainer.devices=none must be a count, -1 for all, or a list of indices"),
        ("ckpt_path=nowhere.ckpt", "ckpt_path=nowhere.ckpt does not exist"),
        ("logger.tracking_uri=http://127.0.0.1:9", "the tracking URI http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_mistake_is_told_before_any_image_is_looked_at(tmp_path: Path, option: str, message: str) -> None:
    environment = {**untracked_environment(), "CUDA_VISIBLE_DEVICES": ""}
    done = run_script("train.py", "data.root=not-even-there", option, cwd=tmp_path, environment=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("root", "variables", "message"),
    [
        ("s3://no-such-bucket/v1", {}, "there is no such bucket: check its name"),
        ("s3://drawn/v9", {}, "'s3://drawn/v9' has no folder 'train'"),
        ("s3://drawn/v1", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret key does not fit the access key"),
        ("s3://drawn/v1", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the endpoint does not answer"),
    ],
)
def test_a_lake_that_cannot_be_read_is_one_sentence(
    trained: Trained, tmp_path: Path, root: str, variables: dict[str, str], message: str
) -> None:
    environment = {**trained.environment, **variables}
    done = run_script("train.py", f"data.root={root}", cwd=tmp_path, environment=environment)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert "wrong" not in done.stderr


def test_small_options_are_used(trained: Trained) -> None:
    """What the other tests rely on: the shared run was small, and its epochs as many as asked for."""
    assert "trainer.max_epochs=2" in SMALL
    params = only_run(trained.folder, trained.experiment).data.params
    assert params["trainer.max_epochs"] == "2"
    assert params["data.image_size"] == "48"
