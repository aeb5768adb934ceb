"""What the service does, whatever the protocol: find the twin, check the query, batch it, answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mousetwin.errors import Cancelled, InvalidArgument
from mousetwin.optimization import OptimizeProgress, OptimizeQuery, OptimizeResult
from mousetwin.query import MouseInfo, Prediction, PredictQuery, TwinRef, TwinSummary
from numpy.typing import NDArray

from .batch import Answer, Batch
from .batcher import Batcher, BatchSettings
from .device import CPU
from .limits import Limits
from .metrics import Metrics
from .optimizer.run import optimize
from .ordered import in_order
from .repository import Repository
from .twin import Twin

# Reading a query this large takes long enough to be worth leaving the event loop for.
_LARGE_BYTES = 1 << 20
# Steps of different optimisations that are prepared at once; the engine is shared by all of them in any case.
_OPTIMIZATIONS = 4
# Parts of one stream that are worked on, or answered and not sent, at once; and of all streams.
_STREAM_WINDOW = 6
_STREAM_PARTS = 24


class TwinService:
    """Answers for all twins of a repository. Lives in one event loop.

    Attributes:
        ready: whether new work is taken.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        limits: Limits | None = None,
        batching: BatchSettings | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.repository = repository
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.ready = True
        # A run has a thread of its own; more at once than the device takes would only get in each other's way.
        runs = max((twin.engine.runs for twin in repository.twins.values()), default=1)
        self._executor = ThreadPoolExecutor(runs, thread_name_prefix="engine")
        self._optimizers = ThreadPoolExecutor(_OPTIMIZATIONS, thread_name_prefix="optimizer")
        self._turns = itertools.count()
        self._streams = 0
        self._stream_room = asyncio.Semaphore(_STREAM_PARTS)
        self._batchers = {
            twin.identity: Batcher(twin.engine, self._executor, batching, self._recorder(twin))
            for twin in repository.twins.values()
        }
        for key in repository.refused:
            self.metrics.refused.labels(*key).set(1)
        for identity, batcher in self._batchers.items():
            gauge = self.metrics.queued.labels(identity.mouse, identity.model)
            gauge.set_function(functools.partial(getattr, batcher, "queued"))

    @property
    def not_served(self) -> list[str]:
        """Bundles that were found and are not served, as mouse/model/version."""
        return ["/".join(key) for key in self.repository.refused]

    def list_mice(self) -> list[TwinSummary]:
        return [twin.summary for twin in self.repository.twins.values()]

    def get_mouse(self, ref: TwinRef) -> MouseInfo:
        """Raises NotFound or InvalidArgument where `ref` means no single twin."""
        return self.repository.find(ref).info

    async def answer(self, query: PredictQuery, deadline: float | None = None, *, bulk: bool = False) -> Prediction:
        """Responses to one batch; to a `GradientQuery` a `GradientAnswer`.

        Args:
            query: as the caller sent it; all checks happen here.
            deadline: on `time.monotonic()`'s clock.
            bulk: whether others go first, however small the batch is.

        Raises:
            MousetwinError: as `Repository.find`, `StimulusReader.read` and `Batcher.submit` say.
        """
        twin = self.repository.find(query.twin)
        large = query.images.nbytes > _LARGE_BYTES
        stimulus = await asyncio.to_thread(twin.stimulus.read, query) if large else twin.stimulus.read(query)
        answer = await self._batchers[twin.identity].submit(stimulus.batch, deadline, bulk=bulk)
        large = large and bool(answer.gradient)
        found = await asyncio.to_thread(twin.answer, stimulus, answer) if large else twin.answer(stimulus, answer)
        return self.repository.with_stand_in(found, query.twin)

    async def answer_stream(
        self, queries: AsyncIterator[PredictQuery], deadline: float | None = None
    ) -> AsyncGenerator[Prediction, None]:
        """Responses to parts of a batch, in order and as they are ready; bulk work. Ends with the first error.

        Args:
            queries: taken only as fast as the answers are.
            deadline: on `time.monotonic()`'s clock, for each part.

        Raises:
            MousetwinError: as `answer`, and what `queries` raises.
        """

        async def numbered() -> AsyncIterator[tuple[int, PredictQuery]]:
            start = 0
            async for query in queries:
                yield start, query
                start += len(query.images)

        async def answer(part: tuple[int, PredictQuery]) -> Prediction:
            start, query = part
            async with self._stream_room:
                try:
                    return await self.answer(query, deadline, bulk=True)
                except InvalidArgument as error:
                    if start:
                        error.args = (f"{error} (in the part that begins at image {start})", *error.args[1:])
                    raise

        def window() -> int:
            return min(_STREAM_WINDOW, _STREAM_PARTS // self._streams)

        self._streams += 1
        try:
            async with contextlib.aclosing(in_order(numbered(), answer, window)) as answers:
                async for found in answers:
                    yield found
        finally:
            self._streams -= 1

    def response_std(self, ref: TwinRef) -> NDArray[np.float64]:
        """(K,) by what raw responses are divided: each neuron's standard deviation.

        Raises:
            NotFound, InvalidArgument: `ref` means no single twin, or these statistics are not known.
        """
        moments = self.repository.find(ref).info.statistics
        if "responses" not in moments or not moments["responses"].std:
            raise InvalidArgument(
                "responses: raw ones need the twin's statistics of responses, which its bundle lacks: send space "
                "'model' and responses in standard deviations, or export the twin again with --dataset",
                field="responses",
            )
        return np.array(moments["responses"].std)

    async def optimize(
        self, query: OptimizeQuery, deadline: float | None = None
    ) -> AsyncGenerator[OptimizeProgress | OptimizeResult, None]:
        """Reports of an optimisation, then its result. It ends within one step when it is closed.

        Args:
            query: as the caller sent it; all checks happen here, before the first step.
            deadline: on `time.monotonic()`'s clock.

        Raises:
            MousetwinError: as `Repository.find`, `optimizer.run.optimize` and `Batcher.submit` say.
        """
        loop = asyncio.get_running_loop()
        twins = [self.repository.find(twin) for twin in query.twins]
        pending: set[concurrent.futures.Future[Answer]] = set()
        closed = False

        def ask(number: int, batch: Batch) -> Answer:
            if closed:
                raise Cancelled("the optimisation was cancelled")
            submitted = self._batchers[twins[number].identity].submit(batch, deadline, bulk=True)
            answer = asyncio.run_coroutine_threadsafe(submitted, loop)
            pending.add(answer)
            try:
                return answer.result()
            except concurrent.futures.CancelledError:
                raise Cancelled("the optimisation was cancelled") from None
            finally:
                pending.discard(answer)

        # Optimisations take the devices in turns.
        devices = twins[0].engine.devices if twins else (CPU,)
        events = optimize(query, twins, self.limits, ask, devices[next(self._turns) % len(devices)])
        try:
            # Steps are taken in a thread of their own: between two of them the images are worked on.
            while (event := await loop.run_in_executor(self._optimizers, next, events, None)) is not None:
                yield event
        finally:
            closed = True
            for answer in list(pending):
                answer.cancel()

    async def drain(self) -> None:
        """Refuse new work, finish what was taken, stop."""
        self.ready = False
        await asyncio.gather(*(batcher.drain() for batcher in self._batchers.values()))
        self._executor.shutdown()
        self._optimizers.shutdown(wait=False)

    def _recorder(self, twin: Twin) -> Callable[[int, float], None]:
        labels = (twin.identity.mouse, twin.identity.model)
        images = self.metrics.images.labels(*labels)
        run_seconds = self.metrics.run_seconds.labels(*labels)
        run_images = self.metrics.run_images.labels(*labels)

        def record(count: int, seconds: float) -> None:
            images.inc(count)
            run_images.observe(count)
            run_seconds.observe(seconds)

        return record
