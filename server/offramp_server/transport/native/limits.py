"""What clients may take of the server, beside what `ListenOptions` and `Http2Limits` say."""

from __future__ import annotations

from dataclasses import dataclass, field

from offramp_common.http2.limits import Http2Limits


@dataclass(frozen=True, slots=True)
class NativeLimits:
    """Times are in seconds."""

    http2: Http2Limits = field(default_factory=Http2Limits)
    max_connections: int = 10_000
    # Of requests that have not come completely, or that no handler has taken: over all connections, and of one.
    max_buffered_bytes: int = 1024 * 1024 * 1024
    max_buffered_bytes_of_one: int = 256 * 1024 * 1024
    # Of answers that one client has not made room for; while there are more, it may begin no calls.
    max_waiting_bytes: int = 64 * 1024 * 1024
    # From the connection (after its TLS handshake) to the client's SETTINGS.
    greeting_timeout: float = 10.0
    # After so long without a byte a client is asked whether it is still there, and so long it may take to say so.
    keepalive_interval: float = 60.0
    keepalive_timeout: float = 20.0
    # A client that reads nothing is disconnected, and a call of which nothing moves that could is reset.
    stall_timeout: float = 60.0
    # When everything has been said: a client that says nothing for so long is not waited for any more to close.
    leaving_timeout: float = 5.0


class Memory:
    """Bytes that requests take together before anybody computes them."""

    __slots__ = ("_left", "_shared")

    def __init__(self, max_bytes: int, shared: Memory | None = None) -> None:
        """`shared`: what this is a part of, and which has to have room as well."""
        self._left = max_bytes
        self._shared = shared

    def take(self, size: int) -> bool:
        """Whether there was so much; a negative size gives back."""
        if size > self._left or (self._shared is not None and not self._shared.take(size)):
            return False
        self._left -= size
        return True
