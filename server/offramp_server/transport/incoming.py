"""The messages of a stream that come from the other side, handed over one by one and not read far ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol

from offramp_common.grpc_framing.messages import MessageBytes, Packed

# What a message takes beyond its bytes.
MESSAGE_BYTES = 64
# What the sender may be ahead of the reader.
_READ_AHEAD = 64 * 1024


class Reader(Protocol):
    """The call that they belong to."""

    def parse(self, message: MessageBytes) -> Any:
        """Raises CallFailed."""
        ...

    def give_back(self, size: int) -> None:
        """Less is kept than before, and the client may send so much again: nothing, where enough lies here."""
        ...


class Incoming(AsyncIterator[Any]):
    """The messages of a stream, for who reads them."""

    def __init__(self, call: Reader) -> None:
        self.unread_bytes = 0
        self._call = call
        self._messages: deque[MessageBytes | Packed] = deque()
        # What the sender has not been told that there is room for again.
        self._owed = 0
        self._ended = False
        self._dropped = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def complete(self) -> bool:
        """The sender has said that there are no more, and nobody else has put an end to it."""
        return self._ended and not self._dropped

    def add(self, message: MessageBytes | Packed) -> None:
        self._messages.append(message)
        self.unread_bytes += len(message) + MESSAGE_BYTES
        self._wake()

    def drop(self) -> None:
        """Nobody is to read them any more."""
        self._messages.clear()
        self._ended = self._dropped = True
        self._wake()

    def end(self, failure: Exception | None = None) -> None:
        """No more come. `failure` is raised once those that came have been read."""
        self._ended = True
        self._failure = failure
        self._wake()

    def on_taken(self, size: int) -> None:
        """So much has come. While a message is incomplete there is always room for the rest of it."""
        self._owed += size
        self._settle()

    def _settle(self) -> None:
        owed = self._owed if self.unread_bytes <= _READ_AHEAD else 0
        self._owed -= owed
        self._call.give_back(owed)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> Any:
        while not self._messages:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        self.unread_bytes -= len(message) + MESSAGE_BYTES
        self._settle()
        if isinstance(message, Packed):
            message = await asyncio.to_thread(message.unpacked)
        return self._call.parse(message)
