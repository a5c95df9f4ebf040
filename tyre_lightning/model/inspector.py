"""The trained model as the line uses it: weights, classes, preprocessing and operating point, saved as one folder.

predict.py and the model that MLflow serves are two faces of this one class, which is why they give the same answer.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.novelty import Reference
from tyre_lightning.decision.operating_point import JUDGEMENT, REVIEW, Calibration, OperatingPoint
from tyre_lightning.decision.outputs import Outputs
from tyre_lightning.decision.sample import SAMPLE, Sample
from tyre_lightning.errors import Unwritable, UserError, first_line
from tyre_lightning.files import is_whole
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.engine import Engine
from tyre_lightning.model.examples import EXAMPLES, Example, Examples
from tyre_lightning.model.glance import glance_digest, open_glance
from tyre_lightning.model.unfilled import unfilled
from tyre_lightning.model.weights import tensors_digest
from tyre_lightning.names import one_form

if TYPE_CHECKING:  # it takes Lightning, which nothing else here needs
    from tyre_lightning.model.classifier import TyreClassifier

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "inspector.json"
DEFECTS = "defects"  # the column that lists them, of a model of several
FORMAT = 6  # of what is saved; in format 1, which has no number, promises were made picture by picture
_GLANCE = "glance"  # what a file says of its weights, under that name
_PLAIN = 2  # of a model whose pictures show one class each and that tells no novelty: older versions read it too
NOVELTY = "novelty"  # the column that says how unlike good tyres a picture is; what a file says of it begins with that
UNLIKE = "it is unlike the good tyres of training"

log = logging.getLogger(__name__)

_PRECISION = threading.Lock()


@dataclass
class Sighting:
    """What is known of one tyre: its pictures that could be read, those that could not, and the worst of them."""

    pictures: int = 0
    unreadable: int = 0
    score: float = -1.0  # the highest P(defective); NaN where one is no number
    class_name: str | None = None  # of that picture, the first of several
    key: str | None = None  # of that picture
    defects: frozenset[str] = frozenset()  # of all pictures, where one may show several
    novelty: float | None = None  # the lowest of all pictures; None where the model tells none

    def add(self, inspector: Inspector, row: Mapping[str, Any]) -> None:
        """Count one more picture: one of the rows of :meth:`Inspector.answers_to`, with ``error``."""
        if row["error"] is not None:
            self.unreadable += 1
            return
        self.pictures += 1
        self.defects |= frozenset(row.get(DEFECTS) or ())
        if (novelty := row[NOVELTY]) is not None:
            self.novelty = novelty if self.novelty is None else min(self.novelty, novelty)
        score = inspector.defective(row)
        if score > self.score or (math.isnan(score) and not math.isnan(self.score)):
            self.score, self.class_name, self.key = score, row["class"], row.get("key")


class Look(NamedTuple):
    """What a network sees in N images."""

    logits: NDArray[np.float64]  # [N, classes], with the offsets, before they are divided by the temperature
    features: NDArray[np.float32]  # [N, D], see :meth:`Network.look`


class Verdict(NamedTuple):
    """The decision on a tyre; None where there is no operating point."""

    decision: str | None
    reason: str | None


@dataclass
class Inspector:
    """Says what is on a picture of a tyre.

    Args:
        network: in evaluation mode.
        name: its backbone.
        classes: class names in the order of the network's outputs.
        preprocessing: from a file's bytes to the network's input.
        good_class: the class of tyres without a defect, if one is known.
        calibration: what the validation images said; None: probabilities are as the network gives them.
        point: where the line decides; None: nowhere.
        group_pattern: what a file name's match says of the tyre, see :func:`tyre_lightning.lake.tyres.find_tyre`; None:
            every picture is judged by itself.
        multi_label: whether a picture may show several defects, see :class:`tyre_lightning.decision.outputs.Outputs`.
        reference: what good tyres look like to the network; None: it tells no novelty.
        examples: training pictures that it can show beside a new one; None: it has none.
        validation: good tyres of validation, as the model saw them, which the line's are compared with; None: unknown.
    """

    network: Network
    name: str
    classes: list[str]
    preprocessing: Preprocessing
    good_class: str | None = None
    calibration: Calibration | None = None
    point: OperatingPoint | None = None
    group_pattern: str | None = None
    multi_label: bool = False
    reference: Reference | None = None
    examples: Examples | None = None
    validation: Sample | None = None

    def __post_init__(self) -> None:
        """Spell classes as catalogs do, also those of models that older versions made."""
        self.classes = [*map(one_form, self.classes)]
        self.good_class = None if self.good_class is None else one_form(self.good_class)

    @classmethod
    def from_classifier(cls, classifier: TyreClassifier) -> Inspector:
        """The inspector inside a trained LightningModule; shares its weights."""
        options = classifier.hparams
        network, classes = classifier.network.eval(), list(options["classes"])
        network.glance = _glance(classifier.judgement)
        judgement = _judgement(classifier.judgement, f"this checkpoint of {options['name']}")
        about = options["name"], classes, classifier.preprocessing, options["good_class"]
        reference, examples = _reference(classifier.reference), _examples(classifier.examples)
        several = options["multi_label"]
        return cls(network, *about, *judgement, multi_label=several, reference=reference, examples=examples)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Inspector:
        """The inspector inside a checkpoint of this project's training.

        Raises:
            UserError: the file is no such checkpoint.
        """
        from tyre_lightning.model.classifier import TyreClassifier

        if zipfile.is_zipfile(path) and not is_whole(path):  # torch itself does not look whether weights are damaged
            raise UserError(f"{path} is damaged: take another checkpoint, or train again")
        try:
            with unfilled():
                classifier = TyreClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:
            raise UserError(f"{path} is not a checkpoint of train.py: {first_line(error)}") from error
        return cls.from_classifier(classifier)

    @classmethod
    def load(cls, folder: str | Path) -> Inspector:
        """Read what :meth:`save` wrote; nothing in it is pickled.

        Raises:
            UserError: the folder holds no inspector.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            spec: dict[str, Any] = json.loads(Path(folder, SPEC_FILE).read_text(encoding="utf-8"))
            preprocessing = Preprocessing.from_dict(spec["preprocessing"])
            if (made := spec.get("format", 1)) > FORMAT:
                raise UserError(
                    f"{folder} holds a model of format {made}, and this version knows up to {FORMAT}: update"
                )
            judgement = _judgement(spec.get(JUDGEMENT, {}), f"the model in {folder}")
            state = load_file(Path(folder, WEIGHTS_FILE))
            reference, examples = _reference(_taken(state, NOVELTY)), _examples(_taken(state, EXAMPLES))
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder} holds no model that this version can load: {error}") from error
        with unfilled():
            network = Network(
                spec["backbone"], len(spec["classes"]), preprocessing.mean, preprocessing.std,
                views=preprocessing.views, size=preprocessing.size,
            )  # fmt: skip
        network.load_state_dict(state)
        network.glance = _glance(spec.get(JUDGEMENT, {}))
        about = spec["backbone"], spec["classes"], preprocessing, spec["good_class"]
        several = spec.get("multi_label", False)
        held = Path(folder, SAMPLE)  # older versions have none
        validation = Sample.load(held) if held.is_file() else None
        about_good = reference, examples, validation
        return cls(network.eval(), *about, *judgement, several, *about_good)

    def save(self, folder: str | Path) -> None:
        """Write the inspector as a folder of safetensors, JSON and parquet.

        Raises:
            Unwritable: the disk is full, and the like.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        state = self._state()
        try:
            save_file(state, Path(folder, WEIGHTS_FILE))
        except SafetensorError as error:  # the one that it has for a full disk
            raise Unwritable(f"cannot write {Path(folder, WEIGHTS_FILE)}: {error}") from error
        Path(folder, SPEC_FILE).write_text(self.spec() + "\n", encoding="utf-8")
        if self.validation is not None:
            self.validation.save(Path(folder, SAMPLE))

    def spec(self) -> str:
        """All but the weights, as JSON."""
        values = {
            "format": self.format,
            "backbone": self.name,
            "classes": self.classes,
            "good_class": self.good_class,
            "preprocessing": self.preprocessing.to_dict(),
            **({"multi_label": True} if self.multi_label else {}),
            JUDGEMENT: self.judgement(),
        }
        return json.dumps(values, indent=2)

    def judgement(self) -> dict[str, Any]:
        """What decides, as plain values: calibration, operating point, and what names a tyre."""
        return {
            "format": self.format,
            "group_pattern": self.group_pattern,
            **({} if self.reference is None or self.network.glance is None else {_GLANCE: glance_digest()}),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "operating_point": None if self.point is None else self.point.to_dict(),
        }

    def digest(self) -> str:
        """What tells it from every inspector that could give another answer."""
        return tensors_digest(self._state(), self.spec())

    def _state(self) -> dict[str, Tensor]:
        """All its tensors, by name."""
        own = (item for item in self.network.state_dict().items() if not item[0].startswith(f"{_GLANCE}."))
        state = {key: value.detach().cpu().contiguous() for key, value in own}
        for prefix, tensors in ((NOVELTY, self.reference_tensors()), (EXAMPLES, self.example_tensors())):
            state |= {f"{prefix}.{name}": part for name, part in tensors.items()}
        return state

    def reference_tensors(self) -> dict[str, Tensor]:
        """What good tyres look like, by name; nothing where the model does not know."""
        return {} if self.reference is None else _tensors(self.reference.arrays())

    def example_tensors(self) -> dict[str, Tensor]:
        """The training pictures that it can show, by name; nothing where it has none."""
        return {} if self.examples is None else _tensors(self.examples.arrays())

    @property
    def format(self) -> int:
        """Of what is saved: older versions must not read what they would answer otherwise."""
        offsets = self.calibration is not None and self.calibration.offsets
        return FORMAT if self.reference is not None or self.multi_label or offsets else _PLAIN

    def promise(self, wanted: OperatingPointConfig) -> None:
        """Decide at the operating point that keeps this promise.

        Raises:
            UserError: the calibration images are too few for it, or there were none.
        """
        if self.good_class is None:
            raise UserError("no class is known to be the good one: train with data.good_class=...")
        if self.calibration is None:
            raise UserError("the model was not calibrated, so that it can promise no escape rate: train it anew")
        self.point = self.calibration.operating_point(wanted)

    def undecided(self) -> str:
        """Why a model without an operating point has none."""
        if self.good_class is None:
            return "no class is known to be the good one (train with data.good_class=...)"
        if self.calibration is None:
            return "it was not calibrated: training could read no validation image"
        images = f"{self.calibration.defective_total} defective and {self.calibration.good_total} good"
        return (
            f"what training was to promise takes more validation tyres than its {images} ones (give a weaker "
            "operating_point.max_escape_rate=..., or train with more images)"
        )

    def on(self, devices: Sequence[torch.device]) -> list[Inspector]:
        """A copy for each device; without any, this one where it is."""
        return [replace(self, network=deepcopy(self.network).to(device)) for device in devices] or [self]

    def read(self, data: bytes, key: str) -> Tensor:
        """An image file's bytes as the network's input, uint8 [3, size, size].

        Raises:
            UnreadableImage: the bytes cannot be decoded.
        """
        return self.preprocessing.read(data, key)

    def logits(self, images: Sequence[Tensor]) -> NDArray[np.float64]:
        """What the network says of what :meth:`read` gave, float64 [N, classes], see :class:`Look`."""
        return self.look(images).logits

    def distances(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """How far images are from what good tyres look like, shape (N,); NaN where the model does not know that.

        Args:
            features: [N, D], as :meth:`look` gives them.
        """
        return np.full(len(features), np.nan) if self.reference is None else self.reference.distances(features)

    def nearest(self, features: NDArray[np.float32]) -> list[list[Example]]:
        """The training pictures that look most alike to the network, nearest first, of each image; none if it has none.

        Args:
            features: [N, D], as :meth:`look` gives them.
        """
        if self.reference is None or self.examples is None:
            return [[] for _ in features]
        return self.examples.nearest(features, self.reference)

    @torch.inference_mode()
    def look(self, images: Sequence[Tensor]) -> Look:
        """What the network sees in what :meth:`read` gave.

        On a CPU images go through one at a time, which costs no speed there, so that an answer does not depend, in its
        last digits, on which images shared a batch: training, predict.py and a served model then agree exactly.
        """
        if not images:
            return Look(np.zeros((0, len(self.classes))), np.zeros((0, 0), np.float32))
        device = self.network.mean.device
        if device.type == "cpu":
            parts = [self._engine(image[None].numpy()) for image in images]
            logits, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        else:
            batch = torch.stack(list(images)).to(device)
            with whole_precision():
                answer = self.network.look(batch)
            logits, features = (part.float().cpu().numpy() for part in answer)
        return Look(logits.astype(np.float64) + self.offsets, features)

    def probabilities(self, images: Sequence[Tensor]) -> NDArray[np.float64]:
        """Class probabilities, float64 [N, classes], of what :meth:`read` gave."""
        return self.outputs.probabilities(self.logits(images), self.temperature)

    @property
    def outputs(self) -> Outputs:
        """What logits mean."""
        return Outputs(None if self.good_class is None else self.classes.index(self.good_class), self.multi_label)

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self.network, self.preprocessing.size)

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def offsets(self) -> NDArray[np.float64] | float:
        """What is added to the network's logits, shape (classes,); 0 where it is nothing."""
        return np.array(self.calibration.offsets) if self.calibration is not None and self.calibration.offsets else 0.0

    def take_in_offsets(self) -> None:
        """Let the network itself add them, for a runtime that knows of none."""
        if self.calibration is not None and self.calibration.offsets:
            last = self.network.head[-1]
            assert isinstance(last, nn.Linear)
            with torch.no_grad():
                last.bias.add_(torch.tensor(self.calibration.offsets))
            self.calibration = replace(self.calibration, offsets=[])

    def columns(self) -> list[str]:
        """The names of an answer's probabilities, one a class."""
        return [f"p_{name}" for name in self.classes]

    def answers(self, images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """:meth:`answers_to` what the network says of images."""
        look = self.look(images)
        return self.answers_to(look.logits, self.distances(look.features))

    def answers_to(self, logits: NDArray[np.float64], distances: NDArray[np.float64]) -> list[dict[str, Any]]:
        """A row for each picture: its likeliest ``class``, ``picture_decision``, and the probability of every class.

        Of good tyres a share of at most ``novelty`` is as unlike the good ones of training; None where the model does
        not know that.

        The decision is accept, review or reject; None where there is no operating point. It is the line's only where a
        tyre has one picture: see :meth:`verdict`. Where a picture may show several defects, ``defects`` lists them.
        """
        outputs = self.outputs
        likeliest, listed = outputs.likeliest(logits), outputs.listed(logits)
        probabilities, novelty = outputs.probabilities(logits, self.temperature), self._novelty(distances)
        return [
            {
                "class": self.classes[said],
                **({DEFECTS: self._defects(all_said)} if self.multi_label else {}),
                **self._decide(row, novel),
                NOVELTY: novel,
                **dict(zip(self.columns(), row.tolist(), strict=True)),
            }
            for row, novel, said, all_said in zip(probabilities, novelty, likeliest, listed, strict=True)
        ]

    def _novelty(self, distances: NDArray[np.float64]) -> list[float | None]:
        if self.calibration is None:
            return [None] * len(distances)
        return [None if math.isnan(value) else value for value in self.calibration.novelty(distances).tolist()]

    def _defects(self, said: NDArray[np.bool_]) -> list[str]:
        return [name for name, hit in zip(self.classes, said, strict=True) if hit and name != self.good_class]

    def verdict(self, sighting: Sighting) -> Verdict:
        """The decision on a tyre, and why it is for a person to review where its score is not the reason.

        Args:
            sighting: of all its pictures.
        """
        if self.point is None or self.calibration is None or not sighting.pictures + sighting.unreadable:
            return Verdict(None, None)
        doubt = self.calibration.doubt(sighting.pictures, sighting.unreadable)
        if doubt is not None:
            return Verdict(REVIEW, doubt)
        return self._judge(self.point, sighting.score, sighting.novelty)

    def defective(self, row: Mapping[str, Any]) -> float:
        """P(defective) of one of :meth:`answers_to`'s rows; NaN where no class is known to be the good one."""
        return float("nan") if self.good_class is None else 1 - row[f"p_{self.good_class}"]

    def _decide(self, row: NDArray[np.float64], novelty: float | None) -> dict[str, str | None]:
        if self.point is None or self.good_class is None:
            return {"picture_decision": None, "reason": None}
        found = self._judge(self.point, float(1 - row[self.classes.index(self.good_class)]), novelty)
        return {"picture_decision": found.decision, "reason": found.reason}

    def _judge(self, point: OperatingPoint, defective: float, novelty: float | None) -> Verdict:
        decision = point.decide(defective, novelty)
        return Verdict(decision, UNLIKE if decision != point.decide(defective) else None)


@contextmanager
def whole_precision() -> Iterator[None]:
    """Inside, convolutions on a GPU are as precise as on a CPU.

    PyTorch has one switch for all threads, and a thread for each GPU comes here: one at a time, or the first to leave
    would take the precision from the others. That costs nothing, since a GPU is only told here what to do.
    """
    with _PRECISION, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def decide_on_tyres(inspector: Inspector, rows: Sequence[dict[str, Any]]) -> None:
    """Give all rows of a tyre its ``decision`` and ``reason``.

    Args:
        inspector: the model.
        rows: as :meth:`Sighting.add` takes, with ``tyre``; one without a name is a tyre of its own. Where it cannot be
            read, a model that tells tyres by their names has it reviewed, as predict.py does; another says nothing.
    """
    tyres: dict[Any, Sighting] = {}
    for index, row in enumerate(rows):
        tyres.setdefault(row["tyre"] or index, Sighting()).add(inspector, row)
    for index, row in enumerate(rows):
        alone = row["tyre"] is None and row["error"] is not None and inspector.group_pattern is None
        row |= (Verdict(None, None) if alone else inspector.verdict(tyres[row["tyre"] or index]))._asdict()


def nothing_seen(reason: str) -> dict[str, Any]:
    """What is said of a picture that could not be read."""
    return {"class": None, "picture_decision": None, "reason": None, NOVELTY: None, "error": reason}


def answer_columns(probabilities: Sequence[str], *, multi_label: bool = False) -> list[str]:
    """What is said of a picture, by predict.py and the served model; where it may show several defects, all of them."""
    several = [DEFECTS] if multi_label else []
    return ["tyre", "class", *several, "decision", "picture_decision", "reason", NOVELTY, *probabilities, "error"]


def _reference(tensors: Mapping[str, Tensor]) -> Reference | None:
    """The inverse of :meth:`Inspector.reference_tensors`."""
    return Reference(**{name: part.numpy() for name, part in tensors.items()}) if tensors else None


def _examples(tensors: Mapping[str, Tensor]) -> Examples | None:
    """The inverse of :meth:`Inspector.example_tensors`."""
    return Examples.from_arrays({name: part.numpy() for name, part in tensors.items()}) if tensors else None


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(part, order="C")) for name, part in arrays.items()}


def _taken(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What a file has under a prefix, by the rest of its names; the state has it no more."""
    named = {key: key.removeprefix(f"{prefix}.") for key in state if key.startswith(f"{prefix}.")}
    return {name: state.pop(key) for key, name in named.items()}


def _glance(judgement: Mapping[str, Any]) -> Network | None:
    """That which a model was made with; None where it was made without."""
    known = judgement.get(_GLANCE)
    return None if known is None else open_glance(known)


def _judgement(values: dict[str, Any], name: str) -> tuple[Calibration | None, OperatingPoint | None, str | None]:
    """The inverse of :meth:`Inspector.judgement`; says so where it is of an older kind."""
    calibration, point = values.get("calibration"), values.get("operating_point")
    if point and values.get("format", 1) == 1:
        log.warning("%s promises its escape rate of pictures, not of tyres: it was made by an older version; train it "
                    "anew for a promise on tyres", name)  # fmt: skip
    return (
        calibration and Calibration.from_dict(calibration),
        point and OperatingPoint.from_dict(point),
        values.get("group_pattern"),
    )
