"""Who gets in. A permit is taken without waiting, or the request is refused at once."""

from __future__ import annotations

import asyncio

from offramp_server.errors import Overloaded

# How long a refused caller should wait at least: about what a few small batches take.
RETRY_AFTER_SECONDS = 0.1


class Admission:
    """Bounds the requests that are inside the server at one time."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._empty: asyncio.Event | None = None
        self.in_flight = 0

    def acquire(self) -> None:
        """Raises Overloaded if the bound is reached."""
        if self.in_flight >= self._max_in_flight:
            raise Overloaded(
                f"{self.in_flight} requests are in flight, which is this server's limit", RETRY_AFTER_SECONDS
            )
        self.in_flight += 1

    def release(self) -> None:
        self.in_flight -= 1
        if self._empty is not None and self.in_flight == 0:
            self._empty.set()

    async def wait_empty(self, timeout: float) -> bool:
        """Wait until nobody is inside, at most `timeout` seconds. Whether that came to be."""
        if self.in_flight == 0:
            return True
        self._empty = asyncio.Event()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout)
        except TimeoutError:
            return False
        return True
