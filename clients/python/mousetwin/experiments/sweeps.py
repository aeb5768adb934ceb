"""One thing varied: contrast, behavior, pupil position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import from_nested
from ..conditions import check_model_images, in_model_space
from ..query import Space, space_of
from .results import Experiment, neuron_axis

if TYPE_CHECKING:
    from ..twins import Mouse


def contrast_series(
    mouse: Mouse, image: ArrayLike, contrasts: ArrayLike = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0), **asked: Any
) -> Experiment:
    """Responses (contrast, neuron) to contrast · image, about gray.

    Args:
        mouse: the twin.
        image: (H, W) in model space, at the native size.
        contrasts: factors.
        asked: as for `Mouse.predict`; behavior and pupil_center say their `condition_space` where it matters.
    """
    factors = from_nested(contrasts, "contrasts").astype(np.float64)
    shown = from_nested(image, "image")
    check_model_images(shown, space_of(asked.get("space")), "images")
    series = factors[:, None, None] * shown.astype(np.float64)
    responses = np.asarray(mouse.predict(series, **in_model_space(mouse.info, asked)))
    return Experiment(responses, {"contrast": factors, "neuron": neuron_axis(mouse, asked)}, mouse.summary)


def behavior_sweep(
    mouse: Mouse, image: ArrayLike, behavior: ArrayLike, *, space: Space | str | None = None, **asked: Any
) -> Experiment:
    """Responses (behavior, neuron) to one image under each row of behavior (C, B); the image is sent once.

    Args:
        mouse: the twin.
        image: (H, W).
        behavior: (C, B), in the channels of `mouse.summary.behavior`.
        space: of image and behavior, as for `Mouse.predict`.
        asked: as for `Mouse.predict`.
    """
    return _sweep(mouse, image, "behavior", behavior, space, asked)


def pupil_sweep(
    mouse: Mouse, image: ArrayLike, pupil_center: ArrayLike, *, space: Space | str | None = None, **asked: Any
) -> Experiment:
    """Responses (pupil_center, neuron) to one image with each pupil position (C, 2); as `behavior_sweep`."""
    return _sweep(mouse, image, "pupil_center", pupil_center, space, asked)


def _sweep(
    mouse: Mouse, image: ArrayLike, name: str, values: ArrayLike, space: Space | str | None, asked: dict[str, Any]
) -> Experiment:
    rows = np.atleast_2d(from_nested(values, name))
    responses = np.asarray(mouse.predict(from_nested(image, "image")[None], **{**asked, name: rows}, space=space))
    return Experiment(responses, {name: rows, "neuron": neuron_axis(mouse, asked)}, mouse.summary)
