"""What an image must keep to, and the nearest image along its own direction that does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mousetwin.errors import InvalidArgument
from numpy.typing import NDArray

from ..batch import Float

Double = NDArray[np.float64]
# Copies an array to where a device has its memory.
Put = Callable[[NDArray[Any]], NDArray[Any]]
_ROUNDS = 60
_CLOSE = 1e-6


@dataclass(frozen=True)
class Constraints:
    """Constraints in model units; the size is what is held or capped, a norm or a standard deviation.

    Attributes:
        size: None where neither is given.
        is_norm: whether the size is a norm.
        capped: whether the size may be less.
        mean: held; None where it is not.
        low, high: pixel range, infinite where there is none.
        mask: (H, W), 0 to 1.
        background: (H, W), outside of the mask.
    """

    size: float | None
    is_norm: bool
    capped: bool
    mean: float | None
    low: float
    high: float
    mask: Double
    background: Double

    @property
    def center(self) -> float:
        """What sizes are differences from."""
        return self.mean or 0.0

    @property
    def reference(self) -> float:
        """The norm that step sizes are shares of; √(H·W), a natural image's, where none is constrained."""
        if self.size is None:
            return math.sqrt(self.mask.size)
        return self.size if self.is_norm else self.size * math.sqrt(float(self.mask.sum()))

    def moved(self, put: Put) -> Constraints:
        """The same on another device."""
        return replace(self, mask=put(self.mask), background=put(self.background))

    def check(self) -> None:
        """Raises InvalidArgument where no image keeps to the constraints."""
        if not self.mask.any():
            raise InvalidArgument("mask: empty, expected a pixel that may change", field="mask")
        if self.low >= self.high:
            raise InvalidArgument("low: not below high: no image is in that range", field="low")
        if self.mean is not None and not self.low < self.mean < self.high:
            raise InvalidArgument("mean: outside of the pixel range", field="mean")
        if self.size is None:
            return
        if not self.low < self.center < self.high:
            field = "low" if self.low >= self.center else "high"
            raise InvalidArgument(
                f"{field}: gray, from which sizes are told, lies outside of the pixel range, expected it inside",
                field=field,
            )
        if self.capped:
            return
        if not self.size <= (most := self._largest_size()):
            field = "norm" if self.is_norm else "std"
            raise InvalidArgument(
                f"{field}: no image reaches it in the pixel range: the most is {most / self.size:.3g} of what is asked",
                field=field,
            )

    def project(self, images: Double) -> Double:
        """Images (N, H, W) moved and scaled to keep to the constraints; what is outside of the mask is not touched."""
        moved = images - self.center
        if self.mean is not None:
            moved = moved - self._mean(moved)
        if self.size is not None:
            sizes = self._size_of(moved)
            factor = self.size / np.maximum(sizes, 1e-12)
            moved = moved * (np.minimum(factor, 1) if self.capped else factor)
        if math.isinf(self.low) and math.isinf(self.high):
            return moved + self.center
        return self._into_range(moved)

    def kept(self, images: Double) -> NDArray[np.bool_]:
        """Which of projected images (N, H, W) have the size that is held; a blank one cannot be scaled to it."""
        if self.size is None or self.capped:
            return np.ones_like(images, bool, shape=(len(images),))
        return self._size_of(images - self.center)[:, 0, 0] > 0.99 * self.size

    def shown(self, images: Double) -> Double:
        """What is shown of images (N, H, W): they inside the mask, the background outside."""
        return self.mask * images + (1 - self.mask) * self.background

    def _into_range(self, moved: Double) -> Double:
        # Clipping takes size and changes the mean: both are made up for until nothing changes any more.
        low, high = self.low - self.center, self.high - self.center
        inside = np.clip(moved, low, high)
        for _ in range(_ROUNDS):
            off = np.zeros((len(moved), 1, 1), like=moved) if self.mean is None else self._mean(inside)
            factor = np.ones_like(moved, shape=(len(moved), 1, 1))
            if self.size is not None:
                factor = self.size / np.maximum(self._size_of(inside), 1e-12)
                factor = np.minimum(factor, 1) if self.capped else factor
            if np.abs(factor - 1).max() < _CLOSE and np.abs(off).max() < _CLOSE:
                break
            moved = (moved - off) * factor
            inside = np.clip(moved, low, high)
        return inside + self.center

    def _mean(self, images: Double) -> Double:
        mean: Double = (self.mask * images).sum((1, 2), keepdims=True) / self.mask.sum()
        return mean

    def _size_of(self, moved: Double) -> Double:
        if self.is_norm:
            return norm(self.mask * moved)
        return np.sqrt(self._mean((moved - self._mean(moved)) ** 2))

    def _largest_size(self) -> float:
        low, high = self.low - self.center, self.high - self.center
        if math.isinf(low) or math.isinf(high):
            return math.inf
        # With the mean held, half dark and half bright: the variance of a two-point distribution.
        spread = math.sqrt(-low * high)
        if self.is_norm:
            each = spread if self.mean is not None else max(-low, high)
            return each * float(np.sqrt((self.mask**2).sum()))
        return spread if self.mean is not None else (high - low) / 2


def norm(images: Double | Float) -> Double:
    """L2 norm of each image (N, H, W), as (N, 1, 1)."""
    found: Double = np.sqrt(np.square(images, dtype=np.float64).sum((1, 2), keepdims=True))
    return found
