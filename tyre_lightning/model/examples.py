"""Small copies of training pictures, and where they lie among what a network tells pictures apart by.

Next to a picture lie those with the smallest Euclidean distance in the directions of :class:`Reference`, each of them
divided by the spread of pictures of one class: with them the distance is Mahalanobis's, by the directions alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tyre_lightning.decision.novelty import Floats32, Reference

EXAMPLES = "examples"  # what a file says of them is under that name
MOST = 1000  # pictures in a model
LARGEST = 4_900_000  # bytes, with the reference: in a file with its own table they stay under 5 MB
SIDE = 96  # pixels of a small copy: of a tyre its JPEG has 2 to 3 kB
_FARTHEST = 60_000.0  # in a direction; float16 ends at 65504
_END = np.dtype(np.int32)  # of where a text ends in a file
_TEXTS = "keys", "classes", "thumbnails"  # of a file


class Example(NamedTuple):
    """A training picture."""

    key: str
    class_name: str  # of several defects all names, with commas
    thumbnail: bytes  # JPEG, of what the network sees; nothing decodes it before it is shown


@dataclass(frozen=True)
class Examples:
    """Training pictures that a model carries.

    Args:
        pictures: M of them.
        places: where each lies along the reference's R directions, in standard deviations, float16 [M, R].
    """

    pictures: tuple[Example, ...]
    places: NDArray[np.float16]

    @classmethod
    def of(cls, pictures: Sequence[Example], features: Floats32, reference: Reference) -> Examples:
        """The first of some pictures, as many as :data:`MOST` and :data:`LARGEST` leave room for.

        Args:
            pictures: in random order, so that those left out differ in nothing from the others.
            features: of each, [N, D].
            reference: what good tyres look like to the same network.
        """
        places = _places(features, reference).astype(np.float16)
        fixed = places[:1].nbytes + len(_TEXTS) * _END.itemsize
        sizes = np.cumsum([fixed + sum(map(len, _as_bytes(picture))) for picture in pictures[:MOST]])
        room = LARGEST - sum(part.nbytes for part in reference.arrays().values())
        count = int(np.searchsorted(sizes, room, side="right"))
        return cls(tuple(pictures[:count]), places[:count])

    def nearest(self, features: Floats32, reference: Reference, count: int = 3) -> list[list[Example]]:
        """The examples that look most alike to the network, nearest first, of each of N pictures.

        Args:
            features: [N, D].
            reference: the one with which they were made.
            count: how many; fewer where there are fewer.
        """
        places = self.places.astype(np.float32)
        distances = [np.square(places - place).sum(axis=1) for place in _places(features, reference)]
        return [[self.pictures[index] for index in np.argsort(row, kind="stable")[:count]] for row in distances]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By name, for a file: texts and pictures as bytes, uint8, with the places where each ends, int32 [M]."""
        found: dict[str, NDArray[Any]] = {"places": self.places}
        parts = [_as_bytes(picture) for picture in self.pictures]
        for place, name in enumerate(_TEXTS):
            texts = [part[place] for part in parts]
            found[name] = np.frombuffer(b"".join(texts), np.uint8)
            found[_ends(name)] = np.cumsum([len(text) for text in texts], dtype=_END)
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Examples:
        """The inverse of :meth:`arrays`.

        Raises:
            KeyError: one of them is missing.
            ValueError: they do not fit together.
        """
        keys, classes, thumbnails = (_split(arrays[name], arrays[_ends(name)]) for name in _TEXTS)
        pictures = tuple(
            Example(key.decode(), name.decode(), small)
            for key, name, small, _ in zip(keys, classes, thumbnails, arrays["places"], strict=True)
        )
        return cls(pictures, arrays["places"])


def _places(features: Floats32, reference: Reference) -> Floats32:
    """Where pictures lie along the directions, in standard deviations, [N, R]."""
    if not len(features):
        return np.zeros((0, len(reference.variances)), np.float32)
    along = (features - reference.mean) @ reference.directions.T / np.sqrt(reference.variances)
    return np.asarray(np.clip(along, -_FARTHEST, _FARTHEST), np.float32)


def _as_bytes(picture: Example) -> tuple[bytes, bytes, bytes]:
    return picture.key.encode(), picture.class_name.encode(), picture.thumbnail


def _ends(name: str) -> str:
    return f"{name}_end"


def _split(text: NDArray[np.uint8], ends: NDArray[np.int32]) -> list[bytes]:
    whole, places = text.tobytes(), [0, *ends.tolist()]
    return [whole[start:end] for start, end in pairwise(places)]
