"""Work on several things at once, answers in the order of the questions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


async def in_order(
    questions: AsyncIterator[Q], answer: Callable[[Q], Coroutine[Any, Any, A]], window: Callable[[], int]
) -> AsyncGenerator[A, None]:
    """Answers as they are ready, without waiting for further questions.

    Args:
        questions: asked for one at a time, and only while there is room.
        answer: works on one question; its error ends everything.
        window: how many questions may be worked on, or answered and not taken, at once.
    """
    pending: deque[asyncio.Task[A]] = deque()
    following: asyncio.Task[Q] | None = asyncio.ensure_future(_next(questions))
    try:
        while following is not None or pending:
            waiting: set[asyncio.Task[Q] | asyncio.Task[A]] = {pending[0]} if pending else set()
            if following is not None and len(pending) < max(1, window()):
                waiting.add(following)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if following in waiting and following.done():
                try:
                    pending.append(asyncio.ensure_future(answer(following.result())))
                    following = asyncio.ensure_future(_next(questions))
                except StopAsyncIteration:
                    following = None
            while pending and pending[0].done():
                yield pending.popleft().result()
    finally:
        left = [task for task in (following, *pending) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _next(questions: AsyncIterator[Q]) -> Q:
    return await questions.__anext__()
