"""A front end from within: it listens, carries calls, and hands each to the server over its link."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from offramp_server.errors import ConfigurationError
from offramp_server.transport.listening import close_all
from offramp_server.transport.native.limits import NativeLimits
from offramp_server.transport.native.transport import NativeTransport
from offramp_server.transport.relay import frames
from offramp_server.transport.relay.forwarding import Forwarded, Upstream
from offramp_server.transport.relay.hello import Hello

# How often connections are counted. Seconds.
_COUNT_EVERY = 0.5


async def run_front_end(link: socket.socket, sockets: Sequence[socket.socket], log: Callable[[int, str], None]) -> bool:
    """Until the server says so, and then in order, or until the server is gone: whether it was told to end. `log` is
    called with level and form whenever the server says how to log."""
    told = _Told(log)
    upstream = Upstream(told.takers(), told.on_lost)
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: upstream.link, sock=link)
    try:
        hello = await told.hello
        log(hello.log_level, hello.log_format)
        upstream.max_waiting_bytes = hello.max_buffered_bytes
        limits = NativeLimits(max_buffered_bytes=hello.max_buffered_bytes)
        transport = NativeTransport([Forwarded.over(upstream, hello.methods)], hello.listen, limits, sockets)
        return await _serve(transport, upstream, told, hello.speak_every)
    except _ServerGone:
        return False
    finally:
        upstream.link.close()
        close_all(sockets)


async def _serve(transport: NativeTransport, upstream: Upstream, told: _Told, speak_every: float) -> bool:
    try:
        await transport.start()
    except ConfigurationError as error:
        upstream.link.send(frames.REFUSED, 0, str(error).encode())
        return True
    upstream.link.send(frames.READY, 0)
    telling = asyncio.create_task(_tell_connections(transport, upstream, speak_every))
    grace = 0.0
    try:
        grace = await told.drain
    finally:
        telling.cancel()
        await transport.stop(grace)
    return True


async def _tell_connections(transport: NativeTransport, upstream: Upstream, speak_every: float) -> None:
    """How many there are, when that has changed, and every so many seconds: the server knows by that that we go on."""
    told, told_at, clock = 0, 0.0, asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(min(_COUNT_EVERY, speak_every))
        if transport.connections != told or clock() - told_at >= speak_every:
            told, told_at = transport.connections, clock()
            upstream.link.send(frames.CONNECTIONS, 0, frames.number(told))


class _ServerGone(Exception):
    pass


class _Told:
    """What the server says to the front end itself."""

    def __init__(self, log: Callable[[int, str], None]) -> None:
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[Hello] = loop.create_future()
        # Seconds that calls have to end.
        self.drain: asyncio.Future[float] = loop.create_future()
        self._log = log

    def takers(self) -> dict[int, frames.Taker]:
        return {frames.HELLO: self._on_hello, frames.DRAIN: self._on_drain, frames.LOGGING: self._on_logging}

    def _on_hello(self, number: int, data: bytes, start: int, end: int) -> None:
        self.hello.set_result(Hello.decode(data[start:end]))

    def _on_drain(self, number: int, data: bytes, start: int, end: int) -> None:
        if not self.drain.done():
            self.drain.set_result(frames.read_seconds(data, start))

    def _on_logging(self, number: int, data: bytes, start: int, end: int) -> None:
        self._log(*frames.read_log(data[start:end]))

    def on_lost(self) -> None:
        for waited_for in (self.hello, self.drain):
            if not waited_for.done():
                waited_for.set_exception(_ServerGone())
                # Only one of them is waited for.
                waited_for.exception()
