"""Versions of a registered model: making one, and which of them asks to become the champion."""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from tyre_lightning.errors import UserError, first_line
from tyre_lightning.names import mlflow_quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"  # the alias of the newest version, of a sweep the best, which asks to become the champion
CHAMPION = "champion"  # of the one in use
ANCHOR = "anchor"  # of the one that no champion may be much worse than
ORIGIN = "recalibrated.from"  # the tag of a run that has made no weights: whose it took
_ASKS = "challenger.asks"  # the tag of a version that may become the challenger


def create_version(
    client: MlflowClient, run_id: str, name: str, folder: str, about: str = "", *, challenger: bool = True
) -> str:
    """Register the model that is an artifact of a run, where wanted as the challenger; gives its version.

    A model that is registered already keeps its version: a request may have to be made twice, or comes late.

    Args:
        client: of MLflow.
        run_id: of the run.
        name: of the registered model.
        folder: of the artifact.
        about: the description of the version, to which is added how to call it.
        challenger: whether it asks to become the champion.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=_about_model(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = [*client.search_model_versions(f"name = {mlflow_quoted(name)} and run_id = '{run_id}'")]
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    asks = {_ASKS: "true"} if challenger else {}
    version = made[0] if made else client.create_model_version(name, source, run_id=run_id, tags=asks)
    if about and not version.description:
        described = f"{about}\n\n{how_to_call(f'models:/{name}/{version.version}')}"
        client.update_model_version(name, str(version.version), described)
    if challenger:
        let_newest_ask(client, name)
    return str(version.version)


def find_version(client: MlflowClient, model: str) -> ModelVersion | None:
    """The registered version that a ``models:/`` URI names; None for any other model.

    Raises:
        UserError: there is none.
    """
    from mlflow.exceptions import MlflowException

    if not model.startswith("models:/"):
        return None
    name = model.removeprefix("models:/")
    try:
        if "@" in name:
            return client.get_model_version_by_alias(*name.rsplit("@", 1))
        return client.get_model_version(*name.rsplit("/", 1))
    except (MlflowException, TypeError) as error:
        raise UserError(f"model={model} cannot be found: {first_line(error)}{instead(client, model)}") from error


def instead(client: MlflowClient, model: str) -> str:
    """What to give instead of a ``models:/`` or ``runs:/`` URI that names nothing, as the end of a sentence."""
    from mlflow.exceptions import MlflowException

    if model.startswith("runs:/"):
        return "; the model of a run is runs:/RUN_ID/model"
    name = re.split("[/@]", model.removeprefix("models:").strip("/"))[0]
    with suppress(MlflowException):  # what is wrong has been said
        names = [one.name for one in client.search_registered_models()]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            return f"; did you mean models:/{near[0]}?" if near else f"; registered are {', '.join(names) or 'none'}"
        versions = [int(one.version) for one in client.search_model_versions(f"name = {mlflow_quoted(name)}")]
        aliases = client.get_registered_model(name).aliases
        uris = [f"models:/{name}@{alias}" for alias in aliases] + [f"models:/{name}/{max(versions)}"] * bool(versions)
        return f"; give {' or '.join(uris)}" if uris else ""
    return ""


def version_uri(version: ModelVersion) -> str:
    """The URI of this version, whatever its aliases come to name."""
    return f"models:/{version.name}/{version.version}"


def how_to_call(uri: str) -> str:
    """The commands that use a model, as Markdown."""
    commands = [
        f"python predict.py model={uri} input=FOLDER",
        f"mlflow models serve -m {uri} --env-manager local --port 8080",
    ]
    return "\n".join(f"    {command}" for command in commands)


def _about_model(name: str) -> str:
    """The description of a registered model, as Markdown."""
    return (
        "Tells good tyres from defective ones. Each version says in its description on which data it was trained, what "
        f"it promises and how good it is. `{CHAMPION}` is the alias of the version in use, `{CHALLENGER}` of the one "
        f"that `python -m tyre_lightning.promote model={name}` compares with it.\n\n"
        + how_to_call(f"models:/{name}@{CHAMPION}")
    )


def make_challenger(client: MlflowClient, run_id: str) -> list[str]:
    """Let what a run has registered ask to become the champion, unless a newer version does; gives its URIs."""
    made = []
    for model in client.search_model_versions(f"run_id = '{run_id}'"):
        client.set_model_version_tag(model.name, str(model.version), _ASKS, "true")
        let_newest_ask(client, model.name)
        if str(client.get_registered_model(model.name).aliases.get(CHALLENGER)) == str(model.version):
            made.append(f"models:/{model.name}/{model.version}")
    return made


def let_newest_ask(client: MlflowClient, name: str) -> None:
    """Make the newest version that asks the challenger, if it has not been judged yet.

    So an older one never takes the alias from it, nor gets it back after a promotion, whenever it is sent. Of two
    trainings that end at once either may write last: each looks again, until there is nothing to mend.
    """
    while (newest := _newest_asking(client, name)) is not None:
        client.set_registered_model_alias(name, CHALLENGER, newest)


def _newest_asking(client: MlflowClient, name: str) -> str | None:
    """The version that lacks the challenger's alias."""
    asking = [one for one in client.search_model_versions(f"name = {mlflow_quoted(name)}") if _ASKS in one.tags]
    newest = max(asking, key=lambda one: int(one.version), default=None)
    if newest is None or any(tag.startswith("promotion") for tag in newest.tags):
        return None
    aliases = client.get_registered_model(name).aliases
    champion, holder = (int(aliases.get(alias, 0)) for alias in (CHAMPION, CHALLENGER))
    if champion == int(newest.version) or holder >= int(newest.version):
        return None
    return str(newest.version)
