"""A coroutine that is driven without a task behaves as one in a task would."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from offramp_server.transport.driver import Driven

VARIABLE: ContextVar[int] = ContextVar("VARIABLE", default=0)


class Run:
    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.driven = Driven(coroutine, asyncio.get_running_loop(), self._done)
        self.driven.start()

    def _done(self, result: Any, error: BaseException | None) -> None:
        self.end.set_result((result, error))


async def test_what_waits_for_nothing_is_done_at_once() -> None:
    async def answer() -> int:
        return 7

    assert Run(answer()).end.result() == (7, None)


async def test_it_goes_on_with_what_it_waits_for() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def answer() -> int:
        await asyncio.sleep(0)
        return await future + await asyncio.create_task(asyncio.sleep(0, 1))

    run = Run(answer())
    future.set_result(6)
    assert await run.end == (7, None)


async def test_what_it_raises_is_told() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    result, error = await Run(fail()).end
    assert result is None
    assert isinstance(error, ValueError)


async def test_the_failure_of_what_it_waits_for_arrives() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def answer() -> str:
        try:
            return str(await future)
        except ValueError:
            return "caught"

    run = Run(answer())
    future.set_exception(ValueError())
    assert await run.end == ("caught", None)


@pytest.mark.parametrize("done_already", [False, True])
async def test_cancelling_raises_where_it_waits(done_already: bool) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    cleaned = []

    async def answer() -> int:
        try:
            await future
            # A result that was there before the cancellation is lost, as in a task.
            return await asyncio.sleep(0, 1)
        finally:
            cleaned.append(True)

    run = Run(answer())
    if done_already:
        future.set_result(1)
    run.driven.cancel()
    _, error = await run.end
    assert isinstance(error, asyncio.CancelledError)
    assert cleaned == [True]
    run.driven.cancel()


async def test_cancelling_before_a_bare_turn_of_the_loop() -> None:
    async def answer() -> None:
        await asyncio.sleep(0)

    run = Run(answer())
    run.driven.cancel()
    assert isinstance((await run.end)[1], asyncio.CancelledError)


async def test_a_coroutine_may_go_on_after_its_cancellation() -> None:
    first: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def answer() -> int:
        try:
            await first
        except asyncio.CancelledError:
            return await asyncio.sleep(0, 3)
        return 0

    run = Run(answer())
    run.driven.cancel()
    assert await run.end == (3, None)


async def test_each_has_its_own_context() -> None:
    async def answer(value: int) -> int:
        VARIABLE.set(value)
        await asyncio.sleep(0)
        return VARIABLE.get()

    runs = [Run(answer(value)) for value in (1, 2)]
    assert [await run.end for run in runs] == [(1, None), (2, None)]
    assert VARIABLE.get() == 0
