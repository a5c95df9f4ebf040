"""Where the line decides: from a promised escape rate to a threshold on P(defective).

The threshold is chosen on calibration tyres (the validation split). A defective tyre escapes where its P(defective)
is below the threshold. Of n defective tyres let k lie below a threshold: the true escape rate is then at most the
Clopper-Pearson upper bound of k in n with the wanted confidence (Clopper and Pearson, Biometrika 26, 1934). Escapes
only grow with the threshold, so that thresholds may be tested from the lowest up and the last that passes be taken
without a correction for trying many (fixed-sequence testing, as in Angelopoulos et al., Learn then Test,
arXiv:2110.01052). The bound needs tyres at the line that are like the calibration tyres, with as many pictures, drawn
independently; each tyre counts once, however many pictures there are of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.decision.bounds import Interval, Promise, interval, least_rate
from tyre_lightning.decision.calibration import Floats
from tyre_lightning.decision.novelty import NOBODY, Scale, is_novel
from tyre_lightning.decision.tyres import Tyres
from tyre_lightning.errors import UserError

KEPT = 10_000  # of the lowest and highest scores; a promise that needs more of them is made from these, more strictly
ACCEPT, REVIEW, REJECT = "accept", "review", "reject"
JUDGEMENT = "judgement"  # under which a model's files keep what decides
_HAIR = 1e-6  # by which a threshold lies below a score, so that rounding makes no escape of it, and distances shrink


@dataclass(frozen=True)
class OperatingPoint:
    """Three decisions on P(defective): below ``threshold`` accept, from ``reject_from`` on reject, review between.

    Without a review band both are the same.

    Args:
        threshold: of what is accepted.
        reject_from: of what is rejected.
        promised: what follows from them.
        novel_rate: what looks so unlike good tyres as no larger share of them does is not accepted but reviewed; None:
            nothing is.
    """

    threshold: float
    reject_from: float
    promised: OperatingPointConfig
    novel_rate: float | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OperatingPoint:
        """The inverse of :meth:`to_dict`."""
        promised = {"max_novel_rate": None, **values["promised"]}  # models of format 2 know no novelty
        return cls(
            values["threshold"], values["reject_from"], OperatingPointConfig(**promised), values.get("novel_rate")
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for checkpoints."""
        return asdict(self)

    def sentence(self) -> str:
        """What is promised, and by which threshold."""
        rate, confidence = self.promised.max_escape_rate, self.promised.confidence
        limit = f"at most {rate:.3g} of defective tyres escape, with a confidence of {confidence:.3g}"
        return f"{limit}: P(defective) below {self.threshold:.4g}"

    def decide(self, defective: float, novelty: float | None = None) -> str:
        """The decision on a P(defective) and a novelty, if that is known; no number is for a person to see."""
        if defective < self.threshold:
            return REVIEW if self.is_novel(novelty) else ACCEPT
        return REJECT if defective >= self.reject_from else REVIEW

    def is_novel(self, novelty: float | None) -> bool:
        """Whether so few good tyres look so unlike the others that a person should see it."""
        return novelty is not None and bool(is_novel(np.array(novelty), self.novel_rate))


@dataclass(frozen=True)
class Calibration:
    """What calibration tyres say: a temperature, how defective and good tyres score, and how often they were pictured.

    Args:
        temperature: that logits are divided by.
        defective: the lowest P(defective) of defective tyres, ascending, at most ``KEPT``.
        defective_total: how many defective tyres there were.
        good: the highest P(defective) of good tyres, descending, at most ``KEPT``.
        good_total: how many good tyres there were.
        least_pictures: of any of these tyres.
        mean_pictures: of all of them.
        farthest: the largest distances (see :mod:`tyre_lightning.decision.novelty`) of good tyres, descending, at most
            ``KEPT``.
        measured: of how many good tyres a distance is known.
        tail: the farthest of these and of good tyres of training together, see :class:`Scale`; descending.
        learnt_total: how many of training were asked.
        offsets: that are added to logits before they are divided, one a class; none: nothing is.
    """

    temperature: float
    defective: list[float]
    defective_total: int
    good: list[float]
    good_total: int
    least_pictures: int = 1
    mean_pictures: float = 1.0
    farthest: list[float] = field(default_factory=list)
    measured: int = 0
    tail: list[float] = field(default_factory=list)
    learnt_total: int = 0
    offsets: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, tyres: Tyres, good: int, temperature: float, learnt: Floats = NOBODY) -> Calibration:
        """From calibration tyres; those are left out of which a picture is unreadable or its score no number.

        The line neither accepts nor rejects them.

        Args:
            tyres: each counts once.
            good: the index of the class without a defect.
            temperature: by which their scores were made.
            learnt: distances of good tyres of training, see :func:`tyre_lightning.decision.novelty.left_out`.
        """
        whole = tyres.take(tyres.whole & ~np.isnan(tyres.scores))
        bad, fine = whole.scores[whole.labels != good], whole.scores[whole.labels == good]
        least, mean = (int(whole.pictures.min()), float(whole.pictures.mean())) if len(whole) else (1, 1.0)
        low, high = np.sort(bad)[:KEPT].tolist(), np.sort(fine)[::-1][:KEPT].tolist()
        unlike = whole.distances[(whole.labels == good) & ~np.isnan(whole.distances)]
        scale = Scale.of(unlike, learnt)
        far, tail = scale.farthest[:KEPT].tolist(), scale.tail.tolist()
        told = far, scale.total, tail, scale.learnt_total
        return cls(temperature, low, len(bad), high, len(fine), least, mean, *told)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """The inverse of :meth:`to_dict`; of what older formats hold, what is known still."""
        known = {item.name for item in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        if "learnt" in values:  # format 4: of training's, those beyond the second of these; they are a shorter tail
            tail = [*kept["farthest"][:2], *values["learnt"]]
            kept["tail"] = sorted(tail, reverse=True) if kept["learnt_total"] else []
        return cls(**kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def operating_point(self, wanted: OperatingPointConfig) -> OperatingPoint:
        """The highest threshold that keeps a promise.

        Raises:
            UserError: there are too few calibration tyres to promise it; says how many are needed.
        """
        promise = Promise(wanted.max_escape_rate, wanted.confidence)
        escapes = promise.allowed(self.defective_total)
        if escapes < 0:
            raise UserError(_too_few("escape", "defective", promise, self.defective_total))
        threshold = self.defective[min(escapes, len(self.defective) - 1)] * (1 - _HAIR)
        novel = None if wanted.max_novel_rate is None else self.scale.rate(wanted.max_novel_rate)
        if wanted.max_overkill_rate is None:
            return OperatingPoint(threshold, threshold, wanted, novel)
        other = Promise(wanted.max_overkill_rate, wanted.confidence)
        overkills = other.allowed(self.good_total)
        if overkills < 0:
            raise UserError(_too_few("overkill", "good", other, self.good_total))
        reject_from = self.good[min(overkills, len(self.good) - 1)] * (1 + _HAIR)
        return OperatingPoint(threshold, max(threshold, reject_from), wanted, novel)

    def novelty(self, distances: Floats) -> Floats:
        """Of good tyres a share of at most this is as unlike the others, for distances of shape (N,); else NaN.

        A distance that differs from a calibration tyre's by rounding alone, as with the number of images in a batch, is
        the same distance.
        """
        return self.scale.p_values(distances * (1 - _HAIR)) if self.measured else np.full(len(distances), np.nan)

    @cached_property
    def scale(self) -> Scale:
        """What distances mean."""
        return Scale(np.array(self.farthest), self.measured, np.array(self.tail), self.learnt_total)

    def doubt(self, pictures: int, unreadable: int) -> str | None:
        """Why a tyre is for a person to review whatever its score; None where it is not.

        The highest of four scores is lower than the highest of eight: a tyre that was seen less often than those by
        which the threshold was chosen would escape more often than promised.
        """
        if unreadable:
            return f"{unreadable} of its {_pictures(pictures + unreadable)} cannot be read"
        if pictures < self.least_pictures:
            return f"it has {_pictures(pictures)}, and the validation tyres had at least {self.least_pictures}"
        return None


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


def _too_few(rate: str, kind: str, promise: Promise, count: int) -> str:
    key = f"operating_point.max_{rate}_rate"
    least = least_rate(promise.confidence, count)
    way_out = f" or give {key}={least:g}" if least <= 0.5 else ""
    return (
        f"{key}={promise.rate:g} with a confidence of {promise.confidence:g} cannot be promised: it takes "
        f"{promise.needed()} {kind} validation tyres, and there are {count}: add tyres{way_out}"
    )


@dataclass(frozen=True)
class Rates:
    """What an operating point does to tyres whose truth is known; intervals are two-sided, see ``interval_ends``."""

    escape: Interval  # of defective tyres
    overkill: Interval  # of good tyres; with a review band, those rejected outright
    review: Interval  # of all tyres
    escape_by_class: dict[str, Interval]  # of each defect
    novel: Interval  # of good tyres; those reviewed only because they are unlike the others
    novel_rate: float | None = None  # the promised one


def decisions(point: OperatingPoint, tyres: Tyres, calibration: Calibration) -> NDArray[np.object_]:
    """The decision on each tyre, shape (T,); see :meth:`Calibration.doubt` for those that are reviewed anyway."""
    found = np.full(len(tyres), REVIEW, dtype=object)
    found[tyres.scores < point.threshold] = ACCEPT
    found[tyres.scores >= point.reject_from] = REJECT
    found[doubtful(tyres, calibration) | reviewed_as_novel(point, tyres, calibration)] = REVIEW
    return found


def doubtful(tyres: Tyres, calibration: Calibration) -> NDArray[np.bool_]:
    """Which tyres are for a person whatever they show, shape (T,); see :meth:`Calibration.doubt`."""
    return np.asarray(~tyres.whole | (tyres.pictures < calibration.least_pictures))


def reviewed_as_novel(point: OperatingPoint, tyres: Tyres, calibration: Calibration) -> NDArray[np.bool_]:
    """Which tyres would be accepted if they looked less unlike the good ones of training, shape (T,)."""
    novel = is_novel(calibration.novelty(tyres.distances), point.novel_rate)
    return np.asarray(novel & (tyres.scores < point.threshold) & ~doubtful(tyres, calibration))


def measure_rates(
    point: OperatingPoint, tyres: Tyres, calibration: Calibration, classes: Sequence[str], good_class: str
) -> Rates:
    """Escape, overkill and review rates.

    Args:
        point: the operating point.
        tyres: each counts once.
        calibration: says which tyres are reviewed whatever their score.
        classes: class names in index order.
        good_class: the class of tyres without a defect.
    """
    confidence = point.promised.confidence
    good = tyres.labels == classes.index(good_class)
    decided = decisions(point, tyres, calibration)
    by_class = {
        name: interval((decided == ACCEPT)[tyres.showing(index)], confidence)
        for index, name in enumerate(classes)
        if name != good_class and tyres.showing(index).any()
    }
    escape, overkill = (decided == ACCEPT)[~good], (decided == REJECT)[good]
    return Rates(
        interval(escape, confidence),
        interval(overkill, confidence),
        interval(decided == REVIEW, confidence),
        by_class,
        interval(reviewed_as_novel(point, tyres, calibration)[good], confidence),
        point.novel_rate,
    )
