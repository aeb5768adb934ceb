"""Stimuli in model space, at any size: gray is 0, a contrast of 1 runs from -1 to 1 (standard deviations of images).

Orientation is that of the wave, not of its bars: 0° changes along x (vertical bars), 90° along y. Coordinates are
pixels, x to the right and y down, as receptive fields are told.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import from_nested

Float = NDArray[np.float32]


def gratings(
    size: tuple[int, int],
    orientation: ArrayLike = 0.0,
    spatial_frequency: ArrayLike = 0.1,
    phase: ArrayLike = 0.0,
    contrast: ArrayLike = 1.0,
    center: tuple[float, float] | None = None,
    diameter: float | None = None,
) -> Float:
    """Sinusoidal gratings (N, H, W): contrast · cos(2π f (x cos θ + y sin θ) - phase).

    Args:
        size: (H, W) in pixels.
        orientation: θ in degrees, and
        spatial_frequency: f in cycles a pixel, and
        phase: in radians, at the center, and
        contrast: amplitude; each a number or (N,).
        center: (x, y); None: the middle of the image.
        diameter: of a circular aperture around the center, in pixels; None: the whole image.
    """
    x, y = _coordinates(size, center)
    angle, frequency, shift, height = _together(
        orientation=orientation, spatial_frequency=spatial_frequency, phase=phase, contrast=contrast
    )
    angle = np.radians(angle)
    waves = height * np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) - shift)
    if diameter is not None:
        waves = waves * (np.hypot(x, y) <= diameter / 2)
    return waves.astype(np.float32)


def gabors(
    size: tuple[int, int],
    orientation: ArrayLike = 0.0,
    spatial_frequency: ArrayLike = 0.1,
    phase: ArrayLike = 0.0,
    contrast: ArrayLike = 1.0,
    center: tuple[float, float] | None = None,
    sigma: float = 4.0,
) -> Float:
    """Gratings under a round Gaussian of `sigma` pixels; arguments as for `gratings`."""
    x, y = _coordinates(size, center)
    window = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return (gratings(size, orientation, spatial_frequency, phase, contrast, center) * window).astype(np.float32)


def _coordinates(size: tuple[int, int], center: tuple[float, float] | None) -> tuple[NDArray[np.float64], ...]:
    height, width = size
    x0, y0 = from_nested(center, "center") if center is not None else ((width - 1) / 2, (height - 1) / 2)
    y, x = np.mgrid[:height, :width]
    return x - x0, y - y0


def _together(**values: ArrayLike) -> list[NDArray[np.float64]]:
    given = [np.atleast_1d(from_nested(value, name).astype(np.float64)) for name, value in values.items()]
    rows = np.broadcast_arrays(*given)
    return [row[:, None, None] for row in rows]
