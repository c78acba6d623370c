"""One connection: the HTTP/2 on it, and what its silence means. Its owner moves the bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from offramp_common.http2 import frames
from offramp_common.http2.client import ClientEngine
from offramp_common.http2.errors import ConnectionFailed, ErrorCode, code_name
from offramp_common.http2.stream import Stream

from offramp_client._native.calls import Call
from offramp_client._native.fields import Fields, read_fields
from offramp_client._native.settings import Settings

_ALIVE = b"alive?\0\0"


class Lost(Exception):
    """The connection is of no more use."""


class Owner(Protocol):
    """Who has connections."""

    def on_settings(self, session: Session) -> None:
        """More calls may begin, or fewer."""
        ...

    def on_goaway(self, session: Session) -> None:
        """No more calls are to begin on it."""
        ...


class Session:
    """The listener of an engine."""

    def __init__(self, owner: Owner, settings: Settings, on_output: Callable[[], None]) -> None:
        self.engine: ClientEngine[Fields] = ClientEngine(
            self, read_fields, settings.limits, settings.codes, on_output, settings.clock
        )
        # Why the server takes no more calls, if it has said so.
        self.farewell = ""
        self._owner = owner
        self._settings = settings
        self._heard_at = settings.clock()
        self._asked_at: float | None = None

    @property
    def is_ready(self) -> bool:
        """The server has said how it wants to be talked to."""
        return self.engine.greeted

    @property
    def is_done(self) -> bool:
        """Nothing more will be done on it."""
        return self.engine.going_away and not self.engine.streams

    def received(self, data: bytes) -> None:
        """Raises Lost; what is still to be said then is in the engine's output."""
        self._heard_at, self._asked_at = self._settings.clock(), None
        try:
            self.engine.receive(data)
        except ConnectionFailed as failure:
            if not self.engine.greeted and data.startswith(b"HTTP/1."):
                raise Lost("the server speaks HTTP/1 and no gRPC") from failure
            raise Lost(f"the server broke HTTP/2: {failure}") from failure

    def is_late(self, now: float) -> bool:
        """Its server has not answered in time, as far as it was heard."""
        keepalive = self._settings.keepalive
        return keepalive is not None and self._asked_at is not None and now >= self._asked_at + keepalive.timeout

    def look(self, now: float) -> float:
        """Ask the server whether it is there, if it has been silent for long. When to look again; raises Lost."""
        keepalive = self._settings.keepalive
        if keepalive is None:
            return math.inf
        if self.is_late(now):
            raise Lost(f"the server has not answered a ping for {keepalive.timeout:g} s")
        if self._asked_at is not None:
            return self._asked_at + keepalive.timeout
        if now < self._heard_at + keepalive.interval:
            return self._heard_at + keepalive.interval
        if not (self.engine.streams or keepalive.while_idle):
            return now + keepalive.interval
        self._asked_at = now
        self.engine.sender.write(frames.ping(_ALIVE, ack=False))
        return now + keepalive.timeout

    def cancel(self, why: str) -> None:
        """All of its calls."""
        for call in self.calls():
            call.cancel(why)

    def say_goodbye(self) -> None:
        self.engine.sender.write(frames.goaway(0, ErrorCode.NO_ERROR, ""))

    def lose(self, reason: str) -> None:
        """The connection is gone, with every call on it."""
        for call in self.calls():
            call.lose(reason)
        self.engine.close()

    def calls(self) -> list[Call]:
        return [call for stream in self.engine.streams.values() if (call := _call_of(stream)) is not None]

    # What the engine tells

    def on_settings(self) -> None:
        self._owner.on_settings(self)

    def on_goaway(self, code: int, reason: str) -> None:
        if code != ErrorCode.NO_ERROR:
            self.farewell = f"{code_name(code)} {reason}".strip()
        self._owner.on_goaway(self)

    def on_ping_answered(self, opaque: bytes) -> None:
        """That anything came says it all."""


def _call_of(stream: Stream) -> Call | None:
    return stream.receiver if isinstance(stream.receiver, Call) else None
