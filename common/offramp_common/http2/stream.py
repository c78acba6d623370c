"""One stream: what the peer may still send of it, and what waits to be sent to it."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

# Bytes, or a view of some that nobody changes.
Payload: TypeAlias = bytes | memoryview


class Receiver(Protocol):
    """Who takes what comes with a stream."""

    def on_data(self, data: Payload, ended: bool) -> None:
        """Empty data may end a stream. What is taken is to be given back with `Engine.credit`."""
        ...

    def on_reset(self, code: int) -> None:
        """It is over by RST_STREAM with that code, of the peer's or after something that the peer did wrong, or by the
        end of the connection."""
        ...

    def on_room(self) -> None:
        """Everything that was queued has been sent."""
        ...


class Stream:
    """What `Engine` knows of it. `number` is the identifier on the wire."""

    __slots__ = (
        "began_at",
        "credit",
        "moved",
        "number",
        "peer_ended",
        "queue",
        "queued_bytes",
        "receive_window",
        "receiver",
        "send_window",
        "sent",
        "trailers",
    )

    def __init__(self, number: int, receive_window: int, send_window: int, began_at: float) -> None:
        self.number = number
        self.receive_window = receive_window
        self.send_window = send_window
        self.began_at = began_at
        # Taken by the receiver, and not told to the peer yet.
        self.credit = 0
        # Bytes in either direction.
        self.moved = 0
        self.peer_ended = False
        # None once it is over for this side: what still comes is let go.
        self.receiver: Receiver | None = None
        # None while nothing ever had to wait.
        self.queue: deque[Payload] | None = None
        self.queued_bytes = 0
        # The block that ends the stream once the queue is empty; an empty one: DATA without any does.
        self.trailers: bytes | None = None
        # A request has been sent to its end.
        self.sent = False
