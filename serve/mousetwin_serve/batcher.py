"""Turns concurrent requests into batches for one engine.

Work-conserving: a request never waits for company. While the engine is idle the next run starts at once with whatever
is queued; while it is busy requests queue up and share the next run. The queue is bounded. Small requests go before
large ones, which are cut into slices so that nobody waits behind a whole recording. What was cancelled or is past its
deadline is dropped before it reaches the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from mousetwin.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from numpy.typing import NDArray

from .engine import Engine
from .stimulus import Stimulus

Float = NDArray[np.float32]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSettings:
    """How requests are batched.

    Attributes:
        max_batch: images in one run at the most.
        max_queued: images waiting at the most; what comes beyond is refused.
        interactive: requests of up to this many images go before larger ones.
        in_place_seconds: a run that should take less than this happens in the event loop itself, since waking another
            thread and being woken by it costs more than it saves.
    """

    max_batch: int = 64
    max_queued: int = 8192
    interactive: int = 16
    in_place_seconds: float = 0.002


class _Job:
    """A request in the queue; `taken` of its images are done or on their way."""

    def __init__(self, stimulus: Stimulus, columns: int, deadline: float | None, answer: asyncio.Future[Float]) -> None:
        self.stimulus = stimulus
        self.columns = columns
        self.deadline = deadline
        self.answer = answer
        self.taken = 0
        self.responses: Float | None = None

    @property
    def left(self) -> int:
        return len(self.stimulus) - self.taken


@dataclass(frozen=True)
class _Slice:
    job: _Job
    start: int
    stop: int


class Batcher:
    """The queue in front of one engine. All methods belong to the event loop's thread.

    Attributes:
        queued: images waiting for the engine.
    """

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        settings: BatchSettings | None = None,
        on_run: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        """
        Args:
            engine: what runs the batches, one at a time.
            executor: the threads that longer runs happen in.
            settings: how to batch.
            on_run: told of every run: images, seconds.
        """
        self._engine = engine
        self._executor = executor
        self._settings = settings or BatchSettings()
        self._on_run = on_run
        self._interactive: deque[_Job] = deque()
        self._bulk: deque[_Job] = deque()
        self._running = False
        self._scheduled = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._seconds_per_image = engine.seconds_per_image
        self.queued = 0

    async def submit(self, stimulus: Stimulus, deadline: float | None = None) -> Float:
        """The responses to a stimulus, float32 (N, K).

        Args:
            stimulus: checked images in model space.
            deadline: on `time.monotonic()`'s clock; None for none.

        Raises:
            ResourceExhausted: the queue is full.
            DeadlineExceeded: the deadline passed first.
            Unavailable: the service is shutting down.
            Internal: the engine failed on this request.
        """
        if self._closed:
            raise Unavailable("the service is shutting down")
        # One request larger than the queue is still taken by an idle service: its size is the request limits' business.
        if self.queued and self.queued + len(stimulus) > self._settings.max_queued:
            raise ResourceExhausted(
                f"the queue is full: {self.queued} images are waiting, at most {self._settings.max_queued} may; "
                "try again later"
            )
        loop = asyncio.get_running_loop()
        columns = self._engine.neurons if stimulus.columns is None else len(stimulus.columns)
        job = _Job(stimulus, columns, deadline, loop.create_future())
        job.answer.add_done_callback(lambda answer: self._forget(job))
        self.queued += len(stimulus)
        (self._interactive if len(stimulus) <= self._settings.interactive else self._bulk).append(job)
        self._schedule(loop)
        if deadline is None:
            return await job.answer
        try:
            return await asyncio.wait_for(job.answer, deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise _expired() from None

    async def drain(self) -> None:
        """Refuse new work and wait until what is queued is answered."""
        self._closed = True
        await self._idle.wait()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        # One turn of the loop later, so that requests that arrived together are all in the queue by then.
        self._idle.clear()
        if not self._running and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._run_next, loop)

    def _run_next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        slices = self._take()
        if not slices:
            self._idle.set()
            return
        self._running = True
        images = sum(s.stop - s.start for s in slices)
        if images * self._seconds_per_image <= self._settings.in_place_seconds:
            self._finish(loop, slices, *self._run(slices))
            return

        def finished(future: Future[tuple[list[Float | Exception], float]]) -> None:
            loop.call_soon_threadsafe(lambda: self._finish(loop, slices, *future.result()))

        self._executor.submit(self._run, slices).add_done_callback(finished)

    def _take(self) -> list[_Slice]:
        slices: list[_Slice] = []
        room = min(self._settings.max_batch, self._engine.max_batch)
        now = time.monotonic()
        for queue in (self._interactive, self._bulk):
            while queue and room:
                job = queue[0]
                if job.deadline is not None and job.deadline <= now and not job.answer.done():
                    job.answer.set_exception(_expired())
                if job.answer.done():
                    queue.popleft()
                    continue
                count = min(room, job.left)
                slices.append(_Slice(job, job.taken, job.taken + count))
                job.taken += count
                self.queued -= count
                room -= count
                if not job.left:
                    queue.popleft()
        return slices

    def _forget(self, job: _Job) -> None:
        # Cancelled, expired or failed before its last image was taken: it no longer counts as waiting.
        self.queued -= job.left
        job.taken = len(job.stimulus)

    def _run(self, slices: list[_Slice]) -> tuple[list[Float | Exception], float]:
        start = time.perf_counter()
        answers: list[Float | Exception]
        try:
            answers = list(self._forward(slices))
        except Exception as error:
            # Nobody pays for a neighbour: each request of a failed batch is run once more, alone.
            answers = [error] if len(slices) == 1 else [self._alone(s) for s in slices]
        return answers, time.perf_counter() - start

    def _alone(self, one: _Slice) -> Float | Exception:
        try:
            return self._forward([one])[0]
        except Exception as error:
            return error

    def _forward(self, slices: list[_Slice]) -> list[Float]:
        parts = [s.job.stimulus.rows(s.start, s.stop) for s in slices]
        images, behavior, pupil_center = (_join([part[i] for part in parts]) for i in range(3))
        assert images is not None
        responses = self._engine.forward(images, behavior, pupil_center)
        answers, row = [], 0
        for s in slices:
            rows = responses[row : row + s.stop - s.start]
            row += s.stop - s.start
            columns = s.job.stimulus.columns
            answers.append(rows if columns is None else rows[:, columns])
        return answers

    def _finish(
        self, loop: asyncio.AbstractEventLoop, slices: list[_Slice], answers: list[Float | Exception], seconds: float
    ) -> None:
        images = sum(s.stop - s.start for s in slices)
        self._on_run(images, seconds)
        self._seconds_per_image += 0.2 * (seconds / images - self._seconds_per_image)
        for s, answer in zip(slices, answers, strict=True):
            self._deliver(s, answer)
        self._running = False
        self._schedule(loop)

    def _deliver(self, s: _Slice, answer: Float | Exception) -> None:
        job = s.job
        if job.answer.done():
            return
        if isinstance(answer, Exception):
            log.error("the engine failed", exc_info=answer)
            job.answer.set_exception(Internal("the engine failed on this request"))
            return
        if len(answer) == len(job.stimulus):
            job.answer.set_result(answer)
            return
        if job.responses is None:
            job.responses = np.empty((len(job.stimulus), job.columns), np.float32)
        job.responses[s.start : s.stop] = answer
        if s.stop == len(job.stimulus):
            job.answer.set_result(job.responses)


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the twin ran")


def _join(parts: list[Float | None]) -> Float | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    return present[0] if len(present) == 1 else np.concatenate(present)
