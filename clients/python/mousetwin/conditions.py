"""What the numbers of behavior and pupil center mean: one rule for every call, here and on the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .build import optional_array
from .errors import InvalidArgument
from .query import MouseInfo, Space, space_of

CONDITIONS = ("behavior", "pupil_center")


class _Moments(Protocol):
    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...


def condition_space(
    said: Space | None, given: Mapping[str, NDArray[Any] | None], statistics: Mapping[str, _Moments]
) -> Space:
    """The space of behavior and pupil center.

    Args:
        said: by the caller, of the conditions themselves or of the images they come with.
        given: the conditions that were sent, `behavior` (…, B) and `pupil_center` (…, 2).
        statistics: the twin's, by variable.

    Raises:
        InvalidArgument: the caller did not say, and the numbers are not known to be the same in both spaces.
    """
    if said is not None:
        return said
    for name, values in given.items():
        if values is not None and not _is_the_same(name, values, statistics[name]):
            known = "" if statistics[name].std else "; this twin takes 'model' alone, its bundle lacks the statistics"
            raise InvalidArgument(
                f"condition_space: {name} must say whether it is 'raw' (as recorded) or 'model' (as the network takes "
                f"it: behavior divided by its standard deviation, pupil_center z-scored){known}",
                field="condition_space",
            )
    return Space.MODEL


def in_model_space(info: MouseInfo, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller asks of images that were made in model space: arguments of `Mouse.predict`.

    Args:
        info: of the twin.
        asked: arguments of `Mouse.predict`, without images.

    Raises:
        InvalidArgument: the space of behavior or pupil center is not said, and matters; or that of the images is.
    """
    if asked.get("space") is not None and space_of(asked["space"]) is not Space.MODEL:
        raise InvalidArgument(
            "space: these images are made in model space; condition_space is that of behavior and pupil_center",
            field="space",
        )
    said = space_of(asked.get("condition_space"), "condition_space") or space_of(asked.get("space"))
    given = {name: optional_array(asked.get(name), name) for name in CONDITIONS}
    found = condition_space(said, given, info.statistics)
    return {**asked, "space": Space.MODEL, "condition_space": found}


def check_one_condition(asked: Mapping[str, Any]) -> None:
    """For calls that ask in chunks. Raises InvalidArgument for conditions or neurons with a row an image."""
    for name in (*CONDITIONS, "neurons", "unit_ids"):
        values = optional_array(asked.get(name), name)
        if values is not None and values.ndim > 1:
            raise InvalidArgument(f"{name}: shape {values.shape}, expected one row for all images", field=name)


def check_model_images(images: NDArray[Any], said: Space | None, field: str) -> None:
    """For calls that take images for model space: whole numbers are gray levels everywhere else.

    Raises:
        InvalidArgument: they are whole numbers, and the caller did not say.
    """
    if said is None and images.dtype.kind in "ui":
        raise InvalidArgument(
            f"space: {images.dtype.name} {field} must say whether they are 'raw' (gray level 0-255) or 'model' (as the "
            "network takes them)",
            field="space",
        )


def _is_the_same(name: str, values: NDArray[Any], moments: _Moments) -> bool:
    """Whether numbers are the same in both spaces."""
    if values.dtype.kind not in "uif":
        # What they are is refused where they are read.
        return True
    if name == "behavior":
        # It is divided by its standard deviation and nothing more.
        return not values.any() or (
            _fits(values, moments.std) and bool((values / np.array(moments.std) == values).all())
        )
    if not (moments.std and moments.mean):
        # Raw values cannot be read then, and 0 is what stands where none is sent.
        return not values.any()
    if not (_fits(values, moments.std) and _fits(values, moments.mean)):
        return False
    return bool(((values - np.array(moments.mean)) / np.array(moments.std) == values).all())


def _fits(values: NDArray[Any], moments: tuple[float, ...]) -> bool:
    return values.ndim > 0 and values.shape[-1] == len(moments)
