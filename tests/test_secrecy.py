"""Secrets are planted wherever a user may keep them, and then looked for in everything that was written."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
import warnings
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf, ValidationError

from tests import warm
from tests.conftest import PROJECT, TINY, Trained, run_script, train_here, untracked_environment, write_images
from tests.mlflow_server import MlflowServer
from tyre_lightning.command_line import CHECKS
from tyre_lightning.config import SCHEMAS
from tyre_lightning.demo.server import S3Server
from tyre_lightning.errors import UnreadableImage, UserError, first_line, hide_passwords, without_passwords
from tyre_lightning.tracking.runs import as_params, connect
from tyre_lightning.tracking.secrecy import hide_in_logs

PASSWORD = "planted-pass/word"
SECRET = "pl4ntedS3cret"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("uri: postgresql+psycopg://me:s3cr/et@db:5432/mlflow", "uri: postgresql+psycopg://db:5432/mlflow"),
        ("- logger.tracking_uri=http://me:p@ss@host:5000", "- logger.tracking_uri=http://host:5000"),
        (r"- logger.tracking_uri=http\://me\:p@ss@host\:5000", r"- logger.tracking_uri=http\://host\:5000"),
        (r"root=s3\://b/v1@may,x=y", r"root=s3\://b/v1@may,x=y"),
        ("'http://token@host/a@b'", "'http://b'"),  # rather too much than too little
        ("s3://bucket/v1@may/x.jpg", "s3://bucket/v1@may/x.jpg"),
        ("S3://bucket/v1@may/x.jpg", "S3://bucket/v1@may/x.jpg"),
        ("sqlite:////home/me@plant/mlflow.db", "sqlite:////home/me@plant/mlflow.db"),
        ("models:/tyres@champion", "models:/tyres@champion"),
        ("http://host:5000/a", "http://host:5000/a"),
        (
            "it does not fit the access key: check AWS_SECRET_KEY",
            "it does not fit the access key: check AWS_SECRET_KEY",
        ),
        ("postgresql://db/x?sslmode=require&password=a", "postgresql://db/x?sslmode=require&password=HIDDEN"),
        ("v1/train/x=1/a.jpg: it is cut at 12:30", "v1/train/x=1/a.jpg: it is cut at 12:30"),
        ("without_passwords:\n  _target_: x.Y\nval/f1: 0.9", "without_passwords:\n  _target_: x.Y\nval/f1: 0.9"),
        ('{"token": "a b", "seed": 1}', '{"token": "HIDDEN", "seed": 1}'),
        ("seed: 1\npassword: a b\nx: 2", "seed: 1\npassword: HIDDEN\nx: 2"),
    ],
)
def test_what_is_secret_goes_and_the_rest_stays(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown
    assert hide_passwords(shown) == shown


PASSWORDS = ("{}", "{}@x", "x@{}", "a/{}", "{}:b", "%40{}%2F", "{}?x=1", "x#{}", "it's{}", "a;{}=b", "{}+=", "{}&b")
NO_SLASH = ("me:", "http:/m", "s3://<")
SCHEMES = ("http", "HTTPS", "postgresql+psycopg", "mysql", "mlflow-x", "s3")
BASES = ("https://host/x", "s3://bucket/x", "postgresql+psycopg://db/x", "sqlite:///x.db")
NAMES = (
    *("password", "PWD", "token", "sig", "api_key", "key", "sslpassword", "pass%77ord", "client_secret"),
    *("AWSAccessKeyId", "Signature", "X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential", "X-Goog-Signature"),
)
ADDRESSES = (
    *(f"{scheme}://me:<PW>@host:5000/a" for scheme in SCHEMES),
    *("http://<PW>@host", "redis://:<PW>@host/0", "me:<PW>@host:5000", "http:/me:<PW>@host/x", "s3://<PW>@bucket/x"),
    "http%3A%2F%2Fme%3A<PW>%40host",
    *(f"{base}?a=1&{name}=<PW>&z=2" for base in BASES for name in NAMES),
)
PLACES: dict[str, Callable[[str], str]] = {
    "alone": str,
    "a sentence": lambda text: f"the server {text} does not answer (twice), me@plant.com says",
    "quoted": lambda text: f"uri='{text}', other=\"{text}\"",
    "YAML": lambda text: yaml.safe_dump({"a": {"uri": text}, "list": [text, "x"]}, allow_unicode=True),
    "JSON": lambda text: json.dumps({"uri": text, "text": json.dumps({"inner": text})}),
    "Python": lambda text: str([text, {"uri": text}]),
    "an override": lambda text: "- logger.tracking_uri=" + "".join(f"\\{c}" if c in ":=,()[]{}" else c for c in text),
    "overrides": lambda text: f"data.root=s3://b/v1,logger.tracking_uri={text},seed=1",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("password", PASSWORDS)
def test_no_form_of_an_address_keeps_a_password(password: str, place: Callable[[str], str]) -> None:
    for address in ADDRESSES:
        if ("?" in address and "&" in password) or ("/" in password and address.startswith(NO_SLASH)):
            continue  # there it is no part of the password, or nobody could tell
        text = place(address.replace("<PW>", password.format(SECRET)))
        shown = hide_passwords(text)
        assert SECRET not in shown, (text, shown)
        assert hide_passwords(shown) == shown


VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "MY_API_KEY", "client_secret"),
)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_secret_variable_is_found_wherever_its_value_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, secret := f"/{SECRET}+x")
    assert hide_passwords(f"no {secret} in v1, {quote(secret, safe='')}") == "no HIDDEN in v1, HIDDEN"
    assert hide_passwords(f"{name}={secret}") == f"{name}=HIDDEN"


def test_a_variable_that_a_thread_deletes_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Going(dict[str, str]):
        def __iter__(self) -> Iterator[str]:
            yield from [*super().__iter__(), "MLFLOW_SESSION"]

    monkeypatch.setattr(os, "environ", Going(A_PASSWORD="planted-once-more"))
    assert hide_passwords("it is planted-once-more") == "it is HIDDEN"


def test_variables_that_hold_no_secret_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/run/identity", "PWD": "/home/me/tyres", "OLDPWD": "/home/me/lake"}
    for name, value in {"TOKENIZERS_PARALLELISM": "false", **files}.items():
        monkeypatch.setenv(name, value)
    for text in ("false", *files.values()):
        assert hide_passwords(f"{text}/best.ckpt") == f"{text}/best.ckpt"


def test_every_error_that_is_shown_is_without_passwords() -> None:
    text = f"http://me:{SECRET}@host says no"
    for error in (UserError(text), UnreadableImage("k", text)):
        assert SECRET not in str(error) + first_line(error) + "".join(traceback.format_exception(error))
    assert SECRET not in first_line(ValueError(text))


def test_every_log_is_without_passwords(capfd: pytest.CaptureFixture[str]) -> None:
    before, form = logging.getLogRecordFactory(), warnings.formatwarning
    hide_in_logs()
    hide_in_logs()
    warned = warnings.formatwarning(UserWarning(f"http://me:{SECRET}@host is slow"), UserWarning, "x.py", 1)
    assert SECRET not in warned and "http://host is slow" in warned
    other = logging.getLogger("another.library")
    other.addHandler(handler := logging.StreamHandler())
    try:
        other.error("%s does not answer", f"http://me:{SECRET}@host")
        other.makeRecord("other", logging.ERROR, "", 1, "too many arguments: %s", (1, 2), None)  # is not our business
        try:
            raise ValueError(f"http://me:{SECRET}@host")
        except ValueError:
            other.exception("it failed")
    finally:
        other.removeHandler(handler)
        logging.setLogRecordFactory(before)
        warnings.formatwarning = form
    said = capfd.readouterr().err
    assert SECRET not in said and "http://host does not answer" in said and "ValueError: http://host" in said


PLANTED = (
    f"https://key:{SECRET}@plant:9000/x",
    f"postgresql+psycopg://plant/x?user=me&password={SECRET}@&y=1",
    f"s3://key:{SECRET}/+@plant/x?X-Amz-Signature={SECRET}",
)


def texts(schema: str) -> list[str]:
    """The keys of a schema's values that may be texts."""

    def flat(values: dict[Any, Any], prefix: str = "") -> Iterator[str]:
        for key, value in values.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]

    found = OmegaConf.to_container(OmegaConf.structured(SCHEMAS[schema]))
    assert isinstance(found, dict)
    return [key for key in flat(found) if _planted(schema, key, "text") is not None]


def _planted(schema: str, key: str, text: str) -> DictConfig | None:
    cfg: DictConfig = OmegaConf.structured(SCHEMAS[schema])
    with suppress(ValidationError):  # a number, say
        OmegaConf.update(cfg, key, text)
        return cfg
    return None


@pytest.mark.parametrize("schema", SCHEMAS)
def test_no_value_of_a_config_is_recorded_or_refused_with_its_password(schema: str) -> None:
    """Each key by itself, so that none is refused in the place of another."""
    for key in texts(schema):
        for planted in PLANTED:
            cfg = _planted(schema, key, planted)
            plain = without_passwords(OmegaConf.to_container(cfg, enum_to_str=True))
            said = [str(as_params({"config": plain})), OmegaConf.to_yaml(plain)]
            try:
                CHECKS[SCHEMAS[schema]](cfg)
            except UserError as error:
                said.append(str(error))
            assert SECRET not in "".join(said), key


COMMANDS = {
    "train": ["train.py"],  # which refuses the planted names
    "predict": ["predict.py", "batch_size=0"],
    "audit": ["-m", "tyre_lightning.audit", "data.group_pattern='('"],
    "promote": ["-m", "tyre_lightning.promote", "gate.margin=2"],
    "export": ["-m", "tyre_lightning.export", "model=null"],
    "resend": ["-m", "tyre_lightning.resend", "folder=none"],
    "select": ["-m", "tyre_lightning.select", "budget=0"],
    "review": ["-m", "tyre_lightning.review", "overlap=2"],
    "rates": ["-m", "tyre_lightning.rates", "confidence=1"],
    "accept": ["-m", "tyre_lightning.accept", "val=2"],
    "watch": ["-m", "tyre_lightning.watch", "batch_size=0"],
    "serve": ["-m", "tyre_lightning.serve", "port=-1"],
    "inbox": ["-m", "tyre_lightning.inbox", "wait=0"],
}
LEAVE_NOTHING = ("export", "resend", "select", "review", "rates", "accept", "serve", "inbox")


def command(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command, which ends before it has begun."""
    program = [str(PROJECT / part) if part.endswith(".py") else part for part in COMMANDS[name]]
    environment = {**untracked_environment(), "PYTHONPATH": str(PROJECT), "MY_TOKEN": SECRET}
    return warm.run([*program, *arguments], cwd, environment, timeout=120)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_writes_or_prints_a_password_of_its_config(name: str, tmp_path: Path) -> None:
    given = [f"{key}='{PLANTED[number % 3]}'" for number, key in enumerate(texts(name)) if key != "data.group_pattern"]
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a file").write_text("")  # else the folder of a failed start goes
    place = [] if name in LEAVE_NOTHING else ["hydra.run.dir=kept"]
    done = command(name, *given, *place, cwd=tmp_path)
    assert done.returncode in (1, 2) and done.stderr.startswith("error: "), done.stderr
    assert len([*tmp_path.rglob("*.yaml")]) == (0 if name in LEAVE_NOTHING else 3)
    assert not files_with(tmp_path, SECRET)
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [f"logger.tracking_uri=http://me:{SECRET} x@host"],
        [f"logger.tracking_uri=http://me:x[{SECRET}@host"],
        [f"'logger.tracking_uri=http://me:{SECRET}@host"],
        [f"logger.tracking_uri=http://host/?a=(&password={SECRET}"],
        [f"loger.tracking_uri=http://me:{SECRET}@host"],
        [f"seed=http://me:{SECRET}@host"],
        [f"model=http://me:{SECRET}@host"],
        [f"http://me:{SECRET}=x@host"],
        ["--tracking-uri", f"http://me:{SECRET}@host"],
        [f"--tracking-uri=http://me:{SECRET}@host"],
        ["seed=${oc.env:MY_TOKEN}", "data.root=x"],
    ],
)
def test_an_override_that_cannot_be_used_is_not_quoted_with_its_password(arguments: list[str], tmp_path: Path) -> None:
    done = command("train", *arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("ask", [("--cfg", "job"), ("--cfg", "hydra"), ("--info", "config")])
def test_a_config_that_is_asked_for_is_shown_without_its_password(ask: tuple[str, str], tmp_path: Path) -> None:
    done = command("train", f"logger.tracking_uri=http://me:{SECRET}@host", *ask, cwd=tmp_path)
    assert done.returncode == 0 and "http://host" in done.stdout, done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_a_whole_traceback_has_no_password(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys\nfrom tyre_lightning.command_line import run\n"
        f"def main():\n    raise ValueError('http://me:{SECRET}@host')\nsys.exit(run(main))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ValueError: http://host" in done.stderr
    assert SECRET not in done.stderr.replace(script.read_text().splitlines()[3].strip(), "")  # but for the code itself


def test_a_run_records_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, f"{SECRET}+{name}")
    write_images(tmp_path / "lake" / "v1", {"train": 12, "test": 2}, ("crack", "good"))
    planted = (f"s3.{key}={PLANTED[0]}" for key in ("endpoint_url", "region", "profile"))
    options = (
        "logger.system_metrics=false",
        "logger.registered_model=null",
        f"data.usage.val='{SECRET}+AWS_SESSION_TOKEN'",
    )
    train_here(tmp_path / "run", f"data.root={tmp_path}/lake/v1", *options, *planted)
    assert len([*(tmp_path / "run").rglob("*.yaml")]) >= 1 and (tmp_path / "run" / "mlflow.db").is_file()
    assert not files_with(tmp_path / "run", SECRET)
    assert SECRET not in "".join(capfd.readouterr()) + caplog.text


def files_with(folder: Path, *secrets: str) -> list[tuple[Path, str]]:
    """Files below a folder that hold one of some secrets, and which."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [(path, secret) for path in files for secret in secrets if secret.encode() in path.read_bytes()]


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server that answers anything with nothing: its host and port, and who asked, as they say."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            scheme, _, coded = self.headers.get("Authorization", "").partition(" ")
            asked.append(b64decode(coded).decode() if scheme == "Basic" else "nobody")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *given: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def test_a_server_hears_its_own_password_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with listening() as (first, heard), listening() as (other, heard_too):
        connect(f"http://me:{SECRET}@{first}")
        connect(f"http://{other}")
        connect(f"http://{first}")  # as a run's folder and all logs have it
        assert {*heard} == {f"me:{SECRET}"} and {*heard_too} == {"nobody"}
        heard.clear()
        heard_too.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")  # by the user's hand, for any server
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "own")
        connect(f"http://{other}")
        connect(f"http://{first}")
        connect(f"http://{other}")
        assert {*heard} == {f"me:{SECRET}"} and {*heard_too} == {"user:own"}


@pytest.mark.long
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
