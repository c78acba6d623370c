"""What comes to a public port beside calls: peers that say nothing sensible, stop half way, or mean harm.

Each takes a connected socket and a source of chances, and ends when it has done what it does once. A server that closes
the socket meanwhile is right: the OSError is not theirs to handle.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping

from offramp_common.http2 import frames

from benchmarks.runtimes.header_fields import Table, fixed_fields, heads
from benchmarks.runtimes.route_load import METHOD
from benchmarks.runtimes.soak_calls import LARGE, ROUTE_ITEM, request

Peer = Callable[[socket.socket, random.Random], None]

CONNECT_TIMEOUT_S = 10.0
# Between connections of an attacker, and how long one that waits to be closed does so.
PAUSE_S, PATIENCE_S = 0.05, 15.0
# Between bytes of one that dawdles.
DAWDLE_S = 1.0
# Frames of a flood that are sent at once.
AT_ONCE = 200
_GREETING = frames.PREFACE + frames.settings(())
_ABORT = struct.pack("ii", 1, 0)


def open_socket(target: str) -> socket.socket:
    host, _, port = target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S)


def blocks() -> Iterator[bytes]:
    return heads(METHOD, "soak", [], enters=False, first=0)


def message(count: int) -> bytes:
    body = request(count).SerializeToString()
    return struct.pack(">BI", 0, len(body)) + body


def data(stream: int, payload: bytes, ended: bool) -> bytes:
    return frames.header(frames.DATA, frames.END_STREAM if ended else 0, stream, len(payload)) + payload


def call(stream: int, block: bytes, body: bytes) -> bytes:
    """A whole one. `body` fits into a frame."""
    return b"".join([*frames.headers(stream, block, end_stream=False), data(stream, body, ended=True)])


def drain(peer: socket.socket, seconds: float) -> None:
    """Read what comes, until the server closes or the time is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        peer.settimeout(left)
        try:
            if not peer.recv(65536):
                return
        except TimeoutError:
            return


# Those who do not know better


def another_protocol(peer: socket.socket, draw: random.Random) -> None:
    tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500)
    said = (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", tls, b"\x00", os.urandom(draw.randrange(1, 2000)))
    peer.sendall(draw.choice(said))
    drain(peer, 0.2)


def half_a_preface(peer: socket.socket, draw: random.Random) -> None:
    peer.sendall(_GREETING[: draw.randrange(1, len(_GREETING))])
    drain(peer, draw.choice((0.0, 0.5)))


def garbage_after_the_greeting(peer: socket.socket, draw: random.Random) -> None:
    peer.sendall(_GREETING + os.urandom(draw.randrange(1, 500)))
    drain(peer, 0.2)


def half_a_request(peer: socket.socket, draw: random.Random) -> None:
    """And then nothing, or an abrupt end."""
    body = message(ROUTE_ITEM)
    begun = [*frames.headers(1, next(blocks()), end_stream=False), data(1, body[: len(body) // 2], ended=False)]
    peer.sendall(_GREETING + b"".join(begun))
    drain(peer, draw.choice((0.0, 0.5)))
    if draw.random() < 0.5:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


def a_few_resets(peer: socket.socket, draw: random.Random) -> None:
    said = [_GREETING]
    for stream, block in zip(range(1, 40, 2), blocks(), strict=False):
        said.append(call(stream, block, message(ROUTE_ITEM)))
        if draw.random() < 0.5:
            said.append(frames.rst_stream(stream, 8))
    peer.sendall(b"".join(said))
    drain(peer, 0.2)


def reads_late(peer: socket.socket, draw: random.Random) -> None:
    """Large answers that there is no room for, at first or ever."""
    peer.sendall(frames.PREFACE + frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]))
    for stream, block in zip(range(1, 9, 2), blocks(), strict=False):
        peer.sendall(call(stream, block, message(ROUTE_ITEM)))
    time.sleep(draw.uniform(0, 1))
    if draw.random() < 0.5:
        peer.sendall(b"".join(frames.window_update(stream, 100_000) for stream in range(1, 9, 2)))
    drain(peer, 0.2)


def leaves_at_once(peer: socket.socket, draw: random.Random) -> None:
    peer.sendall(_GREETING + call(1, next(blocks()), message(ROUTE_ITEM)))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


STRANGERS: Mapping[str, Peer] = {
    peer.__name__: peer
    for peer in (
        another_protocol,
        half_a_preface,
        garbage_after_the_greeting,
        half_a_request,
        a_few_resets,
        reads_late,
        leaves_at_once,
    )
}

# Those who do


def flood(peer: socket.socket, parts: Iterator[bytes], reads: bool = True) -> None:
    """Until the server has had enough, which it says by closing, or by not reading any more."""
    peer.sendall(_GREETING)
    peer.settimeout(PATIENCE_S)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        peer.sendall(b"".join(itertools.islice(parts, AT_ONCE)))
        if reads:
            _discard(peer)


def _discard(peer: socket.socket) -> None:
    """What has come already."""
    try:
        while data := peer.recv(65536, socket.MSG_DONTWAIT):
            if len(data) < 65536:
                return
    except BlockingIOError:
        return
    raise ConnectionResetError("the server has closed the connection")


def rapid_reset(peer: socket.socket, draw: random.Random) -> None:
    body = message(ROUTE_ITEM)
    numbered = zip(itertools.count(1, 2), blocks(), strict=False)
    flood(peer, (call(stream, block, body) + frames.rst_stream(stream, 8) for stream, block in numbered))


def continuation_flood(peer: socket.socket, draw: random.Random) -> None:
    """A block of fields without an end: of empty frames, or full ones."""
    block = next(blocks())
    begin = frames.header(frames.HEADERS, 0, 1, len(block)) + block
    part = b"\0\1a\1b" * draw.choice((0, 200))
    more = frames.header(frames.CONTINUATION, 0, 1, len(part)) + part
    flood(peer, itertools.chain([begin], itertools.repeat(more)))


def ping_flood(peer: socket.socket, draw: random.Random) -> None:
    """Answers are read, or left to pile up."""
    flood(peer, itertools.repeat(frames.ping(bytes(8), ack=False)), reads=draw.random() < 0.5)


def settings_flood(peer: socket.socket, draw: random.Random) -> None:
    sizes = itertools.cycle((0, 4096))
    flood(peer, (frames.settings([(frames.HEADER_TABLE_SIZE, size)]) for size in sizes), reads=draw.random() < 0.5)


def empty_data_flood(peer: socket.socket, draw: random.Random) -> None:
    begin = b"".join(frames.headers(1, next(blocks()), end_stream=False))
    flood(peer, itertools.chain([begin], itertools.repeat(data(1, b"", ended=False))))


def table_bomb(peer: socket.socket, draw: random.Random) -> None:
    """An entry of the table, and thousands of references to it: too many to be read, or nearly."""
    table = Table()
    size, references = draw.choice(((3000, 10_000), (1, 3000)))
    field = (b"x-bomb", b"a" * size)
    first = table.entering([*fixed_fields(METHOD, "soak"), field])
    block = first + table.entering([field]) * references
    numbers = itertools.count(1, 2)
    flood(peer, (b"".join(frames.headers(stream, block, end_stream=True)) for stream in numbers))


def zero_windows(peer: socket.socket, draw: random.Random) -> None:
    """Answers that can never be sent: 1,000 at once, as large as their requests."""
    peer.sendall(frames.PREFACE + frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]))
    body = message(LARGE[0] // 64 * 16)
    for stream, block in zip(range(1, 2000, 2), blocks(), strict=False):
        parts = [body[at : at + frames.FRAME_BYTES] for at in range(0, len(body), frames.FRAME_BYTES)]
        sent = [data(stream, part, ended=part is parts[-1]) for part in parts]
        peer.sendall(b"".join([*frames.headers(stream, block, end_stream=False), *sent]))
        _discard(peer)
    drain(peer, PATIENCE_S)


def slow_preface(peer: socket.socket, draw: random.Random) -> None:
    """A byte now and then."""
    for byte in _GREETING:
        peer.sendall(bytes((byte,)))
        drain(peer, DAWDLE_S)


def promises_much(peer: socket.socket, draw: random.Random) -> None:
    """Messages of 60 MB are announced on many streams, of which nothing comes."""
    begun = []
    for stream, block in zip(range(1, 1000, 2), blocks(), strict=False):
        begun += [
            *frames.headers(stream, block, end_stream=False),
            data(stream, struct.pack(">BI", 0, 60 << 20), False),
        ]
    peer.sendall(_GREETING + b"".join(begun))
    drain(peer, PATIENCE_S)


ATTACKS: Mapping[str, Peer] = {
    peer.__name__: peer
    for peer in (
        rapid_reset,
        continuation_flood,
        ping_flood,
        settings_flood,
        empty_data_flood,
        table_bomb,
        zero_windows,
        slow_preface,
        promises_much,
    )
}


def meet(target: str, peer: Peer, draw: random.Random) -> str:
    """Once. How it ended: `closed` by the server, or `done`; `refused` where it was not let in."""
    try:
        connection = open_socket(target)
    except OSError:
        return "refused"
    with connection:
        try:
            peer(connection, draw)
        except OSError:
            return "closed"
    return "done"


def meet_until(
    end: float, target: str, peers: Mapping[str, Peer], seed: int, note: Callable[[str, str, bool], None]
) -> None:
    """Random ones of `peers`, one after the other. `end` is on time.monotonic()."""
    draw = random.Random(seed)
    while time.monotonic() < end:
        name = draw.choice(list(peers))
        ended = meet(target, peers[name], draw)
        note(name, ended, ended != "refused")
        time.sleep(PAUSE_S)
