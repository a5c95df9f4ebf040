"""Secrets are planted wherever a user may keep them, and then looked for in everything that was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY, Trained, run_script
from tests.mlflow_server import MlflowServer
from tyre_lightning.demo.server import S3Server
from tyre_lightning.errors import hide_passwords

PASSWORD = "planted-pass/word"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("uri: postgresql+psycopg://me:s3cr/et@db:5432/mlflow", "uri: postgresql+psycopg://db:5432/mlflow"),
        ("- logger.tracking_uri=http://me:p@ss@host:5000", "- logger.tracking_uri=http://host:5000"),
        (r"- logger.tracking_uri=http\://me\:p@ss@host\:5000", r"- logger.tracking_uri=http\://host\:5000"),
        (r"root=s3\://b/v1@may,x=y", r"root=s3\://b/v1@may,x=y"),
        ("'http://token@host/a@b'", "'http://b'"),  # rather too much than too little
        ("s3://bucket/v1@may/x.jpg", "s3://bucket/v1@may/x.jpg"),
        ("sqlite:////home/me@plant/mlflow.db", "sqlite:////home/me@plant/mlflow.db"),
        ("models:/tyres@champion", "models:/tyres@champion"),
        ("http://host:5000/a", "http://host:5000/a"),
    ],
)
def test_addresses_lose_their_passwords(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown


def files_with(folder: Path, *secrets: str) -> list[tuple[Path, str]]:
    """Files below a folder that hold one of some secrets, and which."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [(path, secret) for path in files for secret in secrets if secret.encode() in path.read_bytes()]


def test_no_secret_is_written_anywhere(trained: Trained, s3_server: S3Server, tmp_path: Path) -> None:
    home, work, store = (tmp_path / name for name in ("home", "work", "store"))
    for folder in (home / ".aws", work, store):
        folder.mkdir(parents=True)
    key, secret = (s3_server.environment[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    credentials = home / ".aws" / "credentials"
    credentials.write_text(f"[line]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    environment = {name: value for name, value in trained.environment.items() if name != "MLFLOW_TRACKING_URI"}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        environment.pop(name)
    environment["AWS_SHARED_CREDENTIALS_FILE"] = str(credentials)
    with MlflowServer(store) as server:
        uri = f"http://inspector:{PASSWORD.replace('/', '%2F')}@{server.address}"
        given = (f"data.root={trained.root}", "s3.profile=line", f"logger.tracking_uri={uri}", *TINY)
        done = run_script("train.py", *given, f"data.cache_dir={work}/cache", cwd=work, environment=environment)
        assert done.returncode == 0, done.stderr
        single = done.stdout + done.stderr
        options = (*given, f"data.cache_dir={work}/cache", "model.weights=none", "seed=0,1", "-m")
        done = run_script("train.py", *options, "data.root=s3://drawn/gone", cwd=work, environment=environment)
        assert done.returncode != 0
    wrong = run_script("train.py", *given, cwd=work, environment=environment)  # nobody answers there any more
    assert wrong.returncode == 1 and "does not answer" in wrong.stderr
    secrets = (secret, PASSWORD, PASSWORD.replace("/", "%2F"))
    assert sum(1 for path in work.rglob("*.yaml")) >= 4
    assert not files_with(work, *secrets)
    assert not files_with(store, *secrets)
    for text in (single, done.stdout, done.stderr, wrong.stdout, wrong.stderr):
        assert not [line for line in text.splitlines() for one in secrets if one in line]
