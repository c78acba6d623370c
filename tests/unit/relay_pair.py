"""Both ends of a link on one loop, with handlers on one side and those that forward to them on the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from eventually import eventually_here
from native_client import Handlers, methods
from offramp_server.transport.incoming import Incoming
from offramp_server.transport.interface import Method
from offramp_server.transport.relay.forwarding import Forwarded, MethodKind, Upstream
from offramp_server.transport.relay.relayed_call import Relayed


@dataclass
class Context:
    """Of a call that came to a front end."""

    deadline: float | None = None
    fields: Sequence[tuple[bytes, bytes]] = ()
    peer: str = "ipv4:10.0.0.1:5"
    identity: str | None = None
    trailing: list[tuple[str, str | bytes]] = field(default_factory=list)
    # What it was last told that the server keeps of its requests.
    held: int = 0

    def set_trailing(self, key: str, value: str | bytes) -> None:
        self.trailing.append((key, value))

    def hold(self, size: int) -> None:
        self.held = size


class Sent(Incoming):
    """What a client streams. Nothing tells it to go on: a test does."""

    def __init__(self) -> None:
        super().__init__(self)

    def parse(self, message: bytes | bytearray) -> bytes:
        return bytes(message)

    def give_back(self, size: int) -> None:
        pass


class Pair:
    def __init__(self, handlers: Handlers, known: Sequence[Method], max_message_bytes: int) -> None:
        self.handlers = handlers
        self.lost = asyncio.Event()
        self.relayed = Relayed(known, max_message_bytes, {}, self.lost.set)
        self.upstream = Upstream({}, self.lost.set)
        self.upstream.max_waiting_bytes = 1 << 30
        kinds = [MethodKind(each.path, each.client_streaming, each.server_streaming) for each in known]
        self._forwarding = {each.path: each for each in Forwarded.over(self.upstream, kinds).methods}

    def ask(self, name: str, request: bytes | Incoming, context: Context | None = None) -> asyncio.Task[bytes]:
        """A call that is answered once."""
        return asyncio.create_task(cast("Any", self._handler(name)(request, context or Context())))

    def stream(self, name: str, request: bytes | Incoming, context: Context | None = None) -> Any:
        """A call that is answered by a stream."""
        return self._handler(name)(request, context or Context())

    def _handler(self, name: str) -> Any:
        return self._forwarding[f"/s/{name}"].handler

    @contextmanager
    def held_back(self, end: Relayed | Upstream | None = None) -> Iterator[None]:
        """The server, or that end, takes nothing until the block ends."""
        transport = cast("Any", (end or self.relayed).link)._transport
        transport.pause_reading()
        try:
            yield
        finally:
            transport.resume_reading()

    async def idle(self) -> None:
        """No call is under way, on either side."""
        await eventually_here(lambda: not (self.relayed.running or self.relayed.calls or self.upstream.calls))


@asynccontextmanager
async def linked(
    max_message_bytes: int = 1_000_000, handlers: Handlers | None = None, more: Sequence[Method] = ()
) -> AsyncIterator[Pair]:
    """`more`: methods that not all handlers have."""
    handlers = handlers or Handlers()
    pair = Pair(handlers, [*methods(handlers).values(), *more], max_message_bytes)
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    await loop.create_unix_connection(lambda: pair.relayed.link, sock=ours)
    await loop.create_unix_connection(lambda: pair.upstream.link, sock=theirs)
    try:
        yield pair
        await pair.idle()
    finally:
        pair.upstream.link.abort()
        await pair.lost.wait()
        pair.relayed.link.abort()
