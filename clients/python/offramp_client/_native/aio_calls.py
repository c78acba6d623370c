"""Calls that asyncio waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from offramp_common.grpc_framing.messages import MessageBytes
from offramp_common.http2.client import ClientEngine

from offramp_client._native.calls import Call, Channel, interrupted
from offramp_client._native.fields import Fields

# What a client that streams may be ahead of its server.
_SEND_AHEAD = 64 * 1024


class UnaryCall(Call):
    """A call of one answer."""

    __slots__ = ("answer",)

    answer: asyncio.Future[MessageBytes]

    def on_over(self) -> None:
        if self.answer.done():
            return
        if self.failure is None:
            self.answer.set_result(self.take())
        else:
            self.answer.set_exception(self.failure)


class StreamCall(Call):
    """A call of many answers: an asynchronous iterator of them."""

    __slots__ = ("_changed", "_room", "_sending", "requests")

    def __init__(
        self, channel: Channel, block: bytes, request: bytes | None, deadline: float, server_streaming: bool
    ) -> None:
        super().__init__(channel, block, request, deadline, server_streaming)
        # To be set before it begins, if there are several.
        self.requests: AsyncGenerator[bytes, None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._changed: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def begin(self, engine: ClientEngine[Fields], now: float) -> None:
        super().begin(engine, now)
        if self.requests is not None:
            self._sending = asyncio.get_running_loop().create_task(self._send(self.requests))

    async def _send(self, requests: AsyncGenerator[bytes, None]) -> None:
        try:
            async with aclosing(requests):
                async for request in requests:
                    self.send(request)
                    await self._has_room()
            self.end_requests()
        except BaseException as error:
            # Or the server would wait for more, and who reads the answers for the server.
            self.cancel(interrupted(error))
            raise

    def on_message(self) -> None:
        _wake(self._changed)

    def on_over(self) -> None:
        _wake(self._changed)
        _wake(self._room)
        if self._sending is not None:
            self._sending.cancel()

    def on_room(self) -> None:
        _wake(self._room)

    def __aiter__(self) -> AsyncIterator[MessageBytes]:
        return self

    async def __anext__(self) -> MessageBytes:
        """Raises CallFailed."""
        while not self.messages:
            if self.failure is not None:
                raise self.failure
            if self.over:
                raise StopAsyncIteration
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        return self.take()

    async def _has_room(self) -> None:
        """The server has taken nearly all that was sent, or the call is over."""
        while self.queued_bytes > _SEND_AHEAD:
            self._room = asyncio.get_running_loop().create_future()
            await self._room


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
