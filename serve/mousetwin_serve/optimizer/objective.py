"""What images are worth, and how that changes with them: a mean over conditions and twins, weighed or contrasted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..batch import Answer, Batch, Float
from ..memory import on_host
from .constraints import Double, Put

# Answers a batch for one of several twins, by its number.
Ask = Callable[[int, Batch], Answer]


@dataclass(frozen=True)
class Seen:
    """One twin's part: columns (N, K) of the target and what it stands against, and C conditions.

    behavior: (C, B), and pupil_center: (C, 2), in model space, where the twin takes them.
    """

    columns: NDArray[np.intp]
    behavior: Float | None
    pupil_center: Float | None

    def moved(self, put: Put) -> Seen:
        """On another device; columns stay on the host, where runs are planned."""
        behavior, pupil_center = (
            None if values is None else put(values) for values in (self.behavior, self.pupil_center)
        )
        return Seen(self.columns, behavior, pupil_center)


@dataclass(frozen=True)
class Valued:
    """Of N images: objective (N,), responses (N, K), gradient of the objective (N, H, W); None if not asked for."""

    values: Double
    responses: Double
    gradient: Double | None


class Objective:
    """The objective of N images.

    Args:
        twins: each with the same number of columns.
        weights: (N, K), of the target's columns, which come first.
        temperature: of the contrast with the columns behind them, if there are any.
        conditions: how many there are.
        put: to the device that the images are on.
    """

    def __init__(
        self, twins: list[Seen], weights: Double, temperature: float, conditions: int, put: Put = on_host
    ) -> None:
        self._twins = [twin.moved(put) for twin in twins]
        self._weights = put(weights)
        self._temperature = temperature
        self._conditions = conditions
        self._target = weights.shape[1]
        self._put = put
        self._plans = [_Columns(twin.columns, conditions, put) for twin in twins]

    def repeated(self, times: int) -> Objective:
        """The objective of so many copies of each image, next to each other."""
        twins = [replace(twin, columns=np.repeat(twin.columns, times, 0)) for twin in self._twins]
        return Objective(twins, np.repeat(self._weights, times, 0), self._temperature, self._conditions, self._put)

    @property
    def runs_per_image(self) -> int:
        """Images that a twin sees for one image of the optimisation, over all twins."""
        return self._conditions * len(self._twins)

    def value(self, images: Double, ask: Ask) -> Valued:
        """Without the gradient."""
        responses = self._mean([self._ask(number, images, None, ask).responses for number in range(len(self._twins))])
        return Valued(self._values(responses)[0], responses, None)

    def differentiate(self, images: Double, ask: Ask) -> Valued:
        """With the gradient."""
        contrasted = self._twins[0].columns.shape[1] > self._target
        # Without a contrast the objective is linear: its weights are known before the responses are.
        cotangent = self._weights if not contrasted else self._values(self.value(images, ask).responses)[1]
        answers = [self._ask(number, images, cotangent, ask) for number in range(len(self._twins))]
        responses = self._mean([answer.responses for answer in answers])
        gradient = np.zeros_like(images)
        for answer in answers:
            moved = answer.gradient["images"][:, 0].astype(np.float64)
            gradient += moved.reshape(-1, self._conditions, *images.shape[1:]).sum(1)
        return Valued(self._values(responses)[0], responses, gradient / self.runs_per_image)

    def _values(self, responses: Double) -> tuple[Double, Double]:
        """The objective (N,), and its derivative with respect to each response (N, K)."""
        wanted = (self._weights * responses[:, : self._target]).sum(1)
        behind = responses[:, self._target :]
        if not behind.shape[1]:
            return wanted, self._weights
        temperature, other = self._temperature, behind.mean(1)
        # r - T log((exp(r/T) + exp(a/T)) / 2), written so that nothing overflows.
        gap = (other - wanted) / temperature
        values = -temperature * (np.logaddexp(0, gap) - np.log(2))
        share = np.exp(-np.logaddexp(0, -gap))[:, None]
        return values, np.concatenate(
            [self._weights * share, np.broadcast_to(-share / behind.shape[1], behind.shape)], 1
        )

    def _ask(self, number: int, images: Double, cotangent: Double | None, ask: Ask) -> Answer:
        twin, plan = self._twins[number], self._plans[number]
        batch = Batch(
            np.repeat(images[:, None].astype(np.float32), self._conditions, 0),
            _tiled(twin.behavior, len(images)),
            _tiled(twin.pupil_center, len(images)),
            plan.columns,
            None if cotangent is None else plan.spread(cotangent),
        )
        answer = ask(number, batch)
        return Answer(plan.pick(answer.responses), answer.gradient)

    def _mean(self, responses: list[Float]) -> Double:
        every = np.stack([r.reshape(-1, self._conditions, r.shape[1]) for r in responses])
        mean: Double = every.mean((0, 2), dtype=np.float64)
        return mean


class _Columns:
    """Columns (N, K), a set for each image, as an engine takes them: one an image, or the same for all."""

    def __init__(self, columns: NDArray[np.intp], conditions: int, put: Put) -> None:
        self._each = np.repeat(columns, conditions, 0)
        self._place: NDArray[np.intp] | None = None
        self.columns = self._each
        if columns.shape[1] > 1:
            self.columns, place = np.unique(self._each, return_inverse=True)
            self._place = put(place.reshape(self._each.shape))
            self._row = put(np.arange(len(self._each))[:, None])

    def spread(self, cotangent: Double) -> Float:
        """Weights of each image's own columns as weights of those that are asked for."""
        own = np.repeat(cotangent, len(self._each) // len(cotangent), 0).astype(np.float32)
        if self._place is None:
            return own
        whole: Float = np.zeros((len(own), len(self.columns)), np.float32, like=own)
        whole[self._row, self._place] = own
        return whole

    def pick(self, responses: Float) -> Float:
        return responses if self._place is None else np.take_along_axis(responses, self._place, 1)


def _tiled(conditions: Float | None, images: int) -> Float | None:
    return None if conditions is None else np.tile(conditions, (images, 1))
