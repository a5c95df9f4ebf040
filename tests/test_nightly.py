"""The line's night as one file: every command of it is one, and its exit codes say what matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import PROJECT
from tyre_lightning.command_line import CHECKS
from tyre_lightning.commands import COMMANDS
from tyre_lightning.config import SCHEMAS, config_folder, register_schemas

SCRIPT = PROJECT / "docs" / "nightly.sh"
# Says what it is asked to do, and ends as the test wants it to.
TYRE = f"""#!{sys.executable} -IS
import json, os, sys
with open("said", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
sys.exit(json.loads(os.environ["CODES"]).get(sys.argv[1], 0))
"""


def night(folder: Path, codes: str = "{}") -> tuple[int, list[list[str]]]:
    """Its exit code, and the arguments of the commands that it gave."""
    path = folder / "bin" / "tyre"
    path.parent.mkdir(exist_ok=True)
    path.write_text(TYRE)
    path.chmod(0o755)
    places = {"LINE": "s3://plant/line", "LAKE": "s3://plant/tyres", "DAY": "2026-11-26"}
    environment = os.environ | places | {"PATH": f"{path.parent}:{os.environ['PATH']}", "CODES": codes}
    (folder / "said").unlink(missing_ok=True)
    done = subprocess.run(["bash", str(SCRIPT)], cwd=folder, env=environment, check=False)
    return done.returncode, [*map(json.loads, (folder / "said").read_text().splitlines())]


def answer(folder: Path) -> None:
    (folder / "answers" / "a.jsonl").write_text("{}\n")
    os.utime(folder / "version", (0, 0))


def verbs(said: list[list[str]]) -> list[str]:
    return [verb for verb, *_ in said]


def check(verb: str, *given: str) -> None:
    """As `tyre` does before it begins."""
    register_schemas()
    with initialize_config_dir(str(config_folder(verb)), version_base="1.3"):
        CHECKS[SCHEMAS[verb]](compose(verb, overrides=[COMMANDS[verb].spelt(one) for one in given]))


def test_a_night_without_answers_looks_and_asks(tmp_path: Path) -> None:
    code, said = night(tmp_path, '{"predict": 3}')
    assert code == 0 and verbs(said) == ["predict", "watch", "select"]
    assert said[0][2:] == ["input=s3://plant/line/2026-11-26", "output=days/2026-11-26/predictions.parquet"]


def test_a_night_after_answers_learns_from_them_once(tmp_path: Path) -> None:
    night(tmp_path)
    answer(tmp_path)
    code, said = night(tmp_path, '{"promote": 4}')
    assert code == 0 and verbs(said) == ["predict", "watch", "select", "rates", "accept", "train", "promote"]
    assert said[4][3:] == ["from=s3://plant/tyres/v1", "to=s3://plant/tyres/v2"]
    assert said[5][1] == "data.root=s3://plant/tyres/v2"
    for command in said:
        check(*command)
    assert (tmp_path / "version").read_text() == "v2\n"
    assert verbs(night(tmp_path)[1]) == ["predict", "watch", "select"]


def test_an_alarm_is_the_exit_code_and_stops_nothing(tmp_path: Path) -> None:
    code, said = night(tmp_path, '{"watch": 5}')
    assert code == 5 and verbs(said)[-1] == "select"


@pytest.mark.parametrize(("verb", "left"), [("predict", "v1\n"), ("accept", "v1\n"), ("train", "v1\n")])
def test_what_fails_ends_the_night_and_is_done_again(verb: str, left: str, tmp_path: Path) -> None:
    night(tmp_path)
    answer(tmp_path)
    code, said = night(tmp_path, f'{{"{verb}": 1}}')
    assert code == 1 and verbs(said)[-1] == verb
    assert (tmp_path / "version").read_text() == left
    again = verbs(night(tmp_path)[1])
    assert again[-1] == "promote" and (tmp_path / "version").read_text() == "v2\n"
