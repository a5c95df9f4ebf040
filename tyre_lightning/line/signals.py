"""What a window of the line is compared in: signals, the effect that each must have to matter, and what to check.

Outputs (Rabanser et al., Failing Loudly, arXiv:1810.11953), features per predicted class (as Greco et al. do,
DriftLens, arXiv:2406.17813; here the distance from what good tyres look like), novelty, and the looks of pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.data.traits import SIDES
from tyre_lightning.decision.novelty import is_novel
from tyre_lightning.decision.operating_point import ACCEPT, REJECT, REVIEW
from tyre_lightning.decision.sample import Sample
from tyre_lightning.decision.shift import FEWEST, compare
from tyre_lightning.model.inspector import NOVELTY, Inspector

Floats = NDArray[np.float64]

OUTPUTS, FEATURES, LOOKS = "outputs", "features", "looks"  # kinds of signals, beside novelty
LEAST_MEAN = 0.2  # standard deviations of the baseline's tyres: a small effect (Cohen, 1988)
LEAST_SHARE = 0.01  # a point; of a share below two points the half of it ...
LEAST_RARE = 0.002  # ... but not less than this
LEAST_SPREAD = 0.05  # of the distribution of P(defective): 5 points, at some decile
GREY_LEVEL = 1.0  # looks of pictures that hardly differ are not judged more closely than a level of 255
_SIZE = 0.05  # a width or height that differs by 1 % has not shifted
_FAR = 0.1  # likewise a distance by 2 %
_DECILES = np.arange(0.1, 0.95, 0.1)

CHECKS = {
    "brightness": "the lamp, and whatever shades it; then the camera's exposure",
    "contrast": "the lamp's angle, haze or dirt on the lens, the camera's exposure",
    "colour": "the camera's white balance, the lamp's colour, light from elsewhere",
    "sharpness": "the focus, dirt on the lens, vibration; then how strongly the camera compresses",
    "border": "the light, if the brightness has shifted too; else where the camera stands and what is behind tyres",
    "size": "the camera's settings: pictures come in another size",
    "unreadable": "the camera's disk and the way of its files: some arrive damaged",
    "pictures of a tyre": "whether a camera or its trigger is off: tyres are seen more or less often than before",
    "novel": "tyres that look unlike all good ones: a new product, dirt, or a defect that the model never saw",
    "distance": "a new product, a new mould or dirt: the network sees something else in the same class",
    "share": "whether the line makes more or fewer of these; if pictures look different too, mend that first",
    "decision": "the tyres that are decided on differently; if pictures look different too, mend that first",
    "P(defective)": "the most shifted tyres; if pictures look different too, mend that first",
}


@dataclass(frozen=True)
class Signal:
    """C columns of M tyres of the baseline and N of the window, which shift together or not at all.

    Args:
        name: of the signal.
        kind: one of four.
        columns: their names, C.
        before: [M, C]; NaN where nothing is known of a tyre.
        after: [N, C].
        least: the smallest effect that matters.
        share: whether columns hold 0 and 1: effects are differences of shares, else in standard deviations.
        floor: the smallest standard deviation to measure an effect by, in the columns' unit.
        log: whether columns hold logarithms.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    before: Floats
    after: Floats
    least: float
    share: bool = False
    floor: float = 0.0
    log: bool = False


@dataclass(frozen=True)
class Reading:
    """What a signal came to, by the column that says most.

    Args:
        signal: its name.
        kind: its kind.
        column: the name of the column.
        share: whether ``before``, ``after``, ``effect`` and ``threshold`` are shares.
        before: the mean of the baseline.
        after: of the window.
        effect: the difference, of shares or in standard deviations of the baseline's tyres.
        threshold: from which effect on, about, it alarms.
        score: in standard errors, see :func:`compare`.
        chance: of some signal with such a score in a clean window.
        shifted: the verdict.
        towards: the window's tyres by how far they lie in the direction of the shift, the farthest first.
    """

    signal: str
    kind: str
    column: str
    share: bool
    before: float
    after: float
    effect: float
    threshold: float
    score: float
    chance: float
    shifted: bool
    towards: NDArray[np.int64]

    @property
    def check(self) -> str:
        """What a person should look at first."""
        return next(text for name, text in CHECKS.items() if self.signal.startswith(name))

    def sentence(self) -> str:
        """For a terminal: what has shifted, from where to where, and what to check."""
        if self.share:
            moved = f"{self.before:.1%} to {self.after:.1%} of tyres"
        else:
            moved = f"{self.before:.4g} to {self.after:.4g}, {self.effect:+.2g} standard deviations"
        column = "" if self.column == self.signal else f" ({self.column})"
        return f"{self.signal}{column}: {moved}; check {self.check}"


def read_signals(
    baseline: Sample, window: Sample, inspector: Inspector, *, accepted: bool, among: int = 1
) -> list[Reading]:
    """Compare a window with a baseline in all signals that both know.

    Args:
        baseline: tyres of the line that a person has accepted, or good ones of validation.
        window: tyres of the line.
        inspector: the model that saw both.
        accepted: whether the baseline is of the line. Validation has another mix of good and defective tyres: of it
            only looks and features are compared, and only of what the model takes for good on both sides. Defective
            ones among these would alarm, of which validation would have many, hence they are not in the baseline, and
            a line has few.
        among: how many windows share the level.
    """
    if not accepted and inspector.good_class is not None:
        baseline, window = (one.take(one.texts("class") == inspector.good_class) for one in (baseline, window))
    if min(len(baseline), len(window)) < FEWEST:
        return []
    found = [*_looks(baseline, window), *_features(baseline, window, inspector.classes)]
    if accepted:
        found += [*_state(baseline, window, inspector), *_outputs(baseline, window, inspector)]
    return _read(found, among) if found else []


def _read(signals: Sequence[Signal], among: int) -> list[Reading]:
    before, after = (np.concatenate([getattr(one, side) for one in signals], axis=1) for side in ("before", "after"))
    shares = np.concatenate([np.full(len(one.columns), one.share) for one in signals])
    found = compare(before, after, shares, among)
    ends = np.cumsum([len(one.columns) for one in signals])
    return [
        _reading(one, found.scores[end - len(one.columns) : end], found.chance[end - len(one.columns) : end],
                 found.critical)
        for one, end in zip(signals, ends, strict=True)
    ]  # fmt: skip


def _reading(signal: Signal, scores: Floats, chance: Floats, critical: float) -> Reading:
    before, after = _mean(signal.before), _mean(signal.after)
    both = np.concatenate([signal.before, signal.after])
    counts = [np.maximum(1, (~np.isnan(side)).sum(axis=0)) for side in (signal.before, signal.after)]
    error = np.sqrt(1 / counts[0] + 1 / counts[1])
    if signal.share:
        scale, events = np.ones(len(scores)), (both.sum(axis=0) + 1) / (len(both) + 2)
        threshold = critical * np.sqrt(events * (1 - events)) * error
    else:
        scale = np.maximum(_deviation(signal.before), signal.floor)
        threshold = critical * error * np.maximum(_deviation(both), signal.floor) / scale
    effect = (after - before) / scale
    alarms = (np.abs(scores) > critical) & (np.abs(effect) >= signal.least)
    most = int(np.lexsort((np.abs(scores), alarms))[-1])
    natural = np.exp if signal.log else np.asarray
    away = np.nan_to_num(signal.after[:, most] * np.sign(effect[most]), nan=-np.inf)
    return Reading(
        signal.name, signal.kind, signal.columns[most], signal.share, float(natural(before[most])),
        float(natural(after[most])), float(effect[most]), float(max(threshold[most], signal.least)),
        float(scores[most]), float(chance[most]), bool(alarms[most]), np.argsort(-away, kind="stable"),
    )  # fmt: skip


def _mean(values: Floats) -> Floats:
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0)))


def _deviation(values: Floats) -> Floats:
    return np.asarray(np.sqrt(_mean(np.square(values - _mean(values)))))


def _numbers(baseline: Sample, window: Sample, *names: str) -> tuple[Floats, Floats]:
    before, after = (np.stack([one.numbers(name) for name in names], axis=1) for one in (baseline, window))
    return before, after


def _looks(baseline: Sample, window: Sample) -> Iterator[Signal]:
    """Of the pictures; nothing where one side was no pictures but a predictions file."""
    if not (baseline.knows("brightness") and window.knows("brightness")):
        return
    for name in ("brightness", "contrast", "colour", "sharpness"):
        yield Signal(name, LOOKS, (name,), *_numbers(baseline, window, name), LEAST_MEAN, floor=GREY_LEVEL)
    yield Signal("border", LOOKS, SIDES, *_numbers(baseline, window, *SIDES), LEAST_MEAN, floor=GREY_LEVEL)
    before, after = (np.log(side) for side in _numbers(baseline, window, "width", "height"))
    yield Signal("size", LOOKS, ("width", "height"), before, after, LEAST_MEAN, floor=_SIZE, log=True)


def _features(baseline: Sample, window: Sample, classes: Sequence[str]) -> Iterator[Signal]:
    """How far tyres of a predicted class lie from what good tyres look like."""
    if not (baseline.knows("distance") and window.knows("distance")):
        return
    before, after = (np.log(np.maximum(one.numbers("distance"), 1e-9)) for one in (baseline, window))
    for name in classes:
        sides = [
            np.where(one.texts("class") == name, far, np.nan)[:, None]
            for one, far in ((baseline, before), (window, after))
        ]
        if sum(int((~np.isnan(side)).sum()) for side in sides) >= 4 * FEWEST:
            yield Signal(f"distance of {name}", FEATURES, (f"distance of {name}",), sides[0], sides[1], LEAST_MEAN,
                         floor=_FAR, log=True)  # fmt: skip


def _state(baseline: Sample, window: Sample, inspector: Inspector) -> Iterator[Signal]:
    """What becomes of pictures on their way, and the share beyond the promised novelty."""
    yield _share("unreadable", LOOKS, baseline.numbers("unreadable") > 0, window.numbers("unreadable") > 0)
    if inspector.group_pattern is not None:
        pictures = _numbers(baseline, window, "pictures")
        yield Signal("pictures of a tyre", LOOKS, ("pictures of a tyre",), *pictures, LEAST_MEAN, floor=0.5)
    rate = None if inspector.point is None else inspector.point.novel_rate
    if rate is not None and baseline.knows(NOVELTY) and window.knows(NOVELTY):
        novel = [is_novel(one.numbers(NOVELTY), rate) for one in (baseline, window)]
        yield _share("novel", NOVELTY, *novel)


def _outputs(baseline: Sample, window: Sample, inspector: Inspector) -> Iterator[Signal]:
    """Scores, classes and decisions."""
    if baseline.knows("p_defective") and window.knows("p_defective"):
        before, after = _numbers(baseline, window, "p_defective")
        limits = np.unique(np.nanquantile(np.concatenate([before, after]), _DECILES))
        above = [(side > limits).astype(np.float64) for side in (before, after)]
        names = tuple(f"above {limit:.3g}" for limit in limits)
        yield Signal("P(defective)", OUTPUTS, names, above[0], above[1], LEAST_SPREAD, share=True)
    for name in inspector.classes:
        yield _share(f"share of {name}", OUTPUTS, baseline.texts("class") == name, window.texts("class") == name)
    if inspector.point is not None:
        for name in (ACCEPT, REVIEW, REJECT):
            sides = [one.texts("decision") == name for one in (baseline, window)]
            yield _share(f"decision {name}", OUTPUTS, *sides)


def _share(name: str, kind: str, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Signal:
    sides = [side[:, None].astype(np.float64) for side in (before, after)]
    least = min(max(float(before.mean()) / 2, LEAST_RARE), LEAST_SHARE)
    return Signal(name, kind, (name,), sides[0], sides[1], least, share=True)
