"""Turns concurrent requests into batches for one engine.

Work-conserving: a request never waits for company. While the engine is idle the next run starts at once with whatever
is queued; while it is busy requests queue up and share the next run. The queue is bounded. Interactive requests go
before bulk ones, which are cut into slices so that nobody waits behind a whole recording; on the CPU one slice runs on
each core. While somebody asks interactively, bulk work keeps to short slices and leaves a core free. What was cancelled
or is past its deadline is dropped before it reaches the engine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from mousetwin.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable

from .batch import Answer, Batch, Work, concatenate
from .engine import Engine

log = logging.getLogger(__name__)

# Bulk runs that a core takes at once while nobody asks interactively: each trip to the event loop costs some 0.2 ms.
_RUNS_IN_TURN = 4


@dataclass(frozen=True)
class BatchSettings:
    """How requests are batched.

    Attributes:
        max_batch: images in one run at the most; None for as many as take the device least time each.
        max_queued: images waiting at the most; what comes beyond is refused.
        interactive: requests of up to this many images go before larger ones.
        in_place_seconds: a run that should take less than this happens in the event loop itself while there is one
            caller at a time, since waking another thread and being woken by it costs more than it saves.
        crowd_seconds: for how long after two requests met there may be more callers than one.
        company_seconds: for how long after an interactive request another one is to be expected.
        yielding_seconds: how long a bulk run may take where one is.
        patience_seconds: how long bulk work waits behind interactive requests before it takes a turn.
    """

    max_batch: int | None = None
    max_queued: int = 8192
    interactive: int = 16
    in_place_seconds: float = 0.002
    crowd_seconds: float = 0.1
    company_seconds: float = 1.0
    yielding_seconds: float = 0.004
    patience_seconds: float = 1.0


class _Job:
    """A request in the queue; `taken` of its images are done or on their way."""

    def __init__(self, work: Work, deadline: float | None, answer: asyncio.Future[Answer]) -> None:
        self.work = work
        self.deadline = deadline
        self.answer = answer
        self.taken = 0
        self.parts: dict[int, Answer] = {}

    @property
    def left(self) -> int:
        return len(self.work) - self.taken

    def take(self, room: int) -> _Slice:
        start, self.taken = self.taken, min(len(self.work), self.taken + room)
        return _Slice(self, start, self.work.part(start, self.taken))

    def deliver(self, start: int, answer: Answer) -> None:
        """Keep the answer to the images from `start` on; parts may come in any order."""
        self.parts[start] = answer
        if sum(len(part.responses) for part in self.parts.values()) == len(self.work):
            self.answer.set_result(concatenate([self.parts[start] for start in sorted(self.parts)]))


@dataclass(frozen=True)
class _Slice:
    job: _Job
    start: int
    work: Work


@dataclass(frozen=True)
class _Ran:
    """Answers to slices, and images and seconds of each run it took."""

    answers: list[Answer | Exception]
    runs: list[tuple[int, float]]


def _in_runs(slices: list[_Slice], most: int) -> Iterator[list[_Slice]]:
    together: list[_Slice] = []
    for s in slices:
        if together and sum(len(t.work) for t in together) + len(s.work) > most:
            yield together
            together = []
        together.append(s)
    yield together


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
            engine: what runs the batches, as many at a time as keep it busy.
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
        # Runs under way, of bulk work and not.
        self._running = {True: 0, False: 0}
        self._crowded_until = self._company_until = self._bulk_turn = -math.inf
        self._scheduled = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = min(self._settings.max_batch or engine.best_batch, engine.max_batch)
        self._seconds = dict(engine.seconds)
        self.queued = 0

    async def submit(self, batch: Batch, deadline: float | None = None, *, bulk: bool = False) -> Answer:
        """The answer to a batch.

        Args:
            batch: checked, in model space.
            deadline: on `time.monotonic()`'s clock; None for none.
            bulk: whether others go first, however small the batch is.

        Raises:
            Unimplemented: a gradient is asked for and the twin has none.
            ResourceExhausted: the queue is full.
            DeadlineExceeded: the deadline passed first.
            Unavailable: the service is shutting down.
            Internal: the engine failed on this request.
        """
        if self._closed:
            raise Unavailable("the service is shutting down")
        # One request larger than the queue is still taken by an idle service: its size is the request limits' business.
        if self.queued and self.queued + len(batch) > self._settings.max_queued:
            raise ResourceExhausted(
                f"the queue is full: {self.queued} images are waiting, at most {self._settings.max_queued} may; "
                "try again later"
            )
        loop = asyncio.get_running_loop()
        job = _Job(self._engine.plan(batch), deadline, loop.create_future())
        job.answer.add_done_callback(lambda answer: self._forget(job))
        now = time.monotonic()
        if self.queued or any(self._running.values()):
            self._crowded_until = now + self._settings.crowd_seconds
        self.queued += len(batch)
        if bulk or len(batch) > self._settings.interactive:
            if not self._bulk:
                self._bulk_turn = now + self._settings.patience_seconds
            self._bulk.append(job)
        else:
            self._company_until = now + self._settings.company_seconds
            self._interactive.append(job)
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
        if not (self._interactive or self._bulk or any(self._running.values())):
            self._idle.set()
            return
        self._idle.clear()
        # One turn of the loop later, so that requests that arrived together are all in the queue by then.
        if self._may_run() and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._run_next, loop)

    def _may_run(self) -> bool:
        return self._may_run_of(self._interactive) or self._may_run_of(self._bulk)

    def _may_run_of(self, queue: deque[_Job]) -> bool:
        # The last core is the event loop's and the callers', unless there is a whole run's work for it.
        bulk, runs, running = queue is self._bulk, self._engine.runs, sum(self._running.values())
        if not queue:
            return False
        if running < runs and self._running[bulk] < max(1, runs - 1):
            return True
        return running < runs and self.queued >= self._room and not (bulk and self._in_company)

    @property
    def _in_company(self) -> bool:
        return time.monotonic() < self._company_until

    def _run_next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        slices, bulk = self._take()
        if not slices:
            self._schedule(loop)
            return
        self._running[bulk] += 1
        graph = slices[0].work.graph
        images = sum(len(s.work) for s in slices)
        # What was never timed may have to be loaded first. Among several callers, the others' requests would wait
        # unread in the loop, and miss the next run.
        lonely = time.monotonic() >= self._crowded_until
        if lonely and images * self._seconds.get(graph, math.inf) <= self._settings.in_place_seconds:
            self._finish(loop, slices, bulk, self._run(slices))
            return

        def finished(future: Future[_Ran]) -> None:
            loop.call_soon_threadsafe(lambda: self._finish(loop, slices, bulk, future.result()))

        self._executor.submit(self._run, slices).add_done_callback(finished)
        self._schedule(loop)

    def _take(self) -> tuple[list[_Slice], bool]:
        """The next run, and whether it is bulk work."""
        now = time.monotonic()
        queues = [self._interactive, self._bulk]
        # However many ask interactively, bulk work is not put off for ever.
        if self._bulk and now >= self._bulk_turn:
            queues.reverse()
        for queue in queues:
            bulk = queue is self._bulk
            if self._may_run_of(queue) and (slices := self._take_of(queue, now)):
                if bulk:
                    self._bulk_turn = now + self._settings.patience_seconds
                return slices, bulk
        return [], False

    def _take_of(self, queue: deque[_Job], now: float) -> list[_Slice]:
        """What comes first, and what can share a run with it; of bulk work several runs, one after the other."""
        most = room = self._room
        if queue is self._bulk:
            if self._in_company:
                each = self._seconds.get(queue[0].work.graph, math.inf)
                most = room = int(min(room, max(1.0, self._settings.yielding_seconds / each)))
            else:
                room *= min(_RUNS_IN_TURN, max(1, -(-self.queued // (most * self._engine.runs))))
        slices: list[_Slice] = []
        passed: list[_Job] = []
        while queue and room:
            job = queue.popleft()
            if job.deadline is not None and job.deadline <= now and not job.answer.done():
                job.answer.set_exception(_expired())
            if job.answer.done():
                continue
            if slices and job.work.key != slices[0].work.key:
                passed.append(job)
                continue
            slices.append(job.take(min(room, most)))
            count = len(slices[-1].work)
            self.queued -= count
            room -= count
            if job.left:
                queue.appendleft(job)
        queue.extendleft(reversed(passed))
        return slices

    def _forget(self, job: _Job) -> None:
        # Cancelled, expired or failed before its last image was taken: it no longer counts as waiting.
        self.queued -= job.left
        job.taken = len(job.work)

    def _run(self, slices: list[_Slice]) -> _Ran:
        answers: list[Answer | Exception] = []
        runs: list[tuple[int, float]] = []
        for together in _in_runs(slices, self._room):
            start = time.perf_counter()
            try:
                answers += self._engine.run([s.work for s in together])
            except Exception as error:
                # Nobody pays for a neighbour: each request of a failed batch is run once more, alone.
                answers += [error] if len(together) == 1 else [self._alone(s) for s in together]
            runs.append((sum(len(s.work) for s in together), time.perf_counter() - start))
        return _Ran(answers, runs)

    def _alone(self, one: _Slice) -> Answer | Exception:
        try:
            return self._engine.run([one.work])[0]
        except Exception as error:
            return error

    def _finish(self, loop: asyncio.AbstractEventLoop, slices: list[_Slice], bulk: bool, ran: _Ran) -> None:
        graph = slices[0].work.graph
        for images, seconds in ran.runs:
            self._on_run(images, seconds)
            # The first run of a graph may have loaded it, and says little about the next.
            known = self._seconds.get(graph)
            self._seconds[graph] = seconds / images if known is None else known + 0.2 * (seconds / images - known)
        for s, answer in zip(slices, ran.answers, strict=True):
            self._deliver(s, answer)
        self._running[bulk] -= 1
        self._schedule(loop)

    def _deliver(self, s: _Slice, answer: Answer | Exception) -> None:
        if s.job.answer.done():
            return
        if isinstance(answer, Exception):
            log.error("the engine failed", exc_info=answer)
            s.job.answer.set_exception(Internal("the engine failed on this request"))
            return
        s.job.deliver(s.start, answer)


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the twin ran")
