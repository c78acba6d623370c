"""Whose turn it is on the threads that prepare inputs, and what becomes of those who cannot wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from offramp_server.errors import DeadlineExceeded, InvalidRequest, Unavailable
from offramp_server.preprocess.pool import PreprocessPool
from scheduling_fakes import settle

PATIENCE = 30


class Gate:
    """A call that goes on when the test says so."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.told_to_stop = False
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()

    def __call__(self, stop: Callable[[], bool]) -> str:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self._open.wait(PATIENCE)
        self.told_to_stop = stop()
        return "through"

    def open(self) -> None:
        self._open.set()


async def busy_pool() -> tuple[PreprocessPool, Gate, asyncio.Task[str]]:
    """A pool of one thread, which is taken."""
    pool, gate = PreprocessPool(1), Gate()
    task = asyncio.create_task(pool.run(gate, 100, None))
    await gate.begun.wait()
    return pool, gate, task


async def test_calls_give_their_results_and_their_errors() -> None:
    def refuse(stop: object) -> None:
        raise InvalidRequest("item 3")

    pool = PreprocessPool(2)
    assert await pool.run(lambda stop: stop(), 100, None) is False
    with pytest.raises(InvalidRequest, match="item 3"):
        await pool.run(refuse, 100, None)
    await pool.close()


async def test_the_event_loop_goes_on_meanwhile() -> None:
    pool, gate, task = await busy_pool()
    await settle()
    assert not task.done()
    gate.open()
    assert await task == "through"
    await pool.close()


async def test_the_lowest_priority_goes_first_and_then_the_oldest() -> None:
    pool, gate, task = await busy_pool()
    order: list[str] = []
    calls = [("late", 100), ("later", 100), ("urgent", 1)]
    tasks = [
        asyncio.create_task(pool.run(lambda stop, name=name: order.append(name), priority, None))  # type: ignore[misc]
        for name, priority in calls
    ]
    await settle()
    gate.open()
    await asyncio.gather(task, *tasks)
    assert order == ["urgent", "late", "later"]
    await pool.close()


async def test_a_call_that_is_cancelled_before_its_turn_is_never_made() -> None:
    pool, gate, task = await busy_pool()
    made: list[object] = []
    waiting = asyncio.create_task(pool.run(made.append, 100, None))
    await settle()
    waiting.cancel()
    gate.open()
    await task
    await pool.run(lambda stop: None, 100, None)
    assert made == []
    assert waiting.cancelled()
    await pool.close()


async def test_a_call_whose_deadline_passes_before_its_turn_is_never_made() -> None:
    pool, gate, task = await busy_pool()
    made: list[object] = []
    with pytest.raises(DeadlineExceeded, match="passed before its inputs were prepared"):
        await pool.run(made.append, 100, asyncio.get_running_loop().time() + 0.01)
    gate.open()
    await task
    await pool.run(lambda stop: None, 100, None)
    assert made == []
    await pool.close()


async def test_a_deadline_that_has_passed_already_is_refused_at_once() -> None:
    pool = PreprocessPool(1)
    made: list[object] = []
    with pytest.raises(DeadlineExceeded):
        await pool.run(made.append, 100, asyncio.get_running_loop().time() - 1)
    assert made == []
    await pool.close()


async def test_a_call_that_is_under_way_is_told_when_nobody_waits_any_more() -> None:
    pool, gate, task = await busy_pool()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gate.open()
    # Only one thread, so that this comes after.
    await pool.run(lambda stop: None, 100, None)
    assert gate.told_to_stop
    await pool.close()


async def test_closing_gives_up_what_waits_and_returns_when_the_threads_have_ended() -> None:
    pool, gate, task = await busy_pool()
    waiting = asyncio.create_task(pool.run(lambda stop: None, 100, None))
    await settle()
    closing = asyncio.create_task(pool.close())
    with pytest.raises(Unavailable, match="shutting down"):
        await waiting
    assert not closing.done()
    gate.open()
    await closing
    assert await task == "through"
