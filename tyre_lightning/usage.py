"""What ``--help`` says of a verb: examples, the groups of settings to choose from, and the keys that matter."""

from __future__ import annotations

import inspect
import io
import re
import shutil
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from tyre_lightning.config import CONF, SCHEMAS, config_folder

_OWN_LINE = 34  # characters of a key and its default, beyond which the text about it begins on the next line
_FLAGS = {"--cfg job": "show the whole config, and start nothing", "--hydra-help": "what else Hydra can do"}
_SWEEPS = {
    "-m": "a run for each combination of key=a,b; hydra/sweeper=optuna searches, hydra/launcher=joblib, "
    "submitit_slurm or ray runs several at a time",
    "--config-dir DIR": "settings of your own: DIR/experiment/mine.yaml is experiment=mine",
}
_SHARDS = {
    "-m": "with shards=8 'shard=range(8)', a run for each shard; hydra/launcher=joblib, submitit_slurm or ray runs "
    "several at a time"
}


@dataclass(frozen=True)
class Usage:
    """What a verb is for.

    Args:
        about: in a sentence.
        examples: what may stand behind ``tyre``.
        keys: those that matter; empty: all.
    """

    about: str
    examples: tuple[str, ...]
    keys: tuple[str, ...] = ()

    def text(self, verb: str, words: Mapping[str, str]) -> str:
        """The whole help, as wide as the terminal; ``words`` stand for overrides."""
        described = describe(SCHEMAS[verb])
        keys = {f"{key}={described[key][0]}": described[key][1] for key in self.keys or described}
        groups = {f"{group}=": ", ".join(found) for group, found in choices(verb).items()}
        short = {word: f"the same as {override}" for word, override in words.items()}
        sweeps = {"train": _SWEEPS, "predict": _SHARDS}.get(verb, {})
        parts = [
            f"tyre {verb}: {self.about}",
            "\n".join(f"  tyre {example}" for example in self.examples),
            *([f"Groups, of which group=choice takes another file of settings:\n{_table(groups)}"] if groups else []),
            f"Keys, with their defaults:\n{_table(keys)}",
            f"Besides:\n{_table({**short, **sweeps, **_FLAGS})}",
        ]
        return "\n\n".join(parts)


def describe(schema: type, prefix: str = "") -> dict[str, tuple[str, str]]:
    """The default of every key of a schema, as it is written on the command line, and the comment beside it."""
    found: dict[str, tuple[str, str]] = {}
    said = comments(schema)
    for item in fields(schema):
        factory: Any = item.default_factory
        if isinstance(factory, type) and is_dataclass(factory):
            found |= describe(factory, f"{prefix}{item.name}.")
            continue
        default = item.default if item.default is not MISSING else factory()
        options = f"one of {', '.join(type(default).__members__)}" if isinstance(default, Enum) else ""
        found[prefix + item.name] = (_shown(default), said.get(item.name, options))
    return found


@cache
def comments(group: type) -> dict[str, str]:
    """The comment behind each field or member of a class."""
    found: dict[str, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(group)).readline):
        if token.type == tokenize.COMMENT and (name := re.match(r"\s+(\w+)\b.*=", token.line)):
            found[name[1]] = token.string.lstrip("# ")
    return found


def choices(verb: str) -> dict[str, list[str]]:
    """The groups in a verb's defaults list that leave a choice; the default's name is in brackets."""
    config: Any = OmegaConf.load(config_folder(verb) / f"{verb}.yaml")
    chosen: dict[str, Any] = {}
    for item in config.defaults:
        chosen |= item if OmegaConf.is_dict(item) else {}
    files = {group: sorted(path.stem for path in (CONF / str(group)).glob("*.yaml")) for group in chosen}
    return {
        str(group): [f"[{file}]" if file == chosen[group] else file for file in found if file != "default"]
        for group, found in files.items()
        if {*found} - {"default", chosen[group]}
    }


def _shown(default: object) -> str:
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return default.name if isinstance(default, Enum) else str(default)


def _table(rows: Mapping[str, str]) -> str:
    width = min(_OWN_LINE, max(map(len, rows)))
    lines: list[str] = []
    for name, text in rows.items():
        head, indent = f"  {name:{width}}  ", " " * (width + 4)
        if len(name) > width:
            lines.append(f"  {name}")
            head = indent
        lines += textwrap.wrap(text, _columns(), initial_indent=head, subsequent_indent=indent) or [head.rstrip()]
    return "\n".join(lines)


def _columns() -> int:
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
