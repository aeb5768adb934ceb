"""The asyncio client answers as the plain one does."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import mousetwin
import mousetwin.aio
import numpy as np
import pytest

IMAGES = np.random.default_rng(4).integers(0, 256, (150, 36, 64)).astype(np.uint8)


def test_it_answers_as_the_plain_client_does(server_address: str) -> None:
    async def ask() -> tuple[mousetwin.Responses, mousetwin.Responses, list[str]]:
        async with mousetwin.aio.connect(server_address) as twins:
            mouse = await twins.mouse("demo")
            return (
                await mouse.predict(IMAGES),
                await mouse.predict(IMAGES[:2], neurons=[5, 3]),
                [summary.twin.mouse for summary in await twins.mice()],
            )

    many, few, mice = asyncio.run(ask())
    with mousetwin.connect(server_address) as twins:
        expected = twins["demo"].predict(IMAGES)
        assert mice == [summary.twin.mouse for summary in twins.mice()]
    np.testing.assert_allclose(many, expected, atol=1e-6)
    np.testing.assert_allclose(few, expected[:2, [5, 3]], atol=1e-6)
    assert many.twin == expected.twin
    assert many.defaults == ("behavior", "pupil_center")


def test_it_has_the_same_gradients(server_address: str) -> None:
    cotangent = np.random.default_rng(5).normal(size=(150, 320))

    async def ask() -> mousetwin.Gradient:
        async with mousetwin.aio.connect(server_address) as twins:
            return await (await twins.mouse("demo")).gradient(IMAGES, cotangent)

    found = asyncio.run(ask())
    with mousetwin.connect(server_address) as twins:
        expected = twins["demo"].gradient(IMAGES, cotangent)
    np.testing.assert_allclose(found.images, expected.images, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.responses, expected.responses, rtol=0, atol=1e-6)
    assert found.behavior is not None
    assert found.behavior.shape == (150, 3)


def test_many_at_once_each_get_their_own_answer(server_address: str) -> None:
    async def ask() -> list[mousetwin.Responses]:
        async with mousetwin.aio.connect(server_address) as twins:
            mouse = await twins.mouse("demo")
            return await asyncio.gather(*(mouse.predict(IMAGES[i : i + 1]) for i in range(40)))

    answers = asyncio.run(ask())
    with mousetwin.connect(server_address) as twins:
        expected = twins["demo"].predict(IMAGES[:40])
    np.testing.assert_allclose(np.concatenate(answers), expected, atol=1e-6)


def test_progress_and_errors(server_address: str) -> None:
    async def ask() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        async with mousetwin.aio.connect(server_address, timeout=60) as twins:
            with pytest.raises(mousetwin.NotFound, match="nobody"):
                await twins.mouse("nobody")
            mouse = await twins.mouse("demo")
            with pytest.raises(mousetwin.InvalidArgument, match="raw") as caught:
                await mouse.predict(IMAGES.astype(float))
            assert caught.value.field == "space"
            bad = IMAGES.astype(float)
            bad[140, 0, 0] = -1
            with pytest.raises(mousetwin.InvalidArgument, match="0 to 255"):
                await mouse.predict(bad, space="raw")
            with pytest.raises(mousetwin.DeadlineExceeded):
                await mouse.predict(IMAGES, timeout=1e-6)
            await mouse.predict(IMAGES, progress=lambda done, total: seen.append((done, total)))
        return seen

    seen = asyncio.run(ask())
    assert seen[-1] == (150, 150)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_cancelled_question_leaves_the_service_answering(server_address: str) -> None:
    async def ask() -> mousetwin.Responses:
        async with mousetwin.aio.connect(server_address) as twins:
            mouse = await twins.mouse("demo")
            task = asyncio.ensure_future(mouse.predict(np.repeat(IMAGES, 20, 0)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await mouse.predict(IMAGES[:1])

    assert asyncio.run(ask()).shape == (1, 320)


def test_it_finds_the_same_images(server_address: str) -> None:
    async def ask() -> tuple[mousetwin.Optimized, list[tuple[int, int]], list[int]]:
        steps: list[tuple[int, int]] = []
        reports: list[int] = []
        async with mousetwin.aio.connect(server_address) as twins:
            mouse = await twins.mouse("demo")
            with pytest.raises(mousetwin.InvalidArgument, match="steps"):
                await mouse.optimize([0], steps=0)
            with pytest.raises(mousetwin.InvalidArgument, match="stpes"):
                await mouse.optimize([0], stpes=3)
            found = await mouse.optimize(
                [4, 9],
                steps=12,
                seed=3,
                progress=lambda done, total: steps.append((done, total)),
                on_report=lambda report: reports.append(report.step),
            )
        return found, steps, reports

    found, steps, reports = asyncio.run(ask())
    assert steps[-1] == (12, 12)
    assert reports
    with mousetwin.connect(server_address) as twins:
        expected = twins["demo"].optimize([4, 9], steps=12, seed=3)
    np.testing.assert_allclose(found.images, expected.images, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.responses, expected.responses, rtol=0, atol=1e-5)


def test_a_cancelled_search_leaves_the_service_answering(server_address: str) -> None:
    async def ask() -> mousetwin.Responses:
        async with mousetwin.aio.connect(server_address) as twins:
            mouse = await twins.mouse("demo")
            begun = asyncio.Event()
            search = mouse.optimize(
                range(8), steps=10_000, report_every=1, on_report=lambda report: begun.set(), step_size=1e-4
            )
            task = asyncio.ensure_future(search)
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await mouse.predict(IMAGES[:1])

    assert asyncio.run(ask()).shape == (1, 320)


def test_nobody_there() -> None:
    async def ask() -> None:
        async with mousetwin.aio.connect("127.0.0.1:1") as twins:
            with pytest.raises(mousetwin.Unavailable, match=r"127\.0\.0\.1:1"):
                await twins.mice()

    asyncio.run(ask())


def test_it_is_made_anywhere_and_asked_in_one_loop_after_the_other(server_address: str) -> None:
    twins = mousetwin.aio.connect(server_address, timeout=60)
    mouse = asyncio.run(twins.mouse("demo"))

    async def ask() -> tuple[mousetwin.Responses, mousetwin.Responses]:
        return await mouse.predict(IMAGES[:2]), await mouse.predict(IMAGES)

    few, many = asyncio.run(ask())
    np.testing.assert_allclose(many[:2], few, atol=1e-6)

    def in_a_thread(number: int) -> mousetwin.Responses:
        return asyncio.run(mouse.predict(IMAGES[number : number + 1]))

    with ThreadPoolExecutor(4) as pool:
        answers = np.concatenate(list(pool.map(in_a_thread, range(12))))
    np.testing.assert_allclose(answers, many[:12], atol=1e-6)

    async def close() -> None:
        await twins.close()
        with pytest.raises(mousetwin.Unavailable, match="closed"):
            await mouse.predict(IMAGES)

    asyncio.run(close())
    for closed in (lambda: mouse.predict(IMAGES[:1]), lambda: mouse.optimize([0], steps=1), twins.mice):
        with pytest.raises(mousetwin.Unavailable, match="closed"):
            asyncio.run(closed())


def test_it_says_where_no_loop_runs() -> None:
    question = mousetwin.aio.connect("127.0.0.1:8001").mice()
    with pytest.raises(mousetwin.MousetwinError, match="no asyncio event loop is running"):
        question.send(None)
