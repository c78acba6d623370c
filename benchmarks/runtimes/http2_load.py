"""Closed-loop load over bare HTTP/2: as h2load, and with more than one request and metadata that no two calls share.

`python -m benchmarks.runtimes.http2_load TARGET CONCURRENCY (--calls N | --seconds S)` reads serialised requests from
standard input, each behind its length (four bytes, big-endian), and sends them in a random order, over and over, one
in flight on each connection. It writes one line of JSON (seconds in all, and of each call which request it sent and how
long it took), and with `--answers` behind it the answers in the same order, each behind its length.

It knows no more of HTTP/2 than that takes, so that a call costs the client a tenth of what it does with grpc.aio. Like
h2load it does not read grpc-status: what is not answered in full is an error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from offramp_common.http2 import frames

from benchmarks.runtimes.header_fields import INDEXED, METADATA, SAME, VALUES, heads, unique_fields
from benchmarks.runtimes.route_load import METHOD, pack, shuffled, unpack

# What a server may send ahead: of a stream, and how much of a connection's is used before it is said to be free again.
_WINDOW = frames.LARGEST_WINDOW
_TOP_UP = 2**29
_READ_BYTES = 256 * 1024
_TIMEOUT_S = 120.0


class LoadFailed(Exception):
    """A call was not answered, or not in full."""


@dataclass
class Calls:
    """What came back, in the order in which it did."""

    requests: list[int] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)


class Connection:
    """One call after the other. `order` says which request is next; it ends when there shall be no more calls."""

    def __init__(
        self,
        target: str,
        requests: Sequence[bytes],
        order: Iterator[int],
        blocks: Iterator[bytes],
        answer_bytes: int,
        calls: Calls,
        keeps: bool,
    ) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.over = False
        self._requests = requests
        self._order = order
        self._blocks = blocks
        self._answer_bytes = answer_bytes
        self._calls = calls
        self._keeps = keeps
        self._rest = b""
        self._answer: list[bytes] = []
        self._answered_bytes = 0
        self._used = 0
        self._stream = -1
        self._request = 0
        self._began = 0.0
        # What of the request is not out yet, and how much of it the server takes.
        self._body = memoryview(b"")
        self._window = self._stream_window = self._initial_window = frames.DEFAULT_WINDOW
        self._out = bytearray(
            frames.PREFACE
            + frames.settings(((frames.INITIAL_WINDOW_SIZE, _WINDOW), (frames.ENABLE_PUSH, 0)))
            + frames.window_update(0, _WINDOW - frames.DEFAULT_WINDOW)
        )

    def begin(self) -> None:
        """The next call, if there is one."""
        number = next(self._order, None)
        if number is None:
            self.over = True
            return
        self._request = number
        self._stream += 2
        self._stream_window = self._initial_window
        self._answered_bytes = 0
        self._answer = []
        block = next(self._blocks)
        self._began = time.perf_counter()
        self._out += frames.header(frames.HEADERS, frames.END_HEADERS, self._stream, len(block)) + block
        self._body = memoryview(self._requests[number])
        self.send()

    def send(self) -> None:
        """As much as the server and the socket take."""
        while self._body:
            size = min(len(self._body), frames.FRAME_BYTES, self._window, self._stream_window)
            if size <= 0:
                break
            part, self._body = self._body[:size], self._body[size:]
            self._window -= size
            self._stream_window -= size
            flags = 0 if self._body else frames.END_STREAM
            self._out += frames.header(frames.DATA, flags, self._stream, size)
            self._out += part
        if self._out:
            try:
                del self._out[: self.socket.send(self._out)]
            except BlockingIOError:
                return

    @property
    def waits(self) -> bool:
        """There is more to send than the socket took."""
        return bool(self._out)

    def receive(self) -> None:
        """Raises LoadFailed."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise LoadFailed("the server closed a connection")
        if self._rest:
            data = self._rest + data
        position, size = 0, len(data)
        while size - position >= frames.HEADER_BYTES:
            high, low, kind, flags, stream = frames.HEADER.unpack_from(data, position)
            end = position + frames.HEADER_BYTES + (high << 16 | low)
            if end > size:
                break
            self._on_frame(kind, flags, stream, data[position + frames.HEADER_BYTES : end])
            position = end
        self._rest = data[position:]
        if self._out or self._body:
            self.send()

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            self._on_data(payload)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream, *frames.U32.unpack(payload))
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._on_settings(payload)
        elif kind == frames.PING and not flags & frames.ACK:
            self._out += frames.ping(payload, ack=True)
        elif kind in (frames.RST_STREAM, frames.GOAWAY):
            raise LoadFailed(f"the server gave up a {'call' if kind == frames.RST_STREAM else 'connection'}")
        if kind <= frames.HEADERS and flags & frames.END_STREAM:
            self._on_end()

    def _on_data(self, payload: bytes) -> None:
        self._answered_bytes += len(payload)
        self._credit(len(payload))
        if self._keeps:
            self._answer.append(payload)

    def _on_window_update(self, stream: int, increment: int) -> None:
        if not stream:
            self._window += increment
        elif stream == self._stream:
            # That of a stream that is over may come late.
            self._stream_window += increment

    def _on_settings(self, payload: bytes) -> None:
        self._out += frames.SETTINGS_ACK
        for number, value in frames.read_settings(payload):
            if number == frames.INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value

    def _credit(self, size: int) -> None:
        self._used += size
        if self._used > _TOP_UP:
            self._out += frames.window_update(0, self._used)
            self._used = 0

    def _on_end(self) -> None:
        self._calls.latencies_s.append(time.perf_counter() - self._began)
        self._calls.requests.append(self._request)
        if self._answered_bytes < self._answer_bytes:
            said = f"an answer of {self._answered_bytes} bytes that should bring {self._answer_bytes}"
            raise LoadFailed(said)
        if self._keeps:
            # Without the prefix.
            self._calls.answers.append(b"".join(self._answer)[5:])
        self.begin()


def main(options: argparse.Namespace) -> None:
    requests = [struct.pack(">BI", 0, len(message)) + message for message in unpack(sys.stdin.buffer.read())]
    order = shuffled(len(requests), options.seed)
    calls = Calls()
    limited = itertools.islice(order, options.calls) if options.calls else until(order, options.seconds)
    unique, enters = unique_fields(options.metadata, options.seed), options.metadata == INDEXED
    blocks = [
        heads(METHOD, options.target, unique, enters, number * VALUES // options.concurrency)
        for number in range(options.concurrency)
    ]
    connections = [
        Connection(options.target, requests, limited, each, options.answer_bytes, calls, options.answers)
        for each in blocks
    ]
    started = time.perf_counter()
    run(connections)
    spent = time.perf_counter() - started
    said = json.dumps({"seconds": spent, "requests": calls.requests, "latencies_s": calls.latencies_s})
    sys.stdout.buffer.write(said.encode() + b"\n" + pack(calls.answers))


def until(order: Iterator[int], seconds: float) -> Iterator[int]:
    """From the first call on."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield next(order)


def run(connections: Sequence[Connection]) -> None:
    """Until all calls are over. Raises LoadFailed."""
    with selectors.DefaultSelector() as selector, ExitStack() as sockets:
        for connection in connections:
            sockets.enter_context(connection.socket)
            connection.begin()
            # There may be fewer calls than connections.
            if not connection.over:
                selector.register(connection.socket, events(connection), connection)
        while selector.get_map():
            ready = selector.select(_TIMEOUT_S)
            if not ready:
                raise LoadFailed(f"no answer within {_TIMEOUT_S:g} s")
            for key, mask in ready:
                step(selector, key, mask)


def step(selector: selectors.BaseSelector, key: selectors.SelectorKey, mask: int) -> None:
    connection: Connection = key.data
    if mask & selectors.EVENT_WRITE:
        connection.send()
    if mask & selectors.EVENT_READ:
        connection.receive()
    if connection.over:
        selector.unregister(connection.socket)
    elif key.events != events(connection):
        selector.modify(connection.socket, events(connection), connection)


def events(connection: Connection) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.waits else 0)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("concurrency", type=int)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--calls", type=int)
    length.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metadata", choices=METADATA, default=SAME)
    parser.add_argument("--answer-bytes", type=int, default=1, help="the least that an answer brings")
    parser.add_argument("--answers", action="store_true", help="write them too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(parse(sys.argv[1:]))
    except (LoadFailed, OSError) as error:
        sys.exit(str(error))
