"""Runs a coroutine in the caller's turn of the loop, and goes on with it as what it awaits is done.

An asyncio.Task costs about 20 us and always waits for the next turn; a call that is answered from a queue costs less
than that. What is run here is no task, though: asyncio.current_task() is None, so neither asyncio.timeout() nor a
TaskGroup works in it. `interface.swift` marks the handlers that are content with that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any


class Driven:
    """One coroutine. `done` is called once, with its result or what it raised."""

    __slots__ = ("_awaited", "_cancelled", "_context", "_coroutine", "_done", "_loop", "_over")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Any, BaseException | None], None],
    ) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._done = done
        # Its own, as a task's: what one call sets no other one sees.
        self._context = copy_context()
        self._awaited: asyncio.Future[Any] | None = None
        self._cancelled = False
        self._over = False

    def start(self) -> None:
        self._context.run(self._step)

    def cancel(self) -> None:
        """CancelledError is raised where it waits."""
        if self._over:
            return
        # A future that is done already wakes it in any case.
        if self._awaited is None or not self._awaited.cancel():
            self._cancelled = True

    def _step(self) -> None:
        self._awaited = None
        try:
            if self._cancelled:
                self._cancelled = False
                awaited = self._coroutine.throw(asyncio.CancelledError())
            else:
                awaited = self._coroutine.send(None)
        except StopIteration as stop:
            self._finish(stop.value, None)
        except (Exception, asyncio.CancelledError) as error:
            self._finish(None, error)
        else:
            self._wait_for(awaited)

    def _wait_for(self, awaited: Any) -> None:
        if awaited is None:
            # asyncio.sleep(0)
            self._loop.call_soon(self._step, context=self._context)
            return
        # What a task does with what its coroutine yields.
        awaited._asyncio_future_blocking = False
        self._awaited = awaited
        awaited.add_done_callback(self._wake, context=self._context)
        if self._cancelled and awaited.cancel():
            self._cancelled = False

    def _wake(self, _: asyncio.Future[Any]) -> None:
        self._step()

    def _finish(self, result: Any, error: BaseException | None) -> None:
        self._over = True
        self._done(result, error)
