"""What the page shows of a picture: itself, where the model saw a defect, and what looks most alike in training."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image
from torchvision.transforms.v2 import functional as F

from tyre_lightning.data.decoding import decode, media_type
from tyre_lightning.errors import UserError, first_line
from tyre_lightning.lake.reader import LARGEST
from tyre_lightning.lake.store import Store

if TYPE_CHECKING:
    from tyre_lightning.model.examples import Example
    from tyre_lightning.model.inspector import Inspector

_TOGETHER = 4  # pictures that are decoded at one time
_QUALITY = 95
_LONGEST_JPEG = 65_500  # pixels of a side
_OVERLAY = 1600  # pixels of the longer side

log = logging.getLogger(__name__)


class Shown(NamedTuple):
    """A file for a browser, and the tag of the content that it was made of."""

    data: bytes
    kind: str
    tag: str


class Looks:
    """Pictures of a store, as a browser shows them.

    Args:
        store: where they lie.
        model: whose looks can be shown; None: nobody's.
        tracking_uri: of the model registry.
    """

    def __init__(self, store: Store, model: str | None, tracking_uri: str) -> None:
        self._store, self._model, self._tracking_uri = store, model, tracking_uri
        self._decoding, self._thinking = threading.Semaphore(_TOGETHER), threading.Lock()
        self._inspector: Inspector | None = None
        self._seen: dict[str, set[str]] = {}
        self.trouble = "the model is loading" if model else "no model is known: give model=... to see its looks"

    def load(self) -> None:
        """Load the model, in a thread of its own: the page works before, and without."""
        if self._model is not None:
            threading.Thread(target=self._load, daemon=True).start()

    def _load(self) -> None:
        try:
            from tyre_lightning.evaluation.saliency import check_explainable
            from tyre_lightning.tracking.registry import load_inspector

            inspector = load_inspector(str(self._model), self._tracking_uri)
            check_explainable(inspector)
        except Exception as error:  # whatever it is, people can go on answering
            self.trouble = f"the model cannot be used: {first_line(error)}"
            log.warning("%s", self.trouble)
        else:
            self._inspector, self.trouble = inspector, ""

    def picture(self, key: str) -> Shown:
        """A picture as it is where browsers show it right, else what the project decodes.

        Raises:
            UserError: it cannot be fetched or decoded.
        """
        with self._decoding:
            content = self._store.get(key, LARGEST)
            image: Image.Image = F.to_pil_image(decode(content.data, key))  # so that damage shows here too
            kind = media_type(content.data)
            shown = (content.data, kind) if kind else _encoded(image)
        self._seen.setdefault(key, set()).add(content.etag)
        return Shown(*shown, content.etag)

    def tags(self, keys: Sequence[str], given: Sequence[str | None]) -> list[str | None]:
        """Of the tags that a browser gives back, those of contents that it was shown; None for others."""
        return [tag if tag in self._seen.get(key, ()) else None for key, tag in zip(keys, given, strict=True)]

    def overlay(self, key: str) -> bytes:
        """A picture with what the model looked at, as JPEG.

        Raises:
            UserError: there is no model, or the picture cannot be fetched or decoded.
        """
        from tyre_lightning.evaluation.saliency import explain, overlay

        inspector = self._ready()
        with self._decoding:
            image = decode(self._store.get(key, LARGEST).data, key)
            with self._thinking:  # the gradient takes the network for itself
                (heat,) = explain(inspector, [inspector.preprocessing(image)])
            return _encoded(overlay(image, heat, inspector.preprocessing, _OVERLAY))[0]

    def nearest(self, key: str) -> list[Example]:
        """The training pictures that look most alike to the model.

        Raises:
            UserError: as :meth:`overlay`.
        """
        inspector = self._ready()
        with self._decoding:
            image = inspector.read(self._store.get(key, LARGEST).data, key)
            with self._thinking:
                return inspector.nearest(inspector.look([image]).features)[0]

    def _ready(self) -> Inspector:
        if self._inspector is None:
            raise UserError(self.trouble)
        return self._inspector


def _encoded(image: Image.Image) -> tuple[bytes, str]:
    kind = "JPEG" if max(image.size) <= _LONGEST_JPEG else "PNG"
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=_QUALITY, subsampling=0) if kind == "JPEG" else image.save(buffer, kind)
    return buffer.getvalue(), f"image/{kind.lower()}"
