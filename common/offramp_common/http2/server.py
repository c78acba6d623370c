"""The server's end of a connection: streams begin with what the peer sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from offramp_common.http2 import frames
from offramp_common.http2.engine import Engine
from offramp_common.http2.errors import ErrorCode, StreamFailed
from offramp_common.http2.hpack import Field, HuffmanCodes
from offramp_common.http2.limits import Http2Limits, PingLimit
from offramp_common.http2.stream import Payload, Receiver, Stream

# A call that is taken back before has cost more than it was worth to anybody. Seconds.
_RAPID = 0.1

H = TypeVar("H")
_H = TypeVar("_H", contravariant=True)


class Listener(Protocol[_H]):
    """What the connection is for."""

    def on_stream(self, stream: Stream, head: _H) -> Receiver | None:
        """A request begins. What follows its head, if it is not over by then, goes to the receiver. Raises StreamFailed
        to refuse it."""
        ...

    def on_oversized(self, stream: Stream) -> None:
        """A request whose head is larger than the limit: it was not kept, and can only be answered or reset."""
        ...

    def on_ping_answered(self, opaque: bytes) -> None: ...


class ServerEngine(Engine[H]):
    """One connection. Its methods are called on one thread."""

    def __init__(
        self,
        listener: Listener[H],
        read_head: Callable[[list[Field]], H],
        limits: Http2Limits,
        codes: HuffmanCodes,
        on_output: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read_head`: see `Engine`."""
        super().__init__(frames.PREFACE, read_head, limits, codes, on_output, listener.on_ping_answered, now)
        # Streams above are not taken any more.
        self.accepted_up_to = frames.LAST_STREAM
        self._listener = listener
        self._ping_limit = PingLimit(limits.min_ping_interval, now)

    def _on_preface(self) -> None:
        # Not before: who speaks something else gets to read why, and no frame first.
        self._greet((frames.MAX_CONCURRENT_STREAMS, self._limits.max_streams))

    # Requests

    def _on_block(self, number: int, block: bytes, ended: bool) -> None:
        known = self._heads.find(block, self._decoder.changes)
        fields = None if known is not None else self._decoded(block)
        if number <= self.last_stream:
            self._on_trailers(number, ended)
            return
        self.last_stream = number
        if number > self.accepted_up_to:
            # The peer knows by GOAWAY that nobody has looked at it.
            return
        if len(self.streams) >= self._limits.max_streams:
            raise StreamFailed(ErrorCode.REFUSED_STREAM, "too many streams")
        if known is None and fields is not None:
            known = self._read_head(fields)
            self._heads.keep(block, known, self._decoder.changes)
        self._begin(number, known, ended)

    def _begin(self, number: int, head: H | None, ended: bool) -> None:
        """`head` is None if it was too large."""
        stream = Stream(number, self._limits.stream_window, self.sender.initial_window, self._now())
        stream.peer_ended = ended
        self.streams[number] = stream
        if head is None:
            self._listener.on_oversized(stream)
            return
        stream.receiver = self._listener.on_stream(stream, head)
        if ended and stream.receiver is not None:
            stream.receiver.on_data(b"", ended=True)

    def _on_trailers(self, number: int, ended: bool) -> None:
        """A second block of a request, of which only the end counts in gRPC."""
        stream = self.streams.get(number)
        if stream is None:
            self._patience.spend("fields for streams that are over")
        elif stream.peer_ended:
            raise StreamFailed(ErrorCode.STREAM_CLOSED, "fields after the end of a stream")
        elif not ended:
            raise StreamFailed(ErrorCode.PROTOCOL_ERROR, "fields in the middle of a stream")
        else:
            self._take(stream, b"", ended=True)

    def _weigh_reset(self, stream: Stream | None) -> None:
        if stream is None or self._now() - stream.began_at < _RAPID:
            self._patience.spend("resets")

    def _on_ping(self, flags: int, number: int, payload: Payload) -> None:
        if not flags & frames.ACK:
            self._ping_limit.check(self.sender.said)
        super()._on_ping(flags, number, payload)

    def _on_goaway(self, flags: int, number: int, payload: Payload) -> None:
        """The peer begins nothing more; what it began is answered."""
        self._patience.spend("GOAWAY frames")

    # Answers

    def answer(self, stream: Stream, head: bytes, start: Payload, rest: Payload, trailers: bytes) -> None:
        """Everything that there is to say; `start` and `rest` are one after the other."""
        if not stream.peer_ended:
            stream.receiver = None
        self.sender.whole(stream, head, start, rest, trailers)

    def begin_answer(self, stream: Stream, head: bytes) -> None:
        self.sender.headers(stream, head, end_stream=False)

    def end(self, stream: Stream, trailers: bytes) -> None:
        """Nothing follows; the stream is over once this has been sent."""
        if not stream.peer_ended:
            # Its receiver wants nothing more. What comes until the peer has noticed is let go.
            stream.receiver = None
        self.sender.end(stream, trailers)

    def _on_sent(self, stream: Stream) -> None:
        del self.streams[stream.number]
        stream.receiver = None
        if not stream.peer_ended:
            self._expect_more(stream)
            self.sender.write(frames.rst_stream(stream.number, ErrorCode.NO_ERROR))

    def go_away(self, last_stream: int, reason: str) -> None:
        """Take no streams above `last_stream`. Those that there are go on."""
        self.accepted_up_to = min(self.accepted_up_to, last_stream)
        self.sender.write(frames.goaway(self.accepted_up_to, ErrorCode.NO_ERROR, reason))

    def _last_looked_at(self) -> int:
        return min(self.last_stream, self.accepted_up_to)
