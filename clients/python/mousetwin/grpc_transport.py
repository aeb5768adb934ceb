"""Twins behind gRPC."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from . import optimization_wire, wire
from .channels import MOUSETWIN, Connection, process
from .errors import StreamLost, Unavailable
from .optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from .query import GradientQuery, MouseInfo, Prediction, PredictQuery, TwinRef, TwinSummary
from .transport import HostPort
from .v1 import digital_twin_pb2 as pb

# Frames on their way at once: enough that the engine never waits for the wire, few enough to bound memory.
WINDOW = 4


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


class GrpcStream:
    """A `Session` call: frames as they come, one by one."""

    def __init__(self, connection: Connection[Stubs]) -> None:
        self._connection = connection
        self._frames: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
        self._call: Any = connection.stubs.session(iter(self._frames.get, None))
        self._sent = 0
        self._interrupted = False
        self.broken = False
        process.streams.add(self)

    def send(self, query: PredictQuery) -> None:
        self._frames.put(wire.frame_to_proto(self._sent, query))
        self._sent += 1

    def receive(self) -> Prediction:
        if self._call is None:
            raise Unavailable("the stream is the parent's")
        try:
            response = next(self._call)
        except grpc.RpcError as error:
            self.broken = True
            if self._interrupted:
                raise Unavailable("the stream was ended for a fork") from None
            raise self._connection.translate(error) from None
        except StopIteration:
            self.broken = True
            raise StreamLost(f"{self._connection.address} ended the stream") from None
        return wire.answer_from_proto(response)

    def close(self) -> None:
        process.streams.discard(self)
        # gRPC reads the frames in a thread of its own, which this ends.
        if self._call is not None:
            self._frames.put(None)
            self._call.cancel()

    def interrupt(self) -> None:
        """End it for a fork: no thread may be in gRPC then."""
        self._interrupted = self.broken = True
        self.close()

    def leave(self) -> Any:
        """Leave it to the parent, in a forked process: what may be neither used nor collected here."""
        self.broken = True
        call, self._call = self._call, None
        return call


class GrpcTransport:
    """One channel to "host:port". Safe to use from several threads, and in forked processes."""

    def __init__(self, address: HostPort) -> None:
        self._connection = Connection(address, MOUSETWIN, Stubs)

    @property
    def address(self) -> str:
        return str(self._connection.address)

    def list_mice(self, timeout: float | None) -> list[TwinSummary]:
        response = self._connection.ask(lambda stubs: stubs.list_mice, pb.ListMiceRequest(), timeout)
        return [wire.summary_from_proto(twin) for twin in response.twins]

    def get_mouse(self, ref: TwinRef, timeout: float | None) -> MouseInfo:
        request = pb.GetMouseRequest(twin=wire.ref_to_proto(ref))
        return wire.mouse_from_proto(self._connection.ask(lambda stubs: stubs.get_mouse, request, timeout))

    def ask(self, query: PredictQuery, timeout: float | None) -> Prediction:
        if isinstance(query, GradientQuery):
            request = wire.gradient_query_to_proto(query)
            return wire.gradient_from_proto(self._connection.ask(lambda stubs: stubs.gradient, request, timeout))
        response = self._connection.ask(lambda stubs: stubs.predict, wire.query_to_proto(query), timeout)
        return wire.prediction_from_proto(response)

    def ask_frames(self, queries: Iterable[PredictQuery], timeout: float | None) -> Iterator[Prediction]:
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

        try:
            with self._connection.begun(self._connection.stubs.session(requests(), timeout=timeout)) as call:
                for response in call:
                    room.release()
                    yield wire.answer_from_proto(response)
            if failures:
                raise failures[0]
        except grpc.RpcError as error:
            raise self._connection.translate(error) from None
        finally:
            # gRPC reads the requests in a thread of its own, which must not be left waiting for room.
            room.release(WINDOW + 1)

    def open_stream(self) -> GrpcStream:
        return GrpcStream(self._connection)

    def optimize(self, query: OptimizeQuery, timeout: float | None) -> Iterator[OptimizeProgress | OptimizeResult]:
        request = optimization_wire.query_to_proto(query)
        try:
            with self._connection.begun(self._connection.stubs.optimize(request, timeout=timeout)) as call:
                for response in call:
                    yield optimization_wire.event_from_proto(response)
        except grpc.RpcError as error:
            raise self._connection.translate(error) from None

    def close(self) -> None:
        self._connection.close()
