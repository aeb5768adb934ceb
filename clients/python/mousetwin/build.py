"""From what a caller writes to the queries that are asked."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike, NDArray

from . import arrays
from .errors import InvalidArgument
from .query import GradientQuery, PredictQuery, Space, TwinRef, TwinSummary, space_of

# What `predict` takes, in its order.
_FRAME = ("images", "behavior", "pupil_center", "neurons", "unit_ids", "space", "condition_space")


def build_query(
    summary: TwinSummary,
    images: ArrayLike,
    behavior: ArrayLike | None,
    pupil_center: ArrayLike | None,
    neurons: ArrayLike | None,
    unit_ids: ArrayLike | None,
    space: Space | str | None,
    condition_space: Space | str | None = None,
) -> PredictQuery:
    """The query of a `predict` call; pinned to the version that `summary` is of, so that all frames get the same."""
    twin = summary.twin
    return PredictQuery(
        TwinRef(twin.mouse, twin.model, twin.version),
        arrays.from_nested(images, "images"),
        named_array(behavior, "behavior", summary.behavior),
        named_array(pupil_center, "pupil_center", summary.pupil_center),
        space_of(space),
        optional_array(neurons, "neurons"),
        optional_array(unit_ids, "unit_ids"),
        space_of(condition_space, "condition_space"),
    )


def frame_query(summary: TwinSummary, frame: Mapping[str, Any]) -> PredictQuery:
    """The query of one of `predict_frames`' frames.

    Raises:
        InvalidArgument: a name that `predict` does not take, or no images.
    """
    if unknown := sorted(str(name) for name in frame if name not in _FRAME):
        raise InvalidArgument(
            f"{unknown[0][:80]}: a frame may not hold it, expected some of {', '.join(_FRAME)}", field=unknown[0][:80]
        )
    if frame.get("images") is None:
        raise InvalidArgument("images: missing in a frame", field="images")
    return build_query(summary, *(frame.get(name) for name in _FRAME))  # type: ignore[arg-type]


def with_cotangent(query: PredictQuery, cotangent: ArrayLike) -> GradientQuery:
    """The query of a `gradient` call."""
    return GradientQuery(**vars(query), cotangent=arrays.from_nested(cotangent, "cotangent"))


def seconds(timeout: float | None, default: float | None) -> float | None:
    """How long a call may take: `timeout`, or where that is None the default.

    Raises:
        InvalidArgument: not a number of seconds, more than 0.
    """
    if timeout is None:
        return default
    # Written so that a NaN fails too.
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real) or not 0 < timeout < math.inf:
        raise InvalidArgument(f"timeout: {timeout!r}, expected seconds, more than 0", field="timeout")
    return float(timeout)


def optional_array(values: ArrayLike | None, field: str) -> NDArray[Any] | None:
    """Raises InvalidArgument where the values are no array of numbers."""
    return None if values is None else arrays.from_nested(values, field)


def named_array(values: Any, field: str, names: tuple[str, ...]) -> NDArray[Any] | None:
    """As `optional_array`; a table whose columns are called as the twin's channels are has them in their order."""
    kind = type(values).__module__.partition(".")[0]
    if kind in ("pandas", "polars", "pyarrow"):
        told = getattr(values, "columns", None) if kind != "pyarrow" else getattr(values, "column_names", None)
        told = getattr(values, "index", None) if told is None and kind == "pandas" else told
        labels = [] if told is None else list(told)
        if set(labels) & set(names) and tuple(labels) != names:
            came, expected = ", ".join(map(str, labels))[:200], ", ".join(names)
            raise InvalidArgument(f"{field}: columns {came}, expected {expected}", field=field)
    return optional_array(values, field)


def columns_of(summary: TwinSummary, query: PredictQuery) -> int:
    """How many columns the answer to `query` will have."""
    chosen = query.neurons if query.neurons is not None else query.unit_ids
    if chosen is None:
        return summary.neurons
    return chosen.shape[-1] if chosen.ndim else 1
