"""Twins behind gRPC."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from . import optimization_wire, wire
from .errors import MousetwinError, Unavailable, from_code
from .optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from .query import GradientQuery, MouseInfo, Prediction, PredictQuery, TwinRef, TwinSummary
from .v1 import digital_twin_pb2 as pb

# Frames on their way at once: enough that the engine never waits for the wire, few enough to bound memory.
WINDOW = 4
# Sizes are bounded by the service and by how the client frames a batch, not by gRPC's 4 MB default.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A service that comes back is found at once, not after the two minutes that gRPC works up to.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A channel that is opened after a fork would find its parent's connection in the pool that all channels share.
    ("grpc.use_local_subchannel_pool", 1),
]


class Stubs:
    """The contract's calls on a channel, plain or asyncio."""

    def __init__(self, channel: Any) -> None:
        def unary(name: str, request: Any, response: Any) -> Any:
            return channel.unary_unary(f"/{wire.SERVICE}/{name}", request.SerializeToString, response.FromString)

        self.list_mice = unary("ListMice", pb.ListMiceRequest, pb.ListMiceResponse)
        self.get_mouse = unary("GetMouse", pb.GetMouseRequest, pb.Mouse)
        self.predict = unary("Predict", pb.PredictRequest, pb.PredictResponse)
        self.gradient = unary("Gradient", pb.GradientRequest, pb.GradientResponse)
        self.optimize = channel.unary_stream(
            f"/{wire.SERVICE}/Optimize", pb.OptimizeRequest.SerializeToString, pb.OptimizeResponse.FromString
        )
        self.session = channel.stream_stream(
            f"/{wire.SERVICE}/Session", pb.SessionRequest.SerializeToString, pb.SessionResponse.FromString
        )


def translate(error: grpc.RpcError, address: str) -> MousetwinError:
    """The client's exception for a failed call."""
    call: Any = error
    code: grpc.StatusCode = call.code()
    # Pairs first: grpc.aio's metadata looks like a mapping, and older versions of it are not quite one.
    trailing = dict(tuple(call.trailing_metadata() or ()))
    message = call.details() or code.name
    if code is grpc.StatusCode.UNAVAILABLE and "request-id" not in trailing:
        message = f"no answer from {address}: {message}"
    elif code is grpc.StatusCode.UNIMPLEMENTED and "request-id" not in trailing:
        message = (
            f"{address} is another service ({message}): expected mousetwin serve at 'host:port' "
            "or TorchServe at 'torchserve://host:port'"
        )
    return from_code(
        code.name,
        message,
        field=str(trailing.get("error-field", "")),
        request_id=str(trailing.get("request-id", "")),
    )


class GrpcStream:
    """A `Session` call: frames as they come, one by one."""

    def __init__(self, stubs: Stubs, address: str) -> None:
        self._address = address
        self._frames: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
        self._call = stubs.session(iter(self._frames.get, None))
        self._sent = 0
        self.broken = False

    def send(self, query: PredictQuery) -> None:
        self._frames.put(wire.frame_to_proto(self._sent, query))
        self._sent += 1

    def receive(self) -> Prediction:
        try:
            response = next(self._call)
        except grpc.RpcError as error:
            self.broken = True
            raise translate(error, self._address) from None
        except StopIteration:
            self.broken = True
            raise Unavailable(f"{self._address} ended the stream") from None
        return wire.answer_from_proto(response)

    def close(self) -> None:
        # gRPC reads the frames in a thread of its own, which this ends.
        self._frames.put(None)
        self._call.cancel()


class GrpcTransport:
    """One channel to "host:port". Safe to use from several threads."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._address = address
        self._closed = False
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stubs = Stubs(self._channel)

    def list_mice(self, timeout: float | None) -> list[TwinSummary]:
        response = self._call(self._stubs.list_mice, pb.ListMiceRequest(), timeout)
        return [wire.summary_from_proto(twin) for twin in response.twins]

    def get_mouse(self, ref: TwinRef, timeout: float | None) -> MouseInfo:
        return wire.mouse_from_proto(
            self._call(self._stubs.get_mouse, pb.GetMouseRequest(twin=wire.ref_to_proto(ref)), timeout)
        )

    def ask(self, query: PredictQuery, timeout: float | None) -> Prediction:
        if isinstance(query, GradientQuery):
            response = self._call(self._stubs.gradient, wire.gradient_query_to_proto(query), timeout)
            return wire.gradient_from_proto(response)
        return wire.prediction_from_proto(self._call(self._stubs.predict, wire.query_to_proto(query), timeout))

    def ask_frames(self, queries: Iterable[PredictQuery], timeout: float | None) -> Iterator[Prediction]:
        self._check_open()
        room = threading.Semaphore(WINDOW)

        failures: list[Exception] = []

        def requests() -> Iterator[pb.SessionRequest]:
            # gRPC would tell of a failure in here by a word on its log.
            try:
                for number, query in enumerate(queries):
                    room.acquire()
                    yield wire.frame_to_proto(number, query)
            except Exception as failure:
                failures.append(failure)

        call = self._stubs.session(requests(), timeout=timeout)
        try:
            for response in call:
                room.release()
                yield wire.answer_from_proto(response)
            if failures:
                raise failures[0]
        except grpc.RpcError as error:
            raise translate(error, self._address) from None
        finally:
            call.cancel()
            # gRPC reads the requests in a thread of its own, which must not be left waiting for room.
            room.release(WINDOW + 1)

    def open_stream(self, wait: float) -> GrpcStream:
        self._check_open()
        if wait > 0:
            try:
                grpc.channel_ready_future(self._channel).result(wait)
            except grpc.FutureTimeoutError:
                raise Unavailable(f"no answer from {self._address} within {wait:.1f} s") from None
        return GrpcStream(self._stubs, self._address)

    def optimize(self, query: OptimizeQuery, timeout: float | None) -> Iterator[OptimizeProgress | OptimizeResult]:
        self._check_open()
        call = self._stubs.optimize(optimization_wire.query_to_proto(query), timeout=timeout)
        try:
            for response in call:
                yield optimization_wire.event_from_proto(response)
        except grpc.RpcError as error:
            raise translate(error, self._address) from None
        finally:
            call.cancel()

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def _check_open(self) -> None:
        # gRPC itself answers with a bare ValueError.
        if self._closed:
            raise Unavailable(f"the connection to {self._address} is closed")

    def _call(self, stub: Any, request: Any, timeout: float | None) -> Any:
        self._check_open()
        try:
            return stub(request, timeout=timeout)
        except grpc.RpcError as error:
            raise translate(error, self._address) from None
