"""What a person sees who opens MLflow: the names of runs, the columns of their list, and descriptions."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from tyre_lightning.errors import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

NOTE = "mlflow.note.content"  # the tag that has the description of a run or an experiment
COLUMNS = (
    "test/f1", "test/auroc_defective", "test/escape_rate", "test/overkill_rate", "val/f1", "model/latency_ms",
)  # fmt: skip
_VIEW = "tyres"  # the key of the saved view with these columns first
_TABLES = "mlflow.loggedArtifacts"  # the tag that says which artifacts are shown as tables
_LONGEST = 500  # characters of a list of classes: MLflow takes 5,000 of a whole description
_OURS = "Trainings that tell good tyres from defective ones."  # how a description of ours begins

log = logging.getLogger(__name__)


def furnish(client: MlflowClient, experiment: Experiment) -> None:
    """Let an experiment open as trainings, not as talks with a language model; give it a view and a description.

    What somebody has chosen stays. From MLflow 3.17 on the browser decides which of both it shows, by what it showed
    last or what its address says, as that of :func:`run_list` does; before, the experiment's tag.
    """
    id = str(experiment.experiment_id)
    wanted = {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{_VIEW}": _view(),
        NOTE: _about(id),
    }
    for key, value in wanted.items():
        if key not in experiment.tags:
            _tag(client, id, key, value)


def _tag(client: MlflowClient, experiment_id: str, key: str, value: str) -> None:
    """Set a tag of an experiment; it costs no run if that is refused, as where another run does so at the same time."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_experiment_tag(experiment_id, key, value)
    except MlflowException as error:
        if key not in client.get_experiment(experiment_id).tags:
            log.warning("the experiment gets no tag %s: %s", key, first_line(error))


def run_list(experiment_id: str) -> str:
    """The address, behind that of the server, of an experiment's runs with :data:`COLUMNS` first."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"


def write_notes(client: MlflowClient, run_id: str, text: str) -> None:
    """Describe a run, and by it, as the newest with a model, its experiment, unless somebody has described that."""
    run = client.get_run(run_id)
    client.set_tag(run_id, NOTE, text)
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.tags.get(NOTE, _OURS).startswith(_OURS):
        about = f"{_about(experiment.experiment_id)}\n\nThe newest model is of run *{run.info.run_name}*.\n\n{text}"
        _tag(client, experiment.experiment_id, NOTE, about)


def show_as_table(client: MlflowClient, run_id: str, name: str) -> None:
    """Let MLflow show an artifact of a run, which it would show as JSON, as the table that it is."""
    found: list[Mapping[str, str]] = []
    with suppress(ValueError):  # somebody else's
        found = json.loads(client.get_run(run_id).data.tags.get(_TABLES, "[]"))
    if (table := {"path": name, "type": "table"}) not in found:
        client.set_tag(run_id, _TABLES, json.dumps([*found, table]))


def model_note(said: str, network: str, size: int, found: Mapping[str, Any]) -> str:
    """The description of a model, as Markdown: its data, itself, and what it is worth.

    Args:
        said: what :func:`tyre_lightning.evaluation.answer.answer` says of it.
        network: its backbone.
        size: of what it sees, in pixels.
        found: what the data turned out to be, as the run's parameters ``found`` have it.
    """
    further = found.get("further", {})  # second and third defects of images, which are counted as one image each
    counts = ", ".join(
        f"{usage} {sum(images.values()) - further.get(usage, 0)}" for usage, images in found["images"].items()
    )
    lines = [
        f"data         {data_version(found['root'])} of {found['root']}, fingerprint {found['fingerprint']}",
        *([f"labels       {found['labels']}"] if "labels" in found else []),
        f"images       {counts}",
        f"classes      {shorten(', '.join(found['classes']), _LONGEST, placeholder=' ...')}",
        f"network      {network}, {size} x {size} pixels",
        "",
        *said.splitlines(),
    ]
    return "\n".join(f"    {line}" for line in lines)  # a block as it is, whatever the names in it are


def data_version(root: str) -> str:
    """The version of the data that lies at an address: its last folder."""
    return root.rstrip("/").rpartition("/")[2]


def _about(experiment_id: str) -> str:
    return f"{_OURS} [Their list by F1, AUROC, escape and overkill rate]({run_list(experiment_id)})."


def _view() -> str:
    """A saved view, as MLflow's pages write and read one."""
    columns = [f"metrics.`{name}`" for name in COLUMNS]
    state = {"selectedColumns": columns, "columnOrder": columns}  # else they are in the order of the alphabet
    now = int(1000 * time.time())
    return json.dumps({"name": "F1, escape, overkill", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
