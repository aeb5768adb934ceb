"""The ascent: images follow the gradient of their objective and are brought back to what they must keep to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from mousetwin.optimization import Ascent
from numpy.typing import NDArray

from .constraints import Constraints, Double, norm
from .filters import penalty, penalty_gradient, smooth
from .objective import Ask, Objective, Valued

_TINY = 1e-12
# Large steps find the best of several hills, small ones its top.
_TRIAL_STEP, _TRIAL_STEP_END = 0.5, 0.02


@dataclass(frozen=True)
class Plan:
    """A checked optimisation of N images, in model units.

    Attributes:
        objective, constraints, ascent: what, within what, and how.
        start: (N · trials, H, W), those of one image next to each other; do not keep to the constraints yet.
        trials: how many images each image is tried from.
        trial_steps: with which the best of them is found.
        generators: of each image's own chance.
        group: (N,), images that are to differ from those of the same number; None where none are.
        min_share: of a group's best that each of its images keeps.
    """

    objective: Objective
    constraints: Constraints
    ascent: Ascent
    start: Double
    trials: int
    trial_steps: int
    generators: list[np.random.Generator]
    group: NDArray[np.intp] | None
    min_share: float


@dataclass(frozen=True)
class Step:
    """After so many steps: the objective (N,) and the images (N, H, W) as they are."""

    number: int
    values: Double
    images: Double


@dataclass(frozen=True)
class Found:
    """Each image's best (N, H, W) and what it is worth.

    values: the objective (N,). scores: with the penalties taken off. responses: (N, K). trace: the objective by step.
    stopped: why. kept: which images (N,) have the size that is held.
    """

    images: Double
    values: Double
    scores: Double
    responses: Double
    trace: Double
    stopped: str
    kept: NDArray[np.bool_]


class _Best:
    """The best that each image has been, so far."""

    def __init__(self, images: Double) -> None:
        self.scores: Double = np.full_like(images, -np.inf, shape=(len(images),))
        self.images: Double | None = None

    def take(self, images: Double, scores: Double, better: NDArray[np.bool_]) -> None:
        # No masks as indices: a GPU would have to tell how many there are before it could go on.
        self.images = np.where(better[:, None, None], images, images if self.images is None else self.images)
        self.scores = np.where(better, scores, self.scores)


def ascend(plan: Plan, ask: Ask) -> Iterator[Step | Found]:
    """Every step, and what was found in the end. Whatever `ask` raises ends it.

    Args:
        plan: what to do.
        ask: answers batches.
    """
    ascent, constraints = plan.ascent, plan.constraints
    images = constraints.project(_tried(plan, ask) if plan.trial_steps else plan.start)
    mover = _Mover(plan, images)
    best, trace, stopped = _Best(images), list[Double](), "steps"
    improved, mark = plan.trial_steps, np.zeros_like(best.scores)
    for number in range(plan.trial_steps, ascent.steps + 1):
        shifts = [tuple(g.integers(-ascent.jitter, ascent.jitter + 1, 2)) for g in plan.generators]
        last = number == ascent.steps
        valued = _differentiate(plan, images, [(0, 0)] * len(images) if last else shifts, ask)
        trace.append(valued.values)
        differing = mover.differing(number)
        scores = valued.values - penalty(images, ascent, constraints.center)
        good = scores >= mover.floor(best.scores) if differing else scores > best.scores
        best.take(images, scores, good & constraints.kept(images))
        yield Step(number, valued.values, constraints.shown(images))
        if len(trace) == 1 or (best.scores > mark + ascent.tolerance * np.abs(mark)).any():
            improved, mark = number, best.scores.copy()
        if last or (ascent.patience and not differing and number - improved >= ascent.patience):
            stopped = "steps" if last else "patience"
            break
        images = constraints.project(images + mover.step(number, images, valued, scores))
    assert best.images is not None
    shown = constraints.shown(best.images)
    final = plan.objective.value(shown, ask)
    scores = final.values - penalty(best.images, ascent, constraints.center)
    kept = constraints.kept(best.images)
    yield Found(shown, final.values, scores, final.responses, np.stack(trace), stopped, kept)


def _tried(plan: Plan, ask: Ask) -> Double:
    """The best image (N, H, W) that each image's trials lead to."""
    ascent = replace(
        plan.ascent,
        steps=plan.trial_steps,
        step_size=_TRIAL_STEP,
        step_size_end=_TRIAL_STEP_END,
        patience=0,
        jitter=0,
    )
    trial = replace(
        plan,
        objective=plan.objective.repeated(plan.trials),
        ascent=ascent,
        generators=[generator for generator in plan.generators for _ in range(plan.trials)],
        trials=1,
        trial_steps=0,
        group=None,
    )
    *_, found = ascend(trial, ask)
    assert isinstance(found, Found)
    best = found.scores.reshape(-1, plan.trials).argmax(1)
    tried = found.images.reshape(-1, plan.trials, *found.images.shape[1:])
    chosen: Double = tried[np.arange(len(best), like=best), best]
    return chosen


def _differentiate(plan: Plan, images: Double, shifts: list[tuple[int, ...]], ask: Ask) -> Valued:
    """The objective of shifted images, and its gradient with respect to them unshifted, inside the mask."""
    valued = plan.objective.differentiate(_rolled(plan.constraints.shown(images), shifts, 1), ask)
    assert valued.gradient is not None
    gradient = plan.constraints.mask * _rolled(valued.gradient, shifts, -1)
    return Valued(valued.values, valued.responses, gradient)


class _Mover:
    """Turns gradients into steps."""

    def __init__(self, plan: Plan, images: Double) -> None:
        self._plan = plan
        self._velocity = np.zeros_like(images)
        self._squares = np.zeros_like(images)
        self._floor: Double | None = None

    def differing(self, number: int) -> bool:
        """Whether images are being pushed apart by now."""
        return self._plan.group is not None and number > self._plan.ascent.steps // 2

    def floor(self, best: Double) -> Double:
        """The least objective that each image keeps while it differs: fixed when the pushing begins."""
        if self._floor is None:
            assert self._plan.group is not None
            group = self._plan.group
            tops = best.copy()
            for name in np.unique(group):
                members = np.asarray(np.flatnonzero(group == name), like=best)
                tops[members] = best[members].max()
            # For a negative best a share would ask for more than it.
            self._floor = tops - (1 - self._plan.min_share) * np.abs(tops)
        return self._floor

    def step(self, number: int, images: Double, valued: Valued, scores: Double) -> Double:
        """What to add to images (N, H, W)."""
        ascent, constraints = self._plan.ascent, self._plan.constraints
        assert valued.gradient is not None
        gradient = valued.gradient
        if ascent.l2 or ascent.total_variation:
            gradient = gradient - constraints.mask * penalty_gradient(images, ascent, constraints.center)
        progress = number / ascent.steps
        gradient = smooth(gradient, ascent, progress)
        if self.differing(number):
            gradient = self._apart(images, gradient, scores)
        size = ascent.step_size_end + (ascent.step_size - ascent.step_size_end) * (1 - progress) ** 2
        return size * constraints.reference * self._direction(number, images, gradient)

    def _direction(self, number: int, images: Double, gradient: Double) -> Double:
        constraints = self._plan.constraints
        if self._plan.ascent.optimizer == "adam":
            if constraints.size is not None and not constraints.capped:
                # What only changes the size is undone anyway; Adam would weigh its pixels as if it were not.
                along = constraints.mask * (images - constraints.center)
                along = along / (norm(along) + _TINY)
                gradient = gradient - (gradient * along).sum((1, 2), keepdims=True) * along
            first, second = 0.9, 0.999
            self._velocity = first * self._velocity + (1 - first) * gradient
            self._squares = second * self._squares + (1 - second) * gradient**2
            mean = self._velocity / (1 - first ** (number + 1))
            spread = np.sqrt(self._squares / (1 - second ** (number + 1)))
            # A pixel's step as a share of the norm, so that a step is as long as one of the plain ascent.
            found: Double = mean / (spread + _TINY) / math.sqrt(gradient[0].size)
            return found
        self._velocity = self._plan.ascent.momentum * self._velocity + gradient / (norm(gradient) + _TINY)
        return self._velocity

    def _apart(self, images: Double, gradient: Double, scores: Double) -> Double:
        """Away from the others of the group where an image can afford it, up where it cannot."""
        group, constraints = self._plan.group, self._plan.constraints
        assert group is not None
        assert self._floor is not None
        unit = constraints.mask * (images - constraints.center)
        unit = unit / (norm(unit) + _TINY)
        up = gradient / (norm(gradient) + _TINY)
        moved = np.empty_like(gradient)
        for n, name in enumerate(group):
            others = unit[np.asarray(np.flatnonzero((group == name) & (np.arange(len(group)) != n)), like=unit)]
            # Down the mean cosine to the others, and neither up nor down the objective.
            away = -others.mean(0) if len(others) else np.zeros_like(unit[n])
            away = away - (away * up[n]).sum() * up[n]
            moved[n] = constraints.mask * away if scores[n] > self._floor[n] else gradient[n]
        return moved


def _rolled(images: Double, shifts: list[tuple[int, ...]], sign: int) -> Double:
    if not any(any(shift) for shift in shifts):
        return images
    return np.stack(
        [np.roll(image, (sign * y, sign * x), (0, 1)) for image, (y, x) in zip(images, shifts, strict=True)]
    )
