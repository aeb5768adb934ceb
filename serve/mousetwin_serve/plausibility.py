"""What a twin takes and is nearly always a mistake: told as warnings, never refused.

The limits stand in docs/contract.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mousetwin.query import Space
from numpy.typing import NDArray

from .batch import Float
from .bundle import Moments

# A natural image runs from about -2 to 3 in model space, a most-exciting one to about 10.
MODEL_LIMIT = 20.0
# Standard deviations of behavior and pupil center from the training set's mean.
CONDITION_LIMIT = 10.0
_UNITS = "standard deviations of the training set's images"


def of_images(images: NDArray[Any], space: Space) -> tuple[str, ...]:
    """Warnings about images as they were sent, finite and not empty."""
    high = float(images.max())
    if space is Space.RAW:
        if 0 < high <= 1:
            return (f"images: raw gray levels of at most {high:g}, expected 0 to 255: were they scaled to 0 to 1?",)
        return ()
    low = float(images.min())
    if max(high, -low) > MODEL_LIMIT:
        return (
            f"images: model space runs from {low:g} to {high:g} {_UNITS}, expected about -3 to 3: are these gray "
            "levels, which are space 'raw'?",
        )
    return ()


def of_behavior(values: Float, names: tuple[str, ...], moments: Moments) -> tuple[str, ...]:
    """Warnings about behavior (N, B) in model space, which is divided by its standard deviation alone."""
    if not (moments.mean and moments.std):
        return _far("behavior", values, names, MODEL_LIMIT, "of its standard deviations, its mean is not known")
    return _far("behavior", values - np.array(moments.mean) / np.array(moments.std), names, CONDITION_LIMIT)


def of_pupil_center(values: Float, names: tuple[str, ...]) -> tuple[str, ...]:
    """Warnings about pupil center (N, 2) in model space."""
    return _far("pupil_center", values, names, CONDITION_LIMIT)


def _far(
    field: str,
    away: NDArray[Any],
    names: tuple[str, ...],
    limit: float,
    unit: str = "standard deviations from the training set's mean",
) -> tuple[str, ...]:
    row, column = np.unravel_index(int(np.abs(away).argmax()), away.shape)
    most = float(away[row, column])
    # Numbers of exactly the limit come back from float32 a little below it.
    if abs(most) < limit * (1 - 1e-5):
        return ()
    return (
        f"{field}: {names[column]} is {most:.3g} {unit}, expected fewer than {limit:g}: is it of the other space, raw "
        "or model?",
    )
