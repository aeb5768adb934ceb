"""The client for asyncio, over gRPC: `predict`, `gradient` and `optimize` as `mousetwin.connect` has them, awaited.

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
from .build import build_query, columns_of, seconds, with_cotangent
from .channels import ENDED_IN_A_WRITE, Attempts, channel_options, process, translate
from .errors import Closed, DeadlineExceeded, MousetwinError, Unavailable
from .frames import Collector, Gradient, Responses, gradient_of, responses_of, split
from .grpc_transport import WINDOW, Stubs
from .notices import Notices
from .optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from .optimized import Optimized
from .query import GradientQuery, MouseInfo, Prediction, PredictQuery, Space, TwinRef, TwinSummary, stand_in_warning
from .transport import HostPort, parse_host_port
from .twins import Progress
from .v1 import digital_twin_pb2 as pb


def connect(address: str = "127.0.0.1:8001", *, timeout: float | None = None) -> Twins:
    """The twins at "host:port". Nothing is opened before the first question, so any event loop can ask.

    Args:
        address: of the service's gRPC.
        timeout: seconds for any one call that names none itself; None for no limit.

    Raises:
        InvalidArgument: the address is of another form; other hosts have no asyncio client.
    """
    return Twins(parse_host_port(address, "'host:port' (asyncio has no other)"), seconds(timeout, None))


class Twins:
    """What is served at one address. An async context manager; each event loop that asks has its own connection."""

    def __init__(self, address: HostPort, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._connection = AioConnection(address)
        self._notices = Notices()

    def __repr__(self) -> str:
        return f"<aio.Twins at {self._connection.address}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection of asyncio's is of one event loop, and cannot be pickled or copied")

    async def mice(self, *, timeout: float | None = None) -> list[TwinSummary]:
        """What is served: one entry per mouse, model and version."""
        response = await self._ask(lambda stubs: stubs.list_mice, pb.ListMiceRequest(), timeout)
        return [wire.summary_from_proto(twin) for twin in response.twins]

    async def mouse(
        self, data_key: str, model: str = "", version: str | int | None = None, *, timeout: float | None = None
    ) -> Mouse:
        """One twin, as `mousetwin.Twins.mouse`."""
        ref = TwinRef(data_key, model, "" if version is None else str(version))
        request = pb.GetMouseRequest(twin=wire.ref_to_proto(ref))
        response = await self._ask(lambda stubs: stubs.get_mouse, request, timeout)
        mouse = Mouse(self, wire.mouse_from_proto(response))
        if not ref.version:
            self._notices.tell(filter(None, [stand_in_warning(mouse.summary)]))
        return mouse

    async def ask(self, query: PredictQuery, timeout: float | None) -> Prediction:
        """The answer to one frame; a `GradientAnswer` to a `GradientQuery`."""
        if isinstance(query, GradientQuery):
            gradient = wire.gradient_query_to_proto(query)
            return wire.gradient_from_proto(await self._ask(lambda stubs: stubs.gradient, gradient, timeout))
        request = wire.query_to_proto(query)
        return wire.prediction_from_proto(await self._ask(lambda stubs: stubs.predict, request, timeout))

    async def ask_frames(self, frames: list[PredictQuery], timeout: float | None) -> AsyncIterator[Prediction]:
        """Answers in the order of `frames`, the next ones sent while earlier ones are computed."""
        timeout = seconds(timeout, self._timeout)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        call = self._connection.stubs.session(timeout=timeout)
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
            if error.details() == ENDED_IN_A_WRITE and time.monotonic() >= deadline:
                raise DeadlineExceeded("the deadline passed before the answer") from None
            raise self._connection.translate(error) from None
        finally:
            sender.cancel()
            # Its own failure, if any, is the call's, which was raised above.
            await asyncio.gather(sender, return_exceptions=True)
            call.cancel()

    async def optimize(
        self, query: OptimizeQuery, timeout: float | None
    ) -> AsyncGenerator[OptimizeProgress | OptimizeResult, None]:
        """Reports, then the result. Closing the iterator ends the optimisation."""
        call = self._connection.stubs.optimize(
            optimization_wire.query_to_proto(query), timeout=seconds(timeout, self._timeout)
        )
        try:
            async for response in call:
                yield optimization_wire.event_from_proto(response)
        except grpc.aio.AioRpcError as error:
            raise self._connection.translate(error) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._connection.close()

    async def __aenter__(self) -> Twins:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: Callable[[Stubs], Any], request: Any, timeout: float | None) -> Any:
        return await self._connection.ask(call, request, seconds(timeout, self._timeout))


class AioConnection:
    """As `channels.Connection`, and a channel for each event loop that asks: gRPC's belong to one."""

    def __init__(self, address: HostPort) -> None:
        self.address = address
        self._opened: dict[asyncio.AbstractEventLoop, tuple[grpc.aio.Channel, Stubs]] = {}
        self._closed = False
        self._reached = False
        process.connections.add(self)

    @property
    def stubs(self) -> Stubs:
        """The calls, for the running event loop.

        Raises:
            Closed: after `close`.
            MousetwinError: no event loop is running, or this process was forked from one that has asyncio channels.
        """
        return self._open()[1]

    def translate(self, error: grpc.aio.AioRpcError) -> MousetwinError:
        """The client's exception for a failed call."""
        return translate(error, self.address)

    async def ask(self, call: Callable[[Stubs], Any], request: Any, timeout: float | None) -> Any:
        """As `channels.Connection.ask`."""
        attempts = Attempts(timeout)
        while True:
            try:
                return await self._ask(call, request, attempts.left)
            except Unavailable as error:
                if not self._reached or not attempts.may_follow(error):
                    raise
            await asyncio.sleep(attempts.pause)

    async def close(self) -> None:
        self._closed = True
        channel, _ = self._opened.pop(asyncio.get_running_loop(), (None, None))
        if channel is not None:
            await channel.close()
        self._opened.clear()

    def forked(self) -> Any:
        """As `channels.Connection.forked`."""
        opened, self._opened = self._opened, {}
        return opened

    def _open(self) -> tuple[grpc.aio.Channel, Stubs]:
        if self._closed:
            raise Closed(f"the connection to {self.address} is closed")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise MousetwinError("mousetwin.aio: no asyncio event loop is running: await it within one") from None
        if loop not in self._opened:
            for old in [old for old in self._opened if old.is_closed()]:
                del self._opened[old]
            process.check_fork(asyncio=True)
            channel = grpc.aio.insecure_channel(str(self.address), options=channel_options(self.address))
            process.asyncio_channels.add(channel)
            self._opened[loop] = channel, Stubs(channel)
        return self._opened[loop]

    async def _ask(self, call: Callable[[Stubs], Any], request: Any, timeout: float | None) -> Any:
        try:
            answer = await call(self.stubs)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            told = self.translate(error)
            self._reached = self._reached or not isinstance(told, Unavailable)
            raise told from None
        self._reached = True
        return answer


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
