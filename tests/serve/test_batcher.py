"""How requests share the engine. The engine is real; its threads are held back by the test, so nothing is timed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import BREAKS_ABOVE, FRAGILE
from mousetwin.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from mousetwin_serve import bundle
from mousetwin_serve.batch import Answer, Batch
from mousetwin_serve.batcher import Batcher, BatchSettings
from mousetwin_serve.device import choose
from mousetwin_serve.engine import Engine
from numpy.testing import assert_allclose


class HeldExecutor(Executor):
    """Runs what is submitted when it is told to."""

    def __init__(self) -> None:
        self.held: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.held.append((future, lambda: fn(*args, **kwargs)))
        return future

    def release(self) -> None:
        future, work = self.held.popleft()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(bundle.read(FRAGILE.write(tmp_path_factory.mktemp("models"))), choose("cpu", threads=1))


class Bench:
    """A batcher whose engine runs only when the test says so. runs: images in each run."""

    def __init__(self, engine: Engine, **settings: Any) -> None:
        self.executor = HeldExecutor()
        self.runs: list[int] = []
        self.batcher = Batcher(
            engine,
            self.executor,
            BatchSettings(in_place_seconds=-1, **{"max_batch": 64, "yielding_seconds": math.inf, **settings}),
            lambda images, seconds: self.runs.append(images),
        )
        self.finished: list[str] = []

    def ask(self, count: int, name: str = "", deadline: float | None = None, **kwargs: Any) -> asyncio.Task[Any]:
        """A request that checks its own answer, and notes when it has it."""

        async def request() -> Answer:
            wanted = batch(count, **kwargs)
            found = await self.batcher.submit(wanted, deadline)
            right = FRAGILE.respond(wanted.images)
            right = right if wanted.columns is None else right[:, wanted.columns]
            assert_allclose(found.responses, right, rtol=0, atol=2e-6)
            if wanted.cotangent is not None:
                right = FRAGILE.gradient(wanted.cotangent)["images"]
                assert_allclose(found.gradient["images"], right, rtol=0, atol=2e-6)
            self.finished.append(name)
            return found

        return asyncio.ensure_future(request())

    async def busy(self, count: int = 1) -> asyncio.Task[Any]:
        """A request that the engine is working on."""
        task = self.ask(count, "first")
        await until(lambda: self.executor.held)
        return task

    async def work(self) -> None:
        """Run until nothing is left to do."""
        while not self.batcher_is_idle():
            await until(lambda: self.executor.held or self.batcher_is_idle())
            if self.executor.held:
                done = len(self.runs)
                self.executor.release()
                await until(lambda done=done: len(self.runs) > done)  # type: ignore[misc]
                await settle()

    def batcher_is_idle(self) -> bool:
        return not self.executor.held and not self.batcher.queued


def batch(
    count: int, seed: int = 0, columns: list[int] | None = None, breaks: bool = False, gradient: bool = False
) -> Batch:
    images = FRAGILE.inputs(count, seed=seed)["images"]
    if breaks:
        images[-1, 0, 0, 0] = BREAKS_ABOVE + 5
    cotangent = np.random.default_rng(seed).normal(size=(count, FRAGILE.neurons)).astype(np.float32)
    return Batch(
        images,
        columns=None if columns is None else np.array(columns),
        cotangent=cotangent if gradient else None,
    )


async def settle() -> None:
    """Let everything that is ready happen."""
    for _ in range(10):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        await asyncio.sleep(0)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


def test_a_lone_request_waits_for_nobody(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine)
        for _ in range(3):
            task = await bench.busy()
            bench.executor.release()
            await task
        assert bench.runs == [1, 1, 1]

    run(story())


def test_short_runs_happen_in_the_event_loop(engine: Engine) -> None:
    async def story() -> None:
        executor, runs = HeldExecutor(), []
        batcher = Batcher(
            engine, executor, BatchSettings(in_place_seconds=3600), lambda images, seconds: runs.append(images)
        )
        wanted = batch(3)
        found = await batcher.submit(wanted)
        assert_allclose(found.responses, FRAGILE.respond(wanted.images), rtol=0, atol=2e-6)
        assert runs == [3]
        assert not executor.held

    run(story())


def test_requests_that_arrive_together_share_a_run(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine)
        tasks = [bench.ask(count, seed=count) for count in (1, 2, 3)]
        await until(lambda: bench.executor.held)
        bench.executor.release()
        await asyncio.gather(*tasks)
        assert bench.runs == [6]

    run(story())


def test_requests_that_queue_while_the_engine_is_busy_share_the_next_run(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine)
        tasks = [await bench.busy()]
        tasks += [
            bench.ask(count, seed=count, columns=columns) for count, columns in ((1, None), (4, [2, 0]), (2, [1]))
        ]
        await until(lambda: bench.batcher.queued == 7)
        await bench.work()
        await asyncio.gather(*tasks)
        assert bench.runs == [1, 7]

    run(story())


def test_no_run_is_larger_than_the_limit_and_large_requests_are_sliced(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine, max_batch=8)
        tasks = [bench.ask(20), bench.ask(3, seed=1), bench.ask(30, seed=2)]
        await until(lambda: bench.executor.held)
        await bench.work()
        await asyncio.gather(*tasks)
        assert sum(bench.runs) == 53
        # Nobody's slice is held back for company, and every bulk run but the last is full.
        assert bench.runs == [3] + [8] * 6 + [2]

    run(story())


def test_interactive_requests_go_before_bulk(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine, max_batch=8, interactive=4)
        tasks = [await bench.busy(), bench.ask(40, "bulk")]
        await until(lambda: bench.batcher.queued == 40)
        # It comes last, in the middle of the bulk request, and is done before it, in a run of its own.
        bench.executor.release()
        await until(lambda: bench.executor.held and len(bench.runs) == 1)
        tasks.append(bench.ask(2, "interactive", seed=1))
        await until(lambda: bench.batcher.queued == 34)
        await bench.work()
        await asyncio.gather(*tasks)
        assert bench.finished == ["first", "interactive", "bulk"]
        assert bench.runs == [1, 8, 2, 8, 8, 8, 8]

    run(story())


def test_bulk_work_keeps_to_short_runs_while_somebody_asks_interactively(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine, max_batch=8, interactive=4, yielding_seconds=0, company_seconds=3600)
        tasks = [bench.ask(3, "interactive"), bench.ask(20, "bulk", seed=1)]
        await until(lambda: bench.executor.held)
        await bench.work()
        await asyncio.gather(*tasks)
        assert bench.runs == [3] + [1] * 20

    run(story())


def test_bulk_work_gets_its_turn_however_many_ask_interactively(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine, max_batch=8, interactive=4, patience_seconds=0)
        tasks = [await bench.busy(), bench.ask(10, "bulk", seed=1)]
        tasks += [bench.ask(4, "interactive", seed=n) for n in range(4)]
        await until(lambda: bench.batcher.queued == 26)
        await bench.work()
        await asyncio.gather(*tasks)
        assert bench.runs == [1, 8, 2, 8, 8]

    run(story())


def test_a_core_is_left_to_interactive_requests(tmp_path: Path) -> None:
    async def story() -> None:
        engine = Engine(bundle.read(FRAGILE.write(tmp_path)), choose("cpu", threads=2))
        bench = Bench(engine, max_batch=8, interactive=4, company_seconds=3600)
        first = await bench.busy()
        bulk = bench.ask(40, "bulk", seed=1)
        await until(lambda: len(bench.executor.held) == 2)
        await settle()
        assert len(bench.executor.held) == 2
        bench.executor.release()
        await first
        await settle()
        # The core that became free is not bulk work's.
        assert len(bench.executor.held) == 1
        asked = bench.ask(2, "interactive", seed=2)
        await until(lambda: len(bench.executor.held) == 2)
        bench.executor.held.rotate(1)
        bench.executor.release()
        await asked
        await bench.work()
        await bulk
        assert bench.finished == ["first", "interactive", "bulk"]

    run(story())


def test_cancelled_requests_never_reach_the_engine(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine)
        first = await bench.busy()
        given_up, kept = [bench.ask(5, seed=n) for n in range(3)], bench.ask(2)
        await until(lambda: bench.batcher.queued == 17)
        for task in given_up:
            task.cancel()
        await until(lambda: bench.batcher.queued == 2)
        await bench.work()
        await asyncio.gather(first, kept)
        assert bench.runs == [1, 2]
        assert all(task.cancelled() for task in given_up)

    run(story())


def test_a_request_cancelled_half_way_is_not_worked_on_any_further(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine, max_batch=8)
        bulk = await bench.busy(80)
        # A core takes four runs at once, and no more.
        assert bench.batcher.queued == 48
        bulk.cancel()
        await until(lambda: bench.batcher.queued == 0)
        await bench.work()
        after = bench.ask(1)
        await until(lambda: bench.executor.held)
        bench.executor.release()
        await after
        assert bench.runs == [8, 8, 8, 8, 1]

    run(story())


def test_expired_requests_never_reach_the_engine(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine)
        first = await bench.busy()
        late = bench.ask(5, deadline=time.monotonic() + 0.01)
        past = bench.ask(5, deadline=time.monotonic() - 1)
        kept = bench.ask(2, deadline=time.monotonic() + 60)
        for task in (late, past):
            with pytest.raises(DeadlineExceeded):
                await task
        await until(lambda: bench.batcher.queued == 2)
        await bench.work()
        await asyncio.gather(first, kept)
        assert bench.runs == [1, 2]

    run(story())


def test_the_queue_is_bounded(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine, max_queued=10)
        tasks = [await bench.busy(), bench.ask(6), bench.ask(4)]
        await until(lambda: bench.batcher.queued == 10)
        with pytest.raises(ResourceExhausted, match="10 images are waiting, at most 10 may"):
            await bench.ask(1)
        await bench.work()
        await asyncio.gather(*tasks)
        # Room again; and an idle service takes even what is larger than its queue.
        larger = bench.ask(25)
        await until(lambda: bench.executor.held)
        await bench.work()
        await larger
        assert bench.runs == [1, 10, 25]

    run(story())


@pytest.mark.parametrize("in_place_seconds", [-1, 3600])
def test_a_request_the_engine_fails_on_fails_alone(engine: Engine, in_place_seconds: float) -> None:
    async def story() -> None:
        bench = Bench(engine)
        if in_place_seconds > 0:
            settings = BatchSettings(in_place_seconds=in_place_seconds, crowd_seconds=0)
            bench.batcher = Batcher(engine, bench.executor, settings)
        good = [bench.ask(2, seed=1), bench.ask(1, seed=2)]
        bad = bench.ask(3, breaks=True)
        good.append(bench.ask(2, seed=3))
        if in_place_seconds < 0:
            await until(lambda: bench.executor.held)
            bench.executor.release()
        with pytest.raises(Internal, match="the engine failed on this request"):
            await bad
        await asyncio.gather(*good)

    run(story())


def test_a_large_request_that_fails_in_one_slice_leaves_the_queue(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine, max_batch=8)
        bad, good = bench.ask(40, breaks=True), bench.ask(3)
        await until(lambda: bench.executor.held)
        await bench.work()
        with pytest.raises(Internal):
            await bad
        await good
        assert bench.batcher.queued == 0

    run(story())


def test_draining_waits_for_what_was_taken_and_takes_nothing_new(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine, max_batch=8)
        tasks = [await bench.busy(), bench.ask(20)]
        await until(lambda: bench.batcher.queued == 20)
        drained = asyncio.ensure_future(bench.batcher.drain())
        await settle()
        with pytest.raises(Unavailable):
            await bench.ask(1)
        assert not drained.done()
        await bench.work()
        await asyncio.gather(*tasks)
        await drained
        assert bench.runs == [1, 8, 8, 4]
        # An idle batcher is drained at once.
        await Bench(engine).batcher.drain()

    run(story())


def test_as_many_runs_at_once_as_keep_the_device_busy(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(Engine(bundle.read(FRAGILE.write(tmp_path)), choose("cpu", threads=3)), max_batch=8)
        large = bench.ask(40, "large")
        await until(lambda: len(bench.executor.held) == 3)
        await settle()
        assert len(bench.executor.held) == 3
        # Whichever run is done first, every image gets its own answer.
        bench.executor.held.rotate(1)
        await bench.work()
        await large
        assert sorted(bench.runs) == [8] * 5

    run(story())


def test_only_what_one_graph_answers_shares_a_run(engine: Engine) -> None:
    async def story() -> None:
        bench = Bench(engine)
        tasks = [await bench.busy()]
        tasks += [
            bench.ask(n, seed=n, gradient=gradient) for n, gradient in ((1, False), (2, True), (3, False), (4, True))
        ]
        await until(lambda: bench.batcher.queued == 10)
        await bench.work()
        await asyncio.gather(*tasks)
        assert bench.runs == [1, 4, 6]

    run(story())
