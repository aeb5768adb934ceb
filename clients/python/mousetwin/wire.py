"""Queries, predictions and metadata to protobuf messages and back, for both ends of the wire."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from . import arrays
from .errors import InvalidArgument, from_code
from .query import (
    GradientAnswer,
    GradientQuery,
    GraphReport,
    Moments,
    MouseInfo,
    Prediction,
    PredictQuery,
    Space,
    TwinIdentity,
    TwinRef,
    TwinSummary,
)
from .v1 import digital_twin_pb2 as pb

SERVICE = "mousetwin.v1.DigitalTwin"
_SPACES = {None: pb.SPACE_UNSPECIFIED, Space.RAW: pb.SPACE_RAW, Space.MODEL: pb.SPACE_MODEL}
_SPACES_BY_VALUE: dict[int, Space | None] = {value: space for space, value in _SPACES.items()}
_MEASURED = (
    "replay_error",
    "parity_gradient_error",
    "parity_gradient_tolerance",
    "replay_tolerance",
    "replay_gradient_tolerance",
)
_STATISTICS = ("images", "behavior", "pupil_center", "responses")

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """A request's message. Raises InvalidArgument for bytes that are none."""
    message: Any = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InvalidArgument(f"request: these bytes are not a {kind.DESCRIPTOR.full_name}", field="request") from None
    parsed: M = message
    return parsed


def query_to_proto(query: PredictQuery) -> pb.PredictRequest:
    return pb.PredictRequest(
        twin=ref_to_proto(query.twin),
        images=arrays.to_proto(query.images),
        behavior=_optional_to_proto(query.behavior),
        pupil_center=_optional_to_proto(query.pupil_center),
        space=space_to_proto(query.space),
        neurons=_optional_to_proto(query.neurons),
        unit_ids=_optional_to_proto(query.unit_ids),
        condition_space=space_to_proto(query.condition_space),
    )


def query_from_proto(message: pb.PredictRequest) -> PredictQuery:
    """The query in a message.

    Raises:
        InvalidArgument: an array that cannot be read, or a space this version does not know.
    """
    if not message.HasField("images"):
        raise InvalidArgument("images: missing", field="images")
    return PredictQuery(
        twin=ref_from_proto(message.twin),
        images=arrays.from_proto(message.images, "images"),
        behavior=_optional_from_proto(message, "behavior"),
        pupil_center=_optional_from_proto(message, "pupil_center"),
        space=space_from_proto(message.space),
        neurons=_optional_from_proto(message, "neurons"),
        unit_ids=_optional_from_proto(message, "unit_ids"),
        condition_space=space_from_proto(message.condition_space, "condition_space"),
    )


def space_to_proto(space: Space | None) -> Any:
    return _SPACES[space]


def space_from_proto(value: int, field: str = "space") -> Space | None:
    """Raises InvalidArgument, naming `field`, for a space this version does not know."""
    if value not in _SPACES_BY_VALUE:
        raise InvalidArgument(f"{field}: {value} is not known, expected RAW (1) or MODEL (2)", field=field)
    return _SPACES_BY_VALUE[value]


def prediction_to_proto(prediction: Prediction) -> pb.PredictResponse:
    return pb.PredictResponse(
        responses=arrays.to_proto(prediction.responses),
        twin=identity_to_proto(prediction.twin),
        defaults=prediction.defaults,
        warnings=prediction.warnings,
    )


def prediction_from_proto(message: pb.PredictResponse) -> Prediction:
    responses = arrays.from_proto(message.responses, "responses")
    return Prediction(responses, identity_from_proto(message.twin), tuple(message.defaults), tuple(message.warnings))


def gradient_query_to_proto(query: GradientQuery) -> pb.GradientRequest:
    return pb.GradientRequest(predict=query_to_proto(query), cotangent=arrays.to_proto(query.cotangent))


def gradient_query_from_proto(message: pb.GradientRequest) -> GradientQuery:
    """The query in a message. Raises as `query_from_proto`."""
    if not message.HasField("cotangent"):
        raise InvalidArgument("cotangent: missing", field="cotangent")
    query = query_from_proto(message.predict)
    return GradientQuery(**vars(query), cotangent=arrays.from_proto(message.cotangent, "cotangent"))


def gradient_to_proto(answer: GradientAnswer) -> pb.GradientResponse:
    return pb.GradientResponse(
        predict=prediction_to_proto(answer),
        images=arrays.to_proto(answer.images),
        behavior=_optional_to_proto(answer.behavior),
        pupil_center=_optional_to_proto(answer.pupil_center),
    )


def gradient_from_proto(message: pb.GradientResponse) -> GradientAnswer:
    return GradientAnswer(
        **vars(prediction_from_proto(message.predict)),
        images=arrays.from_proto(message.images, "images"),
        behavior=_optional_from_proto(message, "behavior"),
        pupil_center=_optional_from_proto(message, "pupil_center"),
    )


def frame_to_proto(number: int, query: PredictQuery) -> pb.SessionRequest:
    """A session's frame; a gradient's for a `GradientQuery`."""
    if isinstance(query, GradientQuery):
        return pb.SessionRequest(id=number, gradient=gradient_query_to_proto(query))
    return pb.SessionRequest(id=number, predict=query_to_proto(query))


def frame_from_proto(message: pb.SessionRequest) -> PredictQuery:
    """The query in a session's frame. Raises as `query_from_proto`, and where the frame is empty."""
    match message.WhichOneof("frame"):
        case "predict":
            return query_from_proto(message.predict)
        case "gradient":
            return gradient_query_from_proto(message.gradient)
    raise InvalidArgument("frame: missing, expected predict or gradient", field="frame")


def answer_to_proto(number: int, answer: Prediction) -> pb.SessionResponse:
    if isinstance(answer, GradientAnswer):
        return pb.SessionResponse(id=number, gradient=gradient_to_proto(answer))
    return pb.SessionResponse(id=number, predict=prediction_to_proto(answer))


def answer_from_proto(message: pb.SessionResponse) -> Prediction:
    """The answer in a session's frame.

    Raises:
        MousetwinError: the frame was refused.
    """
    match message.WhichOneof("frame"):
        case "error":
            error = message.error
            raise from_code(error.code, error.message, field=error.field, request_id=error.request_id)
        case "gradient":
            return gradient_from_proto(message.gradient)
    return prediction_from_proto(message.predict)


def ref_to_proto(ref: TwinRef) -> pb.TwinRef:
    message = pb.TwinRef()
    for name in ("mouse", "model", "version"):
        try:
            setattr(message, name, getattr(ref, name))
        except (TypeError, ValueError):
            raise InvalidArgument(f"{name}: {str(getattr(ref, name))[:80]!r}, expected text", field=name) from None
    return message


def ref_from_proto(message: pb.TwinRef) -> TwinRef:
    return TwinRef(message.mouse, message.model, message.version)


def summary_to_proto(summary: TwinSummary) -> pb.TwinSummary:
    return pb.TwinSummary(
        twin=identity_to_proto(summary.twin),
        description=summary.description,
        synthetic=summary.synthetic,
        neurons=summary.neurons,
        native_size=_size_to_proto(summary.native_size),
        stimulus_size=_size_to_proto(summary.stimulus_size),
        behavior=summary.behavior,
        pupil_center=summary.pupil_center,
        takes_raw=summary.takes_raw,
        graphs=summary.graphs,
        device=summary.device,
        required=summary.required,
        no_gradient=summary.no_gradient,
        newer_refused=summary.newer_refused,
    )


def summary_from_proto(message: pb.TwinSummary) -> TwinSummary:
    return TwinSummary(
        twin=identity_from_proto(message.twin),
        description=message.description,
        synthetic=message.synthetic,
        neurons=message.neurons,
        native_size=_size_from_proto(message.native_size),
        stimulus_size=_size_from_proto(message.stimulus_size),
        behavior=tuple(message.behavior),
        pupil_center=tuple(message.pupil_center),
        takes_raw=message.takes_raw,
        graphs=tuple(message.graphs),
        device=message.device,
        required=tuple(message.required),
        no_gradient=message.no_gradient,
        newer_refused=tuple(message.newer_refused),
    )


def mouse_to_proto(info: MouseInfo) -> pb.Mouse:
    statistics = {name: pb.Moments(mean=m.mean, std=m.std) for name, m in info.statistics.items()}
    return pb.Mouse(
        summary=summary_to_proto(info.summary),
        unit_ids=_optional_to_proto(info.unit_ids),
        cell_motor_coordinates=_optional_to_proto(info.cell_motor_coordinates),
        receptive_field_center=_optional_to_proto(info.receptive_field_center),
        receptive_field_size=_size_to_proto(info.receptive_field_size) if info.receptive_field_size else None,
        statistics=pb.Statistics(**statistics),
        output_units=info.output_units,
        graphs={
            name: pb.GraphReport(**{key: value for key, value in vars(report).items() if value is not None})
            for name, report in info.graphs.items()
        },
        source=info.source,
        source_sha256=info.source_sha256,
        licence=info.licence,
        built_with=dict(info.built_with),
        truth={name: arrays.to_proto(values) for name, values in info.truth.items()},
    )


def mouse_from_proto(message: pb.Mouse) -> MouseInfo:
    statistics: dict[str, pb.Moments] = {name: getattr(message.statistics, name) for name in _STATISTICS}
    return MouseInfo(
        summary=summary_from_proto(message.summary),
        unit_ids=_optional_from_proto(message, "unit_ids"),
        cell_motor_coordinates=_optional_from_proto(message, "cell_motor_coordinates"),
        receptive_field_center=_optional_from_proto(message, "receptive_field_center"),
        receptive_field_size=(
            _size_from_proto(message.receptive_field_size) if message.HasField("receptive_field_size") else None
        ),
        statistics={name: Moments(tuple(m.mean), tuple(m.std)) for name, m in statistics.items()},
        output_units=message.output_units,
        graphs={
            name: GraphReport(
                report.opset,
                report.parity_max_abs_error,
                report.parity_tolerance,
                **{key: getattr(report, key) for key in _MEASURED if report.HasField(key)},
                not_on_device=tuple(report.not_on_device),
            )
            for name, report in message.graphs.items()
        },
        source=message.source,
        source_sha256=message.source_sha256,
        licence=message.licence,
        built_with=dict(message.built_with),
        truth={name: arrays.from_proto(values, name) for name, values in message.truth.items()},
    )


def _optional_to_proto(array: NDArray[Any] | None) -> pb.Array | None:
    return None if array is None else arrays.to_proto(array)


def _optional_from_proto(message: Any, field: str) -> NDArray[Any] | None:
    return arrays.from_proto(getattr(message, field), field) if message.HasField(field) else None


def identity_to_proto(twin: TwinIdentity) -> pb.TwinIdentity:
    return pb.TwinIdentity(mouse=twin.mouse, model=twin.model, version=twin.version, digest=twin.digest)


def identity_from_proto(message: pb.TwinIdentity) -> TwinIdentity:
    return TwinIdentity(message.mouse, message.model, message.version, message.digest)


def _size_to_proto(size: tuple[int, int]) -> pb.Size:
    return pb.Size(height=size[0], width=size[1])


def _size_from_proto(message: pb.Size) -> tuple[int, int]:
    return (message.height, message.width)
