"""What a person sees who opens MLflow: names, columns, descriptions, tables; and what a run leaves on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf

from tests.conftest import ONE_NETWORK, run_here, table_of, train_here, write_images
from tests.mlflow_server import lay_database
from tests.test_report import CLASSES, GOOD, PROMISE, inspector, scores
from tyre_lightning.config import LoggerConfig, ModelConfig, TrainConfig
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.judgement import class_metrics, decision_metrics
from tyre_lightning.titles import run_name
from tyre_lightning.tracking.journal import FOLDER, Journal
from tyre_lightning.tracking.leaderboard import Leaderboard
from tyre_lightning.tracking.pages import COLUMNS, NOTE, run_list
from tyre_lightning.tracking.runs import open_experiment, resend, tracked_run
from tyre_lightning.tracking.tables import is_detail, metrics_table, predictions_table
from tyre_lightning.tracking.versions import create_version

KIND = "mlflow.experimentKind"


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    lay_database(tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def table(text: str) -> pd.DataFrame:
    return pd.DataFrame(**json.loads(text))


# Names


def in_sweep(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    hydra = SimpleNamespace(mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=[*overrides]))
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)


@pytest.mark.parametrize(
    ("network", "short"),
    [("efficientnet_lite0", "lite0"), ("efficientnet_v2_s", "v2_s"), ("convnext_tiny", "convnext_tiny")],
)  # fmt: skip
def test_a_run_is_called_by_what_it_is(network: str, short: str) -> None:
    assert run_name(TrainConfig(model=ModelConfig(name=network), seed=1), 320) == f"{short} 320px seed 1"


def test_a_run_of_a_sweep_is_called_by_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("model=efficientnet_b2", "seed=3", "data.root=s3://plant/v1", "logger.experiment=x", "trainer=cpu")
    in_sweep(monkeypatch, *given, "data.num_workers=2", "model.optimizer.head_lr=0.01", "+data.fold=1")
    config = TrainConfig(model=ModelConfig(name="efficientnet_b2"), seed=3)
    assert run_name(config, 384) == "b2 384px seed 3 head_lr=0.01 fold=1"
    in_sweep(monkeypatch, *(f"data.key{number}={'x' * 20}" for number in range(50)))
    assert len(run_name(config, 384)) <= 250


def test_the_name_that_is_asked_for_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    in_sweep(monkeypatch, "data.fold=1")
    assert run_name(TrainConfig(logger=LoggerConfig(run_name="mine")), 320) == "mine"


# Experiments


@pytest.mark.parametrize("older", [False, True], ids=["new", "of an older version"])
def test_an_experiment_opens_as_trainings_with_its_columns(uri: str, older: bool) -> None:
    client = MlflowClient(uri)
    if older:
        client.create_experiment("tyres")
    id = open_experiment(client, "tyres")
    tags = client.get_experiment(id).tags
    assert tags[KIND] == "custom_model_development"
    address = run_list(id)
    assert f"]({address})" in tags[NOTE]
    view = json.loads(tags[f"mlflow.sharedViewState.{address.rpartition('viewStateShareKey=')[2]}"])
    assert isinstance(view["name"], str) and isinstance(view["createdAt"], int)  # else MLflow's pages refuse it
    first = ("f1", "auroc_defective", "escape_rate", "overkill_rate")
    state = json.loads(view["state"])
    assert state["columnOrder"] == state["selectedColumns"]
    assert state["selectedColumns"][:4] == [f"metrics.`test/{name}`" for name in first]


def test_what_somebody_has_chosen_for_an_experiment_stays(uri: str, tmp_path: Path) -> None:
    client = MlflowClient(uri)
    client.create_experiment("tyres", tags={KIND: "genai_development", NOTE: "ours"})
    with tracked_run(LoggerConfig(uri, "tyres", system_metrics=False), tmp_path / "run", "name", {}) as run:
        run.log_note("of the model")
    tags = client.get_experiment_by_name("tyres").tags  # type: ignore[union-attr]
    assert (tags[KIND], tags[NOTE]) == ("genai_development", "ours")
    assert client.get_run(run.id).data.tags[NOTE] == "of the model"


@pytest.mark.parametrize("refused", [False, True], ids=["another run has set it", "nobody may"])
def test_a_tag_that_is_refused_costs_no_run(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: bool
) -> None:
    client = MlflowClient(uri)
    set_tag = client.set_experiment_tag

    def fail(*tag: Any) -> None:
        if not refused:
            set_tag(*tag)
        raise MlflowException("duplicate key")

    monkeypatch.setattr(client, "set_experiment_tag", fail)
    assert open_experiment(client, "tyres")
    assert ("the experiment gets no tag mlflow.experimentKind: duplicate key" in caplog.text) is refused


# Metrics and tables


def recorded() -> dict[str, float]:
    """What a training records of validation and test images."""
    made = inspector(PROMISE)
    found: dict[str, float] = {}
    for usage in ("val", "test", "test_unshared"):
        of = scores(80, 5)
        values = class_metrics(of, CLASSES, "good") | decision_metrics(
            of, CLASSES, "good", made.calibration, made.point, 0.9
        )
        found |= {f"{usage}/{name}": value for name, value in values.items()}
    return found


def test_metrics_are_few_and_tables_have_every_number() -> None:
    values = recorded()
    shown = {name for name in values if not is_detail(name)}
    assert len(values) > 100 and len(shown) <= 30
    assert {name for name in COLUMNS if name.startswith(("test/", "val/"))} <= shown
    assert not [name for name in shown if any(part in name for part in ("_low", "_high", *CLASSES[:3]))]
    found = table(metrics_table(values))
    assert sorted(values.values()) == sorted(found[["value", "low", "high"]].stack().dropna())
    row = found.set_index(["usage", "metric", "class"]).loc[("test", "escape_rate", CLASSES[1])]
    assert [row["low"], row["value"], row["high"]] == [
        values[f"test/escape_rate{end}/{CLASSES[1]}"] for end in ("_low", "", "_high")
    ]


@pytest.mark.parametrize(
    "name", ["val/speed_low", "val/recall", "train/recall/crack", "mine/escape_rate_low", "lr-a/b"]
)
def test_what_others_record_is_a_metric(name: str) -> None:
    assert not is_detail(name)


def interrupted(config: LoggerConfig, folder: Path) -> None:
    """A run of two epochs that is broken off."""
    with tracked_run(config, folder, "name", {}) as run:
        for epoch in range(2):
            run.log_metrics({"epoch": epoch, "val/f1": epoch / 2, "val/recall/a b?": 1.0 - epoch}, step=10 * epoch + 9)
        run.log_metrics({"val/recall/a b?": float("nan"), "val/f1": 0.25}, step=30)
        raise KeyboardInterrupt


def test_a_run_that_is_killed_has_its_tables_too(uri: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(LoggerConfig(uri, "tyres", system_metrics=False), tmp_path / "run")
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("tyres").experiment_id])  # type: ignore[union-attr]
    id = found.info.run_id
    assert found.info.status == "KILLED"
    assert {*found.data.metrics} == {"epoch", "val/f1"}
    epochs = table_of(client, id, "epochs.json")
    assert epochs.to_dict("list") == {"epoch": [1, 2], "val/f1": [0.0, 0.5], "val/recall/a b?": [1.0, 0.0]}
    last = table_of(client, id, "metrics.json").set_index("metric")
    assert (
        last.loc["f1", "value"] == 0.25
        and last.loc["recall", "class"] == "a b?"
        and np.isnan(last.loc["recall", "value"])
    )
    shown = json.loads(found.data.tags["mlflow.loggedArtifacts"])
    assert [one["path"] for one in shown] == ["metrics.json", "epochs.json"]


def test_what_an_older_version_has_not_sent_is_sent_as_it_would_have_been(uri: str, tmp_path: Path) -> None:
    client = MlflowClient(uri)
    run_id = client.create_run(open_experiment(client, "tyres")).info.run_id
    journal = Journal(tmp_path / "run" / FOLDER)
    journal.begin(run_id, "old", uri)
    about = json.loads((journal.folder / "run.json").read_text())
    (journal.folder / "run.json").write_text(json.dumps({**about, "format": 2}))
    journal.add_metrics({"test/escape_rate_low": 0.1})
    journal.append("end", status="FINISHED", timestamp=1)
    resend(journal)
    assert client.get_run(run_id).data.metrics == {"test/escape_rate_low": 0.1}


def test_predictions_begin_with_the_surest_errors() -> None:
    made, of = inspector(PROMISE), scores(1500, 7)
    found = table(predictions_table(of, made))
    assert len(found) == 1000 and found["p_true"].is_monotonic_increasing
    assert found["class"][0] != found["true"][0] and {*found["decision"]} <= {"accept", "review", "reject"}
    everything = {row["key"]: row for row in of.answers(made).to_pylist()}
    first = everything[found["key"][0]]
    assert first["decision"] == found["decision"][0]
    assert found["p_defective"][0] == pytest.approx(1 - first[f"p_{CLASSES[GOOD]}"], abs=1e-4)


# Sweeps


@pytest.mark.parametrize(("failed", "status"), [(0, "FINISHED"), (1, "FINISHED"), (3, "FAILED")])
def test_a_sweep_has_failed_only_where_all_its_runs_have(uri: str, tmp_path: Path, failed: int, status: str) -> None:
    logger = {"tracking_uri": uri, "experiment": "tyres"}
    config = OmegaConf.create({"logger": logger, "hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}})
    board = Leaderboard()
    board.on_multirun_start(config)
    for number in range(3):
        (tmp_path / "sweep" / str(number) / ".hydra").mkdir(parents=True)
        if number < failed:
            (tmp_path / "sweep" / str(number) / "failed.txt").write_text("why")
    board.on_multirun_end(config)
    client = MlflowClient(uri)
    (parent,) = client.search_runs([client.get_experiment_by_name("tyres").experiment_id])  # type: ignore[union-attr]
    assert parent.info.status == status
    assert parent.data.tags.get("failed_runs") == (f"{failed} of 3" if failed else None)
    assert (f"{failed} of 3 runs" in parent.data.tags.get(NOTE, "")) == bool(failed)


# All the way


@pytest.mark.long
def test_what_a_training_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "lake" / "v7", {"train": 10, "test": 3}, ("crack", "good"))
    quick = ONE_NETWORK, "logger.system_metrics=false"
    options = [f"data.root={tmp_path}/lake/v7", *quick, "operating_point.max_escape_rate=0.5"]
    train_here(tmp_path, *options, "operating_point.confidence=0.5", "callbacks.ema.decay=0.9")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    version = client.get_model_version("tyre-defects", "1")
    run = client.get_run(str(version.run_id))
    assert run.info.run_name == "lite0 32px seed 0"
    fingerprint, note = run.data.params["found.fingerprint"], run.data.tags[NOTE]
    assert run.data.tags["device"].startswith("CPU, ")
    assert (run.data.tags["data.version"], run.data.tags["data.fingerprint"]) == ("v7", fingerprint)
    said = capsys.readouterr().out
    answer = said[said.index("the model on 6 test images") : said.index("\n\n  run ")].splitlines()
    assert all(f"    {line}".rstrip() in note for line in answer)
    experiment = client.get_experiment(run.info.experiment_id).tags[NOTE]
    of_version = str(version.description)
    for text, uri in ((note, f"runs:/{run.info.run_id}/model"), (of_version, "models:/tyre-defects/1")):
        assert f"v7 of {tmp_path}/lake/v7, fingerprint {fingerprint}" in text
        assert f"\n    python predict.py model={uri} input=FOLDER" in text and "at most 50 % of defective" in text
    assert note in experiment and run_list(run.info.experiment_id) in experiment and "lite0 32px seed 0" in experiment
    assert "model=models:/tyre-defects@champion" in client.get_registered_model("tyre-defects").description
    assert len(table_of(client, run.info.run_id, "predictions.json")) == 6
    kept = {path.name: path for path in (run_here(tmp_path) / "checkpoints").iterdir()}
    assert {*kept} == {"best.ckpt", "last.ckpt"}
    weights = sum(one.nbytes for one in torch.load(kept["best.ckpt"], weights_only=True)["state_dict"].values())
    assert kept["best.ckpt"].stat().st_size < 1.2 * weights < 0.35 * kept["last.ckpt"].stat().st_size
    recorded = sum(path.stat().st_size for path in (tmp_path / "mlruns").rglob("*") if path.is_file())
    assert recorded < 1.5 * weights
    with pytest.raises(UserError, match="keeps the model of a training that is done, and nothing to go on from"):
        train_here(tmp_path, *options, f"ckpt_path={kept['best.ckpt']}", "trainer.max_epochs=2")
    train_here(tmp_path, *options, f"ckpt_path={kept['last.ckpt']}", "trainer.max_epochs=2", "callbacks.ema.decay=0.9")
    assert torch.load(run_here(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_a_version_s_description_is_written_once(uri: str) -> None:
    client = MlflowClient(uri)
    run = client.create_run(open_experiment(client, "tyres")).info.run_id
    for _ in range(2):  # a request may have to be made twice
        assert create_version(client, run, "tyres", "model", "about it") == "1"
    description = str(client.get_model_version("tyres", "1").description)
    assert description.startswith("about it\n\n    python predict.py model=models:/tyres/1 ")
    client.update_model_version("tyres", "1", "somebody's")
    create_version(client, run, "tyres", "model", "about it")
    assert client.get_model_version("tyres", "1").description == "somebody's"
