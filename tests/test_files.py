"""A file is written whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tyre_lightning.errors import UserError
from tyre_lightning.files import whole, write_whole


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file.json"
    write_whole(target, "old")
    write_whole(target, "new, in ünïcode")
    assert target.read_text(encoding="utf-8") == "new, in ünïcode"
    assert [*target.parent.iterdir()] == [target]


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    write_whole(target := tmp_path / "file", "old")
    with pytest.raises(TypeError), whole(target) as path:
        path.write_text("half") and path.write_bytes("no bytes")  # type: ignore[arg-type]
    assert target.read_text() == "old"
    assert [*tmp_path.iterdir()] == [target]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    write_whole(target := tmp_path / "file", "old")
    (link := tmp_path / "link").symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_full_disk_is_one_sentence_and_the_old_content_stays(tmp_path: Path) -> None:
    write_whole(target := tmp_path / "file", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the system's own way to refuse a write in its middle
    try:
        with pytest.raises(UserError, match=f"cannot write {target}: File too large"):
            write_whole(target, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert target.read_text() == "old"
    assert [*tmp_path.iterdir()] == [target]


def test_a_kill_at_any_moment_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    write_whole(target := tmp_path / "file", "0" * 100_000)
    code = (
        "import itertools\nfrom tyre_lightning.files import write_whole\n"
        f"for n in itertools.count(1): write_whole({str(target)!r}, str(n % 10) * 100_000); print(flush=True)"
    )
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it is under way
            os.kill(process.pid, signal.SIGKILL)
        content = target.read_text()
        assert (len(content), len(set(content))) == (100_000, 1)
