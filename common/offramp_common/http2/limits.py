"""What one connection may ask of the server."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from offramp_common.http2.errors import ConnectionFailed, ErrorCode


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """Told to the peer where the protocol has a setting for it, and kept to whether or not it listens."""

    max_streams: int = 1024
    # Decoded fields of a request, each with 32 bytes on top, as in SETTINGS_MAX_HEADER_LIST_SIZE.
    max_header_list_bytes: int = 16 * 1024
    # What a peer may send of a stream, and of all of them together, before it is told that there is room again.
    stream_window: int = 1024 * 1024
    connection_window: int = 4 * 1024 * 1024
    # Frames that cost the server work and bring no call forward: so many at once, and so many each second.
    nuisances_at_once: int = 4000
    nuisances_per_second: float = 400.0
    # How often a peer may ping that is told nothing in between, in seconds: see `PingLimit`. 0: as often as it likes.
    min_ping_interval: float = 0.0

    @property
    def max_block_bytes(self) -> int:
        """Of a compressed block. A list that is too large is decoded all the same, for the sake of the table: up to
        here."""
        return 4 * self.max_header_list_bytes


class Patience:
    """A token bucket for what only costs: resets, refused streams, empty frames, frames that mean nothing.

    Not for PING and WINDOW_UPDATE: healthy clients send thousands of them. They are bounded by not being read while the
    peer does not read the answers, and for PING there is `PingLimit`.
    """

    __slots__ = ("_at_once", "_left", "_now", "_per_second", "_since")

    def __init__(self, at_once: int, per_second: float, now: Callable[[], float]) -> None:
        self._at_once = at_once
        self._per_second = per_second
        self._now = now
        self._left = float(at_once)
        self._since = now()

    def spend(self, reason: str, amount: int = 1) -> None:
        """Raises ConnectionFailed when it is at an end."""
        self._left -= amount
        if self._left >= 0:
            return
        now = self._now()
        self._left = min(self._at_once, self._left + (now - self._since) * self._per_second)
        self._since = now
        if self._left < 0:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, f"too many {reason}")

    def restore(self) -> None:
        """A call has been answered."""
        if self._left < self._at_once:
            self._left += 1


# What gRPC's clients look for in GOAWAY: they double the interval of their keepalive then.
_TOO_MANY_PINGS = "too_many_pings"
_STRIKES = 2
# Of frames. A client that measures its bandwidth pings ten times a second at most.
_MOST_UNREAD = 1000


class PingLimit:
    """On pings between which this side says nothing, as gRPC's servers have it (its proposal A8).

    Clients measure their bandwidth by a ping for each turn of data that they read, as many as there are: whatever is
    said of a call begins the count anew. They may read it long after it was said, so each frame may be followed by a
    ping at any time. What is left is keepalive, which has an interval. One that is too early now and then is forgiven.
    """

    __slots__ = ("_heard", "_last", "_min_interval", "_now", "_strikes", "_unread")

    def __init__(self, min_interval: float, now: Callable[[], float]) -> None:
        self._min_interval = min_interval
        self._now = now
        self._strikes = 0
        self._last = -math.inf
        # How many frames the peer had been told by the last ping, and of how many it may not have pinged yet.
        self._heard = self._unread = 0

    def check(self, said: int) -> None:
        """A ping has come, and the peer had been told so many frames. Raises ConnectionFailed if it is one too many."""
        now = self._now()
        self._unread = min(_MOST_UNREAD, self._unread + said - self._heard)
        if said != self._heard or now - self._last >= self._min_interval:
            self._strikes = 0
        elif self._unread:
            self._unread -= 1
        else:
            self._strikes += 1
        self._heard, self._last = said, now
        if self._strikes > _STRIKES:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, _TOO_MANY_PINGS)
