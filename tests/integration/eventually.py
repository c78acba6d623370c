"""Waiting for a state that can only be asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

# Seconds: a limit that nothing reaches which works, on a machine that others keep busy.
PATIENCE = 120.0
_PAUSE_SECONDS = 0.005


async def eventually(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Return as soon as the condition holds; TimeoutError if it does not come to hold.

    It is asked in a thread: it may block, and what it waits for may need this loop.
    """
    await _poll(lambda: asyncio.to_thread(holds), seconds)


async def eventually_here(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """The same for what lives on this loop: it is asked here, and must not block."""

    async def ask() -> bool:
        return holds()

    await _poll(ask, seconds)


async def _poll(ask: Callable[[], Awaitable[bool]], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        # Nobody tells of a state that has to be asked for.
        while not await ask():  # noqa: ASYNC110
            await asyncio.sleep(_PAUSE_SECONDS)
