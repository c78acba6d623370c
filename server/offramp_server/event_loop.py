"""The event loop that servers and their front ends run on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one: 50 us less CPU for each call of grpc.aio than asyncio's own loop (measured)."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
