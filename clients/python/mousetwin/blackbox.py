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

from .arrays import from_nested
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

    def __repr__(self) -> str:
        shapes = f"parameters {self.parameters.shape}, image {self.image.shape}, responses {self.responses.shape}"
        return f"<Candidate with score {self.score:.4g}: {shapes}>"


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

    def __repr__(self) -> str:
        best = "" if self.best is None else f", best score {self.best.score:.4g}"
        return f"<Evaluator of {self._mouse.summary}: {self.count} candidates{best}>"

    def __call__(self, candidates: ArrayLike) -> NDArray[np.float64]:
        """Scores (P,) of candidates (P, …), from one `predict`.

        Raises:
            InvalidArgument: candidates, images or scores are no numbers, images or scores are not one a candidate, or a
                score is NaN.
            MousetwinError: as `Mouse.predict`.
        """
        parameters = from_nested(candidates, "candidates")
        if not parameters.ndim:
            raise InvalidArgument("candidates: a single number, expected (P, …)", field="candidates")
        count = len(parameters)
        images = parameters if self._to_images is None else from_nested(self._to_images(parameters), "to_images")
        if images.shape[:1] != (count,):
            raise InvalidArgument(
                f"to_images: {len(images) if images.ndim else 1} images of {count} candidates, expected one each",
                field="to_images",
            )
        responses = np.asarray(self._mouse.predict(images, **self._asked))
        scored = responses.mean(1) if self._score is None else self._score(responses)
        scores = from_nested(scored, "score").astype(np.float64)
        if scores.shape != (count,) or np.isnan(scores).any():
            raise InvalidArgument(
                f"score: shape {scores.shape}, expected ({count},) without NaN: a score a candidate",
                field="score",
            )
        self.count += count
        top = int(scores.argmax())
        if self.best is None or scores[top] > self.best.score:
            # The caller may use the arrays again.
            self.best = Candidate(parameters[top].copy(), images[top].copy(), responses[top], float(scores[top]))
        return scores
