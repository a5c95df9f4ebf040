"""What a finished training came to, as lines for a terminal: by the functions that make what the run records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.decision.bounds import Interval, Promise, least_rate
from tyre_lightning.decision.novelty import ENOUGH
from tyre_lightning.decision.operating_point import Calibration, OperatingPoint, Rates, measure_rates
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.judgement import auroc_ends, class_metrics, confusion
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.model.inspector import Inspector

PROMISES = (0.01, 0.02, 0.05, 0.1)  # of the escape rate: what is asked for most
_NAMES = {"test": "test", "val": "validation"}
_WIDTH = 13  # of what stands before a number


@dataclass(frozen=True)
class Offer:
    """A promise that the line could be given, and what it would cost."""

    rate: float  # at most so many defective tyres escape
    rates: Rates | None  # None where it cannot be promised
    point: OperatingPoint | None
    why_not: str | None


def offers(
    calibration: Calibration, wanted: OperatingPointConfig, scores: Scores, classes: Sequence[str], good_class: str
) -> list[Offer]:
    """What :data:`PROMISES` and the one that is wanted would do to tyres whose truth is known, the strictest first.

    Where the wanted one cannot be made, the strictest that can is among them, if it is any use.

    Args:
        calibration: what the validation tyres say.
        wanted: the promise; the others have its confidence and its limit on overkill.
        scores: of the images of these tyres.
        classes: class names in index order.
        good_class: the class of tyres without a defect.
    """
    tyres = scores.counted(classes.index(good_class), calibration.temperature)
    least = least_rate(wanted.confidence, calibration.defective_total)
    others = {least} if wanted.max_escape_rate < least <= 0.5 else set()
    found = []
    for rate in sorted({*PROMISES, wanted.max_escape_rate, *others}):
        try:
            point = calibration.operating_point(replace(wanted, max_escape_rate=rate))
        except UserError:
            found.append(Offer(rate, None, None, _lacking(calibration, replace(wanted, max_escape_rate=rate))))
            continue
        found.append(Offer(rate, measure_rates(point, tyres, calibration, classes, good_class), point, None))
    return found


def _lacking(calibration: Calibration, wanted: OperatingPointConfig) -> str:
    """How many tyres a promise takes."""
    escape = Promise(wanted.max_escape_rate, wanted.confidence)
    if escape.allowed(calibration.defective_total) < 0:
        return _takes(escape, calibration.defective_total, "defective")
    assert wanted.max_overkill_rate is not None  # nothing else can be in the way
    return _takes(Promise(wanted.max_overkill_rate, wanted.confidence), calibration.good_total, "good")


def _takes(promise: Promise, there: int, kind: str) -> str:
    return f"not possible: takes {promise.needed()} {kind} validation tyres, not {there}"


def answer(
    inspector: Inspector,
    scores: Mapping[str, Scores],
    wanted: OperatingPointConfig,
    seen: Mapping[str, Sequence[str]],
) -> str:
    """How good the model is on the test images, or where there are none, on the validation images.

    Args:
        inspector: the model, with its operating point.
        scores: what it says of images, by usage; none where nothing could be read.
        wanted: the promise that was asked for.
        seen: keys of images of tyres that training saw too, by usage. Those of validation count for nothing but F1, as
            in the run's metrics.
    """
    usage = next((name for name in ("test", "val") if name in scores), None)
    if usage is None:
        return "no test or validation image could be read: nothing is known of the model"
    found = scores[usage]
    counted = found.without(seen.get("val", ())) if usage == "val" else found
    by = ", by which its threshold was chosen" if usage == "val" else ""
    lines = [f"the model on {len(found)} {_NAMES[usage]} images{by}", *_quality(inspector, found, counted, wanted)]
    good, calibration = inspector.good_class, inspector.calibration
    if good is None or calibration is None or not len(counted):
        return "\n".join([*lines, _line("promise", f"none, because {inspector.undecided()}")])
    offered = offers(calibration, wanted, counted, inspector.classes, good)
    promised = next(one for one in offered if one.rate == wanted.max_escape_rate)
    lines += [*_decision(promised, wanted), *_novelty(promised, calibration, wanted)]
    if found.shows is not None:
        lines += _defects(found, inspector.classes, good, promised)
    if usage == "test" and (shared := seen.get("test")):
        lines += _unshared(inspector, found.without(shared), len(shared), wanted)
    return "\n".join([*lines, "", *_table(offered, wanted, _NAMES[usage])])


def _quality(inspector: Inspector, found: Scores, counted: Scores, wanted: OperatingPointConfig) -> list[str]:
    """Macro F1, the class that is found worst, and how well defective and good are told apart."""
    classes, good = inspector.classes, inspector.good_class
    values = class_metrics(found, classes, good)
    lines = [_line("macro F1", f"{values['f1']:.3f}"), _line("worst class", _worst(found, classes, values))]
    if "auroc_defective" not in values or good is None:
        return lines
    ends = auroc_ends(counted, classes.index(good), wanted.confidence) if len(counted) else {}
    between = f" ({ends['auroc_defective_low']:.3f} to {ends['auroc_defective_high']:.3f})" if ends else ""
    return [lines[0], _line("AUROC", f"{values['auroc_defective']:.3f}{between}, defective against good"), lines[1]]


def _defects(found: Scores, classes: Sequence[str], good: str, promised: Offer) -> list[str]:
    """Of each defect: how well it is told, on how many of its images it is listed, and how many of its tyres pass."""
    values, lines = class_metrics(found, classes, good), []
    escapes = {} if promised.rates is None else promised.rates.escape_by_class
    for name in (name for name in classes if f"average_precision/{name}" in values):
        total = int(found.shows[:, classes.index(name)].sum()) if found.shows is not None else 0
        hits = round(values[f"recall/{name}"] * total)
        caught = f", {1 - escapes[name].share:.1%} of tyres caught" if name in escapes else ""
        lines.append(f"  {name}: average precision {values[f'average_precision/{name}']:.3f}, "
                     f"listed on {hits} of {total} images{caught}")  # fmt: skip
    return ["", *lines] if lines else []


def _worst(found: Scores, classes: Sequence[str], values: Mapping[str, float]) -> str:
    """The class of which the smallest share is found, and what it is taken for."""
    name = min((name for name in classes if f"recall/{name}" in values), key=lambda name: values[f"recall/{name}"])
    row = confusion(found)[classes.index(name)]
    hits, total = int(row[classes.index(name)]), int(row.sum())
    if hits == total:
        return "none: the class of every image is found"
    row[classes.index(name)] = 0
    return f"{name}, {hits} of {total} images found; most others are taken for {classes[int(row.argmax())]}"


def _decision(offer: Offer, wanted: OperatingPointConfig) -> list[str]:
    """The promise, the threshold that keeps it, and what it does."""
    promise = f"at most {percent(wanted.max_escape_rate)} of defective tyres escape, confidence {wanted.confidence:g}"
    if offer.point is None or offer.rates is None:
        return [_line("promise", promise), _line("", str(offer.why_not))]
    band = f", accept below {offer.point.threshold:.4g}" if wanted.max_overkill_rate is not None else ""
    lines = [
        _line("promise", promise),
        _line("threshold", f"reject from P(defective) {offer.point.reject_from:.4g}{band}"),
        _line("escape", _interval(offer.rates.escape, "defective tyres")),
        _line("overkill", _interval(offer.rates.overkill, "good tyres")),
    ]
    return [*lines, *([_line("review", _interval(offer.rates.review, "tyres"))] if band else [])]


def _novelty(offer: Offer, calibration: Calibration, wanted: OperatingPointConfig) -> list[str]:
    """The two promises about good tyres that are unlike the others, and what became of those that were tested."""
    if wanted.max_novel_rate is None or offer.point is None or offer.rates is None:
        return []
    first, *others = novelty_terms(offer.point, calibration)
    tested = [_interval(offer.rates.novel, "good tyres")] if offer.point.novel_rate is not None else []
    return [_line("novelty", first), *(_line("", text) for text in [*others, *tested])]


def novelty_terms(point: OperatingPoint, calibration: Calibration) -> list[str]:
    """What is promised of good tyres that are reviewed since they are unlike the others: on average, and for sure."""
    scale, rate, confidence = calibration.scale, point.novel_rate, point.promised.confidence
    wanted, total = point.promised.max_novel_rate, scale.total
    if wanted is None:
        return ["none was asked for: however unlike good tyres a tyre is, its score decides"]
    if calibration.good_total and not total:
        return ["none: training had too few good tyres to tell what they look like"]
    takes = f"{percent(wanted)} takes {_needed(wanted, helped=scale.learnt_total > 0)}"
    if rate is None:
        return [f"none: to review {takes} good validation tyres, not {total}"]
    average, bound = scale.average(rate), f"at most {percent(scale.bound(rate, confidence))}, confidence {confidence:g}"
    less = f"; {takes} tyres, not {total}" if average > wanted else ""
    if average == rate:
        return [f"review of {percent(rate)} of good tyres on average, as unlike the others", f"{bound}{less}"]
    return [
        f"review of about {percent(rate)} of good tyres, as unlike the others",
        f"an estimate by {scale.learnt_total} of training; proved: at most {percent(average)} on average",
        f"{bound}{less}",
    ]


def _needed(share: float, *, helped: bool) -> int:
    """By how many good validation tyres it is proved on average that no larger share is reviewed.

    Where those of training help, the limit may lie as low as the second farthest, so that it takes twice as many, or
    so many that no help is needed.
    """
    alone, both = (math.ceil(count / share - 1 - 1e-9) for count in (1, 2))
    return min(both, max(alone, ENOUGH)) if helped else alone


def novelty_sentence(point: OperatingPoint, calibration: Calibration) -> str:
    """:func:`novelty_terms` in one line."""
    return f"novelty: {', '.join(novelty_terms(point, calibration))}"


def _unshared(inspector: Inspector, found: Scores, shared: int, wanted: OperatingPointConfig) -> list[str]:
    """The same without tyres that training saw too, which are easier."""
    lines = [f"{shared} of these images are of tyres that training saw too; without them"]
    good, calibration, point = inspector.good_class, inspector.calibration, inspector.point
    if not len(found) or good is None or calibration is None:
        return [f"{shared} of these images are of tyres that training saw too: none is left"]
    lines.append(_line("macro F1", f"{class_metrics(found, inspector.classes, good)['f1']:.3f}"))
    if point is not None:
        tyres = found.counted(inspector.classes.index(good), calibration.temperature)
        without = measure_rates(point, tyres, calibration, inspector.classes, good)
        lines.append(_line("escape", _interval(without.escape, "defective tyres")))
        lines.append(_line("overkill", _interval(without.overkill, "good tyres")))
    return lines


def _table(offered: Sequence[Offer], wanted: OperatingPointConfig, name: str) -> list[str]:
    """What each promise would cost."""
    review = wanted.max_overkill_rate is not None
    titles = ["at most escape", "threshold", "escape", "overkill", *(["review"] if review else [])]
    lines = [
        f"what other promises would cost these {name} tyres, with a confidence of {wanted.confidence:g}",
        "  ".join(f"{title:>{_width(title)}}" for title in titles),
    ]
    for offer in offered:
        cells = [percent(offer.rate)]
        mark = "  <- promised" if offer.rate == wanted.max_escape_rate else ""
        if offer.rates is None or offer.point is None:
            lines.append(f"{cells[0]:>{_width(titles[0])}}  {offer.why_not}")
            continue
        parts = [offer.rates.escape, offer.rates.overkill, *([offer.rates.review] if review else [])]
        cells += [f"{offer.point.threshold:.4g}", *(f"{part.share:.1%}" if part.total else "-" for part in parts)]
        lines.append("  ".join(f"{cell:>{_width(title)}}" for cell, title in zip(cells, titles, strict=True)) + mark)
    return lines


def _width(title: str) -> int:
    return max(len(title), 9)


def _interval(part: Interval, kind: str) -> str:
    if not part.total:
        return f"unknown: there are no {kind}"
    return f"{part.share:.1%} ({part.low:.1%} to {part.high:.1%}), {part.count} of {part.total} {kind}"


def _line(name: str, text: str) -> str:
    return f"  {name:<{_WIDTH}}{text}"


def percent(rate: float) -> str:
    """A rate as people write it: 5 %, 0.5 %."""
    return f"{100 * rate:.3g} %"
