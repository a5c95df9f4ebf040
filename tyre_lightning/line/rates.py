"""Whether the line keeps its promise today: answers joined to queues give its escape rate and its overkill rate."""

from __future__ import annotations

import glob
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from omegaconf import DictConfig

from tyre_lightning.config import RatesConfig, to_rates_config
from tyre_lightning.decision.audit_sample import Audit, Rate, alarm_level, escape_rate, overkill_rate
from tyre_lightning.errors import UserError
from tyre_lightning.line.answers import DEFECTIVE, DISAGREED, GOOD, NEITHER, UNTOLD, read_answers
from tyre_lightning.line.queue import AUDITED, LEARN, REJECTS, Queue
from tyre_lightning.names import one_form
from tyre_lightning.tracking.line import log_window

WAITING = "waiting"  # nobody has answered yet
LEVEL = 0.05  # of lines that keep their promise no more ever alarm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rates:
    """What the answers say.

    Args:
        week: escape and overkill rate of the newest window.
        together: of all windows of its model.
        windows: how many these are.
        answered: tyres of the newest window, drawn with a known probability, by what was said of them.
        level: the least level at which the promise is found broken, see ``alarm_level``.
        promised: the escape rate.
        confidence: of the intervals.
        time: of the newest window.
        model: its URI, if it is known.
    """

    week: tuple[Rate, Rate]
    together: tuple[Rate, Rate]
    windows: int
    answered: Mapping[str, int]
    level: float
    promised: float
    confidence: float
    time: str
    model: str | None

    @property
    def broken(self) -> bool:
        """Whether the promise probably is."""
        return self.level <= LEVEL

    def lines(self) -> Iterator[str]:
        """For people."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.answered.items() if count)
        yield f"window of {self.time}: {counts}"
        if untold := sum(self.answered.get(kind, 0) for kind in (UNTOLD, DISAGREED, WAITING)):
            yield f"  {untold} of which it is not known: each end of an interval takes them for the worse"
        every = f"all {self.windows} windows of this model"
        for name, found in (("this window", self.week), *(((every, self.together),) if self.windows > 1 else ())):
            escape, overkill = found
            yield f"{name}, with a confidence of {self.confidence:g}"
            yield f"  escape rate    {_shown(escape)}; promised: at most {self.promised:.1%}"
            yield f"  overkill rate  {_shown(overkill)}"
        if self.broken:
            yield (
                f"the promise is probably broken: of lines that keep it no more than {_percent(self.level)} would ever "
                "show this"
            )
        else:
            yield f"nothing proves that the promise is broken (level {self.level:.2g}, alarm at {LEVEL:g})"

    def metrics(self) -> dict[str, float]:
        """For MLflow; what is not known is left out."""
        found: dict[str, float] = {"line/alarm_level": self.level, "line/promised_escape_rate": self.promised}
        for where, rates in (("window", self.week), ("all", self.together)):
            for name, rate in zip(("escape_rate", "overkill_rate"), rates, strict=True):
                ends = {"": rate.share, "_low": rate.low, "_high": rate.high}
                found |= {f"line/{where}_{name}{end}": float(value) for end, value in ends.items()}
        found |= {f"line/tyres_{kind.replace(' ', '_')}": float(count) for kind, count in self.answered.items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}


def measure(cfg: DictConfig) -> Rates:
    """Read queues and answers, and record the newest window in MLflow.

    Raises:
        UserError: a queue or an answer cannot be used.
    """
    config = to_rates_config(cfg)
    queues = read_queues(str(config.queue))
    newest = queues[-1]
    mine = [queue for queue in queues if queue.model == newest.model]
    if len(mine) < len(queues):
        log.warning("%d queues of other models than %s are left out", len(queues) - len(mine), newest.model)
    said = read_answers(config.answers, newest.good_class, config.s3)
    audits = [audit_of(queue, said) for queue in mine]
    promised = newest.max_escape_rate if config.max_escape_rate is None else config.max_escape_rate
    everything = Audit.together(audits)
    found = Rates(
        _both(audits[-1], config.confidence),
        _both(everything, config.confidence),
        len(mine),
        Counter(_kinds(newest, said)),
        float(alarm_level(audits, promised)[-1]),
        promised,
        config.confidence,
        newest.time,
        newest.model,
    )
    _record(config, found)
    return found


def read_queues(address: str) -> list[Queue]:
    """The queues that a path or a glob names, by their time.

    Raises:
        UserError: there is none, or one of them is none.
    """
    if not (paths := sorted(glob.glob(address, recursive=True))):
        raise UserError(f"queue={address} is no file, and no glob with a match: give what tyre select wrote")
    found = sorted((Queue.read(path) for path in paths), key=lambda queue: queue.time)
    for before, after in pairwise(found):
        if (before.time, before.source) == (after.time, after.source):
            raise UserError(f"queue={address} names two queues of the window {after.source}: leave one out")
    return found


def audit_of(queue: Queue, said: Mapping[str, str]) -> Audit:
    """What was found of a window's sample."""
    names, strata = [*queue.strata], [*queue.strata.values()]
    counts = Counter(zip(_strata(queue), _kinds(queue, said), strict=True))
    found = [np.array([counts[name, kind] for name in names]) for kind in (DEFECTIVE, GOOD, NEITHER)]
    return Audit(
        np.array([one.why == AUDITED for one in strata]),
        np.array([one.why == REJECTS for one in strata]),
        np.array([one.total for one in strata]),
        np.array([one.drawn for one in strata]),
        *found,
    )


def _sampled(queue: Queue) -> Sequence[tuple[str, str]]:
    """The tyres that were drawn with a known probability, each once, with their strata."""
    rows = queue.pictures[queue.pictures["why"] != LEARN].drop_duplicates("tyre")
    return [*zip(rows["tyre"], rows["stratum"], strict=True)]


def _strata(queue: Queue) -> list[str]:
    return [stratum for _, stratum in _sampled(queue)]


def _kinds(queue: Queue, said: Mapping[str, str]) -> list[str]:
    return [said.get(one_form(tyre), WAITING) for tyre, _ in _sampled(queue)]


def _both(audit: Audit, confidence: float) -> tuple[Rate, Rate]:
    return escape_rate(audit, confidence), overkill_rate(audit, confidence)


def _shown(rate: Rate) -> str:
    share = "not known" if math.isnan(rate.share) else _percent(float(rate.share))
    return f"{share} ({_percent(float(rate.low))} to {_percent(float(rate.high))})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _record(config: RatesConfig, found: Rates) -> None:
    """A row of MLflow's experiment; without a server the rates are told all the same."""
    if config.tracking_uri is None:
        return
    try:
        log_window(
            config.tracking_uri, config.mlflow_experiment, "rates", found.time, found.metrics(), {"model": found.model}
        )
    except UserError as error:
        log.warning("the rates are not in MLflow: %s", error)
