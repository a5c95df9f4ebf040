"""The verbs of the command line: what they say of themselves, of mistakes, and what they leave behind."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from tests.conftest import PROJECT
from tyre_lightning import __main__, command_line
from tyre_lightning.command_line import explain
from tyre_lightning.commands import COMMANDS
from tyre_lightning.config import SCHEMAS, config_folder, register_schemas
from tyre_lightning.errors import UserError
from tyre_lightning.usage import choices, describe


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hydra sets logging up anew, which later tests must not see."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def tyre(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Give a command in this process."""
    monkeypatch.setattr(sys, "argv", ["tyre", *arguments])
    try:
        return __main__.main()
    except SystemExit as end:
        return int(end.code or 0)


def do(monkeypatch: pytest.MonkeyPatch, verb: str, task: Any) -> None:
    """Let a verb do something else."""
    monkeypatch.setitem(COMMANDS, verb, replace(COMMANDS[verb], task=task))


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_names_every_group_and_says_what_keys_mean(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert tyre(monkeypatch, verb, "--help") == 0
    text = capsys.readouterr().out
    described, usage = describe(SCHEMAS[verb]), COMMANDS[verb].usage
    for key in usage.keys or described:
        default, meaning = described[key]
        assert f"{key}={default}" in text and meaning, key
    for group, files in choices(verb).items():
        assert f"{group}=" in text and all(file in text for file in files)
    assert max(len(line) for line in text.splitlines() if not line.startswith("  tyre")) <= 80  # a command is one line
    assert not [*Path().iterdir()]


@pytest.mark.parametrize(
    ("verb", "example"), [(verb, example) for verb, command in COMMANDS.items() for example in command.usage.examples]
)
def test_the_examples_of_help_compose(verb: str, example: str) -> None:
    register_schemas()
    name, *arguments = shlex.split(example)
    words = [COMMANDS[verb].spelt(argument) for argument in arguments if argument != "-m"]
    single = [re.sub(r",[^]]*$", "", word) if "-m" in arguments else word for word in words]
    with initialize_config_dir(str(config_folder(verb)), version_base="1.3"):
        compose(verb, overrides=single)
    assert name == verb


def test_train_s_groups_are_all_described() -> None:
    assert {*choices("train")} == {"model", "trainer", "experiment"}
    assert "[efficientnet_lite0]" in choices("train")["model"]


QUICK = """
import sys
from tyre_lightning import __main__
from tyre_lightning.commands import COMMANDS
for arguments in [["--help"], *([verb, "--help"] for verb in COMMANDS), *([verb, "nokey=1"] for verb in COMMANDS)]:
    sys.argv = ["tyre", *arguments]
    __main__.main()
print({"torch", "lightning", "mlflow", "boto3", "pyarrow", "pandas", "numpy"} & {*sys.modules}, file=sys.stderr)
"""


def test_help_and_mistakes_load_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    *errors, heavy = done.stderr.strip().splitlines()
    assert heavy == "set()"
    assert len(errors) == len(COMMANDS) and all(line.startswith("error: unknown config key 'nokey'") for line in errors)


def test_the_words_of_the_gate_are_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DictConfig] = []
    do(monkeypatch, "promote", seen.append)
    for word in ("rollback", "anchor", "--dry-run"):
        assert tyre(monkeypatch, "promote", word) == 0
    assert [(cfg.rollback, cfg.anchor, cfg.dry_run) for cfg in seen] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_a_key_may_have_another_name_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``from``, which no field of a config can be called."""
    seen: list[DictConfig] = []
    do(monkeypatch, "accept", seen.append)
    for given in ("from=s3://plant/v1", "source=s3://plant/v1", "from='s3://plant/a=b/v1'"):
        assert tyre(monkeypatch, "accept", given, "to=v2", "--dry-run") == 0
    assert [cfg.source for cfg in seen] == ["s3://plant/v1", "s3://plant/v1", "s3://plant/a=b/v1"]
    assert all(cfg.dry_run for cfg in seen)
    assert tyre(monkeypatch, "accept", "--help") == 0
    assert re.search(r"from= +the same as source=", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("verb", "given", "sentence"),
    [
        ("promote", "rolback", "error: there is no rolback: did you mean rollback?\n"),
        ("watch", "acept", "error: there is no acept: did you mean accept?\n"),
        (
            "train",
            "lake/v1",
            "error: cannot read 'lake/v1' as key=value: write lake/v1=... with a value, or KEY=lake/v1",
        ),
        ("train", "trainer.accelerator=tpu", "error: trainer.accelerator=tpu must be one of auto, cpu, gpu\n"),
    ],
)
def test_a_word_that_there_is_not(
    verb: str, given: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data.root=lake"] if verb == "train" else []
    assert tyre(monkeypatch, verb, *arguments, given) == COMMANDS[verb].failure
    assert capsys.readouterr().err.startswith(sentence)


def test_a_verb_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert tyre(monkeypatch, "trian") == 1
    assert capsys.readouterr().err.startswith("error: there is no verb trian: did you mean train? choose from train, ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cfg", "nope"], "argument --cfg/-c: invalid choice: 'nope'"),
        (["--cfg"], "argument --cfg/-c: expected one argument"),
        (["--info", "nope"], "argument --info/-i: invalid choice: 'nope'"),
        (["--config-name", "nope"], "Cannot find primary config 'nope'"),
    ],
)
def test_a_mistaken_option_is_one_sentence(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tyre(monkeypatch, "train", *arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}") and said.count("\n") == 1 and "Config search path" not in said


MISTAKES = {
    "train": (("data.root=lake",), "there is no folder 'lake'"),
    "predict": (("input=x",), "model is not set"),
    "audit": ((), "data.root is not set"),
    "promote": (("model=null",), "model is not set"),
    "export": (("model=none.ckpt",), "model=none.ckpt is neither"),
    "resend": (("folder=none",), "there is no folder none"),
    "select": ((), "predictions is not set"),
    "review": (("queue=none.parquet",), "none.parquet is no queue that tyre select wrote"),
    "recalibrate": (("model=models:/x/1",), "root is not set"),
    "rates": (("queue=none.parquet",), "queue=none.parquet is no file"),
    "accept": (("from=none", "to=x"), "there is no folder 'none'"),
    "watch": (("input=x",), "model is not set"),
    "serve": (("model=none.ckpt", "port=0"), "model=none.ckpt is neither"),
    "inbox": (("model=x", "input=none"), "there is no folder 'none'"),
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_failed_start_leaves_nothing(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}.db")
    overrides, message = MISTAKES[verb]
    assert tyre(monkeypatch, verb, *overrides) == COMMANDS[verb].failure
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not [*tmp_path.iterdir()]


def test_an_audit_of_what_is_no_lake_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lake" / "v1").mkdir(parents=True)
    assert tyre(monkeypatch, "audit", "data.root=lake") == 1
    assert [*tmp_path.iterdir()] == [tmp_path / "lake"]


@pytest.mark.parametrize("error", [UserError("late"), KeyboardInterrupt()])
def test_what_a_run_has_left_stays_and_so_do_the_folders_of_others(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(cfg: DictConfig) -> None:
        if cfg.batch_size == 1:
            Path(HydraConfig.get().runtime.output_dir, "found.txt").write_text("")
        raise error

    do(monkeypatch, "predict", leave)
    for size in (1, 2):
        assert tyre(monkeypatch, "predict", "model=x", "input=x", f"batch_size={size}") != 0
    (folder,) = Path("outputs", "predict").iterdir()
    assert (folder / "found.txt").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job"), ("nokey=1",)])
def test_a_reader_that_leaves_is_no_error(arguments: tuple[str, ...], unbuffered: str) -> None:
    """As ``| head`` does, before anything has come."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tyre_lightning", "audit", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writer)
    failed = "nokey=1" in arguments
    assert done.returncode == int(failed)
    assert done.stderr.startswith("error: unknown config key 'nokey'") if failed else done.stderr == ""


@pytest.mark.parametrize(
    "value",
    [
        "~/tyres",
        "a~b",
        "a b(c",
        "^(T\\d+)_",
        'a"b(',
        "a'b(",
        "a\"b'(c",
        "plant\\tyres(",
        "x{y",
        "$(pwd)",
        "x(\\",
        'a\\"(',
    ],
)
def test_what_hydra_wants_quoted_is_given_quoted(value: str) -> None:
    register_schemas()
    with initialize_config_dir(str(config_folder("train")), version_base="1.3"):
        with pytest.raises(HydraException) as caught:
            compose("train", overrides=[f"data.root={value}"])
        said = explain(caught.value)
        assert said.startswith("cannot read 'data.root=") and "Exception" not in said
        (override,) = shlex.split(said.partition("if the value is one text, write ")[2])
        assert compose("train", overrides=[override]).data.root == value


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("[균열,양호]", ["균열", "양호"]),
        ("[good, crack (deep)]", ["good", "crack (deep)"]),
        ("[a=b,it's(,a~b]", ["a=b", "it's(", "a~b"]),
        ("['a',\"b\",c~]", ["a", "b", "c~"]),
        ("[a\\b{,c]", ["a\\b{", "c"]),
    ],
)
def test_a_list_of_texts_that_hydra_wants_quoted_is_given_as_a_list(value: str, texts: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(config_folder("train")), version_base="1.3"):
        with pytest.raises(HydraException) as caught:
            compose("train", overrides=[f"data.classes={value}"])
        (override,) = shlex.split(explain(caught.value).partition("if the value is a list of texts, write ")[2])
        assert [*compose("train", overrides=[override]).data.classes] == texts


def test_of_a_value_that_may_be_secret_only_the_form_is_given() -> None:
    register_schemas()
    with (
        initialize_config_dir(str(config_folder("train")), version_base="1.3"),
        pytest.raises(HydraException) as caught,
    ):
        compose("train", overrides=["logger.tracking_uri=http://me:hid(den@host"])
    assert explain(caught.value) == (
        "cannot read 'logger.tracking_uri=...' as key=value: if the value is one text, write "
        "'logger.tracking_uri=\"...\"'"
    )


def interrupt(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir, "checkpoints")
    folder.mkdir(exist_ok=True)
    (folder / "last.ckpt").write_text("")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        (["/usr/bin/python3", "train.py"], "python train.py"),
        (["/x/.venv/bin/python", "/x/.venv/bin/tyre", "train"], "tyre train"),
        (["python", "-m", "tyre_lightning", "train"], "python -m tyre_lightning train"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    started: list[str], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    do(monkeypatch, "train", interrupt)
    given = ["data.root='a b'", "logger.tracking_uri=http://me:hidden@host:1"]
    monkeypatch.setattr(sys, "orig_argv", [*started, *given])
    assert tyre(monkeypatch, "train", *given) == 130
    command = f"{shown} {shlex.quote(given[0])} logger.tracking_uri=http://host:1 ckpt_path=last"
    assert capsys.readouterr().err.strip() == f"interrupted; to go on: {command}"
    monkeypatch.setattr(sys, "orig_argv", [*started, *given, "ckpt_path=last"])
    assert tyre(monkeypatch, "train", *given, "ckpt_path=last") == 130
    assert capsys.readouterr().err.strip() == f"interrupted; to go on: {command}"


def test_ctrl_c_in_a_sweep_names_its_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    do(monkeypatch, "predict", interrupt)
    given = ["-m", "model=x", "input=x", "batch_size=1,2"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "predict.py", *given])
    assert tyre(monkeypatch, "predict", *given) == 130
    said = capsys.readouterr().err.strip()
    found = re.fullmatch(
        r"interrupted; to go on: python predict.py -m model=x input=x batch_size=1,2 hydra.sweep.dir=(\S+)", said
    )
    assert found and Path(found[1], "multirun.yaml").is_file()


def test_ctrl_c_before_there_is_anything_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    do(monkeypatch, "train", stop)
    assert tyre(monkeypatch, "train", "data.root=x") == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert not [*tmp_path.iterdir()]


def test_a_python_that_hydra_cannot_start_on_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    assert command_line.run(lambda: None) == 1
    assert re.fullmatch(r"error: Hydra 1\.3 cannot start on Python \S+: use .* 3\.13\n", capsys.readouterr().err)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<{}.{}".format(*command_line.TOO_NEW)


def test_a_sweep_that_has_failed_is_no_failure_of_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tyre"])
    assert command_line.run(lambda: command_line.failed_runs.append("outputs/1")) == 1
    assert command_line.run(lambda: command_line.sweep_codes.append(5)) == 5
    assert command_line.run(lambda: None) == 0
