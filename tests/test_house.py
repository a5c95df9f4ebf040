"""How the rooms of the package hang together: each imports those to its left, and nothing imports in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tyre_lightning

PACKAGE = Path(tyre_lightning.__file__).parent
ROOMS = ("lake", "decision", "data", "model", "evaluation", "audit", "tracking", "promote", "demo", "line", "serving")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports, within functions too; not what only type checkers see, or a script that it is run as."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and {"TYPE_CHECKING", "__name__"} & {*ast.unparse(node.test).split()}:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        else:
            yield from imported(node)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {
        name: {
            target
            for wanted in imported(ast.parse(path.read_text(encoding="utf-8")))
            if (target := wanted if wanted in known else wanted.rpartition(".")[0]) in known and target != name
        }
        for name, path in known.items()
    }


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def test_every_room_has_its_place() -> None:
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} == {*ROOMS}


def test_nothing_imports_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_a_room_imports_rooms_to_its_left(graph: dict[str, set[str]]) -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in targets
        if (own := room(module)) and (other := room(target)) and ROOMS.index(other) > ROOMS.index(own)
    ]
    assert not wrong
