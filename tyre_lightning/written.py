"""Values stay as they were written: of a key of text, Hydra and YAML would read ``2024_11`` as the number 202411."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource as HydrasOwn
from hydra._internal.sources_registry import SourcesRegistry
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from yaml import MarkedYAMLError

from tyre_lightning.errors import UserError

_OF_NUMBERS = ("range", "interval", "sort")  # functions of Hydra's that calculate or compare
_OF_STUDIES = ("study", "storage", "metric", "direction")  # what tracking/sweeper.py takes as text
_NULL = "tag:yaml.org,2002:null"
_MARK = "\ufeff"  # with which Windows begins files
SCHEMA = "_schema"  # what the names of schemas end in, where Hydra keeps them


def keep_texts() -> None:
    """From now on, leave what is written for keys of text as it is: in files; in overrides once this is imported."""
    SourcesRegistry.instance().types[HydrasOwn.scheme()] = FileConfigSource


@cache
def _schemas() -> tuple[type, ...]:
    """Of all commands, as Hydra has them, also in processes that its launchers have started."""
    kept = ConfigStore.instance().repo
    found = (OmegaConf.get_type(kept[name].node) for name in kept if name.endswith(f"{SCHEMA}.yaml"))
    return tuple(schema for schema in found if isinstance(schema, type) and is_dataclass(schema))


@cache
def _texts() -> set[str]:
    """All keys of text, of all commands: one that is of text in any is in none of another kind."""
    hydra = [*text_keys(HydraConf), *(f"sweeper.{key}" for key in _OF_STUDIES)]
    return {"experiment", *(f"hydra.{key}" for key in hydra)}.union(*map(text_keys, _schemas()))


def text_keys(schema: type, prefix: str = "") -> set[str]:
    """The dotted keys of a schema whose values are texts or lists of them, and its nodes, which are named by texts."""
    hints, found = get_type_hints(schema), set()
    for item in fields(schema):
        key, hint = prefix + item.name, hints[item.name]
        if isinstance(hint, type) and is_dataclass(hint):
            found |= {key} | text_keys(hint, f"{key}.")
        elif _is_text(hint):
            found.add(key)
    return found


@cache
def _branches() -> set[str]:
    """The keys of a training that have others below them."""
    schema = OmegaConf.get_type(ConfigStore.instance().repo[f"train{SCHEMA}.yaml"].node)
    assert isinstance(schema, type)
    return branch_keys(schema)


def branch_keys(schema: type, prefix: str = "") -> set[str]:
    """The dotted keys of a schema that have others below them, its own or any."""
    found = set()
    for name, hint in get_type_hints(schema).items():
        if is_dataclass(hint) and isinstance(hint, type):
            found |= branch_keys(hint, f"{prefix}{name}.")
        elif get_origin(hint) is not dict:
            continue
        found.add(prefix + name)
    return found


def _is_text(hint: Any) -> bool:
    return hint is str or (get_origin(hint) is not dict and any(map(_is_text, get_args(hint))))


class _Overrides(HydraOverrideVisitor):
    """Hydra's reader of overrides, which knows what it reads a value for."""

    _key = ""

    def visitOverride(self, ctx: Any) -> Any:  # noqa: N802 (as its parser calls them)
        self._key = ctx.key().packageOrGroup().getText()
        return super().visitOverride(ctx)

    def visitDictKeyValuePair(self, ctx: Any) -> Any:  # noqa: N802
        return self._within(f"{self._key}.{ctx.dictKey().getText()}", super().visitDictKeyValuePair, ctx)

    def visitFunction(self, ctx: Any) -> Any:  # noqa: N802
        calculates = ctx.ID().getText() in _OF_NUMBERS
        return self._within("" if calculates else self._key, super().visitFunction, ctx)

    def visitPrimitive(self, ctx: Any) -> Any:  # noqa: N802
        value, text = super().visitPrimitive(ctx), ctx.getText().strip()
        changed = self._key in _texts() and isinstance(value, int | float) and str(value) != text
        return QuotedString(text, Quote.single) if changed else value

    def _within(self, key: str, visit: Any, ctx: Any) -> Any:
        outer, self._key = self._key, key
        try:
            return visit(ctx)
        finally:
            self._key = outer


class FileConfigSource(HydrasOwn):
    """Hydra's reader of config files, with its name: beside one that is called so, Hydra does not register its own."""

    _read: ClassVar[dict[tuple[str, ...], ConfigResult]] = {}  # to read YAML takes longer than all else of a file

    def load_config(self, config_path: str) -> ConfigResult:
        """A file's values, with the texts of keys of text.

        Raises:
            UserError: it is no YAML, or says no keys, or not where its values go, and its folder does not either.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.exists():
            return super().load_config(config_path)  # who raises what Hydra knows
        try:
            written = path.read_text(encoding="utf-8")
            known = (self.provider, self.path, config_path, written)
            if known not in self._read:
                self._read[known] = self._values(config_path, path, written)
        except (MarkedYAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {_why(error)}") from error
        return deepcopy(self._read[known])

    def _values(self, config_path: str, path: Path, written: str) -> ConfigResult:
        root, group = yaml.compose(written, Loader=yaml.SafeLoader), config_path.rpartition("/")[0]
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path} must have keys, each with its value: it has none")
        result = super().load_config(config_path)
        package = _package(result.header.get("package"), group.replace("/", "."))
        _check_place(path, written, package, result.header.get("package"))
        for key, node in _below(root, ""):
            if group:
                _check_level(path, key, package, node)
            if package + key.partition("[")[0] in _texts() and _is_taken_for_more(node):
                OmegaConf.update(result.config, key, node.value)
        return result


def _why(error: MarkedYAMLError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not written in UTF-8"
    line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return f"it is no YAML{line} ({error.problem})"


def _check_place(path: Path, written: str, package: str, header: str | None) -> None:
    """Refuse a file whose values would go to a node that no config has, called as its folder is, or misspelt."""
    known = [item for schema in _schemas() for item in fields(schema)]
    nodes = {"hydra"} | {item.name for item in known if callable(item.default_factory)}  # a plain value is no node
    if not package or package.partition(".")[0] in nodes:
        return
    line = "the line '# @package _global_'"
    why = f"lacks {line}: write it" if header is None else f"has the line '# @package {header}': write {line}"
    if written.startswith(_MARK):
        why = f"begins with a byte order mark, which hides its first line: save it as UTF-8 without BOM, with {line}"
    raise UserError(f"{path} {why} as the first, so that the file's data.root is data.root, and not {package}data.root")


def _check_level(path: Path, key: str, package: str, node: yaml.Node) -> None:
    """Refuse a value, or a list, for a key that has others below it."""
    line = node.start_mark.line + 1
    if key == "defaults" and not isinstance(node, yaml.SequenceNode):
        raise UserError(f"{path}, line {line}: defaults must be a list, such as '- override /model: efficientnet_b2'")
    if isinstance(node, yaml.MappingNode) or "${" in str(node.value):
        return
    if package + key in _branches():
        raise UserError(f"{path}, line {line}: {key} must have keys below it, each with its value")


def _package(header: str | None, group: str) -> str:
    """Where a file's values go, as the beginning of their keys."""
    found = (header or "_group_").replace("_group_", group).removeprefix("_global_").removeprefix(".")
    return found and f"{found}."


def _below(node: Any, key: str) -> Iterator[tuple[str, yaml.Node]]:
    """What a file has below a node, at all levels, by key."""
    if isinstance(node, yaml.MappingNode):
        parts = [(f"{key}.{name.value}" if key else str(name.value), value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        parts = [(f"{key}[{place}]", value) for place, value in enumerate(node.value)]
    else:
        return
    for name, value in parts:
        yield name, value
        yield from _below(value, name)


def _is_taken_for_more(node: yaml.Node) -> bool:
    """Whether YAML may take for a number or a truth value what is written."""
    return isinstance(node, yaml.ScalarNode) and node.tag != _NULL and node.style is None


setattr(overrides_parser, "HydraOverrideVisitor", _Overrides)  # noqa: B010 (Hydra has no other way in)
