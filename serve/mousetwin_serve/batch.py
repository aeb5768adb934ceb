"""What an engine takes and gives: arrays with a row an image, in model space, on the host or in a device's memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .memory import at

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Checked images and what is asked about them.

    Attributes:
        images: float32 (N, 1, H, W).
        behavior: float32 (N, B), and
        pupil_center: float32 (N, 2): exactly where the twin takes them.
        columns: the neurons asked for: (K,) for all images or (N, 1) one an image; None for all neurons.
        cotangent: float32 (N, K), what the gradient weighs responses with; None where no gradient is asked for.
    """

    images: Float
    behavior: Float | None = None
    pupil_center: Float | None = None
    columns: NDArray[np.intp] | None = None
    cotangent: Float | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Answer:
    """Responses, float32 (N, K), and where asked for the gradient of Σ cotangent · responses, by input."""

    responses: Float
    gradient: Mapping[str, Float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """A batch made ready for one graph.

    Attributes:
        graph: its name.
        rows: what the graph takes, with a row an image.
        shared: what it takes that is the same for all images.
        pick: columns of its answer that were asked for, as `Batch.columns`; None for all it gives.
        key: works of one key can share a run.
    """

    graph: str
    rows: Mapping[str, NDArray[Any]]
    shared: Mapping[str, NDArray[Any]]
    pick: NDArray[np.intp] | None
    key: Hashable

    def __len__(self) -> int:
        return len(self.rows["images"])

    def part(self, start: int, stop: int) -> Work:
        """Some of the images."""
        pick = self.pick if self.pick is None or self.pick.ndim == 1 else self.pick[start:stop]
        return Work(self.graph, {n: v[start:stop] for n, v in self.rows.items()}, self.shared, pick, self.key)


def join(works: Sequence[Work]) -> dict[str, NDArray[Any]]:
    """What to feed to run works of one key at once."""
    first = works[0]
    if len(works) == 1:
        return {**first.rows, **first.shared}
    return {**{n: np.concatenate([work.rows[n] for work in works]) for n in first.rows}, **first.shared}


def concatenate(answers: Sequence[Answer]) -> Answer:
    """Answers to the parts of one work as one."""
    if len(answers) == 1:
        return answers[0]
    with at(answers[0].responses):
        return Answer(
            np.concatenate([answer.responses for answer in answers]),
            {name: np.concatenate([answer.gradient[name] for answer in answers]) for name in answers[0].gradient},
        )
