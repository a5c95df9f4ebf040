"""What the server counts, as Prometheus reads it (its text format, version 0.0.4)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tyre_lightning.model.inspector import NOVELTY
from tyre_lightning.serving.models import Models

KIND = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHARES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


class Histogram:
    """Counts values by the bounds below which they lie.

    Args:
        bounds: ascending.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one more."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        """Its samples."""
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{"+Inf" if bound == math.inf else bound}"}} {total}'
        yield f"{name}_sum {self._sum!r}"
        yield f"{name}_count {total}"


class Metrics:
    """What has been asked and answered; used by one thread only.

    Args:
        models: the model in use.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self.waiting = 0  # pictures that were taken and have no answer yet
        self._requests: Counter[str] = Counter()  # by status
        self._decisions: Counter[str] = Counter()  # of pictures
        self._unreadable = 0
        self._seconds, self._novelty = Histogram(_SECONDS), Histogram(_SHARES)

    def answered(self, rows: Iterable[Mapping[str, Any]], seconds: float) -> None:
        """Count the rows of a request, and how long they took from its first byte on."""
        self._seconds.add(seconds)
        for row in rows:
            self._decisions[row["decision"] or "none"] += 1
            self._unreadable += row["error"] is not None
            if (novelty := row[NOVELTY]) is not None:
                self._novelty.add(novelty)

    def ended(self, status: int) -> None:
        """Count a request by how it ended."""
        self._requests[str(status)] += 1

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        held = self._models.held
        yield from _family("tyre_pictures_total", "counter", "Pictures that were answered, by the decision on the tyre")
        yield from (_sample("tyre_pictures_total", "decision", *one) for one in sorted(self._decisions.items()))
        yield from _family("tyre_unreadable_pictures_total", "counter", "Pictures of which nothing could be said")
        yield f"tyre_unreadable_pictures_total {self._unreadable}"
        yield from _family("tyre_requests_total", "counter", "Requests for answers, by status")
        yield from (_sample("tyre_requests_total", "status", *one) for one in sorted(self._requests.items()))
        yield from _family("tyre_request_seconds", "histogram", "From a request's head to its answer")
        yield from self._seconds.lines("tyre_request_seconds")
        yield from _family("tyre_novelty", "histogram", "The novelty of pictures; small is unlike good tyres")
        yield from self._novelty.lines("tyre_novelty")
        yield from _family("tyre_waiting_pictures", "gauge", "Pictures that were taken and have no answer yet")
        yield f"tyre_waiting_pictures {self.waiting}"
        yield from _family("tyre_model_info", "gauge", "The model in use")
        if held is not None:
            yield _sample("tyre_model_info", "model", held.name, 1)
        yield from _family("tyre_model_loads_total", "counter", "Models that were loaded since the start")
        yield f"tyre_model_loads_total {self._models.loads}"
        yield from _family("tyre_model_loaded_timestamp_seconds", "gauge", "When the model in use was loaded")
        yield f"tyre_model_loaded_timestamp_seconds {self._models.loaded_at!r}"
        yield from _family("tyre_registry_up", "gauge", "Whether the registry could be asked the last time")
        yield f"tyre_registry_up {int(self._models.trouble is None)}"


def _family(name: str, kind: str, about: str) -> tuple[str, str]:
    return f"# HELP {name} {about}.", f"# TYPE {name} {kind}"


def _sample(name: str, label: str, value: str, count: int) -> str:
    shown = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}{{{label}="{shown}"}} {count}'
