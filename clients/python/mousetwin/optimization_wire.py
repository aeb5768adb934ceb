"""Optimisations to protobuf messages and back, for both ends of the wire.

The messages' fields bear the names of the dataclasses'; what a message leaves out stands at the dataclass's default.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from . import arrays, wire
from .errors import InvalidArgument
from .optimization import (
    Ascent,
    Constraints,
    Diversity,
    OptimizeProgress,
    OptimizeQuery,
    OptimizeResult,
    Start,
    Target,
)
from .v1 import digital_twin_pb2 as pb

T = TypeVar("T")
_PARTS: dict[str, tuple[Any, Any]] = {
    "target": (Target, pb.OptimizeTarget),
    "constraints": (Constraints, pb.OptimizeConstraints),
    "start": (Start, pb.OptimizeStart),
    "ascent": (Ascent, pb.OptimizeAscent),
    "diversity": (Diversity, pb.OptimizeDiversity),
}


def query_to_proto(query: OptimizeQuery) -> pb.OptimizeRequest:
    """Raises InvalidArgument for a number that its field cannot hold, such as a negative count."""
    parts = {name: _to_message(getattr(query, name), message) for name, (_, message) in _PARTS.items()}
    twins = [wire.ref_to_proto(twin) for twin in query.twins]
    message = pb.OptimizeRequest(
        twins=twins,
        space=wire.space_to_proto(query.space),
        condition_space=wire.space_to_proto(query.condition_space),
        **parts,
    )
    _put(message, query, ("behavior", "pupil_center", "report_every", "report_images"))
    return message


def query_from_proto(message: pb.OptimizeRequest) -> OptimizeQuery:
    """The query in a message. Raises InvalidArgument for an array that cannot be read, or an unknown space."""
    parts = {name: _from_message(getattr(message, name), kind) for name, (kind, _) in _PARTS.items()}
    return OptimizeQuery(
        twins=tuple(wire.ref_from_proto(twin) for twin in message.twins),
        space=wire.space_from_proto(message.space),
        condition_space=wire.space_from_proto(message.condition_space, "condition_space"),
        **parts,
        **_given(message, ("behavior", "pupil_center", "report_every", "report_images")),
    )


def event_to_proto(event: OptimizeProgress | OptimizeResult) -> pb.OptimizeResponse:
    if isinstance(event, OptimizeProgress):
        return pb.OptimizeResponse(progress=_to_message(event, pb.OptimizeProgress))
    result = pb.OptimizeResult(
        **{name: arrays.to_proto(getattr(event, name)) for name in ("images", "responses", "values", "trace")},
        twins=[wire.identity_to_proto(twin) for twin in event.twins],
        defaults=event.defaults,
        record=event.record,
        warnings=event.warnings,
    )
    return pb.OptimizeResponse(result=result)


def event_from_proto(message: pb.OptimizeResponse) -> OptimizeProgress | OptimizeResult:
    if message.WhichOneof("event") == "progress":
        told = message.progress
        images = arrays.from_proto(told.images, "images") if told.HasField("images") else None
        return OptimizeProgress(told.step, told.steps, arrays.from_proto(told.values, "values"), images)
    found = message.result
    return OptimizeResult(
        images=arrays.from_proto(found.images, "images"),
        responses=arrays.from_proto(found.responses, "responses"),
        values=arrays.from_proto(found.values, "values"),
        trace=arrays.from_proto(found.trace, "trace"),
        twins=tuple(wire.identity_from_proto(twin) for twin in found.twins),
        defaults=tuple(found.defaults),
        record=found.record,
        warnings=tuple(found.warnings),
    )


def _to_message(part: Any, kind: type[T]) -> T:
    message = kind()
    _put(message, part, [field.name for field in fields(part)])
    return message


def _from_message(message: Any, kind: type[T]) -> T:
    return kind(**_given(message, [field.name for field in fields(kind)]))  # type: ignore[arg-type]


def _put(message: Any, part: Any, names: Any) -> None:
    for name in names:
        value = getattr(part, name)
        if isinstance(value, np.ndarray):
            getattr(message, name).CopyFrom(arrays.to_proto(value))
        elif value is not None:
            try:
                setattr(message, name, value)
            except (TypeError, ValueError) as error:
                raise InvalidArgument(f"{name}: {value!r}: {error}", field=name) from None


def _given(message: Any, names: Any) -> dict[str, Any]:
    found = {}
    for name in names:
        if message.HasField(name):
            value = getattr(message, name)
            found[name] = arrays.from_proto(value, name) if isinstance(value, pb.Array) else value
    return found
