"""Black-box loops: a generation of candidates is scored in one batch, for CMA-ES or whatever else asks and tells.

import cmaes
from mousetwin.blackbox import Evaluator

evaluate = Evaluator(mouse, neurons=[3], to_images=draw, space="model")
optimizer = cmaes.CMA(mean=np.zeros(5), sigma=1.0)
while evaluate.count < 2000:
    asked = [optimizer.ask() for _ in range(optimizer.population_size)]
    optimizer.tell([(x, -score) for x, score in zip(asked, evaluate(asked))])   # CMA minimises
evaluate.best.image, evaluate.best.score
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InvalidArgument

if TYPE_CHECKING:
    from .twins import Mouse


@dataclass(frozen=True, eq=False)
class Candidate:
    """One candidate: its parameters as they were given, its image (H, W), its responses (K,) and its score."""

    parameters: NDArray[Any]
    image: NDArray[Any]
    responses: NDArray[np.float32]
    score: float


class Evaluator:
    """Scores candidates on a twin.

    Attributes:
        count: candidates scored until now.
        best: the one with the highest score; None before the first.
    """

    def __init__(
        self,
        mouse: Mouse,
        to_images: Callable[[NDArray[Any]], ArrayLike] | None = None,
        score: Callable[[NDArray[np.float32]], ArrayLike] | None = None,
        **asked: Any,
    ) -> None:
        """
        Args:
            mouse: the twin.
            to_images: candidates (P, …) to images (P, H, W); None: they are images.
            score: responses (P, K) to scores (P,), higher is better; None: the mean over neurons.
            asked: as for `Mouse.predict`: neurons, unit_ids, behavior, pupil_center, space, timeout.
        """
        self._mouse = mouse
        self._to_images = to_images
        self._score = score
        self._asked = asked
        self.count = 0
        self.best: Candidate | None = None

    def __call__(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Scores (P,) of candidates (P, …), from one `predict`.

        Raises:
            InvalidArgument: images or scores are not one a candidate, or a score is NaN.
            MousetwinError: as `Mouse.predict`.
        """
        parameters = np.asarray(candidates)
        images = parameters if self._to_images is None else np.asarray(self._to_images(parameters))
        if len(images) != len(parameters):
            raise InvalidArgument(
                f"to_images: {len(images)} images of {len(parameters)} candidates, expected one each", field="to_images"
            )
        responses = np.asarray(self._mouse.predict(images, **self._asked))
        scores = np.asarray(responses.mean(1) if self._score is None else self._score(responses), np.float64)
        if scores.shape != (len(parameters),) or np.isnan(scores).any():
            raise InvalidArgument(
                f"score: shape {scores.shape}, expected ({len(parameters)},) without NaN: a score a candidate",
                field="score",
            )
        self.count += len(parameters)
        top = int(scores.argmax())
        if self.best is None or scores[top] > self.best.score:
            self.best = Candidate(parameters[top], images[top], responses[top], float(scores[top]))
        return scores
