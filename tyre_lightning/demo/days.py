"""Days of a drawn line: tyres whose truth is known, under a lamp and a lens that may have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image, ImageEnhance, ImageFilter

from tyre_lightning.demo.drawing import draw

_QUALITY = 88  # of the JPEG files


@dataclass(frozen=True)
class Day:
    """What the line brings.

    Args:
        name: of its folder.
        about: what is special, for people.
        counts: tyres of each class.
        budget: tyres that a person sees in the evening.
        light: a factor on the brightness.
        blur: of the lens, in pixels.
    """

    name: str
    about: str
    counts: Mapping[str, int]
    budget: int
    light: float = 1.0
    blur: float = 0.0


def write_day(folder: Path, truth: Path, day: Day, workers: int) -> None:
    """Draw a day's tyres, under names that tell nothing; what each shows is written to a file apart from them.

    Args:
        folder: of the pictures.
        truth: the file, JSON: the class of each file's name.
        day: what to draw.
        workers: processes that draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        hashlib.sha256(f"{day.name}/{label}/{index}".encode()).hexdigest()[:16]: label
        for label, count in day.counts.items()
        for index in range(count)
    }
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(partial(_write, folder, day), wanted, wanted.values(), chunksize=8))
    truth.write_text(json.dumps({f"{name}.jpg": label for name, label in wanted.items()}), encoding="utf-8")


def _write(folder: Path, day: Day, name: str, label: str) -> None:
    picture = _seen(draw(label, int(name, 16), clear=True)[0], day)
    picture.save(folder / f"{name}.jpg", quality=_QUALITY)


def _seen(picture: Image.Image, day: Day) -> Image.Image:
    """As the day's lamp and lens show it."""
    dimmed = ImageEnhance.Brightness(picture).enhance(day.light)
    return dimmed.filter(ImageFilter.GaussianBlur(day.blur)) if day.blur else dimmed
