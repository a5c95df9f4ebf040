"""Write docs/reference.md, every key of every config, from tyre_lightning/config.py: ``python docs/reference.py``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from html import escape
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from tyre_lightning.config import CONF, SCHEMAS
from tyre_lightning.usage import comments

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "reference.md"
_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", list[str]: "list of texts"}
_INTRO = """# Every config key

Write a key behind the command, as `key=value`, or in a file of `conf/experiment/`. A key that is not here is refused,
with the nearest that is. `--cfg job` shows the whole config and starts nothing. Keys that hold a list are written
`'data.classes=[cracks,good]'`.

`python docs/reference.py` makes this page from [config.py](../tyre_lightning/config.py).
"""


def page() -> str:
    """The whole page, in Markdown."""
    told: dict[tuple[str, type], str] = {}
    parts = [_INTRO]
    for schema in SCHEMAS.values():
        parts += _command(schema, told)
    return "\n".join([*parts, _choices()])


def _command(schema: type, told: dict[tuple[str, type], str]) -> Iterator[str]:
    """The keys of one command; groups that a command above has too are named only."""
    name = about(schema).strip("`.")
    yield f"## {name}\n"
    again: dict[str, list[str]] = {}
    for prefix, group in groups(schema):
        if (where := told.setdefault((prefix, group), name)) != name:
            again.setdefault(where, []).append(f"`{prefix}`")
        elif rows := [row(prefix, item, group) for item in fields(group) if not _inner(item)]:
            yield from [f"### {prefix} ({name.split()[-1]})\n\n{about(group)}\n"] if prefix else []
            yield "\n".join(["| key | values | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])
    for where, prefixes in again.items():
        yield f"The keys of {', '.join(prefixes)} are those of [{where}](#{_anchor(where)}).\n"


def groups(schema: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """The dataclasses of a schema, itself first, with the dotted name of each."""
    yield prefix, schema
    for item in fields(schema):
        if inner := _inner(item):
            yield from groups(inner, f"{prefix}.{item.name}".strip("."))


def row(prefix: str, item: Field[Any], group: type) -> str:
    """The row of one key."""
    values, notes = _values(get_type_hints(group)[item.name])
    meaning = comments(group).get(item.name, "") or notes
    key = f"{prefix}.{item.name}".strip(".")
    return f"| `{key}` | {values} | `{default(item)}` | {escape(meaning, quote=False)} |"


def default(item: Field[Any]) -> str:
    """A key's default as YAML has it."""
    value = item.default_factory() if callable(item.default_factory) else item.default
    value = value.name if isinstance(value, Enum) else value
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("...\n").strip()


def about(group: type) -> str:
    """The first paragraph of a class's docstring, with Markdown's backticks."""
    return inspect.cleandoc(group.__doc__ or "").partition("\n\n")[0].replace("``", "`").replace("\n", " ")


def _inner(item: Field[Any]) -> type | None:
    """The dataclass that a field holds."""
    factory = item.default_factory
    return factory if isinstance(factory, type) and is_dataclass(factory) else None


def _values(hint: Any) -> tuple[str, str]:
    """What a key may be, and what is known of its choices."""
    if get_origin(hint) is dict:
        return "mapping", ""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType] if hint not in _TYPES else [hint]
    null = " or null" if NoneType in get_args(hint) else ""
    if isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        said = comments(kinds[0])
        notes = [f"{choice.name}: {said[choice.name]}" for choice in kinds[0] if choice.name in said]
        return ", ".join(f"`{choice.name}`" for choice in kinds[0]), "; ".join([about(kinds[0]).strip("."), *notes])
    return " or ".join(_TYPES.get(kind, "any") for kind in kinds) + null, ""


def _choices() -> str:
    """The files of the config groups, which set several keys at once."""
    lines = ["## Groups of settings", "", "A file of `conf/` sets several keys at once: `model=efficientnet_b2`.", ""]
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and (path / "default.yaml").is_file()):
        names = [f"`{folder.name}={path.stem}`" for path in sorted(folder.glob("*.yaml")) if path.stem != "default"]
        lines += [f"- {', '.join(names)}"] if names else []
    return "\n".join([*lines, ""])


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
