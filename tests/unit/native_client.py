"""A connection of our own HTTP/2 between a socket that is none and handlers, and the client on the other side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

from eventually import PATIENCE
from hpack import Decoder, Encoder
from http2_peer import REQUEST, Frame, data, read_frames
from offramp_common.http2 import frames
from offramp_server.transport.interface import CallContext, Code, Method
from offramp_server.transport.native.connection import Connection, Shared
from offramp_server.transport.native.limits import NativeLimits
from scheduling_fakes import settle


class Socket(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5)})
        self.written = b""
        self.writes = 0
        self.closed = self.aborted = self.ended = self._paused = False
        # Bytes that wait in it.
        self.buffered = 0

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes += 1

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(bytes(each) for each in list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False

    def is_reading(self) -> bool:
        return not self._paused


class Handlers:
    """Echoes, and what it is told to do otherwise."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.cancelled = 0
        self.running = 0
        self.read: list[bytes] = []

    async def echo(self, request: bytes, context: CallContext) -> bytes:
        return request

    async def wait(self, request: bytes, context: CallContext) -> bytes:
        self.running += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return request

    async def stubborn(self, request: bytes, context: CallContext) -> bytes:
        try:
            await self.wait(request, context)
        except asyncio.CancelledError:
            await self.release.wait()
        return request

    async def each(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        async for request in requests:
            self.read.append(request)
            yield request

    async def slow_reader(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        await self.release.wait()
        async for request in requests:
            self.read.append(request)
        yield b"read"

    async def flood(self, request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        while True:
            self.read.append(b"")
            yield bytes(10_000)


def methods(handlers: Handlers) -> dict[str, Method]:
    def of(name: str, client: bool = False, server: bool = False, swift: bool = False) -> Method:
        return Method(name, f"/s/{name}", "bytes", bytes, client, server, getattr(handlers, name), swift)

    return {
        method.path: method
        for method in (
            of("echo", swift=True),
            of("wait", swift=True),
            replace(of("wait"), path="/s/wait-in-a-task"),
            of("stubborn", swift=True),
            of("each", client=True, server=True),
            of("slow_reader", client=True, server=True),
            of("flood", server=True),
        )
    }


class Client:
    def __init__(
        self,
        limits: NativeLimits | None = None,
        max_message_bytes: int = 1_000_000,
        handlers: Handlers | None = None,
    ) -> None:
        self.handlers = handlers or Handlers()
        self.shared = Shared(methods(self.handlers), limits or NativeLimits(), max_message_bytes)
        self.connect()

    def connect(self) -> None:
        self.socket = Socket()
        self.connection = Connection(self.shared)
        self.connection.connection_made(self.socket)
        self.encoder, self.decoder = Encoder(), Decoder()

    def greet(self, *settings: tuple[int, int]) -> Client:
        self.connection.data_received(frames.PREFACE + frames.settings(settings))
        self.hear()
        return self

    def head(self, path: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
        """The block of a request's fields."""
        fields = [(name, path if name == ":path" else value) for name, value in REQUEST]
        return bytes(self.encoder.encode([*fields, *more]))

    def call(
        self, number: int, path: str, *messages: bytes, more: Iterable[tuple[str, str]] = (), ended: bool = True
    ) -> None:
        block = self.head(path, more)
        body = b"".join(b"\0" + len(message).to_bytes(4) + message for message in messages)
        parts = [body[at : at + frames.FRAME_BYTES] for at in range(0, len(body), frames.FRAME_BYTES)] or [b""]
        said = [data(number, part, ended and part is parts[-1]) for part in parts]
        self.connection.data_received(b"".join([*frames.headers(number, block, end_stream=False), *said]))

    def hear(self) -> list[Frame]:
        written, self.socket.written = self.socket.written, b""
        return list(read_frames(written))

    async def answer(self, number: int) -> tuple[dict[str, str], bytes]:
        """Every field, and the data with its prefixes. Waits until the stream has ended."""
        fields: dict[str, str] = {}
        body = b""
        until = self.connection.loop.time() + PATIENCE
        while self.connection.loop.time() < until:
            await settle()
            for frame in self.hear():
                if frame.kind == frames.HEADERS:
                    decoded = self.decoder.decode(frame.payload)
                    if frame.stream == number:
                        fields |= {str(name): str(value) for name, value in decoded}
                        if frame.flags & frames.END_STREAM:
                            return fields, body
                elif frame.kind == frames.DATA and frame.stream == number:
                    body += frame.payload
        raise AssertionError(f"the stream {number} was not answered")

    async def status(self, number: int) -> Code:
        return Code(int((await self.answer(number))[0]["grpc-status"]))
