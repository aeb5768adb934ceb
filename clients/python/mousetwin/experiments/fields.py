"""Receptive fields: from noise, and from the gradient at gray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import from_nested
from ..conditions import check_one_condition, in_model_space
from ..errors import InvalidArgument
from ..figures import saved
from ..query import TwinSummary
from .results import Axis, Float, neuron_axis, new_panels

if TYPE_CHECKING:
    from ..twins import Mouse

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class ReceptiveFields:
    """Linear receptive fields.

    Attributes:
        fields: float32 (K, H, W): change of the response with each pixel, in standard deviations of either.
        neurons: (K,).
        twin: the twin that answered.
    """

    fields: Float
    neurons: Axis
    twin: TwinSummary

    def __repr__(self) -> str:
        return f"<ReceptiveFields of {self.twin}: fields {self.fields.shape}>"

    def plot(self, path: str | Path | None = None) -> Any:
        """Each field with a range of its own. Returns the matplotlib figure; raises as `Experiment.plot`."""
        figure, panels = new_panels(len(self.fields), (2.4, 1.7), self.twin)
        for panel, neuron, field in zip(panels, self.neurons, self.fields, strict=True):
            most = float(np.abs(field).max()) or 1.0
            panel.imshow(field, cmap="RdBu_r", vmin=-most, vmax=most)
            panel.set_title(f"neuron {neuron}", fontsize=8)
            panel.axis("off")
        return saved(figure, path)


def receptive_fields(
    mouse: Mouse,
    neurons: ArrayLike,
    *,
    images: int = 10_000,
    contrast: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **asked: Any,
) -> ReceptiveFields:
    """Response-weighted average of white Gaussian noise (Chichilnisky 2001), which is made and used in chunks.

    Args:
        mouse: the twin.
        neurons: (K,).
        images: how many noise images.
        contrast: their standard deviation, in model units.
        seed: of the noise.
        progress: called with (images done, images in all).
        asked: as for `Mouse.predict`; behavior and pupil_center say their `condition_space` where it matters.
    """
    height, width = mouse.summary.native_size
    generator = np.random.default_rng(seed)
    columns = np.atleast_1d(from_nested(neurons, "neurons"))
    if not isinstance(images, int) or images < 1:
        raise InvalidArgument(f"images: {images!r}, expected a whole number of at least 1", field="images")
    if not 0 < contrast < np.inf:
        raise InvalidArgument(f"contrast: {contrast!r}, expected a number above 0", field="contrast")
    check_one_condition(asked)
    asked = in_model_space(mouse.info, asked)
    weighted = np.zeros((len(columns), height * width))
    total, noise_sum = np.zeros(len(columns)), np.zeros(height * width)
    for done in range(0, images, _CHUNK):
        count = min(_CHUNK, images - done)
        noise = generator.normal(scale=contrast, size=(count, height, width)).astype(np.float32)
        responses = np.asarray(mouse.predict(noise, neurons=columns, **asked), np.float64)
        weighted += responses.T @ noise.reshape(count, -1)
        total += responses.sum(0)
        noise_sum += noise.reshape(count, -1).sum(0, dtype=np.float64)
        if progress is not None:
            progress(done + count, images)
    # The covariance of response and pixel over the pixel's variance: the best linear prediction.
    fields = (weighted - np.outer(total, noise_sum) / images) / (images * contrast**2)
    return ReceptiveFields(fields.reshape(-1, height, width).astype(np.float32), columns, mouse.summary)


def gradient_fields(mouse: Mouse, neurons: ArrayLike, **asked: Any) -> ReceptiveFields:
    """The gradient of each response at a gray image: (K, H, W), exact where the neuron is linear.

    Args:
        mouse: the twin.
        neurons: (K,).
        asked: as for `Mouse.gradient`; behavior and pupil_center say their `condition_space` where it matters.
    """
    columns = np.atleast_1d(from_nested(neurons, "neurons"))
    gray = np.zeros((len(columns), *mouse.summary.native_size), np.float32)
    found = mouse.gradient(gray, np.ones(1), neurons=columns[:, None], **in_model_space(mouse.info, asked))
    return ReceptiveFields(found.images, neuron_axis(mouse, {"neurons": columns}), mouse.summary)
