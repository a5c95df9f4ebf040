"""What all commands share: configs are checked first, and a user's mistake is one line, not a traceback."""

from __future__ import annotations

import difflib
import io
import os
import platform
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tyre_lightning.config import (
    SCHEMAS,
    AcceptConfig,
    AuditConfig,
    ExportConfig,
    InboxConfig,
    PredictConfig,
    PromoteConfig,
    RatesConfig,
    RecalibrateConfig,
    ResendConfig,
    ReviewConfig,
    SelectConfig,
    ServeConfig,
    TrainConfig,
    WatchConfig,
    to_accept_config,
    to_audit_config,
    to_export_config,
    to_inbox_config,
    to_predict_config,
    to_promote_config,
    to_rates_config,
    to_recalibrate_config,
    to_resend_config,
    to_review_config,
    to_select_config,
    to_serve_config,
    to_train_config,
    to_watch_config,
    unknown_key,
)
from tyre_lightning.errors import UserError, hide_passwords
from tyre_lightning.files import disk_errors
from tyre_lightning.names import as_override
from tyre_lightning.ranks import here
from tyre_lightning.surroundings import outlive_readers, use_utf8
from tyre_lightning.tracking.secrecy import hide_in_logs
from tyre_lightning.tracking.sweeper import register_sweeper

CHECKS: dict[type, Callable[[Any], Any]] = {
    TrainConfig: to_train_config,
    AuditConfig: to_audit_config,
    PredictConfig: to_predict_config,
    PromoteConfig: to_promote_config,
    ExportConfig: to_export_config,
    ResendConfig: to_resend_config,
    RecalibrateConfig: to_recalibrate_config,
    SelectConfig: to_select_config,
    ReviewConfig: to_review_config,
    RatesConfig: to_rates_config,
    AcceptConfig: to_accept_config,
    WatchConfig: to_watch_config,
    ServeConfig: to_serve_config,
    InboxConfig: to_inbox_config,
}
USER_ERROR = 1
failed_runs: list[str] = []  # of a sweep that has ended: their folders
sweep_codes: list[int] = []  # exit codes that a sweep's runs would have had
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_STRAY = {  # what Hydra and OmegaConf say in a ValueError or an AssertionError
    "Config group override must be a string": "a group of settings takes the name of one of them: leave it out, or "
    "give a name, as in model=timm",
    "Unexpected type for root": "a list takes all its values together, as in data.classes=[cracks,good]",
}
# What Hydra's parser says; several overrides in one text.
_PARSER = re.compile("Lexer|Error parsing|mismatched|extraneous|no viable|missing ")
_SEVERAL = re.compile(r"\s[+~]{0,2}[a-z][\w./@]*=")
_COMPOSING = re.compile(r"\s*$|In '[^']+': \w+ raised while composing|\s+(?:full_key|reference_type|object_type)\b")
_WORDS = {  # for what OmegaConf says
    "is not Optional|Incompatible value 'None'|NoneType is not a sub": "null is not possible here: give a value, or "
    "leave it out",
    "is not a ListConfig, list or tuple": "it takes a list, such as [a,b]",
    r"Cannot assign \w+ to Dict|is not a subclass of \w+Config": "it has keys below it, each with its value",
    "Cannot merge DictConfig with ListConfig": "a list is given where keys are wanted, or keys where a list is",
    "is not in struct": "it is not there yet: write +{key}=... in the terminal, or have it in an experiment's file",
}
TOO_NEW = (3, 14)  # for Hydra 1.3, whose command line Python's argparse refuses from there on


def run(main: Callable[[], Any], code: int = USER_ERROR) -> int:
    """Call a Hydra main; gives the exit code, ``code`` for a user's mistake, which it prints as one sentence.

    With ``HYDRA_FULL_ERROR=1`` in the environment, errors keep their tracebacks.
    """
    failed_runs.clear()  # of what this process ran before
    sweep_codes.clear()
    use_utf8()
    outlive_readers()
    hide_in_logs()
    sys.argv[1:] = overrides_last(sys.argv[1:])
    whole = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing them in its own way
    try:
        check_python()
        register_sweeper()
        with disk_errors(), _quietly(sys.argv[1:]):
            main()
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{interrupt}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not whole and (isinstance(error, UserError) or is_mistake(error)):
            return _fail(str(error) if isinstance(error, UserError) else explain(error), code)
        print(hide_passwords(traceback.format_exc()), file=sys.stderr)
        return USER_ERROR
    finally:
        if not whole:
            del os.environ["HYDRA_FULL_ERROR"]
    return USER_ERROR if failed_runs else max(sweep_codes, default=0)


@contextmanager
def _quietly(arguments: list[str]) -> Iterator[None]:
    """Keep Hydra from printing passwords: those of flags that it does not know, and of a config that is asked for."""
    parser = get_args_parser()
    setattr(parser, "error", _refuse)  # noqa: B010 (it would print all that Hydra can do first)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UserError(f"there is no option {_key(unknown[0])}: --help lists those there are")
    if not (options.cfg or options.info):
        yield
        return
    with redirect_stdout(io.StringIO()) as said:
        yield
    print(hide_passwords(said.getvalue()), end="")


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _key(argument: str) -> str:
    """What of a command line's argument is surely no value."""
    found = re.match(r"[\w+~./-]*", argument)
    return found[0] if found else ""


def overrides_last(arguments: list[str]) -> list[str]:
    """Hydra's flags before its overrides: its parser refuses ``data.root=lake -m seed=0,1`` otherwise."""
    return sorted(arguments, key=lambda argument: re.match(r"[+~]{0,2}[\w@./]+=", argument) is not None)


def check_config(cfg: DictConfig) -> None:
    """Refuse keys that the schema does not know and impossible values.

    Raises:
        UserError: names the key, and the nearest valid one or the values that are possible.
    """
    schema = OmegaConf.get_type(cfg)
    if not (isinstance(schema, type) and is_dataclass(schema)):
        raise UserError("the config has no schema: keep train_schema or predict_schema first in its defaults list")
    CHECKS[schema](cfg)


def guard(task: Callable[[DictConfig], Any], cfg: DictConfig, code: int = USER_ERROR) -> Any:
    """Run a task on a checked config; ends the process at a user's mistake, unless other runs of a sweep wait."""
    try:
        check_config(cfg)
        with disk_errors():
            return task(cfg)
    except (UserError, OmegaConfBaseException) as error:
        found = error if isinstance(error, UserError) else UserError(explain(error))
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise found from None
        drop_empty_folder()
        raise SystemExit(_fail(str(found), code)) from None
    except KeyboardInterrupt:
        way = way_on()
        drop_empty_folder()
        raise KeyboardInterrupt(way) from None


def end(code: int) -> None:
    """End the process with a code; of a sweep, when its other runs have ended."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        sweep_codes.append(code)
    else:
        sys.exit(code)


def check_python() -> None:
    """Refuse a Python on which Hydra cannot start.

    Raises:
        UserError: says which to use.
    """
    if sys.version_info >= TOO_NEW:
        found, (major, minor) = platform.python_version(), TOO_NEW
        raise UserError(f"Hydra 1.3 cannot start on Python {found}: use one from 3.11 to {major}.{minor - 1}")


def drop_empty_folder() -> None:
    """Remove the folder that Hydra made for a run that left nothing in it, and those round it that are empty then.

    Those of a sweep stay: its other runs, and what it goes on with, lie beside them.
    """
    hydra = HydraConfig.get()
    folder, here = Path(hydra.runtime.output_dir), Path(hydra.runtime.cwd)
    if hydra.mode == RunMode.MULTIRUN or hydra.output_subdir is None or not folder.is_dir():
        return
    if {*os.listdir(folder)} - {hydra.output_subdir, f"{hydra.job.name}.log"}:
        return
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # one is not empty
        for parent in folder.parents:
            if parent == here or here not in parent.parents:
                break
            parent.rmdir()


def way_on() -> str:
    """How a run that Ctrl-C has ended goes on; empty where it has left nothing to go on with."""
    hydra = HydraConfig.get()
    more = "ckpt_path=last"
    if hydra.output_subdir is None:  # it has no folder of its own, so that a checkpoint there is another's
        return ""
    if hydra.mode == RunMode.MULTIRUN:
        more = as_override("hydra.sweep.dir", hydra.sweep.dir)
    elif more not in sys.argv and not any(Path(hydra.runtime.output_dir).rglob("last.ckpt")):
        return ""
    if (rank := here()) is not None:
        return f"; to go on: the same command of {rank.by} with {more}"
    program, *arguments = sys.orig_argv[1:]
    command = shlex.join([*(["tyre"] if Path(program).stem == "tyre" else ["python", program]), *arguments])
    return f"; to go on: {hide_passwords(command if more in command else f'{command} {more}')}"


def explain(error: Exception) -> str:
    """Hydra's and OmegaConf's errors as one sentence."""
    texts = [str(item) for item in (error, error.__cause__) if item is not None]
    whole = "\n".join(texts)
    if isinstance(error, MissingConfigException) and error.options:
        return _missing_option(texts[0], list(error.options))
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override), texts[0].splitlines()[0])
    if several := re.match(r"Ambiguous value for argument '(.*)'", texts[0]):
        return _several(several[1])
    if (stray := _stray(texts[0])) is not None:
        return stray
    key = re.search(r"full_key: (\S+)", whole)
    place = re.search(r"In '([^']+)': \w+ raised while composing", whole)
    where = f" (in {place[1]})" if place else ""
    if key and re.search(r"Key '.*' not in '", whole):
        return unknown_key(key[1], _schema(whole), where)
    if key:
        lines = [line for line in texts[-1].splitlines() if not _COMPOSING.match(line)]
        return f"{key[1]}{where}: {_plain(lines[0], key[1])}"
    lines = [line.strip() for line in texts[0].splitlines() if line and not line.startswith("See http")]
    return _of_defaults(" ".join(lines))


def is_mistake(error: Exception) -> bool:
    """Whether an error of Hydra's or OmegaConf's is one that :func:`explain` can say what to do about."""
    return isinstance(error, HydraException | OmegaConfBaseException) or _stray(str(error)) is not None


def _stray(said: str) -> str | None:
    """What a user can do about an error that is of no class of Hydra's; None where it is another's."""
    return next((sentence for start, sentence in _STRAY.items() if said.startswith(start)), None)


def _plain(said: str, key: str) -> str:
    """What OmegaConf says of a value, in words of people who have not written it."""
    for pattern, words in _WORDS.items():
        if re.search(pattern, said):
            return words.format(key=key)
    return said


def _of_defaults(said: str) -> str:
    """What Hydra says of the list ``defaults`` in a file: its way out is one for another place than our files."""
    said = re.sub(r"\.? Config search path:.*", "", said)
    way = r"there are several values for \1: write \1=\2 in the terminal, or '- override /\1: \2' in a file"
    said = re.sub(r"Multiple values for \S+\. To override a value use 'override ([\w/]+): ([^']*)'", way, said)
    missed = re.search(r"(.*)Could not override '[^']*/(\w+)@", said)
    return f"{missed[1]}there is no group {missed[2]} here: write 'override /{missed[2]}: ...'" if missed else said


def _unreadable(override: str, reason: str) -> str:
    """What is wrong with an override; of one that may hold a password, which nobody can find in it, only the key."""
    key, (name, _, value) = _key(override), override.partition("=")
    if override.startswith("-"):
        way = ": give hydra.searchpath=[file://FOLDER]" if key == "--config-dir" else ""
        return f"{key} is an option of the terminal, and no key=value{way}"
    if not name.strip():
        return "an argument has no key: write key=value"
    if not _may_be_secret(override) and _SEVERAL.search(value):
        return f"'{override}' is more than one key=value: give each by itself"
    if not _may_be_secret(override) and name != name.strip():
        return f"there are spaces round the key of '{override}': write {as_override(name.strip(), value.strip())}"
    if _may_be_secret(override):
        return f"""cannot read '{key}=...' as key=value: if the value is one text, write '{key}="..."'"""
    if "=" not in override:
        way = f"write {key}=... with a value, or KEY={override} with the key that it is for"
        return f"cannot read '{override}' as key=value: {way}"
    reason = "Hydra wants some character quoted" if _PARSER.match(reason) else reason
    way_out = f"; {_quoted(key, value)}" if override.startswith(f"{key}=") and key[-1] not in "+~" else ""
    return f"cannot read '{override}' as key=value: {reason}{way_out}"


def _quoted(key: str, value: str) -> str:
    """How to write a text, or a list of texts, so that Hydra takes it."""
    if value[:1] != "[" or value[-1:] != "]":
        return f"if the value is one text, write {as_override(key, value)}"
    texts = (re.sub(r"""^(['"])(.*)\1$""", r"\2", text.strip()) for text in value[1:-1].split(","))
    listed = ",".join(shlex.split(as_override("", text))[0].removeprefix("=") for text in texts)
    return f"if the value is a list of texts, write {shlex.quote(f'{key}=[{listed}]')}"


def _several(override: str) -> str:
    """What to do about an override that gives several values where one is wanted."""
    key, _, value = override.partition("=")
    secret = _may_be_secret(override)
    text = f"""'{key}="..."'""" if secret else as_override(key, value)
    several = shlex.quote(f"{key}=[{'...' if secret else value}]")
    return f"{key} has several values: write {text} for one text, {several} for a list, or -m for a run with each"


def _may_be_secret(override: str) -> bool:
    return "//" in override or "@" in override or hide_passwords(override) != override


def _schema(text: str) -> type:
    """The schema that an error of OmegaConf is about; train's where it does not say."""
    name = re.search(r"object_type=(\w+)", text)
    return next((schema for schema in SCHEMAS.values() if name and schema.__name__ == name[1]), SCHEMAS["train"])


def _missing_option(text: str, options: list[str]) -> str:
    wanted = re.search(r"Could not find '([^']+)'", text)
    group, _, name = (wanted[1] if wanted else "").rpartition("/")
    choices = [option for option in options if option != "default" or len(options) == 1]
    return no_such(f"{group}={name}", name, choices)


def no_such(what: str, name: str, choices: Sequence[str]) -> str:
    """That there is nothing of a name, the nearest that there is, and all."""
    nearest = difflib.get_close_matches(name.lower(), choices, n=1)
    hint = f" did you mean {nearest[0]}?" if nearest else ""
    return f"there is no {what}:{hint} choose from {', '.join(choices)}"


def _fail(message: str, code: int) -> int:
    print(f"error: {hide_passwords(message)}", file=sys.stderr)
    return code
