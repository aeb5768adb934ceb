"""What is done to a gradient before it is followed, and what is taken off the objective."""

from __future__ import annotations

import functools

import numpy as np
from mousetwin.optimization import Ascent

from .constraints import Double

_REACH = 4.0


def smooth(gradient: Double, ascent: Ascent, progress: float) -> Double:
    """The gradient (N, H, W) blurred and with the spectrum that `ascent` asks for; progress: from 0 to 1."""
    sigma = ascent.blur + (ascent.blur_end - ascent.blur) * progress
    if sigma > 0:
        rows, columns = (np.asarray(_blur(size, sigma), like=gradient) for size in gradient.shape[1:])
        gradient = rows @ gradient @ columns.T
    if ascent.fourier > 0:
        height, width = gradient.shape[1:]
        spectrum = np.fft.rfft2(gradient) * np.asarray(_falling(height, width, ascent.fourier), like=gradient)
        gradient = np.fft.irfft2(spectrum, (height, width))
    return gradient


def penalty(images: Double, ascent: Ascent, center: float) -> Double:
    """What is taken off the objective of images (N, H, W): total variation and squared differences from `center`."""
    variation = sum(np.abs(np.diff(images, axis=axis)).sum((1, 2)) for axis in (1, 2))
    taken: Double = ascent.total_variation * variation + ascent.l2 * ((images - center) ** 2).sum((1, 2))
    return taken


def penalty_gradient(images: Double, ascent: Ascent, center: float) -> Double:
    """The gradient of `penalty`, (N, H, W)."""
    found = 2 * ascent.l2 * (images - center)
    if ascent.total_variation > 0:
        for axis in (1, 2):
            sign = ascent.total_variation * np.sign(np.diff(images, axis=axis))
            before, after = [(0, 0)] * 3, [(0, 0)] * 3
            before[axis], after[axis] = (1, 0), (0, 1)
            found = found + np.pad(sign, before) - np.pad(sign, after)
    return found


@functools.lru_cache(maxsize=64)
def _blur(size: int, sigma: float) -> Double:
    """A matrix (size, size) that blurs a column; weights that would lie beyond the border go to what lies inside."""
    distance = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (np.abs(distance) <= _REACH * sigma)
    return np.asarray(weights / weights.sum(1, keepdims=True))


@functools.lru_cache(maxsize=16)
def _falling(height: int, width: int, power: float) -> Double:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    # The mean has no frequency: it is treated as the lowest one there is.
    return np.asarray(np.maximum(frequency, 1 / max(height, width)) ** -power)
