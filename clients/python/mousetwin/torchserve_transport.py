"""Twins behind TorchServe's own gRPC: "torchserve://host:port"."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import grpc

from . import wire
from .channels import TORCHSERVE, Connection
from .errors import InvalidArgument, NotFound, Unimplemented, from_code
from .grpc_transport import WINDOW
from .optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from .query import GradientQuery, MouseInfo, Prediction, PredictQuery, TwinIdentity, TwinRef, TwinSummary
from .transport import FrameStream, HostPort, parse_host_port
from .v1 import digital_twin_pb2 as pb
from .v1 import torchserve_pb2

_METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
_SCHEME = "torchserve://"
_EXPECTED = "'torchserve://host:port'"
# As `mousetwin archive` names them.
_CATALOG = "mousetwin"


def open_torchserve(address: str) -> TorchServeTransport:
    """The twins of a model store that `mousetwin archive` wrote. Raises InvalidArgument for a malformed address."""
    target = address.removeprefix(_SCHEME)
    if target == address:
        raise InvalidArgument(f"address: {address!r}, expected {_EXPECTED}", field="address")
    return TorchServeTransport(parse_host_port(target, _EXPECTED, _SCHEME))


class TorchServeTransport:
    """One channel to TorchServe's inference port. Safe to use from several threads."""

    def __init__(self, address: HostPort) -> None:
        self._connection: Connection[Any] = Connection(address, TORCHSERVE, _predictions)

    @property
    def address(self) -> str:
        return f"torchserve://{self._connection.address}"

    def list_mice(self, timeout: float | None) -> list[TwinSummary]:
        response = pb.ListMiceResponse.FromString(self._ask(_CATALOG, "ListMice", pb.ListMiceRequest(), timeout))
        return [wire.summary_from_proto(twin) for twin in response.twins]

    def get_mouse(self, ref: TwinRef, timeout: float | None) -> MouseInfo:
        request = pb.GetMouseRequest(twin=wire.ref_to_proto(ref))
        found = pb.Mouse.FromString(self._ask(_CATALOG, "GetMouse", request, timeout))
        twin = wire.summary_from_proto(found.summary).twin
        return wire.mouse_from_proto(pb.Mouse.FromString(self._ask(_name(twin), "GetMouse", request, timeout)))

    def ask(self, query: PredictQuery, timeout: float | None) -> Prediction:
        return _read(query, self._ask(*_asked(query), timeout))

    def ask_frames(self, queries: Iterable[PredictQuery], timeout: float | None) -> Iterator[Prediction]:
        pending: deque[tuple[PredictQuery, Any]] = deque()
        with contextlib.ExitStack() as begun:
            for query in queries:
                call = self._connection.stubs.future(_request(*_asked(query)), timeout=timeout)
                pending.append((query, begun.enter_context(self._connection.begun(call))))
                if len(pending) >= WINDOW:
                    yield self._finish(*pending.popleft())
            while pending:
                yield self._finish(*pending.popleft())

    def open_stream(self) -> FrameStream:
        self._not_here("sessions")

    def optimize(self, query: OptimizeQuery, timeout: float | None) -> Iterator[OptimizeProgress | OptimizeResult]:
        self._not_here("optimisation")

    def close(self) -> None:
        self._connection.close()

    def _not_here(self, what: str) -> NoReturn:
        raise Unimplemented(
            f"{what}: not on this host: TorchServe has no streams; use mousetwin serve", field="address"
        )

    def _ask(self, model: str, call: str, request: Any, timeout: float | None) -> bytes:
        return _reply(self._connection.ask(lambda predictions: predictions, _request(model, call, request), timeout))

    def _finish(self, query: PredictQuery, call: Any) -> Prediction:
        try:
            response = call.result()
        except grpc.RpcError as error:
            raise self._connection.translate(error) from None
        return _read(query, _reply(response))


def _asked(query: PredictQuery) -> tuple[str, str, Any]:
    """Which model is asked, by which call, and with what."""
    twin = query.twin
    if not (twin.model and twin.version):
        raise NotFound(f"{twin.mouse}: ask for a mouse first, TorchServe takes whole names only", field="twin")
    if isinstance(query, GradientQuery):
        return _name(twin), "Gradient", wire.gradient_query_to_proto(query)
    return _name(twin), "Predict", wire.query_to_proto(query)


def _request(model: str, call: str, request: Any) -> torchserve_pb2.PredictionsRequest:
    given = {"call": call.encode(), "request": request.SerializeToString()}
    return torchserve_pb2.PredictionsRequest(model_name=model, input=given)


def _reply(response: Any) -> bytes:
    """Our message in TorchServe's, or the error in its place."""
    reply = pb.Reply.FromString(response.prediction)
    if reply.WhichOneof("result") == "error":
        told = reply.error
        raise from_code(told.code, told.message, field=told.field, request_id=told.request_id)
    return bytes(reply.response)


def _read(query: PredictQuery, response: bytes) -> Prediction:
    if isinstance(query, GradientQuery):
        return wire.gradient_from_proto(pb.GradientResponse.FromString(response))
    return wire.prediction_from_proto(pb.PredictResponse.FromString(response))


def _predictions(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        _METHOD, torchserve_pb2.PredictionsRequest.SerializeToString, torchserve_pb2.PredictionResponse.FromString
    )


def _name(twin: TwinRef | TwinIdentity) -> str:
    return f"{twin.mouse}_{twin.model}_{twin.version}"
