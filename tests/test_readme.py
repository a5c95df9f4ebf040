"""The README's commands are real: each is composed, or run elsewhere in the tests."""

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import PROJECT
from tyre_lightning.command_line import check_config
from tyre_lightning.config import config_folder, register_schemas

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
SCRIPTS = [line for line in COMMANDS if line.startswith("python ")]


@pytest.mark.parametrize("command", SCRIPTS)
def test_python_commands_compose(command: str) -> None:
    _, script, *arguments = shlex.split(command.replace("-m tyre_lightning.", ""))
    name = script.removesuffix(".py")
    if name == "resend":  # of a folder that is there: test_tracking runs it
        return
    words = ("job", "rollback", "anchor")
    overrides = [one for one in arguments if not one.startswith(("-", "hydra")) and one not in words]
    register_schemas()
    for choice in sweep(overrides) if "-m" in arguments else [overrides]:
        with initialize_config_dir(str(config_folder(name)), version_base="1.3"):
            check_config(compose(name, overrides=choice))


def sweep(overrides: list[str]) -> list[list[str]]:
    """The runs of a sweep over one key."""
    (swept,) = [item for item in overrides if "," in item]
    key, _, values = swept.replace("tag(log,interval(", "").replace("))", "").partition("=")
    others = [item for item in overrides if item != swept]
    return [[*others, f"{key}={value}"] for value in values.split(",")]


def test_make_commands_are_targets() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    named = {target for line in COMMANDS for target in re.findall(r"^make ([a-z]+)", line)}
    assert named >= {"demo", "ui", "test", "lint"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_that_the_readme_names_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (PROJECT / link).exists(), link


def test_every_command_is_known() -> None:
    for line in COMMANDS:
        assert line.split()[0] in {"make", "python", "mlflow"}, line
