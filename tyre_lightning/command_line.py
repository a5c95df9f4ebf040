"""What train.py and predict.py share: configs are checked first, and a user's mistake is one line, not a traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tyre_lightning.config import (
    SCHEMAS,
    AuditConfig,
    PredictConfig,
    PromoteConfig,
    TrainConfig,
    to_audit_config,
    to_predict_config,
    to_promote_config,
    to_train_config,
    unknown_key,
)
from tyre_lightning.errors import UserError
from tyre_lightning.files import disk_errors
from tyre_lightning.surroundings import use_utf8

CHECKS: dict[type, Callable[[Any], Any]] = {
    TrainConfig: to_train_config,
    AuditConfig: to_audit_config,
    PredictConfig: to_predict_config,
    PromoteConfig: to_promote_config,
}
USER_ERROR = 1
failed_runs: list[str] = []  # of a sweep that has ended: their folders
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run(main: Callable[[], Any], code: int = USER_ERROR) -> int:
    """Call a Hydra main; gives the exit code, ``code`` for a user's mistake, which it prints as one sentence.

    With ``HYDRA_FULL_ERROR=1`` in the environment, errors keep their tracebacks.
    """
    use_utf8()
    sys.argv[1:] = overrides_last(sys.argv[1:])
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        main()
        return USER_ERROR if failed_runs else 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing them in its own way
    try:
        with disk_errors():
            main()
    except UserError as error:
        return _fail(str(error), code)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(explain(error), code)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    return USER_ERROR if failed_runs else 0


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
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        raise SystemExit(_fail(str(error), code)) from None


def explain(error: Exception) -> str:
    """Hydra's and OmegaConf's errors as one sentence."""
    texts = [str(item) for item in (error, error.__cause__) if item is not None]
    whole = "\n".join(texts)
    if isinstance(error, MissingConfigException) and error.options:
        return _missing_option(texts[0], list(error.options))
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' as key=value: {texts[0].splitlines()[0]}; quote special characters"
    key = re.search(r"full_key: (\S+)", whole)
    if key and re.search(r"Key '.*' not in '", whole):
        place = re.search(r"In '(\S+)': \w+ raised while composing", whole)
        return unknown_key(key[1], _schema(whole), f" (in {place[1]})" if place else "")
    if key:
        return f"{key[1]}: {texts[-1].splitlines()[0]}"
    return " ".join(line.strip() for line in texts[0].splitlines() if line and not line.startswith("See http"))


def _schema(text: str) -> type:
    """The schema that an error of OmegaConf is about; train's where it does not say."""
    name = re.search(r"object_type=(\w+)", text)
    return next((schema for schema in SCHEMAS.values() if name and schema.__name__ == name[1]), SCHEMAS["train"])


def _missing_option(text: str, options: list[str]) -> str:
    wanted = re.search(r"Could not find '([^']+)'", text)
    group, _, name = (wanted[1] if wanted else "").rpartition("/")
    choices = [option for option in options if option != "default" or len(options) == 1]
    nearest = difflib.get_close_matches(name, choices, n=1)
    hint = f" did you mean {nearest[0]}?" if nearest else ""
    return f"there is no {group}={name}:{hint} choose from {', '.join(choices)}"


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
