"""A connection that is drained, on real sockets: what the kernel still holds arrives too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop
from eventually import PATIENCE
from hpack import Encoder
from http2_peer import REQUEST, data
from offramp_common.http2 import frames
from offramp_server.transport.interface import CallContext, ListenOptions, Method
from offramp_server.transport.native.transport import NativeTransport

SIZE = 4_000_000


class Large:
    """Answers with more than a client takes at a time."""

    def __init__(self) -> None:
        self.methods = (Method("b", "/a/b", "bytes", bytes, False, False, self.answer, swift=True),)

    async def answer(self, request: bytes, context: CallContext) -> bytes:
        return bytes(SIZE)


class Reader:
    """A client that tells of each frame that there is room again, as gRPC's clients do, and so often has something
    under way to the server."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        # Most of an answer waits on the server's side.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        self.bytes_of_answer = 0
        self.complete = False
        self._file = self.socket.makefile("rb")

    def ask(self) -> None:
        window = frames.settings(((frames.INITIAL_WINDOW_SIZE, frames.LARGEST_WINDOW),))
        head = frames.headers(1, bytes(Encoder().encode(REQUEST)), end_stream=False)
        greeting = frames.PREFACE + window + frames.window_update(0, 2 * SIZE)
        self.socket.sendall(b"".join((greeting, *head, data(1, bytes(5), ended=True))))
        while not self.bytes_of_answer:
            self.read()

    def read_all(self) -> None:
        with self.socket, self._file:
            while self.read():
                pass

    def read(self) -> bool:
        head = self._file.read(frames.HEADER_BYTES)
        if not head:
            return False
        high, low, kind, flags, _ = frames.HEADER.unpack(head)
        payload = self._file.read(high << 16 | low)
        if kind == frames.DATA:
            self.bytes_of_answer += len(payload)
            self.socket.sendall(frames.window_update(0, len(payload)))
        elif kind == frames.HEADERS:
            self.complete = bool(flags & frames.END_STREAM)
        elif kind == frames.PING:
            self.socket.sendall(frames.ping(payload, ack=True))
        return True


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_answer_that_is_on_its_way_is_not_cut_off(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def read_while_it_stops() -> Reader:
        transport = NativeTransport([Large()], ListenOptions("127.0.0.1", 0))
        reader = Reader(await transport.start())
        await asyncio.to_thread(reader.ask)
        await asyncio.gather(asyncio.to_thread(reader.read_all), transport.stop(PATIENCE))
        return reader

    with asyncio.Runner(loop_factory=new_loop) as runner:
        reader = runner.run(read_while_it_stops())
    assert reader.complete
    assert reader.bytes_of_answer == SIZE + 5
