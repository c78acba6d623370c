"""Waiting for another process to come to a state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Return as soon as the condition holds; TimeoutError if it does not come to hold."""
    async with asyncio.timeout(seconds):
        # Another process's state cannot be awaited, only asked for.
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
