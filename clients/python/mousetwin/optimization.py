"""What an optimisation is asked for and what it answers, free of any protocol.

All numbers about pixels are in the units of `OptimizeQuery.space`; images are (N, H, W) at the twin's native size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .query import Space, TwinIdentity, TwinRef


@dataclass(frozen=True)
class Target:
    """What each image is to drive.

    Attributes:
        neurons: 0-based columns (N, K): those of image n.
        unit_ids: the recording's own ids instead; not together with `neurons`.
        weights: (N, K), or (K,) for all images: what each response counts for, negative to drive it down; None: 1/K.
        against: (N, M), columns, or ids where `unit_ids` is given, that are to stay behind. The objective is then
            contrastive: r - T log((exp(r/T) + exp(a/T)) / 2) of the weighted sum r and the mean a of `against`
            (Burg et al. 2024, "Most discriminative stimuli for functional cell type clustering").
        temperature: T, in units of response.
    """

    neurons: NDArray[Any] | None = None
    unit_ids: NDArray[Any] | None = None
    weights: NDArray[Any] | None = None
    against: NDArray[Any] | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Constraints:
    """What an image must keep to.

    Attributes:
        norm: L2 norm of the image's difference from gray (0 in model space), or from `mean` where that is held.
        max_norm: the same, not to be exceeded.
        std: standard deviation of its pixels (contrast).
        max_std: the same, not to be exceeded. Where none of the four is given the norm is 10 in model units.
        mean: mean luminance, held.
        low, high: pixel range. Raw gray levels never leave 0 to 255.
        mask: (H, W), 0 to 1: where and how much the image may change. All of the above is about what is inside.
        background: (H, W): what the image is outside of the mask; None: gray.
    """

    norm: float | None = None
    max_norm: float | None = None
    std: float | None = None
    max_std: float | None = None
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    mask: NDArray[Any] | None = None
    background: NDArray[Any] | None = None


@dataclass(frozen=True)
class Start:
    """Where an optimisation begins.

    Attributes:
        kind: "noise" (white, Gaussian) or "gray".
        images: (N, H, W), instead.
        trials: from so many noise images each image is tried, with large steps; the best is gone on with.
        trial_steps: steps of a trial, which count among the steps of the ascent; at the most half of them.
        seed: of noise and jitter.
        first_image: number of the first image in a larger run: image n is seeded by `seed` and `first_image` + n, so
            that it does not depend on its company.
    """

    kind: str = "noise"
    images: NDArray[Any] | None = None
    trials: int = 8
    trial_steps: int = 6
    seed: int = 0
    first_image: int = 0


@dataclass(frozen=True)
class Ascent:
    """How the gradient is followed. The defaults suit most-exciting images.

    Attributes:
        optimizer: "ascent" (each image's gradient normalised, with momentum) or "adam" (Kingma and Ba 2015).
        steps: at the most.
        step_size: length of a step as a share of the norm that is held or capped (of √(H·W), the norm of a natural
            image, where none is), falling quadratically to
        step_size_end: at the last step.
        momentum: share of the last step's direction that is kept, for "ascent".
        patience: stop when no image has improved by `tolerance` in so many steps; 0: never.
        tolerance: relative to the objective.
        blur: Gaussian blur of the gradient, sigma in pixels, changing linearly to
        blur_end: at the last step.
        fourier: the gradient's spectrum is multiplied by 1/f to this power (Olah et al. 2017); 0: not.
        jitter: the image is shifted by up to so many pixels at random each step.
        total_variation: weight of Σ |differences of neighbouring pixels|, taken off the objective.
        l2: weight of Σ squared differences from gray, taken off the objective.
    """

    optimizer: str = "ascent"
    steps: int = 100
    step_size: float = 0.1
    step_size_end: float = 0.006
    momentum: float = 0.7
    patience: int = 0
    tolerance: float = 1e-3
    blur: float = 0.0
    blur_end: float = 0.0
    fourier: float = 0.0
    jitter: int = 0
    total_variation: float = 0.0
    l2: float = 0.0


@dataclass(frozen=True)
class Diversity:
    """Images that are to differ (after Cadena et al. 2018, "Diverse feature visualizations").

    Attributes:
        group: (N,), whole numbers: images of one group are pushed apart in the second half of the steps; None: none.
        min_share: of its group's best objective, which each image keeps.
    """

    group: NDArray[Any] | None = None
    min_share: float = 0.9


@dataclass(frozen=True)
class OptimizeQuery:
    """One optimisation of N images.

    Attributes:
        twins: one, or several models of one mouse, whose mean response counts (an ensemble).
        target: what is driven.
        behavior: (C, B), and
        pupil_center: (C, 2): the conditions an image is to work in; its mean response over them counts. (B,) and (2,)
            are one. None: the training set's mean.
        space: None is MODEL.
        constraints, start, ascent, diversity: how.
        report_every: steps between two reports.
        report_images: whether reports have the images.
        condition_space: of behavior and pupil_center; None is `space` where that is given. One of the two must say,
            unless the numbers are the same in both spaces.
    """

    twins: tuple[TwinRef, ...]
    target: Target
    behavior: NDArray[Any] | None = None
    pupil_center: NDArray[Any] | None = None
    space: Space | None = None
    constraints: Constraints = field(default_factory=Constraints)
    start: Start = field(default_factory=Start)
    ascent: Ascent = field(default_factory=Ascent)
    diversity: Diversity = field(default_factory=Diversity)
    report_every: int = 10
    report_images: bool = False
    condition_space: Space | None = None


@dataclass(frozen=True)
class OptimizeProgress:
    """A report: the objective `values`, float32 (N,), after `step` of `steps`; `images` (N, H, W) where asked for."""

    step: int
    steps: int
    values: NDArray[np.float32]
    images: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        shown = "" if self.images is None else f", images {self.images.shape}"
        return f"<OptimizeProgress at step {self.step} of {self.steps}: values {self.values.shape}{shown}>"


@dataclass(frozen=True)
class OptimizeResult:
    """What an optimisation found.

    Attributes:
        images: float32 (N, H, W) in the units of the query: each image's best.
        responses: float32 (N, K + M): of the target and of what it stands against, means over conditions and twins.
        values: float32 (N,): the objective.
        trace: float32 (T, N): the objective at each step after the trials.
        twins: that answered.
        defaults: inputs that were not sent and stood at the training set's mean.
        record: JSON: the request, the twins' digests, versions, the device, why it stopped.
        warnings: as `Prediction.warnings`; also images that their neurons do not respond to.
    """

    images: NDArray[np.float32]
    responses: NDArray[np.float32]
    values: NDArray[np.float32]
    trace: NDArray[np.float32]
    twins: tuple[TwinIdentity, ...]
    defaults: tuple[str, ...]
    record: str
    warnings: tuple[str, ...] = ()
