"""The commands of the README and the documentation are real: each is composed, or run elsewhere in the tests."""

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tests.conftest import PROJECT
from tyre_lightning import commands as verbs
from tyre_lightning.command_line import check_config, explain
from tyre_lightning.config import config_folder, register_schemas
from tyre_lightning.errors import UserError

README = PROJECT / "README.md"
KOREAN = PROJECT / "docs" / "README.ko.md"
PAGES = {str(path.relative_to(PROJECT)): path for path in (README, *sorted((PROJECT / "docs").rglob("*.md")))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
TYPED = {line for text in TEXTS.values() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
         for line in block.splitlines()}  # fmt: skip
SHOWN = {  # a command and what it says
    command: output.strip()
    for text in TEXTS.values()
    for command, output in re.findall(r"```console\n\$ ([^\n]+)\n(.*?)```", text, re.DOTALL)
}
LAUNCHERS = re.compile(r"(srun (--\S+ )*python|torchrun (--\S+ )*(?=train\.py)) ?")
COMMANDS = sorted({line for line in TYPED if line} | {*SHOWN})
# Those with a folder of one's own are run in test_parts, which writes it.
SCRIPTS = [
    line for command in COMMANDS
    if (line := LAUNCHERS.sub("python ", command)).startswith("python ") and "--config-dir" not in line
]  # fmt: skip


@pytest.mark.parametrize("command", SCRIPTS)
def test_python_commands_compose_or_are_refused_as_the_page_says(command: str) -> None:
    said = SHOWN.get(command, "")
    if not said.startswith("error: "):
        check(command)
        return
    with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as refused:
        check(command)
    assert said == f"error: {explain(refused.value)}"


def check(command: str) -> None:
    """Compose and check the configs of a command."""
    _, script, *arguments = shlex.split(command.replace("-m tyre_lightning.", ""))
    name = script.removesuffix(".py")
    if name == "resend":  # of a folder that is there: test_tracking runs it
        return
    words = ("job", "rollback", "anchor")
    overrides = [
        verbs.COMMANDS[name].spelt(one) for one in arguments if not one.startswith(("-", "hydra")) and one not in words
    ]
    register_schemas()
    for choice in sweep(overrides) if "-m" in arguments else [overrides]:
        with initialize_config_dir(str(config_folder(name)), version_base="1.3"):
            check_config(compose(name, overrides=choice))


def sweep(overrides: list[str]) -> list[list[str]]:
    """The runs of a sweep over one key."""
    overrides = [re.sub(r"=range\((\d+)\)$", lambda n: f"=0,{int(n[1]) - 1}", item) for item in overrides]  # its ends
    (swept,) = [item for item in overrides if "," in item]
    key, _, values = swept.replace("tag(log,interval(", "").replace("))", "").partition("=")
    others = [item for item in overrides if item != swept]
    return [[*others, f"{key}={value}"] for value in values.split(",")]


def test_make_commands_are_targets() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    named = {target for line in COMMANDS for target in re.findall(r"^make ([a-z0-9-]+)", line)}
    assert named >= {"demo", "ui", "test", "test-s3", "lint", "docs"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page: str) -> None:
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", TEXTS[page]):
        assert (PAGES[page].parent / link).exists(), link


def test_each_of_ten_recipes_shows_what_its_command_says() -> None:
    recipes = TEXTS["README.md"].split("\n## ")[2]
    assert recipes.count("```console\n$ ") == len(re.findall(r"^\*\*\d+\. ", recipes, re.MULTILINE)) == 10
    assert all(SHOWN.values())


def test_every_command_is_known() -> None:
    for line in COMMANDS:
        assert LAUNCHERS.sub("python ", line).split()[0] in {"make", "python", "mlflow"}, line


def test_the_readme_is_for_five_minutes_and_names_every_page() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150
    for name in PAGES:
        if name.startswith("docs/") and "/notebooks/" not in name:
            assert f"({name})" in TEXTS["README.md"], name


def test_the_korean_readme_has_the_same_commands_links_and_sections() -> None:
    both = TEXTS["README.md"], TEXTS["docs/README.ko.md"]
    blocks = [re.findall(r"```.*?```", text, re.DOTALL) for text in both]
    assert blocks[0] == blocks[1] and len(blocks[0]) > 10  # the ten recipes, the two commands, the Python
    assert [text.count("\n## ") for text in both] == [both[0].count("\n## ")] * 2
    leads_to = [
        {(folder / link).resolve() for link in re.findall(r"\]\(([^)#:\s]+)", text)}
        for folder, text in zip((PROJECT, PROJECT / "docs"), both, strict=True)
    ]
    assert leads_to[0] - leads_to[1] == {KOREAN.resolve()} and leads_to[1] - leads_to[0] == {README.resolve()}


def test_the_top_of_the_repository_stays_small() -> None:
    made = {"demo", "outputs", "mlruns", "mlartifacts", "shared", "build", "dist"}  # git ignores them
    names = {path.name for path in PROJECT.iterdir() if not path.name.startswith((".", "predictions.", "mlflow.db"))}
    assert len({name for name in names - made if not name.endswith(".egg-info") and name != "__pycache__"}) <= 16
