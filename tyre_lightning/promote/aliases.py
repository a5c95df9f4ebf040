"""Which version of a registered model is the champion, which asks to replace it, and by which both are judged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from tyre_lightning.errors import UserError
from tyre_lightning.tracking.versions import ANCHOR, CHALLENGER, CHAMPION, instead, let_newest_ask

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

PREVIOUS = "promotion.previous_champion"  # the tag of a champion that names the one before
AGAINST = "promotion.anchor"  # the tag of a version that names the anchor with which it was compared, or
NO_ANCHOR = "no anchor"
ANCHORED = "promotion.anchor_since"  # the tag of a version that became the anchor
FINGERPRINT = "promotion.test_fingerprint"  # the tag that says by which test images a version was judged

_GONE = "RESOURCE_DOES_NOT_EXIST"
_STALE_SECONDS = 60  # a lock is held for the time of a few calls; one of this age has no owner any more


class Overtaken(Exception):
    """Somebody else has moved the champion's alias meanwhile."""


@dataclass(frozen=True)
class Aliases:
    """The aliases of one registered model."""

    client: MlflowClient
    name: str

    def champion(self) -> ModelVersion | None:
        """The version in use, if there is one."""
        return self._version(CHAMPION)

    def challenger(self) -> ModelVersion:
        """The version that asks to replace it.

        Raises:
            UserError: there is no such model, or no version asks.
        """
        found = self._version(CHALLENGER)
        if found is None:
            raise UserError(f"model={self.name} has no version with the alias '{CHALLENGER}': train one first")
        return found

    def anchor(self) -> ModelVersion | None:
        """The version that no champion may be much worse than, if one has been chosen."""
        return self._version(ANCHOR)

    def set_first_anchor(self, version: str) -> None:
        """Make a version the anchor where there is none."""
        if self.anchor() is None:
            self.client.set_registered_model_alias(self.name, ANCHOR, version)

    def has_lost_anchor(self) -> bool:
        """Whether there is none though there was one, whose version or alias somebody has deleted."""
        told = {one.tags.get(tag) for one in self._versions() for tag in (AGAINST, ANCHORED)}
        return self.anchor() is None and bool(told - {None, NO_ANCHOR})

    def move_anchor(self) -> tuple[str | None, str]:
        """Make the champion the anchor; gives the versions, the anchor before first.

        Raises:
            UserError: there is no champion.
        """
        champion, before = self.champion(), self.anchor()
        if champion is None:
            raise UserError(f"model={self.name} has no version with the alias '{CHAMPION}' to become the anchor")
        self.client.set_registered_model_alias(self.name, ANCHOR, str(champion.version))
        self.tag(champion, {ANCHORED: _now()})
        return None if before is None else str(before.version), str(champion.version)

    def move(self, expected: str | None, version: str) -> None:
        """Make ``version`` the champion in the place of ``expected`` (None: of nobody).

        Raises:
            Overtaken: another is the champion by now, or is just becoming it.
        """
        with self._lock(f"{self.name} (promotion under way)"):
            champion = self.champion()
            if (champion and str(champion.version)) != expected:
                raise Overtaken
            self.client.set_registered_model_alias(self.name, CHAMPION, version)

    def replace(self, champion: ModelVersion | None, challenger: ModelVersion) -> None:
        """Promote a challenger, and remember whom it replaces.

        Raises:
            Overtaken: see :meth:`move`.
        """
        before = None if champion is None else str(champion.version)
        if before is not None:
            self.tag(challenger, {PREVIOUS: before})  # first, so that there is a way back whatever happens next
        self.move(before, str(challenger.version))
        self._retire(str(challenger.version))

    def _retire(self, challenger: str) -> None:
        """Take the challenger's alias from it; a training may have given it to another meanwhile."""
        held = self._version(CHALLENGER)
        if held is not None and str(held.version) == challenger:
            self.client.delete_registered_model_alias(self.name, CHALLENGER)
        let_newest_ask(self.client, self.name)  # one that got it after the look, and lost it

    def roll_back(self) -> tuple[str, str]:
        """Make the previous champion the champion again; gives the versions, the one that goes first.

        Raises:
            UserError: there is no champion, or none before it.
            Overtaken: see :meth:`move`.
        """
        champion = self.champion()
        if champion is None:
            raise UserError(f"model={self.name} has no version with the alias '{CHAMPION}' to roll back from")
        previous = champion.tags.get(PREVIOUS)
        if previous is None:
            raise UserError(f"version {champion.version} of {self.name} replaced no other: there is none to go back to")
        if previous not in {str(one.version) for one in self._versions()}:
            raise UserError(f"version {previous} of {self.name}, which was the champion before, has been deleted")
        self.move(str(champion.version), previous)
        self.tag(champion, {"promotion.rolled_back": _now()})
        return str(champion.version), previous

    def judged_by(self, fingerprint: str, challenger: str) -> int:
        """How many versions beside a challenger were judged by the test images of this fingerprint."""
        by = [str(one.version) for one in self._versions() if one.tags.get(FINGERPRINT) == fingerprint]
        return len({*by} - {challenger})

    def tag(self, version: ModelVersion, values: Mapping[str, object]) -> None:
        """Write tags of a version."""
        for key, value in values.items():
            self.client.set_model_version_tag(self.name, str(version.version), key, str(value))

    def _versions(self) -> list[ModelVersion]:
        return [*self.client.search_model_versions(f"name = '{self.name}'")]

    def _version(self, alias: str) -> ModelVersion | None:
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(self.name).aliases
        except MlflowException as error:
            there = instead(self.client, f"models:/{self.name}")
            raise UserError(f"model={self.name} is not in the registry: {error.message}{there}") from error
        return self.client.get_model_version(self.name, aliases[alias]) if alias in aliases else None

    @contextmanager
    def _lock(self, lock: str) -> Iterator[None]:
        """One process at a time, wherever it runs: of two that create a registered model of one name, one fails.

        Raises:
            Overtaken: another holds it.
        """
        owner = uuid4().hex
        self._take(lock, owner)
        try:
            yield
        finally:
            if (held := self._held(lock)) is not None and held.description == owner:  # not taken over meanwhile
                self._remove(lock)

    def _take(self, lock: str, owner: str) -> None:
        if self._create(lock, owner):
            return
        if not self._left(lock):
            raise Overtaken
        with self._lock(f"{lock}, taken over"):  # of several that have found it left, only one may remove it
            if self._left(lock):
                self._remove(lock)
            if not self._create(lock, owner):
                raise Overtaken

    def _create(self, lock: str, owner: str) -> bool:
        """Whether there was none, and is one now."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(lock, description=owner)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", _GONE):  # one that was in the way, gone by now
                raise
            return False
        return True

    def _remove(self, lock: str) -> None:
        """Remove it; another may have done so meanwhile."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_registered_model(lock)
        except MlflowException as error:
            if error.error_code != _GONE:
                raise

    def _left(self, lock: str) -> bool:
        """Whether it is there, but so old that its owner must be gone."""
        held = self._held(lock)
        return held is not None and time.time() - held.creation_timestamp / 1000 >= _STALE_SECONDS

    def _held(self, lock: str) -> RegisteredModel | None:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_registered_model(lock)
        except MlflowException as error:
            if error.error_code != _GONE:
                raise
            return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
