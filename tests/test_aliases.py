"""The aliases of a registered model, where trainings and promotions get in each other's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from tests.mlflow_server import lay_database
from tyre_lightning.errors import UserError
from tyre_lightning.promote.aliases import AGAINST, FINGERPRINT, NO_ANCHOR, Aliases, Overtaken
from tyre_lightning.tracking.runs import connect
from tyre_lightning.tracking.versions import create_version

NAME = "raced"
LOCK = f"{NAME} (promotion under way)"
CLOCK = "mlflow.store.model_registry.sqlalchemy_store.get_current_time_millis"


@dataclass(frozen=True)
class Registry:
    """A registry, and trainings that only register something."""

    client: MlflowClient
    experiment: str

    def train(self) -> str:
        """A run that ends; gives its id."""
        run: str = self.client.create_run(self.experiment).info.run_id
        self.send(run)
        return run

    def send(self, run: str) -> str:
        """What a run sends at its end, perhaps again; gives its version."""
        return create_version(self.client, run, NAME, "model")

    def promote(self) -> str:
        """The challenger, unseen; gives its version."""
        challenger = self.gate().challenger()
        self.gate().replace(self.gate().champion(), challenger)
        return str(challenger.version)

    def gate(self) -> Aliases:
        return Aliases(self.client, NAME)

    def aliases(self) -> dict[str, str]:
        return {alias: str(version) for alias, version in self.client.get_registered_model(NAME).aliases.items()}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    lay_database(tmp_path / "registry.db")
    client = connect(f"sqlite:///{tmp_path}/registry.db")
    return Registry(client, client.create_experiment("races", artifact_location=(tmp_path / "artifacts").as_uri()))


def test_a_training_that_ends_while_the_gate_compares_stays_the_challenger(registry: Registry) -> None:
    registry.train()
    judged = registry.gate().challenger()
    registry.train()
    registry.gate().replace(None, judged)
    assert registry.aliases() == {"champion": "1", "challenger": "2"}


def test_one_that_ends_just_before_the_alias_is_deleted_gets_it_back(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.train()
    delete = registry.client.delete_registered_model_alias

    def late(name: str, alias: str) -> None:
        registry.train()
        delete(name, alias)

    monkeypatch.setattr(registry.client, "delete_registered_model_alias", late)
    registry.promote()
    assert registry.aliases() == {"champion": "1", "challenger": "2"}


def test_an_older_run_that_is_sent_again_takes_nothing_from_a_newer_one(registry: Registry) -> None:
    older = registry.train()
    registry.train()
    assert registry.send(older) == "1"
    assert registry.aliases() == {"challenger": "2"}
    registry.promote()
    registry.send(older)
    assert registry.aliases() == {"champion": "2"}


def test_of_two_that_end_at_once_the_newer_one_asks(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    write = registry.client.set_registered_model_alias

    def late(name: str, alias: str, version: str) -> None:
        monkeypatch.setattr(registry.client, "set_registered_model_alias", write)
        registry.train()
        write(name, alias, version)

    monkeypatch.setattr(registry.client, "set_registered_model_alias", late)
    registry.train()
    assert registry.aliases() == {"challenger": "2"}


def test_what_has_been_judged_does_not_ask_again(registry: Registry) -> None:
    registry.train()
    registry.promote()
    second = registry.train()
    registry.promote()
    registry.send(second)
    assert registry.aliases() == {"champion": "2"}
    registry.gate().roll_back()
    registry.send(second)
    assert registry.aliases() == {"champion": "1"}

    refused = registry.train()
    registry.gate().tag(registry.gate().challenger(), {"promotion": "not promoted"})
    registry.client.delete_registered_model_alias(NAME, "challenger")
    registry.send(refused)
    assert registry.aliases() == {"champion": "1"}


def test_of_many_that_find_a_lock_left_one_takes_it(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(CLOCK, lambda: int(1000 * (time.time() - 100)))
        registry.client.create_registered_model(LOCK)
    look, everyone, seen = Aliases._left, threading.Barrier(4), threading.local()

    def together(self: Aliases, lock: str) -> bool:
        found = look(self, lock)
        if lock == LOCK and not hasattr(seen, "before"):
            seen.before = True
            everyone.wait(60)
        return found

    def take(_: int) -> bool:
        try:
            with registry.gate()._lock(LOCK):
                while len(lost) < 3 and time.monotonic() < end:
                    time.sleep(0.05)
        except Overtaken:
            lost.append(True)
            return False
        return True

    lost: list[bool] = []
    end = time.monotonic() + 60
    monkeypatch.setattr(Aliases, "_left", together)
    with ThreadPoolExecutor(4) as pool:
        won = [*pool.map(take, range(4))]
    assert sum(won) == 1
    assert [model.name for model in registry.client.search_registered_models()] == []


def test_a_lock_that_goes_while_another_asks_for_it_is_none_of_its_own(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.client.create_registered_model(LOCK)
    look: Callable[[SqlAlchemyStore, str], RegisteredModel] = SqlAlchemyStore.get_registered_model

    def gone(self: SqlAlchemyStore, name: str) -> RegisteredModel:
        monkeypatch.undo()
        registry.client.delete_registered_model(name)  # by its owner, between the refusal and the look at the reason
        return look(self, name)

    monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", gone)
    assert not registry.gate()._create(LOCK, "late")


@pytest.mark.parametrize(("look", "time"), [("_held", 1), ("_left", 2)])
def test_a_lock_that_goes_after_a_look_at_it_is_gone(
    look: str, time: int, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, looks = getattr(Aliases, look), count(1)

    def gone(self: Aliases, lock: str) -> object:
        found = seen(self, lock)
        if lock == LOCK and next(looks) == time:
            registry.client.delete_registered_model(lock)
        return found

    registry.client.create_registered_model(LOCK)
    with monkeypatch.context() as old:
        old.setattr("tyre_lightning.promote.aliases._STALE_SECONDS", 0)
        old.setattr(Aliases, "_left", gone if look == "_left" else Aliases._left)
        lock = registry.gate()._lock(LOCK)
        lock.__enter__()
    with monkeypatch.context() as late:
        late.setattr(Aliases, "_held", gone if look == "_held" else Aliases._held)
        lock.__exit__(None, None, None)
    assert registry.gate()._held(LOCK) is None


def test_who_was_away_for_long_leaves_the_lock_of_another(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tyre_lightning.promote.aliases._STALE_SECONDS", 0)
    with registry.gate()._lock(LOCK):
        other = registry.gate()._lock(LOCK)
        other.__enter__()
        monkeypatch.undo()
    assert registry.gate()._held(LOCK) is not None
    other.__exit__(None, None, None)
    assert registry.gate()._held(LOCK) is None


def test_a_version_that_is_deleted_is_nothing_to_go_back_to(registry: Registry) -> None:
    for _ in range(2):
        registry.train()
        registry.promote()
    registry.client.delete_model_version(NAME, "1")
    with pytest.raises(UserError, match=f"version 1 of {NAME}, which was the champion before, has been deleted"):
        registry.gate().roll_back()
    assert registry.aliases() == {"champion": "2"}


@pytest.mark.parametrize("loss", ["version", "alias"])
@pytest.mark.parametrize("told", ["a comparison with it", "its move"])
def test_an_anchor_that_is_gone_is_missed(registry: Registry, loss: str, told: str) -> None:
    registry.train()
    registry.promote()
    assert not registry.gate().has_lost_anchor()
    registry.gate().set_first_anchor("1")
    registry.train()
    registry.gate().tag(registry.gate().challenger(), {AGAINST: NO_ANCHOR})
    registry.promote()
    assert not registry.gate().has_lost_anchor()
    if told == "its move":
        registry.gate().move_anchor()
        registry.gate().set_first_anchor("1")  # which it does not become
    else:
        registry.gate().tag(registry.client.get_model_version(NAME, "2"), {AGAINST: "1"})
    if loss == "alias" or told == "its move":
        registry.client.delete_registered_model_alias(NAME, "anchor")
    else:
        registry.client.delete_model_version(NAME, "1")
    assert registry.gate().has_lost_anchor()
    assert registry.gate().move_anchor() == (None, "2")
    assert not registry.gate().has_lost_anchor()


def test_how_many_others_some_images_have_judged(registry: Registry) -> None:
    for fingerprint in ("old", "new", "new", "new"):
        registry.train()
        registry.gate().tag(registry.gate().challenger(), {FINGERPRINT: fingerprint})
    assert registry.gate().judged_by("new", "4") == 2  # a version that is judged again learns nothing new
    assert registry.gate().judged_by("new", "5") == 3
    assert registry.gate().judged_by("unknown", "5") == 0
