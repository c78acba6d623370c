"""Requests of one stream: side by side, in order, within a window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from offramp_server.rpc.streams import answer_in_order


class Desk:
    """Hands out numbered requests and answers each when it is told to."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.read = 0
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.answers = [asyncio.get_running_loop().create_future() for _ in range(count)]

    async def requests(self) -> AsyncIterator[int]:
        for number in range(self.count):
            self.read += 1
            yield number
        if self.error is not None:
            raise self.error

    async def answer(self, number: int) -> str:
        self.started.append(number)
        try:
            return str(await self.answers[number])
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_answers_come_in_order_however_they_finish() -> None:
    desk = Desk(3)
    for number in (2, 0, 1):
        desk.answers[number].set_result(f"answer {number}")

    answers = [answer async for answer in answer_in_order(desk.requests(), desk.answer, 3)]

    assert answers == ["answer 0", "answer 1", "answer 2"]


async def test_no_request_is_read_in_front_of_a_full_window() -> None:
    desk = Desk(10)
    async with aclosing(answer_in_order(desk.requests(), desk.answer, 2)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await settle()
        assert desk.read == 2

        desk.answers[0].set_result("a")
        assert await first == "a"
        await settle()
        # The consumer has the first answer, but has not come back for more.
        assert desk.read == 2

        desk.answers[1].set_result("b")
        assert await anext(answers) == "b"
        await settle()
        assert desk.read == 3


async def test_closing_cancels_what_is_under_way_and_waits_for_it() -> None:
    desk = Desk(10)
    answers = answer_in_order(desk.requests(), desk.answer, 4)
    desk.answers[0].set_result("a")
    assert await anext(answers) == "a"
    await settle()

    await answers.aclose()

    assert desk.started == [0, 1, 2, 3]
    assert desk.cancelled == [1, 2, 3]


async def test_cancelling_cancels_what_is_under_way() -> None:
    desk = Desk(10)

    async def consume() -> None:
        async with aclosing(answer_in_order(desk.requests(), desk.answer, 4)) as answers:
            async for _ in answers:
                pass

    task = asyncio.create_task(consume())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert sorted(desk.cancelled) == [0, 1, 2, 3]


async def test_requests_that_break_off_are_answered_first() -> None:
    desk = Desk(1, error=ValueError("broken"))
    answers = answer_in_order(desk.requests(), desk.answer, 4)
    desk.answers[0].set_result("a")

    assert await anext(answers) == "a"
    with pytest.raises(ValueError, match="broken"):
        await anext(answers)


async def test_an_answer_that_raises_ends_the_stream_and_cancels_the_others() -> None:
    desk = Desk(3)
    answers = answer_in_order(desk.requests(), desk.answer, 3)
    desk.answers[0].set_exception(ValueError("no"))

    with pytest.raises(ValueError, match="no"):
        await anext(answers)

    assert desk.cancelled == [1, 2]


async def test_no_requests_give_no_answers() -> None:
    desk = Desk(0)

    assert [answer async for answer in answer_in_order(desk.requests(), desk.answer, 1)] == []
