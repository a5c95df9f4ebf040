"""The gate: only a better model passes, one at a time, and there is a way back."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from numpy.typing import NDArray
from omegaconf import DictConfig

from tests.conftest import Trained, run_script
from tests.mlflow_server import lay_database
from tests.test_formats import OF_PICTURES, OLD, unpacked
from tyre_lightning.config import LoggerConfig, OperatingPointConfig, config_folder, register_schemas
from tyre_lightning.decision.operating_point import OperatingPoint
from tyre_lightning.errors import UserError
from tyre_lightning.model.inspector import SPEC_FILE, WEIGHTS_FILE, Inspector
from tyre_lightning.promote.aliases import Aliases, Overtaken
from tyre_lightning.promote.promote import Outcome, move_anchor, promote, roll_back
from tyre_lightning.tracking.registry import register
from tyre_lightning.tracking.runs import CATALOG, connect, tracked_run

NAME = "gated"
EVERYTHING, NOTHING = 1.1, 0.0  # thresholds below which a tyre is accepted
LOW = ("gate.margin=0.3", "gate.max_escape_rate=0.999", "gate.min_f1=0.01")  # as good as the demo's model is

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Registry:
    """A registry of its own, with runs that saw the lake of ``trained``."""

    uri: str
    client: MlflowClient
    experiment: str
    inspector: Inspector
    catalog: Path
    trained: Trained

    def add(self, threshold: float, reject_from: float | None = None, catalog: Path | None = None) -> str:
        """Train, so to speak: register the same weights with another operating point, as the challenger."""
        point = OperatingPoint(threshold, reject_from or threshold, OperatingPointConfig(0.2, 0.9))
        config = LoggerConfig(self.uri, "gate", registered_model=NAME, system_metrics=False)
        with tempfile.TemporaryDirectory() as folder, tracked_run(config, Path(folder), "drawn", {}) as run:
            run.log_params({"data": {"usage": {"test": "test"}, "group_pattern": None}})
            run.log_file(catalog or self.catalog)
            register(run, replace(self.inspector, point=point))
        assert run.version is not None
        return run.version

    def promote(self, *overrides: str) -> Outcome:
        """The gate, in this process; the lake's folder in the place of its bucket."""
        return promote(config(self, *overrides))

    def champion(self) -> str | None:
        return aliases(self.uri, NAME).get("champion")

    def version(self, number: str) -> ModelVersion:
        return self.client.get_model_version(NAME, number)

    def best(self) -> float:
        """The lowest threshold that accepts every good test tyre; it catches a defective one, which the tests need."""
        good, bad = self.scores()
        found = float(good.max() * (1 + 1e-6))
        assert (bad >= found).any()
        return found

    def accepting(self, count: int) -> float:
        """A threshold that accepts so many of the defective test tyres."""
        return float(np.sort(self.scores()[1])[count] * (1 - 1e-6))

    def scores(self) -> tuple[Floats, Floats]:
        """P(defective) of the good test tyres, and of the defective ones."""
        files = sorted(self.trained.local.glob("test/*/*.jpg"))
        images = [self.inspector.read(path.read_bytes(), path.name) for path in files]
        defective = 1 - self.inspector.probabilities(images)[:, self.inspector.classes.index("good")]
        good = np.array([path.parent.name == "good" for path in files])
        return defective[good], defective[~good]


def aliases(uri: str, name: str) -> dict[str, str]:
    """The versions of a registered model by alias."""
    found = MlflowClient(uri).get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def config(registry: Registry, *overrides: str) -> DictConfig:
    register_schemas()
    base = [f"model={NAME}", f"tracking_uri={registry.uri}", f"root={registry.trained.local}", *LOW]
    with initialize_config_dir(str(config_folder("promote")), version_base="1.3"):
        return compose("promote", overrides=[*base, *overrides])


@pytest.fixture
def registry(trained: Trained, tmp_path: Path) -> Registry:
    client = MlflowClient(trained.tracking_uri)
    run = client.get_model_version("tyre-demo", "1").run_id
    catalog = Path(client.download_artifacts(str(run), CATALOG, str(tmp_path)))
    checkpoint = next(trained.folder.glob("outputs/train/*/checkpoints/best.ckpt"))
    lay_database(tmp_path / "registry.db")
    own = connect(uri := f"sqlite:///{tmp_path}/registry.db")
    experiment = own.create_experiment("gate", artifact_location=(tmp_path / "artifacts").as_uri())
    return Registry(uri, own, experiment, Inspector.from_checkpoint(checkpoint), catalog, trained)


def test_training_makes_a_challenger(trained: Trained) -> None:
    versions = MlflowClient(trained.tracking_uri).search_model_versions("name='tyre-demo'")
    newest = max(versions, key=lambda version: int(version.version))
    assert aliases(trained.tracking_uri, "tyre-demo") == {"challenger": str(newest.version)}


@pytest.mark.long
def test_only_a_better_model_passes(registry: Registry) -> None:
    registry.add(EVERYTHING)
    refused = registry.promote("gate.max_escape_rate=0.1")
    assert not refused.promoted and refused.champion is None
    assert "its escape rate is 1.0000, and gate.max_escape_rate=0.1" in refused.reasons
    assert registry.champion() is None

    first = registry.add(threshold := registry.best())
    tried = registry.promote("dry_run=true")
    assert tried.promoted and registry.champion() is None
    assert registry.promote().promoted
    assert aliases(registry.uri, NAME) == {"champion": first, "anchor": first}

    registry.add(threshold)
    equal = registry.promote()
    assert equal.reasons == ["none of its escape, overkill and review rates is lower than the champion's"]
    worse = registry.add(EVERYTHING)
    outcome = registry.promote("gate.margin=0.2")
    assert len(outcome.reasons) == 3 and "its escape rate is 1.0000 against the champion's" in outcome.reasons[1]
    assert outcome.reasons[0] == "its escape rate is 1.0000, and gate.max_escape_rate=0.999"
    with pytest.raises(UserError, match=r"the 15 defective tyres .*prove gate\.margin=0\.03.*takes 76.*margin=0\.143"):
        registry.promote("gate.margin=0.03")
    registry.add(NOTHING)
    assert any("its overkill rate is 1.0000 against 0.0000" in reason for reason in registry.promote().reasons)
    registry.add(NOTHING, EVERYTHING)
    assert any("its review rate is 1.0000 against 0.0000" in reason for reason in registry.promote().reasons)
    assert registry.champion() == first

    tags = registry.version(worse).tags
    assert tags["promotion"] == "not promoted" and tags["promotion.compared_with"] == first
    assert tags["promotion.anchor"] == first and tags["promotion.judged_before"] == str(outcome.judged_before) == "3"
    assert tags["promotion.reasons"] == "; ".join(outcome.reasons)
    assert float(tags["promotion.challenger.escape_rate"]) == 1
    assert float(tags["promotion.escape_bound.champion"]) == pytest.approx(
        outcome.numbers["escape_bound"]["champion"], 1e-4
    )
    run = registry.version(worse).run_id
    found = registry.client.download_artifacts(str(run), f"promotion/version-{worse}-against-{first}.json")
    assert (recorded := json.loads(Path(found).read_text()))["numbers"]["champion"]["overkill_rate"] == 0
    assert recorded["judged_before"] == 3


def test_a_better_challenger_replaces_the_champion_and_there_is_a_way_back(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    first = registry.add(EVERYTHING)
    registry.client.set_registered_model_alias(NAME, "champion", first)
    second = registry.add(registry.best())
    better = registry.promote()
    assert better.promoted and not better.reasons and better.images == 20
    assert better.numbers["challenger"]["escape_rate"] < better.numbers["champion"]["escape_rate"] == 1
    assert better.numbers["escape_bound"]["champion"] < 0.3
    assert aliases(registry.uri, NAME) == {"champion": second, "anchor": first}
    assert f"gated has no anchor: version {first}, the champion, becomes it" in caplog.text
    assert registry.version(second).tags["promotion"] == "promoted"

    assert roll_back(config(registry)) == (second, first)
    assert registry.champion() == first
    with pytest.raises(UserError, match=f"version {first} of gated replaced no other"):
        roll_back(config(registry))


@pytest.mark.long
def test_small_losses_do_not_add_up(registry: Registry) -> None:
    """Each accepts one more defective tyre than the one before, and leaves fewer to people."""
    with pytest.raises(UserError, match="model=gated is not in the registry"):
        move_anchor(config(registry))
    first = registry.add(NOTHING, EVERYTHING)
    with pytest.raises(UserError, match="no version with the alias 'champion' to become the anchor"):
        move_anchor(config(registry))
    assert registry.promote().promoted
    second = registry.add(registry.accepting(1), EVERYTHING)
    assert registry.promote().promoted
    third = registry.add(registry.accepting(2), EVERYTHING)
    worn = registry.promote()
    assert (worn.champion, worn.anchor, len(worn.reasons)) == (second, first, 1)
    assert "its escape rate is 0.1333 against the anchor's 0.0000" in worn.reasons[0]
    assert worn.numbers["escape_bound"]["champion"] < 0.3 < worn.numbers["escape_bound"]["anchor"]
    assert registry.version(third).tags["promotion.anchor"] == first

    assert move_anchor(config(registry)) == (first, second)
    assert registry.promote().promoted
    assert aliases(registry.uri, NAME) == {"champion": third, "anchor": second}


def test_a_model_of_format_1_stands_as_champion(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = registry.add(EVERYTHING, catalog=OLD / "catalog.parquet")
    (folder,) = (tmp_path / "artifacts").rglob("inspector")
    unpacked(WEIGHTS_FILE, folder)
    shutil.copy(OLD / SPEC_FILE, folder)
    registry.client.set_registered_model_alias(NAME, "champion", old)
    new = registry.add(registry.best())
    found = registry.promote("gate.margin=0.9")
    assert (found.champion, found.challenger, found.images) == (old, new, 20)
    assert found.numbers["champion"]["review_rate"] == 0
    assert OF_PICTURES in caplog.text


def test_what_cannot_be_compared_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model=gated is not in the registry"):
        registry.promote()
    registry.add(registry.best())
    other = tmp_path / "v1"
    for path in registry.trained.local.glob("test/*/*.jpg"):
        copy = other / path.relative_to(registry.trained.local)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    registry.promote(f"root={other}", "dry_run=true")
    next(other.glob("test/crack/*.jpg")).unlink()
    with pytest.raises(UserError, match=r"the test images in .*v1 are not those that version 1 was tested on"):
        registry.promote(f"root={other}")
    registry.client.set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(UserError, match="version 1 of gated is the champion already"):
        registry.promote()
    registry.client.delete_registered_model_alias(NAME, "challenger")
    with pytest.raises(UserError, match="has no version with the alias 'challenger'"):
        registry.promote()


def test_two_at_once_cannot_both_win(registry: Registry) -> None:
    versions = [registry.version(registry.add(0.5)) for _ in range(6)]
    gate = Aliases(registry.client, NAME)
    registry.client.set_registered_model_alias(NAME, "champion", str(versions[0].version))
    champion = gate.champion()

    def win(challenger: ModelVersion) -> bool:
        try:
            gate.move(str(champion.version) if champion else None, str(challenger.version))
        except Overtaken:
            return False
        return True

    with ThreadPoolExecutor(5) as pool:
        won = [*pool.map(win, versions[1:])]
    assert sum(won) == 1
    assert registry.champion() == str(versions[1 + won.index(True)].version)
    assert [model.name for model in registry.client.search_registered_models()] == [NAME]


def test_a_lock_that_its_owner_left_is_taken(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = registry.add(0.5), registry.add(0.5)
    registry.client.set_registered_model_alias(NAME, "champion", first)
    registry.client.create_registered_model(f"{NAME} (promotion under way)")
    gate = Aliases(registry.client, NAME)
    with pytest.raises(Overtaken):
        gate.move(first, second)
    monkeypatch.setattr("tyre_lightning.promote.aliases._STALE_SECONDS", -1)
    gate.move(first, second)
    assert registry.champion() == second


@pytest.fixture
def command(registry: Registry) -> Callable[..., subprocess.CompletedProcess[str]]:
    base = (f"model={NAME}", f"tracking_uri={registry.uri}", f"root={registry.trained.local}")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        call, environment = ("-m", "tyre_lightning.promote", *arguments, *base), registry.trained.environment
        return run_script(*call, cwd=registry.catalog.parent, environment=environment)

    return run


@pytest.mark.long
def test_exit_codes_fit_a_pipeline(
    registry: Registry, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command("rollback")
    assert done.returncode == 2 and done.stderr.startswith("error: model=gated is not in the registry")
    assert command("gate.margni=0.1").returncode == 2
    registry.add(EVERYTHING)
    refused = command("--dry-run")
    assert refused.returncode == 4 and "not promoted: its escape rate is 1.0000" in refused.stdout, refused.stderr
    done = command("gate.max_escape_rate=0.9999", "gate.min_f1=0.01", "gate.max_overkill_rate=0.99", "gate.margin=0.9")
    assert done.returncode == 4
    registry.add(registry.best())
    done = command("gate.max_escape_rate=0.9999", "gate.min_f1=0.001")
    assert done.returncode == 0 and "version 2 is promoted" in done.stdout, done.stdout + done.stderr
    done = command("anchor")
    assert done.returncode == 0 and "version 2 of gated is the anchor" in done.stdout, done.stdout + done.stderr
