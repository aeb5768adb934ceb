"""Splitting a large batch into frames that stream, and putting the answers together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MousetwinError
from .query import Prediction, PredictQuery, TwinIdentity

# A frame is large enough to fill the engine's batches, small enough that either way it stays near the 1-4 MB where
# gRPC streams best.
MAX_FRAME_IMAGES = 64
MAX_FRAME_BYTES = 2 << 20


class Responses(np.ndarray[Any, np.dtype[np.float32]]):
    """float32 (N, K) responses, an ordinary array that also remembers how it came about.

    Attributes:
        twin: the twin that answered, with version and digest.
        defaults: inputs that were not sent and stood at the training set's mean condition.
    """

    twin: TwinIdentity | None
    defaults: tuple[str, ...]

    def __new__(cls, values: NDArray[np.float32], twin: TwinIdentity, defaults: tuple[str, ...]) -> Responses:
        responses = np.asarray(values).view(cls)
        responses.twin = twin
        responses.defaults = defaults
        return responses

    def __array_finalize__(self, parent: NDArray[Any] | None) -> None:
        self.twin = getattr(parent, "twin", None)
        self.defaults = getattr(parent, "defaults", ())


def split(query: PredictQuery, neurons: int) -> list[PredictQuery]:
    """Frames of `query`, whose answers have `neurons` columns; the query itself where it is small enough.

    A query whose arrays disagree about the number of images is left whole: the service says what is wrong with it.
    """
    images = query.images
    count = len(images) if images.ndim else 0
    per_image = max(images.nbytes // max(count, 1), 4 * neurons, 1)
    size = max(1, min(MAX_FRAME_IMAGES, MAX_FRAME_BYTES // per_image))
    rows = {name: array for name in ("behavior", "pupil_center") if (array := getattr(query, name)) is not None}
    rows = {name: array for name, array in rows.items() if array.ndim == 2}
    if count <= size or any(len(array) != count for array in rows.values()):
        return [query]
    return [
        replace(query, images=images[i : i + size], **{name: array[i : i + size] for name, array in rows.items()})
        for i in range(0, count, size)
    ]


class Collector:
    """Puts the answers to frames into one array, in order."""

    def __init__(self, frames: list[PredictQuery]) -> None:
        self._starts: Iterator[int] = iter(np.cumsum([0, *(len(frame.images) for frame in frames)]).tolist())
        self._total = sum(len(frame.images) for frame in frames)
        self._position = next(self._starts)
        self._values: NDArray[np.float32] | None = None
        self._last: Prediction | None = None

    @property
    def done(self) -> int:
        """Images answered so far."""
        return self._position

    def add(self, prediction: Prediction) -> None:
        if self._values is None:
            self._values = np.empty((self._total, prediction.responses.shape[1]), np.float32)
        start, self._position = self._position, next(self._starts)
        self._values[start : self._position] = prediction.responses
        self._last = prediction

    def locate(self, error: MousetwinError) -> MousetwinError:
        """`error` with a word on which images it is about, since its own indices count from the frame's first."""
        error.args = (f"{error} (in the frame that begins at image {self.done})", *error.args[1:])
        return error

    def result(self) -> Responses:
        assert self._values is not None
        assert self._last is not None
        return Responses(self._values, self._last.twin, self._last.defaults)
