"""The benchmark for who has a GPU runs, in its small form, where there is none."""

from __future__ import annotations

import re
from pathlib import Path

import gpu
import pytest


@pytest.mark.slow
@pytest.mark.long
def test_every_part_of_the_benchmark_gives_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gpu.main(["--small"])
    out = capsys.readouterr().out
    parts = dict(re.findall(r"^(\w+): [^\n]+\n((?:  [^\n]+\n)+)", out, re.MULTILINE))
    assert [*parts] == [*gpu.PARTS]
    assert all(len(rows.splitlines()) >= 2 for rows in parts.values())  # figures, and how long it took
    assert re.match(r"\S.*; \d+ cores; PyTorch \d", out)
    for count, more in ((1, ""), (3, r"; the loader alone [\d,]+")):
        assert len(re.findall(rf"a second, \d\.\d\d{more}$", parts["train"], re.MULTILINE)) == count
    assert "100.0% the same class, 100.0% the same decision" in parts["scores"]
    assert not [*tmp_path.iterdir()]
