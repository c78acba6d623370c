"""The client's end of a connection: it begins the streams, and takes what comes on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from offramp_common.http2 import frames
from offramp_common.http2.engine import Engine
from offramp_common.http2.errors import ConnectionFailed, ErrorCode, StreamFailed
from offramp_common.http2.hpack import Field, HuffmanCodes
from offramp_common.http2.limits import Http2Limits
from offramp_common.http2.stream import Payload, Receiver, Stream

# What a block of a stream that was reset counts as, of the bytes that may still be under way: more than four of them
# are no accident.
_LATE_BLOCKS = 4
# Of the reason that a server gives for going away.
_MOST_REASON_BYTES = 500
# The highest number that a client's stream may have.
_LAST_BEGUN = frames.LAST_STREAM

H = TypeVar("H")
_H = TypeVar("_H", contravariant=True)


class Answer(Receiver, Protocol[_H]):
    """Who takes an answer."""

    def on_fields(self, fields: _H, ended: bool) -> None:
        """Its head, or its trailers. Raises StreamFailed for what is neither."""
        ...


class Listener(Protocol):
    """Whose connection it is."""

    def on_settings(self) -> None:
        """The server's have come, for the first time or again: how many streams there may be is known."""
        ...

    def on_goaway(self, code: int, reason: str) -> None:
        """No more streams. Those that the server has not looked at were reset as REFUSED_STREAM."""
        ...

    def on_ping_answered(self, opaque: bytes) -> None: ...


class ClientEngine(Engine[H]):
    """One connection. Its methods are called on one thread, or by one at a time."""

    def __init__(
        self,
        listener: Listener,
        read_head: Callable[[list[Field]], H],
        limits: Http2Limits,
        codes: HuffmanCodes,
        on_output: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read_head`: see `Engine`."""
        super().__init__(b"", read_head, limits, codes, on_output, listener.on_ping_answered, now)
        # Streams that the server allows at a time. Until it has said so nothing is known of it.
        self.max_streams = 0
        # There are no more streams to come: the server takes none, or their numbers are used up.
        self.going_away = False
        self._listener = listener

    def greet(self) -> None:
        """To be called first."""
        self.sender.write(frames.PREFACE)
        self._greet((frames.ENABLE_PUSH, 0))

    def fail(self, failure: ConnectionFailed) -> None:
        # The number is of streams that the server has begun, and it may begin none.
        self.sender.write(frames.goaway(0, failure.code, failure.reason))

    # Requests

    @property
    def can_begin(self) -> bool:
        """There may be one more stream now."""
        return len(self.streams) < self.max_streams and not self.going_away and not self.sender.is_paused

    def begin(self, answer: Answer[H]) -> Stream:
        """Only if `can_begin`. The block of its request has to follow before the next one begins."""
        # The first one is 1.
        self.last_stream = number = self.last_stream + 2 if self.last_stream else 1
        stream = Stream(number, self._limits.stream_window, self.sender.initial_window, 0.0)
        stream.receiver = answer
        self.streams[number] = stream
        if number >= _LAST_BEGUN:
            self.going_away = True
        return stream

    def request(self, stream: Stream, block: bytes, start: bytes, rest: bytes) -> None:
        """All of it; its data are `start` and `rest`."""
        self.sender.whole(stream, block, start, rest)

    def begin_request(self, stream: Stream, block: bytes) -> None:
        self.sender.headers(stream, block, end_stream=False)

    def end(self, stream: Stream) -> None:
        """Nothing follows."""
        self.sender.end(stream, b"")

    def _on_sent(self, stream: Stream) -> None:
        stream.sent = True

    # Answers

    def _on_block(self, number: int, block: bytes, ended: bool) -> None:
        known = self._heads.find(block, self._decoder.changes)
        fields = None if known is not None else self._decoded(block)
        if number > self.last_stream:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"HEADERS for the stream {number}, which is idle")
        stream = self.streams.get(number)
        if stream is None:
            self._on_late_block(number)
            return
        if known is None:
            if fields is None:
                raise StreamFailed(ErrorCode.ENHANCE_YOUR_CALM, "more fields than are taken")
            known = self._read_head(fields)
            self._heads.keep(block, known, self._decoder.changes)
        stream.peer_ended = ended
        answer: Any = stream.receiver
        answer.on_fields(known, ended)
        if ended:
            self._finish(stream)

    def _on_late_block(self, number: int) -> None:
        left = self._ended.get(number, 0) - self._limits.stream_window // _LATE_BLOCKS
        if left >= 0:
            self._ended[number] = left
        else:
            self._patience.spend("fields for streams that are over")

    def _take(self, stream: Stream, data: Payload, ended: bool) -> None:
        super()._take(stream, data, ended)
        if ended:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        """The answer is complete."""
        if self.streams.pop(stream.number, None) is None:
            # Whoever took it has reset it.
            return
        stream.receiver = None
        if not stream.sent:
            # The server wants no more of the request.
            self.sender.forget(stream)
            self.sender.write(frames.rst_stream(stream.number, ErrorCode.NO_ERROR))

    def _weigh_reset(self, stream: Stream | None) -> None:
        # One that there is cost the client what it took to begin it.
        if stream is None:
            self._patience.spend("resets")

    # The connection

    def _on_settings(self, flags: int, number: int, payload: Payload) -> None:
        if flags & frames.ACK:
            super()._on_settings(flags, number, payload)
            return
        if not self.greeted:
            # What a server leaves out it does not limit.
            self.max_streams = frames.LAST_STREAM
        super()._on_settings(flags, number, payload)
        self._listener.on_settings()

    def _set(self, name: int, value: int) -> None:
        if name == frames.MAX_CONCURRENT_STREAMS:
            self.max_streams = value
        elif name == frames.ENABLE_PUSH and value:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH from a server")
        else:
            super()._set(name, value)

    def _on_goaway(self, flags: int, number: int, payload: Payload) -> None:
        if len(payload) < frames.GOAWAY_BYTES:
            raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        if number:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "GOAWAY for a stream")
        self._patience.spend("GOAWAY frames")
        self.going_away = True
        last_stream, code, reason = frames.read_goaway(bytes(payload[: frames.GOAWAY_BYTES + _MOST_REASON_BYTES]))
        for refused in [each for each in self.streams if each > last_stream]:
            self._drop(refused, ErrorCode.REFUSED_STREAM)
        self._listener.on_goaway(code, reason)
