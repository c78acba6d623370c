"""Calls that wait for the disk, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


async def undone_if_cancelled(call: Callable[[], Result], undo: Callable[[Result], object]) -> Result:
    """What `call` returns, in a thread. That cannot be cancelled: where nobody wants what it returns any more, it is
    waited for and undone, in a thread as well."""
    calling = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        # Where it failed there is nothing to undo.
        with suppress(Exception):
            await asyncio.to_thread(undo, await calling)
        raise
