"""Ceph's S3 server over memory, for what ``S3Server`` does not do as Amazon does.

On Debian and Ubuntu: ``apt-get install --no-install-recommends radosgw ceph-mon ceph-osd``. ``python -m tests.radosgw``
serves until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyre_lightning.demo.server import FOREIGN_VARIABLES

_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
_START_SECONDS = 90
_STOP_SECONDS = 10
# As in `tyre_lightning.demo.server`, the end of the process that holds the pipe's other end makes `read` return. All
# daemons are in this shell's process group; what removes their files has to be outside of it to see them gone.
_GUARD = """read _; exec setsid --fork sh -c 'kill -s KILL -- "-$1"; rm -rf "$2"' sh "$$" "$1" """

_AS_GATEWAY = ("-n", "client.rgw")
_USER = "tester"
_ROLE = "reader"
# Without `crc` the gateway hangs: encryption needs keys, which `auth none` does not have. `avail crit`: a monitor ends
# itself on a disk that is nearly full. The next three save ten seconds of the start. With `local` first in the order, a
# wrong key or secret is answered as Amazon does. Roles may be assumed for seconds, so that a test can see them expire.
_CONFIG = """
[global]
fsid = {fsid}
mon host = {monitor}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc secure
keyring = {folder}/keyring
run dir = {folder}
crash dir = {folder}
admin socket =
log file =
log to stderr = true
debug rgw = 0
mon data = {folder}/mon
mon data avail crit = 0
mon tick interval = 1
paxos propose interval = 0.05
paxos min wait = 0.02
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
mon allow pool size one = true
osd pool default size = 1
osd pool default pg num = 2
rgw data = {folder}
rgw thread pool size = 32
rgw enable usage log = false
rgw enable gc threads = false
rgw enable lc threads = false
rgw s3 auth use sts = true
rgw s3 auth order = local, sts
rgw sts min session duration = 1
rgw sts key = {sts_key}

[mon.a]
public addrv = {monitor}
"""


def available() -> bool:
    """Whether all that :class:`RadosGateway` runs is installed."""
    return not _missing()


class RadosGateway:
    """A Ceph cluster of one monitor, one store in memory and one ``radosgw``, as child processes.

    Use it as a context manager. All processes end with the block, or with this process, however that ends.

    Raises:
        RuntimeError: a program is not installed or does not start.
    """

    def __init__(self) -> None:
        if missing := _missing():
            raise RuntimeError(f"{missing[0]} is not installed: run `apt-get install radosgw ceph-mon ceph-osd`")
        self._folder = Path(tempfile.mkdtemp(prefix="radosgw-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(self._folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C goes to the clients first
        )
        try:
            self._deadline = time.monotonic() + _START_SECONDS
            self._start_cluster()
            self.endpoint = self._start_gateway()
            user = self._admin("user", "create", f"--uid={_USER}", f"--display-name={_USER}")["keys"][0]
            self._access_key, self._secret_key = str(user["access_key"]), str(user["secret_key"])
        except BaseException:
            self.stop()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead the AWS chain here. ``FOREIGN_VARIABLES`` must be unset beside them."""
        return {
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client_environment(self) -> dict[str, str]:
        """This process's environment, leading to this server whatever the user's own AWS settings are."""
        inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
        return {**inherited, **self.environment}

    @functools.cached_property
    def role_arn(self) -> str:
        """A role that the user may assume, at the STS of the same endpoint, and that may only list and read."""
        self._deadline = time.monotonic() + _START_SECONDS
        trust = {"Principal": {"AWS": [f"arn:aws:iam:::user/{_USER}"]}, "Action": ["sts:AssumeRole"]}
        rights = {"Action": ["s3:ListBucket", "s3:GetObject"], "Resource": "arn:aws:s3:::*"}
        name = f"--role-name={_ROLE}"
        role = self._admin("role", "create", name, f"--assume-role-policy-doc={_policy(trust)}")
        self._admin("role-policy", "put", name, "--policy-name=read", f"--policy-doc={_policy(rights)}")
        return str(role["Arn"])

    def stop(self) -> None:
        """End all processes, wait until they have ended, and remove their files; idempotent."""
        assert self._guard.stdin is not None
        if self._guard.returncode is None:
            os.killpg(self._guard.pid, signal.SIGKILL)  # what the store would write at a gentler end is of no use
            for process in (*self._processes, self._guard):
                process.wait(_STOP_SECONDS)
            self._guard.stdin.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> RadosGateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_cluster(self) -> None:
        fsid, monitor = str(uuid.uuid4()), f"[v2:127.0.0.1:{free_port()}/0]"
        config = _CONFIG.format(fsid=fsid, monitor=monitor, folder=self._folder, sts_key=secrets.token_hex(8))
        (self._folder / "ceph.conf").write_text(config)
        for name in ("mon", "osd"):
            (self._folder / name).mkdir()
        self._run("ceph-mon", "--mkfs", "-i", "a")
        self._daemons["ceph-mon"] = self._start("ceph-mon", "-f", "-i", "a")
        self._run("ceph", "osd", "new", fsid)
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", fsid)
        self._daemons["ceph-osd"] = self._start("ceph-osd", "-f", "-i", "0")

    def _start_gateway(self) -> str:
        port = free_port()
        frontend = f"--rgw-frontends=beast endpoint=127.0.0.1:{port} tcp_nodelay=1"  # else 40 ms for each answer
        self._daemons["radosgw"] = self._start("radosgw", "-f", *_AS_GATEWAY, frontend)
        self._wait("radosgw", lambda: _answers(port))
        return f"http://127.0.0.1:{port}"

    def _admin(self, *arguments: str) -> dict[str, Any]:
        answer = self._run("radosgw-admin", *_AS_GATEWAY, *arguments)
        return json.loads(answer) if answer.startswith("{") else {}  # some commands answer with a sentence

    def _run(self, program: str, *arguments: str) -> str:
        """What a program that ends by itself prints."""
        process = self._start(program, *arguments)
        self._wait(program, lambda: process.poll() is not None)
        if process.returncode != 0:
            raise RuntimeError(f"{program} failed: {self._last_line(program)}")
        return (self._folder / f"{program}.out").read_text()

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        out, log = self._folder / f"{program}.out", self._folder / f"{program}.log"
        with out.open("wb") as stdout, log.open("wb") as stderr:
            process = subprocess.Popen(
                [program, "-c", str(self._folder / "ceph.conf"), *arguments],
                env={name: value for name, value in os.environ.items() if not name.startswith("CEPH_")},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                process_group=self._guard.pid,
            )
        self._processes.append(process)
        return process

    def _wait(self, program: str, done: Callable[[], bool]) -> None:
        while not done():
            for name, process in self._daemons.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended: {self._last_line(name)}")
            if time.monotonic() > self._deadline:
                raise RuntimeError(f"{program} was not ready in {_START_SECONDS} seconds: {self._last_line(program)}")
            time.sleep(0.02)

    def _last_line(self, program: str) -> str:
        texts = [(self._folder / f"{program}.{kind}").read_text(errors="replace") for kind in ("out", "log")]
        return "".join(texts).strip().rpartition("\n")[2] or "it says nothing"


def _missing() -> list[str]:
    return [program for program in _PROGRAMS if shutil.which(program) is None]


def free_port() -> int:
    # Not one that the system chooses: an outgoing connection, even the one that tries whether a server is there, may
    # get it before the server does. Not from `random`, which tests seed.
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/")
        return b"ListAllMyBucketsResult" in connection.getresponse().read()
    return False


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]})


def _main() -> None:
    with RadosGateway() as gateway:
        print("unset", *FOREIGN_VARIABLES)
        for name, value in gateway.environment.items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        ends = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        signal.sigwait(ends)


if __name__ == "__main__":
    _main()
