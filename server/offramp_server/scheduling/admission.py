"""Who gets in. A permit is taken without waiting, or the request is refused at once."""

from __future__ import annotations

from offramp_server.errors import Overloaded


class Admission:
    """Bounds the requests that are inside the server at one time."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self.in_flight = 0

    def acquire(self) -> None:
        """Raises Overloaded if the bound is reached."""
        if self.in_flight >= self._max_in_flight:
            raise Overloaded(f"{self.in_flight} requests are in flight, which is this server's limit", retry_after=0.1)
        self.in_flight += 1

    def release(self) -> None:
        self.in_flight -= 1
