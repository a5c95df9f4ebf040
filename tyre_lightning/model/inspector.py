"""The trained model as the line uses it: weights, class names and preprocessing, saved as one folder.

predict.py and the model that MLflow serves are two faces of this one class, which is why they give the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.errors import UserError
from tyre_lightning.model.backbones import Network
from tyre_lightning.model.classifier import TyreClassifier

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
    """

    network: Network
    name: str
    classes: list[str]
    preprocessing: Preprocessing
    good_class: str | None = None

    @classmethod
    def from_classifier(cls, classifier: TyreClassifier) -> Inspector:
        """The inspector inside a trained LightningModule; shares its weights."""
        options = classifier.hparams
        network = classifier.network.eval()
        return cls(network, options["name"], list(options["classes"]), classifier.preprocessing, options["good_class"])

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Inspector:
        """The inspector inside a checkpoint of this project's training.

        Raises:
            UserError: the file is no such checkpoint.
        """
        try:
            classifier = TyreClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is not a checkpoint of train.py: {reason}") from error
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
            state = load_file(Path(folder, WEIGHTS_FILE))
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder} holds no model that this version can load: {error}") from error
        network = Network(spec["backbone"], len(spec["classes"]), preprocessing.mean, preprocessing.std)
        network.load_state_dict(state)
        return cls(network.eval(), spec["backbone"], spec["classes"], preprocessing, spec["good_class"])

    def save(self, folder: str | Path) -> None:
        """Write the inspector as a folder of safetensors and JSON."""
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu().contiguous() for key, value in self.network.state_dict().items()}
        save_file(state, Path(folder, WEIGHTS_FILE))
        spec = {
            "backbone": self.name,
            "classes": self.classes,
            "good_class": self.good_class,
            "preprocessing": self.preprocessing.to_dict(),
        }
        Path(folder, SPEC_FILE).write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")

    def read(self, data: bytes, key: str) -> Tensor:
        """An image file's bytes as the network's input, uint8 [3, size, size].

        Raises:
            UnreadableImage: the bytes cannot be decoded.
        """
        return self.preprocessing.read(data, key)

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Tensor]) -> NDArray[np.float64]:
        """Class probabilities, float64 [N, classes], of what :meth:`read` gave.

        On a CPU images go through one at a time, which costs no speed there, so that an answer does not depend, in its
        last digits, on which images shared a batch: predict.py and a served model then agree exactly.
        """
        device = self.network.mean.device
        size = 1 if device.type == "cpu" else max(1, len(images))
        logits = [self.network(torch.stack(list(images[i : i + size])).to(device)) for i in range(0, len(images), size)]
        if not logits:
            return np.zeros((0, len(self.classes)))
        table: NDArray[np.float64] = torch.cat(logits).double().softmax(dim=1).cpu().numpy()
        return table

    def columns(self) -> list[str]:
        """The names of an answer's probabilities, one a class."""
        return [f"p_{name}" for name in self.classes]

    def answers(self, images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """A row for each image: ``class``, the likeliest, and the probability of every class."""
        table = self.probabilities(images)
        return [
            {"class": self.classes[int(row.argmax())], **dict(zip(self.columns(), row.tolist(), strict=True))}
            for row in table
        ]
