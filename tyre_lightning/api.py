"""What a notebook uses; ``import tyre_lightning`` offers it by name and loads it when it is first used."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

import hydra
import numpy as np
import pandas as pd
import torch
from hydra import initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image, ImageOps
from torch import Tensor

from tyre_lightning.audit.audit import examine as _examine
from tyre_lightning.audit.findings import Audit
from tyre_lightning.command_line import explain as explain_error
from tyre_lightning.command_line import is_mistake
from tyre_lightning.config import CONF, DEFAULT_TRACKING_URI, S3Config, TrainConfig, register_schemas, to_train_config
from tyre_lightning.data.colours import to_rgb
from tyre_lightning.data.datamodule import TyreDataModule
from tyre_lightning.data.decoding import try_decode
from tyre_lightning.data.stream import batched
from tyre_lightning.errors import UnreadableImage, UserError
from tyre_lightning.evaluation.gallery import contact_sheet, thumbnails
from tyre_lightning.evaluation.overlays import explained
from tyre_lightning.lake.source import open_source
from tyre_lightning.lake.tyres import tyre_of
from tyre_lightning.model.inspector import Inspector, answer_columns, decide_on_tyres, nothing_seen
from tyre_lightning.names import one_form
from tyre_lightning.opening import open_data as _open_data
from tyre_lightning.prediction import check_names, predict_batches
from tyre_lightning.tracking.registry import load_inspector

_TOGETHER = 32  # pictures

Pixels: TypeAlias = Image.Image | NDArray[Any] | Tensor  # in memory
File: TypeAlias = bytes | bytearray | memoryview  # its content
Picture: TypeAlias = str | Path | File | Pixels
Rows: TypeAlias = list[dict[str, Any]]
# One, and not several, though iterable; of a table, its columns' names would be taken for addresses.
_ONE = (str, Path, File, Image.Image, np.ndarray, Tensor, io.IOBase, Mapping, pd.DataFrame)


def load(model: str | Path, *, tracking_uri: str | None = None) -> Model:
    """A trained model: ``models:/tyre-defects@champion``, ``runs:/...``, a checkpoint, or a saved folder.

    Args:
        model: which.
        tracking_uri: of MLflow; None: as ``MLFLOW_TRACKING_URI`` has it, or the database ``mlflow.db`` in this folder.

    Raises:
        UserError: there is no such model, or it is not one of this project's.
    """
    inspector = load_inspector(str(model), tracking(tracking_uri))
    inspector.network.to("cuda" if torch.cuda.is_available() else "cpu")
    return Model(inspector, str(model))


def tracking(uri: str | None) -> str:
    """Where MLflow is: as given, as the environment has it, or the database in this folder."""
    return str(uri or "") or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI


class Model:
    """A trained model in a notebook's hands.

    Args:
        inspector: what predict.py uses.
        name: for people.
    """

    def __init__(self, inspector: Inspector, name: str) -> None:
        self.inspector = inspector
        self.name = name

    def predict(self, source: Picture | Iterable[Picture], tyres: Iterable[object] | None = None) -> pd.DataFrame:
        """A row for each picture, with the numbers and the columns of predict.py's table.

        Args:
            source: a file, folder, glob or ``s3://`` address; the bytes of an image file; a PIL image; pixels, uint8
                [H, W, 3] or [H, W] (numpy) or [3, H, W] (torch); or several of these.
            tyres: the tyre that each of several pictures shows, where no file name says so; all pictures of one get one
                decision, and None, or NaN as tables have it, is a tyre of its own.

        Raises:
            UserError: there is nothing at an address, or something is no picture.
        """
        several: Any = source if isinstance(source, Iterable) and not isinstance(source, _ONE) else [source]
        rows = [*self._look([*several])]
        if tyres is not None:
            _name_tyres(rows, tyres)
        if tyres is not None or self.inspector.group_pattern is not None:
            decide_on_tyres(self.inspector, rows)
        columns = answer_columns(self.inspector.columns(), multi_label=self.inspector.multi_label)
        return pd.DataFrame(rows, columns=["key", *columns])

    def explain(self, picture: Picture) -> Image.Image:
        """A picture with what the model looked at: tinted, and with an outline round what counted most.

        Below are the training pictures that look most alike to the model, where it carries some.

        Raises:
            UserError: it cannot be read, or is none.
        """
        if isinstance(picture, str | Path):
            image = _pixels(_bytes(picture), str(picture))
        else:
            image = _pixels(picture, _called(picture, 0))
        if isinstance(image, UnreadableImage):
            raise image
        views = [self.inspector.preprocessing(image)]
        nearest = self.inspector.nearest(self.inspector.look(views).features)
        (drawn,) = explained(self.inspector, views, [image], nearest)
        return drawn

    def _look(self, pictures: Sequence[Picture]) -> Iterator[dict[str, Any]]:
        """Rows in order; pictures in memory go through the network a few at a time, and so do those of an address."""
        waiting: list[tuple[str, File | Pixels]] = []
        for number, picture in enumerate(pictures):
            if isinstance(picture, str | Path):
                yield from self._rows(waiting)
                waiting = []
                yield from self._at(str(picture))
            else:
                waiting.append((_called(picture, number), picture))
        yield from self._rows(waiting)

    def _at(self, address: str) -> Iterator[dict[str, Any]]:
        source = open_source(address, S3Config())
        check_names(self.inspector, source, source.count(address))
        for rows in predict_batches(self.inspector, source.store, source.entries(), _TOGETHER):
            yield from rows

    def _rows(self, named: Sequence[tuple[str, File | Pixels]]) -> Iterator[dict[str, Any]]:
        for part in batched(named, _TOGETHER):
            images = [_pixels(picture, key) for key, picture in part]
            views = [self.inspector.preprocessing(image) for image in images if isinstance(image, Tensor)]
            answers = iter(self.inspector.answers(views))
            for (key, _), image in zip(part, images, strict=True):
                row = next(answers) | {"error": None} if isinstance(image, Tensor) else nothing_seen(image.reason)
                names = {"key": key, "tyre": tyre_of(key, self.inspector.group_pattern)}
                yield names | row | {"decision": row["picture_decision"]}

    def __repr__(self) -> str:
        return f"Model({self.name}: {self.inspector.name}, {', '.join(self.inspector.classes)}; {self._promise()})"

    def _repr_html_(self) -> str:
        inspector = self.inspector
        rows = {
            "network": f"{inspector.name}, {inspector.preprocessing.size} pixels",
            "classes": ", ".join(inspector.classes),
            "good tyres": inspector.good_class or "no class is known to be theirs",
            "promise": self._promise(),
        }
        return html_table(self.name, rows)

    def _promise(self) -> str:
        point = self.inspector.point
        return f"none, because {self.inspector.undecided()}" if point is None else point.sentence()


def html_table(caption: str, rows: Mapping[str, str]) -> str:
    """How a notebook shows names and texts."""
    cells = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return f"<table><caption>{escape(caption)}</caption>{cells}</table>"


def compose(*overrides: str) -> DictConfig:
    """The checked config of a training, by what you would write behind ``python train.py``.

    Raises:
        UserError: a key is not known, or a value is not possible.
    """
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"give overrides as texts, such as 'data.root=lake/v1': {type(override).__name__} is none")
    register_schemas()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("train", overrides=[*overrides])
        to_train_config(config)
    except Exception as error:
        if not is_mistake(error):
            raise
        raise UserError(explain_error(error)) from error
    return config


def open_data(config: DictConfig | TrainConfig) -> TyreDataModule:
    """The images that a config of :func:`compose` names, split as training splits them.

    Raises:
        UserError: there is no such lake, run or catalog, or the folders do not make a data set.
    """
    return _open_data(_checked(config))


def examine(config: DictConfig | TrainConfig) -> Audit:
    """What the images of a config hold that may spoil a training or its test; looks at each once.

    Raises:
        UserError: there is no such lake, or an object in it cannot be read.
    """
    checked = _checked(config)
    return _examine(checked.data, checked.s3)


def show(
    data: TyreDataModule, keys: Iterable[str], titles: Iterable[str] | None = None, heading: str = "", columns: int = 6
) -> Image.Image:
    """A contact sheet of some images.

    Args:
        data: whose they are.
        keys: which.
        titles: of each; None: its file's name.
        heading: above all.
        columns: beside each other.

    Raises:
        UserError: an image is missing or cannot be fetched.
    """
    check_count("columns", columns, 1)
    if not isinstance(data, TyreDataModule):
        raise UserError(f"give the images that open_data() has opened: {type(data).__name__} is none")
    keys = _texts("keys", keys)
    named = [Path(key).name for key in keys] if titles is None else _texts("titles", titles)
    if len(named) != len(keys):
        raise UserError(f"there are {len(keys)} keys and {len(named)} titles: give one for each")
    return contact_sheet([*thumbnails(data.store, keys)], named, heading, columns)


def check_count(name: str, count: object, least: int) -> None:
    """Raise a :class:`UserError` unless this is a whole number, and not less than ``least``, which is 0 or 1."""
    if not isinstance(count, int | np.integer) or isinstance(count, bool):
        raise UserError(f"{name}={count!r} must be a whole number")
    if count < least:
        raise UserError(f"{name}={count} must be {'at least 1' if least else '0 or more'}")


def _texts(name: str, given: Iterable[object]) -> list[str]:
    texts = [str(one) for one in given] if isinstance(given, Iterable) and not isinstance(given, str | bytes) else None
    if texts is None:
        raise UserError(f"{name}={given!r} must be a list of texts")
    return texts


def _checked(config: DictConfig | TrainConfig) -> TrainConfig:
    if not isinstance(config, DictConfig | TrainConfig):
        raise UserError(f"give a config that compose() has made: {type(config).__name__} is none")
    return config if isinstance(config, TrainConfig) else to_train_config(config)


def _name_tyres(rows: Rows, tyres: Iterable[object]) -> None:
    if not isinstance(tyres, Iterable) or isinstance(tyres, str | bytes | Mapping | Set):
        raise UserError(f"tyres={tyres!r} is no list: give the name of a tyre for each picture, in their order")
    names = pd.Series([*tyres], dtype=object)
    if len(names) != len(rows):
        raise UserError(f"there are {len(rows)} pictures and {len(names)} names of tyres: give one for each picture")
    for row, tyre, none in zip(rows, names, names.isna(), strict=True):
        row["tyre"] = None if none else one_form(str(tyre))


def _called(picture: object, number: int) -> str:
    """The name of a picture in memory."""
    return str(getattr(picture, "filename", "") or f"picture {number}")


def _bytes(path: str | Path) -> bytes:
    source = open_source(str(path), S3Config())
    entries = [*source.entries()]
    if len(entries) != 1:
        raise UserError(f"{path} holds {len(entries)} images: name one")
    return source.store.get(entries[0].key).data


def _pixels(picture: File | Pixels, key: str) -> Tensor | UnreadableImage:
    """A picture in memory as uint8 [3, H, W].

    Raises:
        UserError: it is none.
    """
    if isinstance(picture, File):
        return try_decode(bytes(picture), key)
    if isinstance(picture, Image.Image):
        try:
            pixels = _planes(np.array(to_rgb(ImageOps.exif_transpose(picture))))
        except (OSError, ValueError) as error:
            return UnreadableImage(key, str(error))
    elif isinstance(picture, Tensor) and picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3:
        pixels = picture.cpu()
    elif isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim in (2, 3):
        plain = np.asarray(picture)  # a matrix stays one with two dimensions
        pixels = _planes(plain if plain.ndim == 3 else np.repeat(plain[:, :, None], 3, axis=2))
    else:
        pixels = torch.empty(0)
    if pixels.numel() and len(pixels) == 3:
        return pixels
    about = type(picture).__name__
    if isinstance(picture, np.ndarray | Tensor):
        about = f"{picture.dtype} {list(picture.shape)}"
    elif isinstance(picture, Image.Image):
        about = f"an image of {picture.width} x {picture.height}"
    raise UserError(
        f"{key} is no picture but {about}: give uint8 pixels [H, W, 3], [H, W] or, of torch, [3, H, W], the bytes of a "
        "file, a PIL image, a path, or a list of these"
    )


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    own = np.array(pixels, order="C")  # torch warns of pixels that may not be written, as those of a PIL image
    return torch.from_numpy(own).permute(2, 0, 1)
