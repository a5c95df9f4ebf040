"""What several test files share: a real S3 server, and an environment that leads to it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from tests import warm
from tests.images import encode, picture
from tests.mlflow_server import lay_database
from tests.once import once, share
from tyre_lightning.config import CONF, register_schemas
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.demo.server import FOREIGN_VARIABLES, S3Server

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROJECT = Path(__file__).parents[1]

# Tests run side by side, and OpenMP threads that spin while they wait would slow each other down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# MLflow's client repeats what failed as often as ever, but waits no 14 seconds in all.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0.1")
# A suite started in the background ignores Ctrl-C, and so would the processes that it is to be tried on.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What is imported while tests are collected stays: the collector is not to search it, then or later.
gc.disable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each process begins with its share of the tests that take long, for which all would wait at the end."""
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if item.get_closest_marker("long")]
    rest = iter([item for item in items if not item.get_closest_marker("long")])
    left = len(items)
    items.clear()
    for number in range(processes):
        size = left // (processes - number)  # what `--dist worksteal` gives this process, in this order
        share = long[number::processes]
        items += [*share, *islice(rest, size - len(share))]
        left -= size


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is left in the user's cache, nor found there."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _own_tracking() -> Iterator[None]:
    """Where one test has MLflow write, the next does not: MLflow leaves its address in the environment."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where :func:`tests.once.once` keeps what all processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    share(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session", autouse=True)
def _exported_once() -> Iterator[None]:
    """Of the same network, the tests of a process make one ONNX file."""
    from tests.exported import exported_once

    with exported_once():
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server for the whole session; each folder in ``s3_server.folder`` is a bucket."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def aws_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The standard AWS chain leads to ``s3_server`` and to nothing of the user's."""
    use_server(s3_server, monkeypatch)
    return s3_server


@pytest.fixture
def bucket(aws_env: S3Server) -> Path:
    """The folder behind a new, empty bucket of ``s3_server``; its name is the bucket's."""
    folder = aws_env.folder / f"bucket-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    return folder


def use_server(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment that leads to ``server``."""
    for name in FOREIGN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def write_files(folder: Path, *names: str) -> None:
    """Make files, each holding its own name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def write_images(root: Path, counts: Mapping[str, int], classes: Sequence[str]) -> None:
    """A small lake: ``counts`` images of every class for each usage, each of its own pattern, 40 x 40 JPEG."""
    number = 0
    for usage, count in counts.items():
        for name in classes:
            folder = root / usage / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                number += 1
                (folder / f"{index}.jpg").write_bytes(encode(picture(number, (40, 40)), "JPEG"))


@dataclass(frozen=True)
class Trained:
    """A finished run of train.py on drawn tyres in ``s3_server``."""

    root: str  # the S3 root
    local: Path  # the same lake as a folder
    tracking_uri: str
    experiment: str
    model: str  # the registered model's URI
    environment: dict[str, str]  # for subprocesses
    folder: Path  # where train.py ran
    output: str  # what it printed


@pytest.fixture(scope="session")
def trained(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training for all tests that need a run, a registered model or a checkpoint; each process has its copy."""
    local, folder = s3_server.folder / "drawn" / "v1", tmp_path_factory.mktemp("trained") / "run"
    environment = subprocess_environment(s3_server)
    environment["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "1"

    def train(made: Path) -> None:
        write_lake(made / "lake", {"train": 12, "test": 5}, size=64)
        shutil.copytree(made / "lake", local)
        (made / "run").mkdir()
        promise = ("operating_point.max_escape_rate=0.25", "operating_point.confidence=0.8")  # by 6 defective images
        options = ("experiment=demo", "data.root=s3://drawn/v1", *SMALL, *promise)
        done = run_script("train.py", *options, cwd=made / "run", environment=environment)
        assert done.returncode == 0, done.stderr
        (made / "said.txt").write_text(done.stdout + done.stderr, encoding="utf-8")

    made = once("trained", train)
    shutil.copytree(made / "lake", local, dirs_exist_ok=True)
    shutil.copytree(made / "run", folder)
    return Trained(
        root="s3://drawn/v1",
        local=local,
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        experiment="tyre-demo",
        model="models:/tyre-demo/1",
        environment={**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
        folder=folder,
        output=(made / "said.txt").read_text(encoding="utf-8"),
    )


TINY = ("data.image_size=32", "data.batch_size=4", "data.num_workers=0", "trainer.max_epochs=1", "trainer=cpu")
ONE_NETWORK = "data.near_copies=false"  # no second one looks at all images, where a test is not about what they show
SMALL = ("data.image_size=48", "trainer.max_epochs=2", "data.batch_size=8", "data.num_workers=1")


def train_here(folder: Path, *overrides: str) -> dict[str, float]:
    """Train in this process and in ``folder``, as a notebook would."""
    from tyre_lightning.training import train

    register_schemas()
    paths = [f"paths.output_dir={folder}/out", f"logger.tracking_uri=sqlite:///{folder}/mlflow.db"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*TINY, *paths, "trainer.enable_progress_bar=false", *overrides])
    folder.mkdir(exist_ok=True)
    lay_database(folder / "mlflow.db")
    with contextlib.chdir(folder):  # MLflow keeps a database's artifacts in ./mlruns
        return train(cfg).metrics


def table_of(client: MlflowClient, run_id: str, name: str) -> pd.DataFrame:
    """A table that a run has as an artifact; MLflow's own ``load_table`` asks the default server, not the client's."""
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, name, folder)
        return pd.DataFrame(**json.loads(Path(path).read_text(encoding="utf-8")))


def run_here(folder: Path) -> Path:
    """The folder of the newest run that :func:`train_here` has trained in ``folder``."""
    return max((folder / "out" / "train").iterdir())


def subprocess_environment(server: S3Server) -> dict[str, str]:
    """This process's environment, leading to ``server`` and to nothing of the user's."""
    environment = {**server.client_environment(), "AWS_EC2_METADATA_DISABLED": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return environment


def untracked_environment() -> dict[str, str]:
    """This process's environment without the variable that MLflow sets in it when a test uses MLflow."""
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}


def run_script(
    script: str, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run train.py or predict.py as a user would, or with ``-m`` a module."""
    lay_database(cwd / "mlflow.db")
    env = untracked_environment() if environment is None else environment
    program = script if script == "-m" else str(PROJECT / script)
    return warm.run([program, *arguments], cwd, env, timeout=400)
