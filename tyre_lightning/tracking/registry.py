"""Models in MLflow's registry: putting one in, and getting one out."""

from __future__ import annotations

import os
import tempfile
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import tyre_lightning
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.model.from_timm import is_timm
from tyre_lightning.model.glance import WEIGHTS_OF_GLANCE
from tyre_lightning.model.inspector import DEFECTS, NOVELTY, SPEC_FILE, Inspector, answer_columns
from tyre_lightning.tracking import served_model_path
from tyre_lightning.tracking.runs import Run, connect
from tyre_lightning.tracking.versions import find_version, how_to_call, instead, version_uri

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

MODEL_FOLDER = "model"
_INSPECTOR = PurePosixPath("artifacts", "inspector")  # within it
# What the served model imports, at the versions it was trained with.
_REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "safetensors", "pillow",
    "simplejpeg", "onnx", "onnxruntime", "numpy", "scipy", "pyarrow", "pandas", "boto3", "obstore", "xxhash",
    "platformdirs", "filelock", "joblib",
)  # fmt: skip


def register(run: Run, inspector: Inspector, about: str = "", *, challenger: bool = True) -> None:
    """Record a model as an artifact of a run and, where a name is configured, have it registered.

    Args:
        run: of the training.
        inspector: the model.
        about: what it is worth and made of, for the descriptions of its run and its version.
        challenger: whether it asks to become the champion; of a sweep only the best does, once all have ended.

    Raises:
        UserError: the disk is full, and the like.
    """
    folder = run.journal.new_place(MODEL_FOLDER)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            inspector.save(Path(scratch, "inspector"))
            _save_pyfunc(folder, Path(scratch, "inspector"), inspector)
    except OSError as error:
        raise UserError(f"the model cannot be written to {folder}: {error.strerror or error}") from error
    run.journal.append("model", path=run.journal.relative(folder))
    if about:
        run.log_note(f"{about}\n\n{how_to_call(run_model(run.id))}")
    if run.config.registered_model:
        name = run.config.registered_model
        run.journal.append("version", name=name, folder=MODEL_FOLDER, about=about, challenger=challenger)


def model_uri(run: Run) -> str:
    """The URI to load a run's model by, once MLflow has it."""
    return run_model(run.id) if run.version is None else f"models:/{run.config.registered_model}/{run.version}"


def run_model(run_id: str) -> str:
    """The URI of the model that a run has recorded, registered or not."""
    return f"runs:/{run_id}/{MODEL_FOLDER}"


def exact_uri(model: str, tracking_uri: str) -> str:
    """A model's address, in which an alias has become the version that it names now.

    Raises:
        UserError: there is no such version.
    """
    if not model.startswith("models:/"):
        return model
    version = find_version(connect(tracking_uri, new=False), model)
    return model if version is None else version_uri(version)


def load_inspector(model: str, tracking_uri: str) -> Inspector:
    """The inspector that a ``models:/`` or ``runs:/`` URI, a checkpoint or a saved folder names.

    Raises:
        UserError: there is no such model, or it is not one of this project's.
    """
    if model.startswith(("models:/", "runs:/")):
        return _from_mlflow(model, tracking_uri)
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        return Inspector.load(_inspector_folder(path, model))
    if path.is_file():
        return Inspector.from_checkpoint(path)
    raise UserError(
        f"model={model} is neither a models:/ or runs:/ URI nor a file or folder that exists: give "
        "models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN_ID/model, a checkpoint or a saved folder"
    )


def _from_mlflow(model: str, tracking_uri: str) -> Inspector:
    import mlflow

    client = connect(tracking_uri, new=False)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = mlflow.artifacts.download_artifacts(artifact_uri=_inspector_uri(model), dst_path=scratch)
        except Exception as error:  # MLflow, its stores and their clients each raise their own
            said = f"{first_line(error)}{instead(client, model)}"
            raise UserError(f"model={model} cannot be loaded: {said}") from error
        return Inspector.load(_inspector_folder(Path(folder), model))


def _inspector_uri(model: str) -> str:
    """Where a model's inspector is, three files of the hundreds that it has with its code; if unseen, the model."""
    import mlflow
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # which it raises again, for what was asked for
        beside = mlflow.artifacts.list_artifacts(artifact_uri=f"{model}/{_INSPECTOR.parent}")
        if _INSPECTOR.name in {Path(one.path).name for one in beside}:
            return f"{model}/{_INSPECTOR}"
    return model


def _inspector_folder(folder: Path, model: str) -> Path:
    for candidate in (folder, folder / _INSPECTOR):
        if (candidate / SPEC_FILE).is_file():
            return candidate
    for below in (folder / "best.ckpt", folder / "checkpoints" / "best.ckpt", folder / MODEL_FOLDER):
        if below.exists():
            raise UserError(f"model={model} holds no {SPEC_FILE}: give {below}")
    raise UserError(f"model={model} holds no {SPEC_FILE}: it was not made by train.py")


def _save_pyfunc(folder: Path, inspector_folder: Path, inspector: Inspector) -> None:
    import mlflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on input examples; there is a signature
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(served_model_path()),
            artifacts={"inspector": str(inspector_folder)},
            code_paths=[str(Path(tyre_lightning.__file__).parent)],
            signature=signature(inspector),
            pip_requirements=[f"{name}=={version(name)}" for name in requirements(inspector)],
            metadata={"classes": inspector.classes, "backbone": inspector.name},
        )


def requirements(inspector: Inspector) -> tuple[str, ...]:
    """The packages that a served model imports."""
    timm = ("timm",) if is_timm(inspector.name) else ()
    return (*_REQUIREMENTS, *timm, *(() if inspector.network.glance is None else (WEIGHTS_OF_GLANCE,)))


def signature(inspector: Inspector) -> ModelSignature:
    """Images or addresses in, and names of tyres; :func:`answer_columns` out.

    Images are text: of a column of bytes MLflow would decode the base64 itself, in some of its request forms, and
    refuse a whole request for one row.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    given: list[Any] = [ColSpec("string", name, required=False) for name in ("image", "uri", "tyre")]
    numbers = inspector.columns()
    kinds: dict[str, Any] = dict.fromkeys([*numbers, NOVELTY], "double") | {DEFECTS: Array(DataType.string)}
    answers: list[Any] = [
        ColSpec(kinds.get(name, "string"), name, False)
        for name in answer_columns(numbers, multi_label=inspector.multi_label)
    ]
    return ModelSignature(Schema(given), Schema(answers))
