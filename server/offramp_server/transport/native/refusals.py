"""Calls that are answered before any handler sees them."""

from __future__ import annotations

import asyncio

from offramp_common.http2.server import ServerEngine
from offramp_common.http2.stream import Payload, Stream

from offramp_server.transport.interface import CallFailed
from offramp_server.transport.native.metadata import Head, failure_only

# How long a client that streams may take to its first message. grpc.aio forgets the status of a stream that ends before
# that is out, and tells its caller of an internal error instead.
FIRST_MESSAGE_SECONDS = 0.1


class Refusal:
    """Takes what comes with the stream, and answers at the first of it, or when nothing comes."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, engine: ServerEngine[Head], stream: Stream, failure: CallFailed
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._failure: CallFailed | None = failure
        self._timer = loop.call_later(FIRST_MESSAGE_SECONDS, self._say)

    def on_data(self, data: Payload, ended: bool) -> None:
        self._say()

    def on_reset(self, code: int) -> None:
        self._failure = None
        self._timer.cancel()

    def on_room(self) -> None:
        pass

    def _say(self) -> None:
        failure, self._failure = self._failure, None
        self._timer.cancel()
        if failure is not None:
            self._engine.end(self._stream, failure_only(failure))
