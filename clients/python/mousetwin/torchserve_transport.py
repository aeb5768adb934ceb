"""Twins behind TorchServe's own gRPC: "torchserve://host:port"."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import grpc

from . import wire
from .errors import InvalidArgument, NotFound, Unavailable, Unimplemented, from_code
from .grpc_transport import CHANNEL_OPTIONS, WINDOW, translate
from .optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from .query import GradientQuery, MouseInfo, Prediction, PredictQuery, TwinIdentity, TwinRef, TwinSummary
from .transport import FrameStream
from .v1 import digital_twin_pb2 as pb
from .v1 import torchserve_pb2

_METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
# As `mousetwin archive` names them.
_CATALOG = "mousetwin"


def open_torchserve(address: str) -> TorchServeTransport:
    """The twins of a model store that `mousetwin archive` wrote. Raises InvalidArgument for a malformed address."""
    target = address.removeprefix("torchserve://")
    if target == address or not target.rpartition(":")[2].isdigit():
        raise InvalidArgument(f"address: {address!r}, expected 'torchserve://host:port'", field="address")
    return TorchServeTransport(target)


class TorchServeTransport:
    """One channel to TorchServe's inference port. Safe to use from several threads."""

    def __init__(self, address: str) -> None:
        self.address = f"torchserve://{address}"
        self._address = address
        self._closed = False
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._predictions: Any = self._channel.unary_unary(
            _METHOD,
            torchserve_pb2.PredictionsRequest.SerializeToString,
            torchserve_pb2.PredictionResponse.FromString,
        )

    def list_mice(self, timeout: float | None) -> list[TwinSummary]:
        response = pb.ListMiceResponse.FromString(self._ask(_CATALOG, "ListMice", pb.ListMiceRequest(), timeout))
        return [wire.summary_from_proto(twin) for twin in response.twins]

    def get_mouse(self, ref: TwinRef, timeout: float | None) -> MouseInfo:
        request = pb.GetMouseRequest(twin=wire.ref_to_proto(ref))
        found = pb.Mouse.FromString(self._ask(_CATALOG, "GetMouse", request, timeout))
        twin = wire.summary_from_proto(found.summary).twin
        return wire.mouse_from_proto(pb.Mouse.FromString(self._ask(_name(twin), "GetMouse", request, timeout)))

    def ask(self, query: PredictQuery, timeout: float | None) -> Prediction:
        return self._read(query, self._send(query, timeout))

    def ask_frames(self, queries: Iterable[PredictQuery], timeout: float | None) -> Iterator[Prediction]:
        pending: deque[tuple[PredictQuery, Any]] = deque()
        try:
            for query in queries:
                pending.append((query, self._send(query, timeout)))
                if len(pending) >= WINDOW:
                    yield self._read(*pending.popleft())
            while pending:
                yield self._read(*pending.popleft())
        finally:
            for _, call in pending:
                call.cancel()

    def open_stream(self, wait: float) -> FrameStream:
        self._not_here("sessions")

    def optimize(self, query: OptimizeQuery, timeout: float | None) -> Iterator[OptimizeProgress | OptimizeResult]:
        self._not_here("optimisation")

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def _not_here(self, what: str) -> NoReturn:
        raise Unimplemented(
            f"{what}: not on this host: TorchServe has no streams; use mousetwin serve", field="address"
        )

    def _send(self, query: PredictQuery, timeout: float | None) -> Any:
        twin = query.twin
        if not (twin.model and twin.version):
            raise NotFound(f"{twin.mouse}: ask for a mouse first, TorchServe takes whole names only", field="twin")
        if isinstance(query, GradientQuery):
            return self._call(_name(twin), "Gradient", wire.gradient_query_to_proto(query), timeout)
        return self._call(_name(twin), "Predict", wire.query_to_proto(query), timeout)

    def _read(self, query: PredictQuery, call: Any) -> Prediction:
        response = self._finish(call)
        if isinstance(query, GradientQuery):
            return wire.gradient_from_proto(pb.GradientResponse.FromString(response))
        return wire.prediction_from_proto(pb.PredictResponse.FromString(response))

    def _ask(self, model: str, call: str, request: Any, timeout: float | None) -> bytes:
        return self._finish(self._call(model, call, request, timeout))

    def _call(self, model: str, call: str, request: Any, timeout: float | None) -> Any:
        # gRPC itself answers with a bare ValueError.
        if self._closed:
            raise Unavailable(f"the connection to {self._address} is closed")
        given = {"call": call.encode(), "request": request.SerializeToString()}
        return self._predictions.future(
            torchserve_pb2.PredictionsRequest(model_name=model, input=given), timeout=timeout
        )

    def _finish(self, call: Any) -> bytes:
        try:
            response = call.result()
        except grpc.RpcError as error:
            raise translate(error, self._address) from None
        reply = pb.Reply.FromString(response.prediction)
        if reply.WhichOneof("result") == "error":
            told = reply.error
            raise from_code(told.code, told.message, field=told.field, request_id=told.request_id)
        return bytes(reply.response)


def _name(twin: TwinRef | TwinIdentity) -> str:
    return f"{twin.mouse}_{twin.model}_{twin.version}"
