"""The client for asyncio: the same nouns and arguments as `mousetwin.connect`, awaited, over gRPC.

async with mousetwin.aio.connect("127.0.0.1:8001") as twins:
    mouse = await twins.mouse("26872-17-20")
    responses = await mouse.predict(images)
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Any, NoReturn

import grpc
import grpc.aio
from numpy.typing import ArrayLike

from . import optimization_wire, optimize, wire
from .build import build_query, columns_of, with_cotangent
from .errors import DeadlineExceeded, InvalidArgument, MousetwinError
from .frames import Collector, Gradient, Responses, gradient_of, responses_of, split
from .grpc_transport import CHANNEL_OPTIONS, WINDOW, Stubs, translate
from .notices import Notices
from .optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from .optimized import Optimized
from .query import GradientQuery, MouseInfo, Prediction, PredictQuery, Space, TwinRef, TwinSummary, stand_in_warning
from .transport import is_host_and_port
from .twins import Progress
from .v1 import digital_twin_pb2 as pb


def connect(address: str = "127.0.0.1:8001", *, timeout: float | None = None) -> Twins:
    """The twins at "host:port". Call it within a running event loop.

    Args:
        address: of the service's gRPC.
        timeout: seconds for any one call that names none itself; None for no limit.

    Raises:
        InvalidArgument: the address is of another form; other hosts have no asyncio client.
    """
    if not is_host_and_port(address):
        raise InvalidArgument(f"address: {address!r}, expected 'host:port' (asyncio has no other)", field="address")
    return Twins(address, timeout)


class Twins:
    """What is served at one address. An async context manager."""

    def __init__(self, address: str, timeout: float | None = None) -> None:
        self._address = address
        self._timeout = timeout
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stubs = Stubs(self._channel)
        self._notices = Notices()

    def __repr__(self) -> str:
        return f"<aio.Twins at {self._address}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection of asyncio's is of one event loop, and cannot be pickled or copied")

    async def mice(self, *, timeout: float | None = None) -> list[TwinSummary]:
        """What is served: one entry per mouse, model and version."""
        response = await self._call(self._stubs.list_mice, pb.ListMiceRequest(), timeout)
        return [wire.summary_from_proto(twin) for twin in response.twins]

    async def mouse(
        self, data_key: str, model: str = "", version: str | int | None = None, *, timeout: float | None = None
    ) -> Mouse:
        """One twin, as `mousetwin.Twins.mouse`."""
        ref = TwinRef(data_key, model, "" if version is None else str(version))
        response = await self._call(self._stubs.get_mouse, pb.GetMouseRequest(twin=wire.ref_to_proto(ref)), timeout)
        mouse = Mouse(self, wire.mouse_from_proto(response))
        if not ref.version:
            self._notices.tell(filter(None, [stand_in_warning(mouse.summary)]))
        return mouse

    async def ask(self, query: PredictQuery, timeout: float | None) -> Prediction:
        """The answer to one frame; a `GradientAnswer` to a `GradientQuery`."""
        if isinstance(query, GradientQuery):
            request = wire.gradient_query_to_proto(query)
            return wire.gradient_from_proto(await self._call(self._stubs.gradient, request, timeout))
        return wire.prediction_from_proto(await self._call(self._stubs.predict, wire.query_to_proto(query), timeout))

    async def ask_frames(self, frames: list[PredictQuery], timeout: float | None) -> AsyncIterator[Prediction]:
        """Answers in the order of `frames`, the next ones sent while earlier ones are computed."""
        timeout = timeout or self._timeout
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        call = self._stubs.session(timeout=timeout)
        room = asyncio.Semaphore(WINDOW)

        async def send() -> None:
            for number, frame in enumerate(frames):
                await room.acquire()
                await call.write(wire.frame_to_proto(number, frame))
            await call.done_writing()

        sender = asyncio.ensure_future(send())
        try:
            async for response in call:
                room.release()
                yield wire.answer_from_proto(response)
        except grpc.aio.AioRpcError as error:
            # Where the deadline passes while a stream opens or sends, grpc.aio may tell only of an internal error.
            if error.details() == "Internal error from Core" and time.monotonic() >= deadline:
                raise DeadlineExceeded("the deadline passed before the answer") from None
            raise translate(error, self._address) from None
        finally:
            sender.cancel()
            # Its own failure, if any, is the call's, which was raised above.
            await asyncio.gather(sender, return_exceptions=True)
            call.cancel()

    async def optimize(
        self, query: OptimizeQuery, timeout: float | None
    ) -> AsyncGenerator[OptimizeProgress | OptimizeResult, None]:
        """Reports, then the result. Closing the iterator ends the optimisation."""
        call = self._stubs.optimize(optimization_wire.query_to_proto(query), timeout=timeout or self._timeout)
        try:
            async for response in call:
                yield optimization_wire.event_from_proto(response)
        except grpc.aio.AioRpcError as error:
            raise translate(error, self._address) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Twins:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, stub: Any, request: Any, timeout: float | None) -> Any:
        try:
            return await stub(request, timeout=timeout or self._timeout)
        except grpc.aio.AioRpcError as error:
            raise translate(error, self._address) from None


class Mouse:
    """One twin of one mouse.

    Attributes:
        info: everything its bundle tells, as of when this object was made.
    """

    def __init__(self, twins: Twins, info: MouseInfo) -> None:
        self.info = info
        self._twins = twins
        self._notices = Notices()

    @property
    def summary(self) -> TwinSummary:
        return self.info.summary

    def __repr__(self) -> str:
        return f"<aio.Mouse {self.summary}: {self.summary.neurons} neurons>"

    async def predict(
        self,
        images: ArrayLike,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        space: Space | str | None = None,
        *,
        condition_space: Space | str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Responses:
        """Predicted responses, float32 (N, K); arguments and errors as `mousetwin.Mouse.predict`."""
        query = build_query(self.summary, images, behavior, pupil_center, neurons, unit_ids, space, condition_space)
        answer = await self._ask(query, timeout, progress)
        self._notices.tell(answer.warnings)
        return responses_of(answer)

    async def gradient(
        self,
        images: ArrayLike,
        cotangent: ArrayLike,
        behavior: ArrayLike | None = None,
        pupil_center: ArrayLike | None = None,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        space: Space | str | None = None,
        *,
        condition_space: Space | str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Gradient:
        """Responses and gradients; arguments and errors as `mousetwin.Mouse.gradient`."""
        query = build_query(self.summary, images, behavior, pupil_center, neurons, unit_ids, space, condition_space)
        answer = await self._ask(with_cotangent(query, cotangent), timeout, progress)
        self._notices.tell(answer.warnings)
        return gradient_of(answer)

    async def optimize(
        self,
        neurons: ArrayLike | None = None,
        unit_ids: ArrayLike | None = None,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
        on_report: Callable[[OptimizeProgress], None] | None = None,
        **options: Any,
    ) -> Optimized:
        """Images that drive neurons; arguments and errors as `mousetwin.Mouse.optimize`. Cancelling ends the search."""
        query = optimize.build(self.info, neurons, unit_ids, **options)
        requests = optimize.Requests(self.info, query, progress, on_report)
        for request in requests.queries:
            async with contextlib.aclosing(self._twins.optimize(request, timeout)) as events:
                async for event in events:
                    requests.take(event)
        found = requests.found()
        self._notices.tell(found.warnings)
        return found

    async def _ask(self, query: PredictQuery, timeout: float | None, progress: Progress | None) -> Prediction:
        frames = split(query, columns_of(self.summary, query))
        if len(frames) == 1:
            answer = await self._twins.ask(query, timeout)
            if progress is not None:
                progress(len(query.images), len(query.images))
            return answer
        collector = Collector(frames)
        try:
            async for answer in self._twins.ask_frames(frames, timeout):
                collector.add(answer)
                if progress is not None:
                    progress(collector.done, len(query.images))
        except MousetwinError as error:
            raise collector.locate(error) from None
        return collector.result()
