"""What a caller gets; splitting a large batch into frames that stream, and putting the answers together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from .errors import MousetwinError
from .query import GradientAnswer, GradientQuery, Prediction, PredictQuery, TwinIdentity

# A frame is large enough to fill the engine's batches, small enough that either way it stays near the 1-4 MB where
# gRPC streams best.
MAX_FRAME_IMAGES = 64
MAX_FRAME_BYTES = 2 << 20
# What has a row an image where it has two dimensions.
_BY_IMAGE = ("behavior", "pupil_center", "neurons", "unit_ids", "cotangent")


# What responses remember, and what that is of an array that no twin answered.
_REMEMBERED: dict[str, Any] = {"twin": None, "defaults": (), "warnings": ()}


class Responses(np.ndarray[Any, np.dtype[np.float32]]):
    """float32 (N, K) responses, an ordinary array that also remembers how it came about.

    Slices, copies and pickles remember it too; a mean over all of them, or one of them, is a plain number.

    Attributes:
        twin: the twin that answered, with version and digest.
        defaults: inputs that were not sent and stood at the training set's mean condition.
        warnings: a line for each thing that was taken and is nearly always a mistake.
    """

    twin: TwinIdentity | None
    defaults: tuple[str, ...]
    warnings: tuple[str, ...]

    def __new__(
        cls,
        values: NDArray[np.float32],
        twin: TwinIdentity,
        defaults: tuple[str, ...],
        warnings: tuple[str, ...] = (),
    ) -> Responses:
        responses = np.asarray(values).view(cls)
        responses.twin = twin
        responses.defaults = defaults
        responses.warnings = warnings
        return responses

    def __array_finalize__(self, parent: NDArray[Any] | None) -> None:
        for name, unknown in _REMEMBERED.items():
            setattr(self, name, getattr(parent, name, unknown))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        # What is left of a reduction to one number; numpy 1 does not say that it is one.
        return super().__array_wrap__(array, context) if np.ndim(array) else array[()]

    def __reduce__(self) -> Any:
        rebuild, arguments, state = tuple(super().__reduce__())
        return rebuild, arguments, (state, {name: getattr(self, name) for name in _REMEMBERED})

    def __setstate__(self, state: Any) -> None:
        array, remembered = state
        super().__setstate__(array)
        vars(self).update(remembered)


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of Σ cotangent · responses with respect to what was sent; the pair `responses, images` as a tuple.

    It unpacks as that pair, and has its length and its indices; by name there is more.

    Attributes:
        responses: float32 (N, K), as `Mouse.predict` answers.
        images: float32, in the shape and the units of the images that were sent.
        behavior, pupil_center: float32 (N, B) and (N, 2); None where the twin takes none, or its raw units are not
            known.
    """

    responses: Responses
    images: NDArray[np.float32]
    behavior: NDArray[np.float32] | None
    pupil_center: NDArray[np.float32] | None

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter(self._pair)

    def __len__(self) -> int:
        return len(self._pair)

    @overload
    def __getitem__(self, index: SupportsIndex) -> NDArray[np.float32]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[NDArray[np.float32], ...]: ...

    def __getitem__(self, index: Any) -> Any:
        return self._pair[index]

    def __repr__(self) -> str:
        shapes = {field.name: getattr(self, field.name) for field in fields(self)}
        told = ", ".join(f"{name} {value.shape}" for name, value in shapes.items() if value is not None)
        return f"<Gradient of {self.responses.twin}: {told}>"

    @property
    def _pair(self) -> tuple[NDArray[np.float32], ...]:
        return (self.responses, self.images)


def responses_of(answer: Prediction) -> Responses:
    """The answer to a `predict` call, as arrays of the caller's own."""
    return Responses(np.array(answer.responses), answer.twin, answer.defaults, answer.warnings)


def gradient_of(answer: Prediction) -> Gradient:
    """The answer to a `gradient` call, as arrays of the caller's own."""
    assert isinstance(answer, GradientAnswer)
    behavior, pupil_center = (
        None if given is None else np.array(given) for given in (answer.behavior, answer.pupil_center)
    )
    return Gradient(responses_of(answer), np.array(answer.images), behavior, pupil_center)


def split(query: PredictQuery, neurons: int) -> list[PredictQuery]:
    """Frames of `query`, whose answers have `neurons` columns; the query itself where it is small enough.

    A query whose arrays disagree about the number of images, or whose images are none, is left whole: the service says
    what is wrong with it.
    """
    images = query.images
    if images.ndim < 3:
        return [query]
    count = len(images)
    answered = 4 * neurons + (4 * images[0].size if isinstance(query, GradientQuery) and count else 0)
    size = frame_size(images.nbytes // max(count, 1), answered)
    rows = {name: array for name in _BY_IMAGE if (array := getattr(query, name, None)) is not None}
    rows = {name: array for name, array in rows.items() if array.ndim == 2}
    if count <= size or any(len(array) != count for array in rows.values()):
        return [query]
    return [
        replace(query, images=images[i : i + size], **{name: array[i : i + size] for name, array in rows.items()})
        for i in range(0, count, size)
    ]


def frame_size(image_bytes: int, answer_bytes: int) -> int:
    """Images in a frame, where one of them and what is answered to it have so many bytes."""
    return max(1, min(MAX_FRAME_IMAGES, MAX_FRAME_BYTES // max(image_bytes, answer_bytes, 1)))


class Collector:
    """Puts the answers to frames into one, in order."""

    def __init__(self, frames: list[PredictQuery]) -> None:
        self._starts: Iterator[int] = iter(np.cumsum([0, *(len(frame.images) for frame in frames)]).tolist())
        self._total = sum(len(frame.images) for frame in frames)
        self._position = next(self._starts)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._last: Prediction | None = None
        self._warnings: dict[str, None] = {}

    @property
    def done(self) -> int:
        """Images answered so far."""
        return self._position

    def add(self, answer: Prediction) -> None:
        start, self._position = self._position, next(self._starts)
        for name, values in vars(answer).items():
            if isinstance(values, np.ndarray):
                if name not in self._arrays:
                    self._arrays[name] = np.empty((self._total, *values.shape[1:]), np.float32)
                self._arrays[name][start : self._position] = values
        self._last = answer
        self._warnings |= dict.fromkeys(answer.warnings)

    def locate(self, error: MousetwinError) -> MousetwinError:
        """`error` with a word on which images it is about, since its own indices count from the frame's first."""
        error.args = (f"{error} (in the frame that begins at image {self.done})", *error.args[1:])
        return error

    def result(self) -> Prediction:
        assert self._last is not None
        whole: Any = self._arrays
        return replace(self._last, **whole, warnings=tuple(self._warnings))
