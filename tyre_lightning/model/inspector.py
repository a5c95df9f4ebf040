"""The trained model as the line uses it: weights, classes, preprocessing and operating point, saved as one folder.

predict.py and the model that MLflow serves are two faces of this one class, which is why they give the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.decision.calibration import softmax
from tyre_lightning.decision.operating_point import Calibration, OperatingPoint
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.classifier import JUDGEMENT, TyreClassifier
from tyre_lightning.model.engine import Engine

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "inspector.json"


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
    """

    network: Network
    name: str
    classes: list[str]
    preprocessing: Preprocessing
    good_class: str | None = None
    calibration: Calibration | None = None
    point: OperatingPoint | None = None

    @classmethod
    def from_classifier(cls, classifier: TyreClassifier) -> Inspector:
        """The inspector inside a trained LightningModule; shares its weights."""
        options = classifier.hparams
        network, classes = classifier.network.eval(), list(options["classes"])
        judgement = _judgement(classifier.judgement)
        return cls(network, options["name"], classes, classifier.preprocessing, options["good_class"], *judgement)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Inspector:
        """The inspector inside a checkpoint of this project's training.

        Raises:
            UserError: the file is no such checkpoint.
        """
        try:
            classifier = TyreClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
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
            judgement = _judgement(spec.get(JUDGEMENT, {}))
            state = load_file(Path(folder, WEIGHTS_FILE))
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder} holds no model that this version can load: {error}") from error
        network = Network(
            spec["backbone"], len(spec["classes"]), preprocessing.mean, preprocessing.std, views=preprocessing.views
        )
        network.load_state_dict(state)
        return cls(network.eval(), spec["backbone"], spec["classes"], preprocessing, spec["good_class"], *judgement)

    def save(self, folder: str | Path) -> None:
        """Write the inspector as a folder of safetensors and JSON."""
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        save_file(state, Path(folder, WEIGHTS_FILE))
        Path(folder, SPEC_FILE).write_text(self.spec() + "\n", encoding="utf-8")

    def spec(self) -> str:
        """All but the weights, as JSON."""
        values = {
            "backbone": self.name,
            "classes": self.classes,
            "good_class": self.good_class,
            "preprocessing": self.preprocessing.to_dict(),
            JUDGEMENT: self.judgement(),
        }
        return json.dumps(values, indent=2)

    def judgement(self) -> dict[str, Any]:
        """Calibration and operating point as plain values."""
        return {
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "operating_point": None if self.point is None else self.point.to_dict(),
        }

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
            f"what training was to promise takes more validation images than its {images} ones (give a weaker "
            "operating_point.max_escape_rate=..., or train with more images)"
        )

    def read(self, data: bytes, key: str) -> Tensor:
        """An image file's bytes as the network's input, uint8 [3, size, size].

        Raises:
            UnreadableImage: the bytes cannot be decoded.
        """
        return self.preprocessing.read(data, key)

    @torch.inference_mode()
    def logits(self, images: Sequence[Tensor]) -> NDArray[np.float64]:
        """What the network says of what :meth:`read` gave, float64 [N, classes], before calibration.

        On a CPU images go through one at a time, which costs no speed there, so that an answer does not depend, in its
        last digits, on which images shared a batch: training, predict.py and a served model then agree exactly.
        """
        if not images:
            return np.zeros((0, len(self.classes)))
        device = self.network.mean.device
        if device.type == "cpu":
            found = np.concatenate([self._engine(image[None].numpy()) for image in images])
        else:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as precise as on a CPU
                found = self.network(torch.stack(list(images)).to(device)).cpu().numpy()
        return np.asarray(found.astype(np.float64))

    def probabilities(self, images: Sequence[Tensor]) -> NDArray[np.float64]:
        """Class probabilities, float64 [N, classes], of what :meth:`read` gave."""
        return softmax(self.logits(images), self.temperature)

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self.network, self.preprocessing.size)

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def columns(self) -> list[str]:
        """The names of an answer's probabilities, one a class."""
        return [f"p_{name}" for name in self.classes]

    def answers(self, images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """:meth:`answers_to` what the network says of images."""
        return self.answers_to(self.logits(images))

    def answers_to(self, logits: NDArray[np.float64]) -> list[dict[str, Any]]:
        """A row for each image: its likeliest ``class``, the ``decision`` on it, and the probability of every class.

        The decision is accept, review or reject; None where there is no operating point.
        """
        return [
            {
                "class": self.classes[int(row.argmax())],
                "decision": self._decide(row),
                **dict(zip(self.columns(), row.tolist(), strict=True)),
            }
            for row in softmax(logits, self.temperature)
        ]

    def _decide(self, row: NDArray[np.float64]) -> str | None:
        if self.point is None or self.good_class is None:
            return None
        return self.point.decide(float(1 - row[self.classes.index(self.good_class)]))


def _judgement(values: dict[str, Any]) -> tuple[Calibration | None, OperatingPoint | None]:
    """The inverse of :meth:`Inspector.judgement`."""
    calibration, point = values.get("calibration"), values.get("operating_point")
    return calibration and Calibration.from_dict(calibration), point and OperatingPoint.from_dict(point)
