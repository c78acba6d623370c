"""A few threads beside the event loop, and whose turn it is on them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from offramp_server.errors import DeadlineExceeded, Unavailable
from offramp_server.preprocess.items import Stop

T = TypeVar("T")


@dataclass(slots=True, order=True)
class _Job:
    priority: int
    sequence: int
    call: Callable[[Stop], Any] = field(compare=False)
    future: asyncio.Future[Any] = field(compare=False)
    # Written by the event loop's thread, read by the one that works.
    abandoned: bool = field(default=False, compare=False)

    def run(self) -> Any:
        return self.call(lambda: self.abandoned)


class PreprocessPool:
    """Runs calls in threads, the lowest priority number first, then the oldest. Belongs to the running event loop."""

    def __init__(self, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="offramp-preprocess")
        self._free = threads
        self._waiting: list[_Job] = []
        self._sequence = itertools.count()

    async def run(self, call: Callable[[Stop], T], priority: int, deadline: float | None) -> T:
        """The result of `call`, which is given a function that says whether to give up.

        A call whose caller is cancelled, or whose deadline (on the event loop's clock) passes, before its turn is not
        made. Raises DeadlineExceeded, and what `call` raises.
        """
        if deadline is not None and deadline <= self._loop.time():
            raise _too_late()
        job = _Job(priority, next(self._sequence), call, self._loop.create_future())
        heapq.heappush(self._waiting, job)
        self._start()
        # Not asyncio.timeout_at(), which wants a task: calls need not be any (`transport.interface.swift`).
        expiry = None if deadline is None else self._loop.call_at(deadline, _expire, job)
        try:
            result: T = await job.future
            return result
        finally:
            if expiry is not None:
                expiry.cancel()
            job.abandoned = True
            # It may stay in the heap for a while, and what the request brought must not stay with it.
            job.call = _nothing

    async def close(self) -> None:
        """Give up what waits, and return once no thread works any more."""
        for job in self._waiting:
            if not job.future.done():
                job.future.set_exception(Unavailable("the server is shutting down"))
        self._waiting.clear()
        await asyncio.to_thread(self._executor.shutdown)

    def _start(self) -> None:
        while self._free and self._waiting:
            job = heapq.heappop(self._waiting)
            # Cancelled, or out of time.
            if job.future.done():
                continue
            self._free -= 1
            self._executor.submit(job.run).add_done_callback(lambda done, job=job: self._report(job, done))  # type: ignore[misc]

    def _report(self, job: _Job, done: Future[Any]) -> None:
        """In the thread that worked."""
        self._loop.call_soon_threadsafe(self._finish, job, done)

    def _finish(self, job: _Job, done: Future[Any]) -> None:
        self._free += 1
        if not job.future.done():
            error = done.exception()
            if error is None:
                job.future.set_result(done.result())
            else:
                job.future.set_exception(error)
        self._start()


def _expire(job: _Job) -> None:
    if not job.future.done():
        job.future.set_exception(_too_late())


def _nothing(stop: Stop) -> None:
    pass


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's deadline passed before its inputs were prepared")
