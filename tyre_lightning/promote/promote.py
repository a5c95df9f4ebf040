"""Promotion, top to bottom: find both models, fetch the test images, compare, decide, move the alias, record."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tyre_lightning.config import PromoteConfig, to_promote_config
from tyre_lightning.errors import UserError
from tyre_lightning.lake.pinned import Pinned
from tyre_lightning.lake.pinned import load as load_pinned
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.names import mlflow_name
from tyre_lightning.promote.aliases import AGAINST, FINGERPRINT, NO_ANCHOR, Aliases, Overtaken
from tyre_lightning.promote.comparison import Performance, perform
from tyre_lightning.promote.images import fetch_test_images
from tyre_lightning.promote.rule import judge
from tyre_lightning.promote.unseen import Past
from tyre_lightning.tracking.registry import load_inspector
from tyre_lightning.tracking.runs import CATALOG, LEARNT, connect, fetch_artifact, flatten
from tyre_lightning.tracking.versions import ANCHOR, CHALLENGER, CHAMPION, ORIGIN

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

_OVERTAKEN = "another promotion has moved the champion's alias meanwhile: run again, against the new champion"


@dataclass(frozen=True)
class Outcome:
    """What was decided.

    Args:
        promoted: whether the challenger is better by the rule.
        reasons: why not; empty where it is.
        challenger: its version.
        champion: the version that it was compared with, if there was one.
        anchor: the other version that it was compared with; the champion where that is the anchor itself.
        numbers: what was measured, by ``challenger``, ``champion`` and ``anchor``, and by ``escape_bound`` how much
            more than with the latter two escapes at most.
        fingerprint: of the test images.
        images: how many of them all models were judged by.
        judged_before: how many other versions these test images have judged already; each wears them out a little.
        new_classes: of classes that the challenger knows and not all others do, by who is compared: how many tyres with
            such a defect are accepted, and how many there are. They count as all defective tyres do.
    """

    promoted: bool
    reasons: list[str]
    challenger: str
    champion: str | None
    anchor: str | None
    numbers: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    images: int = 0
    judged_before: int = 0
    new_classes: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def lines(self, model: str, *, dry_run: bool) -> list[str]:
        """For people: who was compared with whom, the numbers, and what came of it."""
        against = "no champion" if self.champion is None else f"version {self.champion}, the champion"
        if self.anchor not in (None, self.champion):
            against += f", and version {self.anchor}, the anchor"
        found = [
            f"version {self.challenger} of {model} against {against}",
            f"by {self.images} test images, which have judged {self.judged_before} other versions before",
        ]
        for who in (CHALLENGER, CHAMPION, ANCHOR):
            if who in self.numbers:
                shown = (f"{name} {value:.4g}" for name, value in self.numbers[who].items())
                found.append(f"{who}: {', '.join(shown)}")
        for name, escapes in self.new_classes.items():
            shown = (f"{who} lets {escaped} of {total} escape" for who, (escaped, total) in escapes.items())
            found.append(f"'{name}', a class that not all of them know: {', '.join(shown)}")
        if not self.promoted:
            return [*found, f"not promoted: {'; '.join(self.reasons)}"]
        return [*found, f"version {self.challenger} {'would be' if dry_run else 'is'} promoted"]


def promote(cfg: DictConfig) -> Outcome:
    """Compare the challenger with the champion, and move the alias if it is better and this is no dry run.

    Raises:
        UserError: a model or the images cannot be used, or the images are not those that the challenger was tested on.
    """
    config = to_promote_config(cfg)
    aliases = Aliases(connect(config.tracking_uri, new=False), str(config.model))
    challenger, champion = aliases.challenger(), aliases.champion()
    if champion is not None and champion.version == challenger.version:
        raise UserError(f"version {champion.version} of {config.model} is the champion already: train a challenger")
    anchor = _anchor(config, aliases, champion)
    outcome = compare(config, aliases, Versions(challenger, champion, anchor))
    if config.dry_run:
        return outcome
    if outcome.promoted:
        try:
            aliases.replace(champion, challenger)
        except Overtaken:  # nothing is recorded: the other may just have promoted this very version
            return replace(outcome, promoted=False, reasons=[_OVERTAKEN])
        aliases.set_first_anchor(str(challenger.version))
    record(aliases, challenger, outcome)
    return outcome


def _anchor(config: PromoteConfig, aliases: Aliases, champion: ModelVersion | None) -> ModelVersion | None:
    """The anchor; a champion of a registry that has never known one becomes it.

    Raises:
        UserError: it is gone; another is chosen only on purpose, or small losses could add up after all.
    """
    if (found := aliases.anchor()) is not None or champion is None:
        return found
    if aliases.has_lost_anchor():
        raise UserError(
            f"the anchor of {config.model} is gone: `python -m tyre_lightning.promote anchor model={config.model}` "
            f"makes version {champion.version}, the champion, the new one"
        )
    log.warning("%s has no anchor: version %s, the champion, becomes it", config.model, champion.version)
    if not config.dry_run:
        aliases.set_first_anchor(str(champion.version))
    return champion


@dataclass(frozen=True)
class Versions:
    """Who takes part in a comparison."""

    challenger: ModelVersion
    champion: ModelVersion | None
    anchor: ModelVersion | None

    def others(self) -> dict[str, ModelVersion]:
        """Whom the challenger is compared with, each once, by alias."""
        found = {CHAMPION: self.champion, ANCHOR: self.anchor}
        if self.champion is not None and self.anchor is not None and self.champion.version == self.anchor.version:
            del found[ANCHOR]
        return {name: version for name, version in found.items() if version is not None}


def compare(config: PromoteConfig, aliases: Aliases, versions: Versions) -> Outcome:
    """Judge all by the same test images, fetched anew.

    Raises:
        UserError: see :func:`promote`.
    """
    everyone = {CHALLENGER: versions.challenger, **versions.others()}
    inspectors = {name: _inspector(config, version) for name, version in everyone.items()}
    pinned = {name: _pinned(config, version) for name, version in everyone.items()}
    runs = {name: aliases.client.get_run(str(version.run_id)).data for name, version in everyone.items()}
    params = {name: dict(run.params) for name, run in runs.items()}
    pasts = {name: Past.of(pinned[name], params[name]) for name in everyone}
    pasts |= {
        f"weights of the {name}": Past.of(_pinned(config, version, LEARNT), params[name])
        for name, version in everyone.items()
        if ORIGIN in runs[name].tags
    }
    challenger = str(versions.challenger.version)
    test, fingerprint = fetch_test_images(config, challenger, params[CHALLENGER], pasts, inspectors[CHALLENGER])
    measured = {name: perform(inspector, test) for name, inspector in inspectors.items()}
    others = {name: measured[name] for name in versions.others()}
    reasons, bounds = judge(measured[CHALLENGER], others, config.gate)
    numbers: dict[str, Any] = {name: one.numbers() for name, one in measured.items()}
    return Outcome(
        not reasons,
        reasons,
        challenger,
        _number(versions.champion),
        _number(versions.anchor),
        numbers | ({"escape_bound": bounds} if bounds else {}),
        fingerprint,
        len(test.catalog),
        aliases.judged_by(fingerprint, challenger),
        _new_classes(inspectors, measured),
    )


def _new_classes(
    inspectors: Mapping[str, Inspector], measured: Mapping[str, Performance]
) -> dict[str, dict[str, tuple[int, int]]]:
    """See :class:`Outcome`."""
    known = [{*inspector.classes} for inspector in inspectors.values()]
    new = sorted(name for name in inspectors[CHALLENGER].classes if not all(name in classes for classes in known))
    return {name: {who: one.by_class[name] for who, one in measured.items() if name in one.by_class} for name in new}


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def move_anchor(cfg: DictConfig) -> tuple[str | None, str]:
    """Make the champion the anchor; gives the versions, the anchor before first.

    Raises:
        UserError: there is no champion.
    """
    config = to_promote_config(cfg)
    return Aliases(connect(config.tracking_uri, new=False), str(config.model)).move_anchor()


def roll_back(cfg: DictConfig) -> tuple[str, str]:
    """Return to the previous champion; gives the versions, the one that goes first.

    Raises:
        UserError: there is none.
    """
    config = to_promote_config(cfg)
    aliases = Aliases(connect(config.tracking_uri, new=False), str(config.model))
    try:
        return aliases.roll_back()
    except Overtaken as error:
        raise UserError(f"the champion of {config.model} has just changed: look at it, then run again") from error


def record(aliases: Aliases, challenger: ModelVersion, outcome: Outcome) -> None:
    """Write the decision into the challenger's tags, and all of it as an artifact of its run."""
    decision = "promoted" if outcome.promoted else "not promoted"
    aliases.tag(
        challenger,
        {
            "promotion": decision,
            "promotion.reasons": "; ".join(outcome.reasons) or "better by the rule",
            "promotion.compared_with": outcome.champion or "no champion",
            AGAINST: outcome.anchor or NO_ANCHOR,
            "promotion.test_images": outcome.images,
            FINGERPRINT: outcome.fingerprint,
            "promotion.judged_before": outcome.judged_before,
            **{
                f"promotion.new_class.{mlflow_name(name)}.{who}": f"{escaped} of {total} escape"
                for name, escapes in outcome.new_classes.items()
                for who, (escaped, total) in escapes.items()
            },
            **{name: f"{value:.6g}" for name, value in flatten({"promotion": outcome.numbers})},
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"version-{outcome.challenger}-against-{outcome.champion or 'floors'}.json")
        content = {"decision": decision, **vars(outcome)}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        aliases.client.log_artifact(challenger.run_id, str(path), "promotion")


def _inspector(config: PromoteConfig, version: ModelVersion) -> Inspector:
    found = load_inspector(f"models:/{config.model}/{version.version}", config.tracking_uri)
    if found.point is None:
        raise UserError(
            f"version {version.version} of {config.model} has no operating point, so that it decides nothing: train "
            "with a promise that the validation images can keep (operating_point.max_escape_rate=...)"
        )
    return found


def _pinned(config: PromoteConfig, version: ModelVersion, name: str = CATALOG) -> Pinned:
    """What a version's run was trained and tested on, by one of its artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        path = fetch_artifact(connect(config.tracking_uri, new=False), str(version.run_id), name, folder)
        return load_pinned(str(path), config.s3)
