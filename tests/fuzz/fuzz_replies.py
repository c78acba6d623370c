"""A server that says what the steps of an input mean: answers as they should be, and frames as they should not be."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

from fuzz_steps import Step
from hpack import Encoder
from offramp_common.grpc_framing.messages import compressed, prefix
from offramp_common.http2 import frames

END, IN_PARTS, PACKED, PLAIN, BOMB = 1, 2, 4, 8, 16
_GRPC = ((":status", "200"), ("content-type", "application/grpc"))
_OK = ("grpc-status", "0")
_HEADS: tuple[tuple[tuple[str, str], ...], ...] = (
    _GRPC,
    _GRPC,
    (*_GRPC, ("grpc-encoding", "gzip")),
    (*_GRPC, ("grpc-encoding", "deflate"), ("k", "metadata")),
    (*_GRPC, ("grpc-encoding", "zstd")),
    (*_GRPC, _OK),
    (*_GRPC, ("grpc-status", "5"), ("grpc-message", "no%20such%")),
    ((":status", "103"),),
    ((":status", "503"),),
    ((":status", "200"), ("content-type", "text/html")),
    ((":status", "200"), (":status", "200")),
    ((":status", "2x0"),),
    (("content-type", "application/grpc"), (":status", "200")),
    (*_GRPC, ("connection", "close")),
    (*_GRPC, ("long", "v" * 3000)),
    (),
)
_TRAILERS: tuple[tuple[tuple[str, str], ...], ...] = (
    (_OK,),
    (_OK,),
    (("grpc-status", "5"), ("grpc-message", "no")),
    (("grpc-status", "13"), ("x-bin", "AAEC"), ("y-bin", "?")),
    (("grpc-status", "00"),),
    (("grpc-status", "77"),),
    (("grpc-status", ""),),
    (("k", "trailing"),),
)
_SIZES = (0, 1, 2, 5, 100, 1000, 9000, 16_379, 16_380, 33_000, 39_999, 40_000, 40_001, 50_000, 3, 4)
_BOMB_BYTES = 10**6
_INCREMENTS = (0, 1, 100, 5000, 65_535, 10**6, 2**30, 2**31 - 1)
_SETTINGS = (
    (frames.MAX_CONCURRENT_STREAMS, (0, 1, 2, 100)),
    (frames.INITIAL_WINDOW_SIZE, (0, 1, 100, 5000, 65_535, 10**6, 2**31 - 1, 2**31)),
    (frames.HEADER_TABLE_SIZE, (0, 100, 4095, 4096, 10**6)),
    (frames.MAX_FRAME_SIZE, (16_384, 2**24 - 1, 16_383, 2**24)),
    (frames.ENABLE_PUSH, (0, 1, 2)),
    (frames.MAX_HEADER_LIST_SIZE, (0, 2**32 - 1)),
    (0x77, (0, 2**32 - 1)),
)
_CODES = (0, 1, 2, 7, 8, 11, 12, 99)
_MOST_REPEATED_BYTES = 60_000
_MOST_STREAMS = 8


class Replies:
    """One connection. What it says may be anything; what it knows of the client is which streams there are."""

    def __init__(self) -> None:
        # Oldest first, and in these the flags of windows are none of its business: the client has to mind them.
        self.begun: list[int] = []
        self._encoder = Encoder()
        self._heard = bytearray()
        self._greeted = False
        self._ping = bytes(8)
        self._repeatable = b""

    def hear(self, said: bytes) -> None:
        self._heard += said
        if not self._greeted:
            assert self._heard.startswith(frames.PREFACE)
            del self._heard[: len(frames.PREFACE)]
            self._greeted = True
        while len(self._heard) >= frames.HEADER_BYTES:
            high, low, kind, flags, number = frames.HEADER.unpack_from(self._heard)
            end = frames.HEADER_BYTES + (high << 16 | low)
            assert len(self._heard) >= end, "half a frame"
            assert end <= frames.HEADER_BYTES + frames.FRAME_BYTES
            if kind == frames.HEADERS:
                assert not self.begun or number > self.begun[-1]
                self.begun.append(number)
            elif kind == frames.PING and not flags & frames.ACK:
                self._ping = bytes(self._heard[frames.HEADER_BYTES : end])
            del self._heard[:end]

    def says(self, step: Step) -> bytes:
        """`step.operation` is below `SAYING`."""
        return _OPERATIONS[step.operation](self, step)

    def answer_as_it_should_be(self, number: int, message: bytes) -> bytes:
        return (
            self._fields(number, _GRPC, 0)
            + self._data(number, prefix(len(message)) + message, 0)
            + self._fields(number, (_OK,), END)
        )

    def _stream(self, step: Step) -> int:
        """Mostly one that was begun, counted from the newest."""
        if step.stream >= 248 or not self.begun:
            last = self.begun[-1] if self.begun else 1
            return (0, 2, last + 2, last + 100, frames.LAST_STREAM, 1, 3, last)[step.stream % 8]
        return self.begun[-1 - step.stream % min(len(self.begun), _MOST_STREAMS)]

    # Answers

    def _head(self, step: Step) -> bytes:
        return self._fields(self._stream(step), _HEADS[step.value % len(_HEADS)], step.flags)

    def _trailers(self, step: Step) -> bytes:
        return self._fields(self._stream(step), _TRAILERS[step.value % len(_TRAILERS)], step.flags ^ END)

    def _message(self, step: Step) -> bytes:
        message = _body(step)
        times = 1 + (step.blob[0] % 64 if step.blob and step.flags & BOMB else 0)
        return self._data(self._stream(step), message * times, step.flags)

    def _answer(self, step: Step) -> bytes:
        """All of it."""
        number = self._stream(step)
        head = _HEADS[2] if step.flags & PACKED else _HEADS[0]
        return self._fields(number, head, 0) + self._data(number, _body(step), 0) + self._fields(number, (_OK,), END)

    def _fields(self, number: int, fields: tuple[tuple[str, str], ...], flags: int) -> bytes:
        block = bytes(self._encoder.encode(list(fields), huffman=not flags & PLAIN))
        self._repeatable = b""
        ended = frames.END_STREAM if flags & END else 0
        first, rest = (block[:5], block[5:]) if flags & IN_PARTS else (block, b"")
        if not flags & IN_PARTS:
            return frames.header(frames.HEADERS, ended | frames.END_HEADERS, number, len(block)) + block
        last = frames.header(frames.CONTINUATION, frames.END_HEADERS, number, len(rest)) + rest
        return frames.header(frames.HEADERS, ended, number, len(first)) + first + last

    def _data(self, number: int, body: bytes, flags: int) -> bytes:
        said = []
        for at in range(0, len(body) or 1, frames.FRAME_BYTES):
            part = body[at : at + frames.FRAME_BYTES]
            ended = frames.END_STREAM if flags & END and at + len(part) >= len(body) else 0
            said.append(frames.header(frames.DATA, ended, number, len(part)) + part)
        self._repeatable = said[-1]
        return b"".join(said)

    # What is against the rules, or beside the point

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> bytes:
        self._repeatable = frames.header(kind, flags, number, len(payload)) + payload
        return self._repeatable

    def _raw(self, step: Step) -> bytes:
        """Data that may be no message."""
        return self._frame(frames.DATA, step.flags & (END | frames.PADDED), self._stream(step), step.blob)

    def _reset(self, step: Step) -> bytes:
        return self._frame(frames.RST_STREAM, 0, self._stream(step), _CODES[step.value % len(_CODES)].to_bytes(4))

    def _go_away(self, step: Step) -> bytes:
        last = frames.LAST_STREAM if step.flags & END else self._stream(step)
        payload = struct.pack(">LL", last, _CODES[step.value % len(_CODES)]) + step.blob
        return self._frame(frames.GOAWAY, 0, 0, payload)

    def _settings(self, step: Step) -> bytes:
        name, values = _SETTINGS[step.value % len(_SETTINGS)]
        pairs = [(name, values[step.stream % len(values)])] if step.flags & END else []
        return self._frame(frames.SETTINGS, 0, 0, b"".join(struct.pack(">HL", *pair) for pair in pairs))

    def _acknowledge(self, step: Step) -> bytes:
        return self._frame(frames.SETTINGS, frames.ACK, 0, b"")

    def _ping_back(self, step: Step) -> bytes:
        if step.flags & END:
            return self._frame(frames.PING, frames.ACK, 0, self._ping)
        return self._frame(frames.PING, 0, 0, step.blob[:8].ljust(8, b"."))

    def _widen(self, step: Step) -> bytes:
        number = 0 if step.flags & END else self._stream(step)
        return self._frame(frames.WINDOW_UPDATE, 0, number, _INCREMENTS[step.value % 8].to_bytes(4))

    def _any(self, step: Step) -> bytes:
        return self._frame(step.value % 12, step.flags, self._stream(step), step.blob)

    def _bytes(self, step: Step) -> bytes:
        return step.blob

    def _again(self, step: Step) -> bytes:
        """What was said last, many times."""
        return self._repeatable * min(step.value, _MOST_REPEATED_BYTES // max(1, len(self._repeatable)))


_Operation: TypeAlias = Callable[[Replies, Step], bytes]
_OPERATIONS: tuple[_Operation, ...] = (
    Replies._head,
    Replies._head,
    Replies._message,
    Replies._message,
    Replies._trailers,
    Replies._trailers,
    Replies._answer,
    Replies._raw,
    Replies._reset,
    Replies._go_away,
    Replies._settings,
    Replies._settings,
    Replies._acknowledge,
    Replies._ping_back,
    Replies._widen,
    Replies._any,
    Replies._bytes,
    Replies._again,
)
SAYING = len(_OPERATIONS)


def _body(step: Step) -> bytes:
    size = _BOMB_BYTES if step.flags & BOMB and step.value & 64 else _SIZES[step.value % len(_SIZES)]
    message = (step.blob + bytes(size))[:size]
    if not step.flags & PACKED:
        return prefix(len(message[:50_000])) + message[:50_000]
    body = compressed(message, "deflate" if step.value & 128 else "gzip")
    return prefix(len(body), compressed=True) + body
