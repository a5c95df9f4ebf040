"""Names at the borders: text that is free inside becomes what another system takes, readably, and no two become one."""

from __future__ import annotations

import re
import unicodedata
from hashlib import blake2s

_MLFLOW = re.compile(r"[\w.\- :]+")  # of a parameter, metric or tag, between slashes
MLFLOW_LENGTH = 250
_CLASS_LENGTH = 200  # so that words may stand before a class
_EXPERIMENT_LENGTH = 256
_RUN_LENGTH = 250
_MODEL_LENGTH = 200  # the gate makes longer ones of it
_NOT_IN_MODELS = "/:'\"?#%\\"  # MLflow refuses them, or its filters and models:/ addresses cannot hold them
_FIGURE_LENGTH = 40


def one_form(text: str) -> str:
    """A text in the one Unicode form (NFC) in which texts that look the same are the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def mlflow_name(name: str, longest: int = _CLASS_LENGTH) -> str:
    """A name of a parameter, metric or tag that MLflow accepts; one that it accepts anyway stays as it is.

    In each part between slashes, other characters become ``_``, and a digest of the part tells it from its like:
    ``val/recall/cracks (deep)`` becomes ``val/recall/cracks _deep_-c32e0407``. So does what is beyond ``longest``.
    """
    return "/".join(_mlflow_part(part, longest) for part in name.split("/"))


def _mlflow_part(part: str, longest: int) -> str:
    if _MLFLOW.fullmatch(part) and len(part) <= longest and part != "." and not part.startswith(".."):
        return part
    digest = blake2s(part.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    readable = re.sub(r"[^\w.\- :]|^\.+", "_", part)[: longest - len(digest) - 1]
    return f"{readable}-{digest}"


def mlflow_quoted(text: str) -> str:
    """A text in one of MLflow's filters, which has no way to write a quotation mark within marks of its kind."""
    mark = '"' if "'" in text else "'"
    return f"{mark}{text}{mark}"


def model_fault(name: str) -> str | None:
    """Why a model cannot be registered under a name; None where it can."""
    found = sorted({character for character in name if character in _NOT_IN_MODELS or not character.isprintable()})
    if found:
        return f"holds {' '.join(map(_visible, found))}"
    if name in (".", ".."):
        return "is a path"
    return _length_fault(name, _MODEL_LENGTH)


def experiment_fault(name: str) -> str | None:
    """Why an experiment cannot have a name; None where it can."""
    return _length_fault(name, _EXPERIMENT_LENGTH)


def run_fault(name: str) -> str | None:
    """Why a run cannot have a name; None where it can."""
    return _length_fault(name, _RUN_LENGTH)


def _length_fault(name: str, longest: int) -> str | None:
    if not name.strip():
        return "is empty"
    return f"has {len(name)} characters, and {longest} are the most" if len(name) > longest else None


def _visible(character: str) -> str:
    """A character that can be seen."""
    return character if character.isprintable() else ascii(character)


def figure_text(text: str) -> str:
    """A text for a figure: not too long, and no formula, which matplotlib takes text between dollars for."""
    short = text if len(text) <= _FIGURE_LENGTH else f"{text[: _FIGURE_LENGTH - 1]}…"
    return short.replace("$", r"\$")
