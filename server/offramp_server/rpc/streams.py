"""Many requests over one call: worked on side by side, answered in their order, never more than a window of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def answer_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Coroutine[Any, Any, Answer]], window: int
) -> AsyncGenerator[Answer, None]:
    """Yield the answers of `requests` in their order.

    At most `window` requests are read ahead of the answer that the consumer has taken, so a client that does not read
    its answers is not read from either. If this is closed or cancelled, whatever is under way is cancelled and waited
    for. Raises what `requests` or `answer` raises, after the answers before it.
    """
    under_way: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
    slots = asyncio.Semaphore(window)
    reader = asyncio.create_task(_read(requests, answer, under_way, slots))
    try:
        while (task := await under_way.get()) is not None:
            yield await task
            slots.release()
        await reader
    finally:
        await _cancel(reader, under_way)


async def _read(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Answer]],
    under_way: asyncio.Queue[asyncio.Task[Answer] | None],
    slots: asyncio.Semaphore,
) -> None:
    try:
        # The place comes before the request, so that what waits in front of a full window stays with the client.
        await slots.acquire()
        async for request in requests:
            under_way.put_nowait(asyncio.create_task(answer(request)))
            await slots.acquire()
    finally:
        under_way.put_nowait(None)


async def _cancel(reader: asyncio.Task[None], under_way: asyncio.Queue[asyncio.Task[Answer] | None]) -> None:
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    tasks = [task for task in _drain(under_way) if task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _drain(queue: asyncio.Queue[asyncio.Task[Answer] | None]) -> list[asyncio.Task[Answer] | None]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
