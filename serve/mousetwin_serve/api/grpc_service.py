"""The gRPC service: translates messages to queries and back, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
from google.protobuf.message import Message
from mousetwin import optimization_wire, wire
from mousetwin.errors import Unavailable
from mousetwin.query import GradientAnswer
from mousetwin.v1 import digital_twin_pb2 as pb

from ..service import TwinService
from .errors import as_domain_error, grpc_status, new_request_id

# Frames of one session in work at once: enough to keep the engine busy, few enough to bound memory.
SESSION_WINDOW = 8

Context = grpc.aio.ServicerContext[bytes, bytes]


class DigitalTwinServicer:
    """`mousetwin.v1.DigitalTwin` on a TwinService.

    Messages are parsed here and not by gRPC, which answers a malformed one with INTERNAL and a Python traceback.
    """

    def __init__(self, service: TwinService) -> None:
        self._service = service

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "ListMice": grpc.unary_unary_rpc_method_handler(self._unary("ListMice", self._list_mice)),
            "GetMouse": grpc.unary_unary_rpc_method_handler(self._unary("GetMouse", self._get_mouse)),
            "Predict": grpc.unary_unary_rpc_method_handler(self._unary("Predict", self._predict)),
            "Gradient": grpc.unary_unary_rpc_method_handler(self._unary("Gradient", self._gradient)),
            "Optimize": grpc.unary_stream_rpc_method_handler(self._optimize),
            "Session": grpc.stream_stream_rpc_method_handler(self._session),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))

    def _unary(
        self, call: str, answer: Callable[[bytes, float | None], Awaitable[Message]]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(request: bytes, context: Context) -> bytes:
            async with self._call(call, context) as warnings:
                message = await answer(request, _deadline(context))
                warnings += _warnings_of(message)
                return message.SerializeToString()

        return handle

    @contextlib.asynccontextmanager
    async def _call(self, call: str, context: Context) -> AsyncIterator[list[str]]:
        """Counts a call, and ends it with the status of what goes wrong. Gives a list of warnings to tell of."""
        start, request_id, code = time.perf_counter(), new_request_id(), "OK"
        warnings: list[str] = []
        try:
            yield warnings
            told = (("warning", text.encode("ascii", "replace").decode()) for text in warnings)
            context.set_trailing_metadata((("request-id", request_id), *told))
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as failure:
            error = as_domain_error(failure, request_id)
            code = error.code
            await context.abort(
                grpc_status(error), str(error), (("request-id", request_id), ("error-field", error.field))
            )
        finally:
            metrics = self._service.metrics
            metrics.requests.labels("grpc", call, code).inc()
            metrics.request_seconds.labels("grpc", call).observe(time.perf_counter() - start)

    async def _list_mice(self, request: bytes, deadline: float | None) -> Message:
        wire.parse(pb.ListMiceRequest, request)
        return pb.ListMiceResponse(twins=[wire.summary_to_proto(twin) for twin in self._service.list_mice()])

    async def _get_mouse(self, request: bytes, deadline: float | None) -> Message:
        ref = wire.ref_from_proto(wire.parse(pb.GetMouseRequest, request).twin)
        return wire.mouse_to_proto(self._service.get_mouse(ref))

    async def _predict(self, request: bytes, deadline: float | None) -> Message:
        query = wire.query_from_proto(wire.parse(pb.PredictRequest, request))
        return wire.prediction_to_proto(await self._service.answer(query, deadline))

    async def _gradient(self, request: bytes, deadline: float | None) -> Message:
        query = wire.gradient_query_from_proto(wire.parse(pb.GradientRequest, request))
        answer = await self._service.answer(query, deadline)
        assert isinstance(answer, GradientAnswer)
        return wire.gradient_to_proto(answer)

    async def _optimize(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        async with self._call("Optimize", context) as warnings:
            query = optimization_wire.query_from_proto(wire.parse(pb.OptimizeRequest, request))
            async with contextlib.aclosing(self._service.optimize(query, _deadline(context))) as events:
                async for event in events:
                    warnings += getattr(event, "warnings", ())
                    yield optimization_wire.event_to_proto(event).SerializeToString()

    async def _session(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Frames are worked on side by side, so that they can share engine runs, and answered in order."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(SESSION_WINDOW)
        deadline = _deadline(context)

        async def read() -> None:
            try:
                async for request in requests:
                    await answers.put(asyncio.create_task(self._frame(request, deadline)))
            finally:
                await answers.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await answers.get()) is not None:
                yield await task
        finally:
            reader.cancel()
            while not answers.empty():
                if (task := answers.get_nowait()) is not None:
                    task.cancel()

    async def _frame(self, request: bytes, deadline: float | None) -> bytes:
        start = time.perf_counter()
        request_id = new_request_id()
        frame_id, code = 0, "OK"
        try:
            message = wire.parse(pb.SessionRequest, request)
            frame_id = message.id
            query = wire.frame_from_proto(message)
            if not self._service.ready:
                raise Unavailable("the service is shutting down")
            response = wire.answer_to_proto(frame_id, await self._service.answer(query, deadline))
        except Exception as failure:
            error = as_domain_error(failure, request_id)
            code = error.code
            report = pb.Error(code=code, message=str(error), field=error.field, request_id=request_id)
            response = pb.SessionResponse(id=frame_id, error=report)
        metrics = self._service.metrics
        metrics.requests.labels("grpc", "Session", code).inc()
        metrics.request_seconds.labels("grpc", "Session").observe(time.perf_counter() - start)
        return response.SerializeToString()


def _warnings_of(message: Message) -> list[str]:
    prediction = message.predict if isinstance(message, pb.GradientResponse) else message
    return list(prediction.warnings) if isinstance(prediction, pb.PredictResponse) else []


def _deadline(context: Context) -> float | None:
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
