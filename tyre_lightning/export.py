"""A model as an ONNX file, for other runtimes: ``python -m tyre_lightning.export model=models:/tyre-defects/1``.

In: ``image``, uint8 [N, 3, size, size], RGB, decoded and resized; out: ``logits``, float32 [N, classes]. Normalisation,
offsets and mirrored views are inside. The metadata's ``inspector`` is JSON: classes in order, preprocessing,
temperature and operating point; ``multi_label`` where logits are read as
:class:`tyre_lightning.decision.outputs.Outputs` says.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from omegaconf import DictConfig

from tyre_lightning.config import to_export_config
from tyre_lightning.files import write_whole


@dataclass(frozen=True)
class Exported:
    """What an export has written.

    Args:
        output: the file.
        size: pixels of an image's side.
        classes: in the order of the logits.
        megabytes: of the file.
        novelty: whether the model, unlike the file, reviews what is unlike good tyres.
    """

    output: str
    size: int
    classes: tuple[str, ...]
    megabytes: float
    novelty: bool = False

    def __str__(self) -> str:
        image, logits = f"image uint8 [N, 3, {self.size}, {self.size}]", f"logits float32 [N, {len(self.classes)}]"
        text = f"{self.output} ({self.megabytes:.1f} MB): {image} to {logits}, of {', '.join(self.classes)}"
        lacks = "novelty is not in it: by the threshold alone, what shows no tyre may be accepted"
        return f"{text}\n{lacks}" if self.novelty else text


def export(cfg: DictConfig) -> Exported:
    """Write a model's network as ONNX.

    Raises:
        UserError: there is no such model, or the file cannot be written.
    """
    config = to_export_config(cfg)
    import onnx

    from tyre_lightning.model.engine import to_onnx
    from tyre_lightning.tracking.registry import load_inspector

    inspector = load_inspector(str(config.model), config.tracking_uri)
    size = inspector.preprocessing.size
    inspector.take_in_offsets()
    proto = onnx.load_from_string(to_onnx(inspector.network, size))
    proto.metadata_props.add(key="inspector", value=inspector.spec())
    content = proto.SerializeToString()
    write_whole(config.output, content)
    reviews = inspector.reference is not None and inspector.point is not None and inspector.point.novel_rate is not None
    return Exported(config.output, size, tuple(inspector.classes), len(content) / 1e6, reviews)


if __name__ == "__main__":
    from tyre_lightning.commands import start

    sys.exit(start("export"))
