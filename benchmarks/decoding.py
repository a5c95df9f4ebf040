"""How fast a JPEG file becomes the network's input, against the way torchvision's presets take through Pillow.

``python benchmarks/decoding.py [FOLDER]``: on one core, decode and preprocess for evaluation. The JPEG files anywhere
below FOLDER are taken as they are, else drawn tyres in two sizes. Prints CPU milliseconds an image, the ratio, and how
far the tensors lie apart, in units of the network's normalised input and in levels of 255.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tyre_lightning.config import DataConfig
from tyre_lightning.data.transforms import Preprocessing
from tyre_lightning.demo.drawing import CLASSES, draw
from tyre_lightning.model.backbones import preset

SIZES = ((640, 640), (1280, 960))
COUNT = 40
ROUNDS = 5
LEVEL = 128  # levels of 255 in one unit of EfficientNet-Lite's normalised input


def through_pillow(preprocessing: Preprocessing) -> Callable[[bytes], Tensor]:
    """The preset's own way: Pillow decodes and resizes."""
    size, how = [preprocessing.size] * 2, F.InterpolationMode(preprocessing.interpolation)

    def read(data: bytes) -> Tensor:
        with Image.open(io.BytesIO(data)) as image:
            pixels: Tensor = F.pil_to_tensor(F.resize(image.convert("RGB"), size, how))
        return pixels

    return read


def milliseconds(read: Callable[[bytes], Tensor], files: list[bytes]) -> float:
    """CPU time of one image."""
    started = time.process_time()
    for data in files:
        read(data)
    return (time.process_time() - started) * 1000 / len(files)


def drawn(size: tuple[int, int]) -> list[bytes]:
    """JPEG files of drawn tyres."""
    files = []
    for index in range(COUNT):
        buffer = io.BytesIO()
        draw(CLASSES[index % len(CLASSES)], index, 640)[0].resize(size).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def compare(title: str, files: list[bytes]) -> None:
    """Print a row."""
    preprocessing = Preprocessing.of(preset("efficientnet_lite0"), DataConfig(image_size=320))
    ways = (through_pillow(preprocessing), lambda data: preprocessing.read(data, title))
    times = [[milliseconds(way, files) for way in ways] for _ in range(ROUNDS)]  # in turns: both meet the same weather
    pillow, ours = (min(column) for column in zip(*times, strict=True))
    apart = max((ways[0](data).int() - ways[1](data).int()).abs().max().item() for data in files)
    print(f"{title}: Pillow {pillow:.2f} ms, ours {ours:.2f} ms, ratio {pillow / ours:.2f}, ", end="")
    print(f"tensors within {apart / LEVEL:.3f} ({apart} of 255 levels)")


def main() -> None:
    """Compare on each kind of picture."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        paths = sorted(Path(sys.argv[1]).rglob("*.jpg"))
        compare(sys.argv[1], [path.read_bytes() for path in paths[:: max(1, len(paths) // COUNT)]])
        return
    for size in SIZES:
        compare(f"{size[0]} x {size[1]}", drawn(size))


if __name__ == "__main__":
    main()
