"""Callers that never pause, as a background to what a test does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from eventually import eventually_here


class Traffic:
    """Runs `call` over and over from several callers until the block ends, which raises whatever a call raised."""

    def __init__(self, call: Callable[[], Awaitable[None]], callers: int) -> None:
        self._call = call
        self._callers = callers
        self._done = False
        self.answered = 0

    async def more(self, calls: int) -> None:
        """Return once that many further calls were answered."""
        wanted = self.answered + calls
        await eventually_here(lambda: self.answered >= wanted or any(task.done() for task in self._tasks))

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._repeat()) for _ in range(self._callers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done = True
        await asyncio.gather(*self._tasks)

    async def _repeat(self) -> None:
        while not self._done:
            await self._call()
            self.answered += 1
