"""The messages that a client streams, handed to the handler one by one and not read far ahead of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol

# What a message takes beyond its bytes.
_MESSAGE_BYTES = 64
# What a client may be ahead of the handler.
_READ_AHEAD = 64 * 1024


class Reader(Protocol):
    """The call that they belong to."""

    def parse(self, message: bytes) -> Any:
        """Raises CallFailed."""
        ...

    def give_back(self, size: int) -> None:
        """A handler has read so much; the client may send as much again."""
        ...


class Requests(AsyncIterator[Any]):
    """The messages of a stream, for its handler."""

    def __init__(self, call: Reader) -> None:
        self.unread_bytes = 0
        self._call = call
        self._messages: deque[bytes] = deque()
        # What the client has not been told that there is room for again.
        self._owed = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def add(self, message: bytes) -> None:
        self._messages.append(message)
        self.unread_bytes += len(message) + _MESSAGE_BYTES
        self._wake()

    def drop(self) -> None:
        """Nobody is to read them any more."""
        self._messages.clear()
        self._ended = True
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    def on_taken(self, size: int) -> None:
        """So much has come. While a message is incomplete there is always room for the rest of it."""
        self._owed += size
        self._settle()

    def _settle(self) -> None:
        if self.unread_bytes <= _READ_AHEAD and self._owed:
            owed, self._owed = self._owed, 0
            self._call.give_back(owed)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> Any:
        while not self._messages:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        self.unread_bytes -= len(message) + _MESSAGE_BYTES
        self._settle()
        return self._call.parse(message)
