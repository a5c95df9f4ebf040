"""Pictures of what the model looked at, and of what looks most alike to it, in a folder beside the predictions file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from tyre_lightning.evaluation.saliency import explain, overlay
from tyre_lightning.evaluation.strip import with_strip
from tyre_lightning.files import whole
from tyre_lightning.model.examples import Example
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.names import file_name

OVERLAY, NEAREST = "overlay", "nearest"  # columns of the predictions file
_ENDING = ".jpg"
_QUALITY = 85


def overlay_folder(output: str) -> Path:
    """Where the overlays of a predictions file go: ``predictions.csv`` has ``predictions-explained``."""
    return Path(output).with_name(f"{Path(output).stem}-explained")


def overlay_path(folder: Path, key: str) -> Path:
    """Where the overlay of a key goes: below the folder, whatever the key says, and where no other key's goes."""
    *folders, name = key.split("/")
    # A folder may be called as a file is: x.png.jpg/y.png beside x.png.
    named = [file_name(part, "~" if part.lower().endswith(_ENDING) else "") for part in folders]
    return folder.joinpath(*named, file_name(name, _ENDING))


def explained(
    inspector: Inspector, views: Sequence[Tensor], pictures: Sequence[Tensor], nearest: Sequence[Sequence[Example]]
) -> Iterator[Image.Image]:
    """Draw what the model looked at on some images, with what looks most alike to it in a strip below.

    Args:
        inspector: the model.
        views: as :meth:`Inspector.read` gives them, uint8 [3, size, size].
        pictures: the whole images, uint8 [3, H, W].
        nearest: of each, as :meth:`Inspector.nearest` gives them.
    """
    for picture, heat, examples in zip(pictures, explain(inspector, views), nearest, strict=True):
        yield with_strip(overlay(picture, heat, inspector.preprocessing), examples)


def write_overlays(
    folder: Path,
    inspector: Inspector,
    keys: Sequence[str],
    views: Sequence[Tensor],
    pictures: Sequence[Tensor],
    nearest: Sequence[Sequence[Example]],
) -> list[str]:
    """Write what :func:`explained` draws; gives the paths of the JPEG files.

    Args:
        folder: where to; made if it does not exist.
        inspector: the model.
        keys: of the images.
        views: see :func:`explained`.
        pictures: likewise.
        nearest: likewise.

    Raises:
        UserError: a file cannot be written.
    """
    paths = [overlay_path(folder, key) for key in keys]
    for path, drawn in zip(paths, explained(inspector, views, pictures, nearest), strict=True):
        with whole(path) as unfinished:
            drawn.save(unfinished, "JPEG", quality=_QUALITY)
    return [str(path) for path in paths]
