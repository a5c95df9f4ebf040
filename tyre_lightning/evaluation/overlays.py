"""Pictures of what the model looked at, in a folder beside the predictions file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tyre_lightning.evaluation.saliency import explain, overlay
from tyre_lightning.files import whole
from tyre_lightning.model.inspector import Inspector
from tyre_lightning.names import file_name

OVERLAY = "overlay"  # the column of the predictions file
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


def write_overlays(
    folder: Path, inspector: Inspector, keys: Sequence[str], views: Sequence[Tensor], pictures: Sequence[Tensor]
) -> list[str]:
    """Draw what the model looked at on some images; gives the paths of the JPEG files.

    Args:
        folder: where to; made if it does not exist.
        inspector: the model.
        keys: of the images.
        views: as :meth:`Inspector.read` gives them, uint8 [3, size, size].
        pictures: the whole images, uint8 [3, H, W].

    Raises:
        UserError: a file cannot be written.
    """
    paths = [overlay_path(folder, key) for key in keys]
    for path, picture, heat in zip(paths, pictures, explain(inspector, views), strict=True):
        with whole(path) as unfinished:
            overlay(picture, heat, inspector.preprocessing).save(unfinished, "JPEG", quality=_QUALITY)
    return [str(path) for path in paths]
