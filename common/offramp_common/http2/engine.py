"""What both ends of an HTTP/2 connection (RFC 9113) do, without I/O: bytes in, calls of a listener and bytes out.

The ends themselves are in `server.py` and `client.py`. The owner feeds `receive`, sends what is in `out`, and is told
by `on_output` when there is something to send that no `receive` will be followed by. Time is only asked for where a
peer is a nuisance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from offramp_common.http2 import frames
from offramp_common.http2.errors import ConnectionFailed, ErrorCode, StreamFailed
from offramp_common.http2.head_cache import HeadCache
from offramp_common.http2.hpack import (
    DEFAULT_TABLE_BYTES,
    Field,
    HeaderDecoder,
    HpackError,
    HuffmanCodes,
    table_size,
)
from offramp_common.http2.limits import Http2Limits, Patience
from offramp_common.http2.sending import Sender
from offramp_common.http2.stream import Payload, Stream

# Below this a copy costs less than a view.
_SMALL = 4096
# Streams that ended here first, of which data may be under way.
_KEPT_ENDED = 256
# There are six; who sends more wants something else.
_MOST_SETTINGS = 32
_PRIORITY_BYTES = 5
# So much of a head beyond the limit weighs as much as a frame that means nothing.
_NUISANCE_BYTES = 1024

H = TypeVar("H")


class Engine(ABC, Generic[H]):
    """One connection. Its methods are called on one thread."""

    def __init__(
        self,
        peers_preface: bytes,
        read_head: Callable[[list[Field]], H],
        limits: Http2Limits,
        codes: HuffmanCodes,
        on_output: Callable[[], None],
        on_ping_answered: Callable[[bytes], None],
        now: Callable[[], float],
    ) -> None:
        """`read_head` makes of a block of fields whatever the listener wants, and may be asked once for several blocks
        of the same bytes. It raises StreamFailed for what HTTP/2 does not allow. `peers_preface` comes before its first
        frame."""
        self.sender = Sender(on_output, self._on_sent)
        self.streams: dict[int, Stream] = {}
        # The peer's settings have come.
        self.greeted = False
        # Of the highest stream that was begun.
        self.last_stream = 0
        self._read_head = read_head
        self._on_ping_answered = on_ping_answered
        self._limits = limits
        self._decoder = HeaderDecoder(codes, limits.max_header_list_bytes)
        self._heads = HeadCache[H]()
        self._patience = Patience(limits.nuisances_at_once, limits.nuisances_per_second, now)
        self._now = now
        # What may still come of streams that ended here before the peer had ended them. In bytes, by number.
        self._ended: dict[int, int] = {}
        # What is missing of the preface, then the frame that was cut off by the end of what came.
        self._preface = peers_preface
        self._rest = bytearray()
        # A block that CONTINUATION goes on with: stream, whether that ends, and what there is.
        self._unfinished: tuple[int, bool, bytearray] | None = None
        self._receive_window = limits.connection_window
        self._credit = 0
        self._handlers: dict[int, Callable[[int, int, Payload], None]] = {
            frames.DATA: self._on_data,
            frames.HEADERS: self._on_headers,
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_rst_stream,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push_promise,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
            frames.CONTINUATION: self._on_continuation,
        }

    def _greet(self, *settings: tuple[int, int]) -> None:
        """`settings` are those that only this end has."""
        limits = self._limits
        of_both = (
            (frames.INITIAL_WINDOW_SIZE, limits.stream_window),
            (frames.MAX_HEADER_LIST_SIZE, limits.max_header_list_bytes),
        )
        self.sender.write(frames.settings((*settings, *of_both)))
        self.sender.write(frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW))

    # What comes

    def receive(self, data: bytes) -> None:
        """Raises ConnectionFailed when the connection is over; GOAWAY is in `out` then."""
        try:
            self._receive(data)
        except ConnectionFailed as failure:
            self.fail(failure)
            raise

    def fail(self, failure: ConnectionFailed) -> None:
        self.sender.write(frames.goaway(self._last_looked_at(), failure.code, failure.reason))

    def _last_looked_at(self) -> int:
        """Of the peer's streams; what is above it may be asked for again elsewhere."""
        return self.last_stream

    def _receive(self, data: bytes) -> None:
        position = self._after_preface(data) if self._preface else 0
        if self._rest:
            position = self._finish_rest(data, position)
        unpack, size, handlers = frames.HEADER.unpack_from, len(data), self._handlers
        while size - position >= frames.HEADER_BYTES:
            high, low, kind, flags, number = unpack(data, position)
            length = high << 16 | low
            if length > frames.FRAME_BYTES:
                raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = position + frames.HEADER_BYTES
            if start + length > size:
                break
            position = start + length
            payload = data[start:position] if length < _SMALL else memoryview(data)[start:position]
            self._on_frame(handlers, kind, flags, number & frames.LAST_STREAM, payload)
        if position < size:
            self._rest += memoryview(data)[position:]

    def _after_preface(self, data: bytes) -> int:
        expected = self._preface[: len(data)]
        if not data.startswith(expected):
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        self._preface = self._preface[len(expected) :]
        if not self._preface:
            self._on_preface()
        return len(expected)

    def _on_preface(self) -> None:
        """All of it has come."""

    def _finish_rest(self, data: bytes, position: int) -> int:
        """Complete the frame that was cut off, as far as `data` goes; where it ends there."""
        rest = self._rest
        if len(rest) < frames.HEADER_BYTES:
            wanted = frames.HEADER_BYTES - len(rest)
            rest += data[position : position + wanted]
            position = min(position + wanted, len(data))
            if len(rest) < frames.HEADER_BYTES:
                return position
        high, low, kind, flags, number = frames.HEADER.unpack_from(rest)
        length: int = high << 16 | low
        if length > frames.FRAME_BYTES:
            raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        wanted = frames.HEADER_BYTES + length - len(rest)
        rest += memoryview(data)[position : position + wanted]
        if len(rest) < frames.HEADER_BYTES + length:
            return len(data)
        self._rest = bytearray()
        payload = bytes(memoryview(rest)[frames.HEADER_BYTES :])
        self._on_frame(self._handlers, kind, flags, number & frames.LAST_STREAM, payload)
        return position + wanted

    def _on_frame(
        self,
        handlers: dict[int, Callable[[int, int, Payload], None]],
        kind: int,
        flags: int,
        number: int,
        payload: Payload,
    ) -> None:
        if self._unfinished is not None and (kind != frames.CONTINUATION or number != self._unfinished[0]):
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a frame within a block of fields")
        if not self.greeted and kind != frames.SETTINGS:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        handler = handlers.get(kind)
        if handler is None:
            self._patience.spend("frames of unknown types")
            return
        try:
            handler(flags, number, payload)
        except StreamFailed as failure:
            # A peer may provoke resets by breaking rules as well as send them.
            self._patience.spend("broken streams")
            self.reset(number, failure.code)

    # Blocks of fields

    def _on_headers(self, flags: int, number: int, payload: Payload) -> None:
        block = _unpadded(flags, payload)
        if flags & frames.WITH_PRIORITY:
            if len(block) < _PRIORITY_BYTES:
                raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without the priority that they announce")
            block = block[_PRIORITY_BYTES:]
        if not number % 2:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"HEADERS for the stream {number}")
        ended = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(number, bytes(block), ended)
        else:
            self._unfinished = number, ended, bytearray(block)

    def _on_continuation(self, flags: int, number: int, payload: Payload) -> None:
        if self._unfinished is None:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._patience.spend("CONTINUATION frames")
        _, ended, block = self._unfinished
        block += payload
        if len(block) > self._limits.max_block_bytes:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, "too large a block of fields")
        if flags & frames.END_HEADERS:
            self._unfinished = None
            self._on_block(number, bytes(block), ended)

    @abstractmethod
    def _on_block(self, number: int, block: bytes, ended: bool) -> None:
        """A whole one has come. It is to be decoded in any case, for the sake of the table."""

    def _decoded(self, block: bytes) -> list[Field] | None:
        try:
            fields = self._decoder.decode(block)
        except HpackError as error:
            raise ConnectionFailed(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        if fields is None:
            # A byte of a block may stand for a field, and fields are what decoding costs.
            self._patience.spend("fields", 1 + self._decoder.excess // _NUISANCE_BYTES)
        return fields

    # Data

    def _on_data(self, flags: int, number: int, payload: Payload) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFailed(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window")
        data = _unpadded(flags, payload)
        # At once: what is held of a message is bounded by its stream's window, and by the listener.
        self._credit_connection(size)
        stream = self.streams.get(number)
        if stream is None or stream.peer_ended:
            self._on_stray_data(number, stream, size)
            return
        stream.receive_window -= size
        stream.moved += size
        if stream.receive_window < 0:
            raise StreamFailed(ErrorCode.FLOW_CONTROL_ERROR, "more than the stream's window")
        ended = bool(flags & frames.END_STREAM)
        if not data and not ended:
            self._patience.spend("empty DATA frames")
        self.credit(stream, size - len(data))
        self._take(stream, data, ended)

    def _on_stray_data(self, number: int, stream: Stream | None, size: int) -> None:
        if number > self.last_stream or not number:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"DATA for the stream {number}, which is idle")
        if stream is not None:
            raise StreamFailed(ErrorCode.STREAM_CLOSED, "DATA after the end of the stream")
        # Under way when the stream was reset or answered. Beyond a window of it, it is no accident.
        left = self._ended.get(number, 0) - size
        if left >= 0 and size:
            self._ended[number] = left
        else:
            self._patience.spend("DATA for streams that are over")

    def _take(self, stream: Stream, data: Payload, ended: bool) -> None:
        stream.peer_ended = ended
        if stream.receiver is not None:
            stream.receiver.on_data(data, ended)
        else:
            self.credit(stream, len(data))

    def _on_rst_stream(self, flags: int, number: int, payload: Payload) -> None:
        _demand_size(payload, 4, "RST_STREAM")
        if number > self.last_stream or not number:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM for the stream {number}, which is idle")
        self._weigh_reset(self.streams.get(number))
        self._drop(number, frames.U32.unpack(payload)[0])

    @abstractmethod
    def _weigh_reset(self, stream: Stream | None) -> None:
        """The peer resets one that there is, or was. Raises ConnectionFailed if that is too much."""

    def _drop(self, number: int, code: int) -> None:
        stream = self.streams.pop(number, None)
        if stream is not None:
            self.sender.forget(stream)
            # Stream and receiver know each other; without this only the garbage collector would free them.
            receiver, stream.receiver = stream.receiver, None
            if receiver is not None:
                receiver.on_reset(code)

    # The connection

    def _on_settings(self, flags: int, number: int, payload: Payload) -> None:
        if number:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "SETTINGS for a stream")
        if flags & frames.ACK:
            _demand_size(payload, 0, "SETTINGS that acknowledge")
            return
        if len(payload) % 6:
            raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        if len(payload) > 6 * _MOST_SETTINGS:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, f"SETTINGS of {len(payload)} bytes")
        if self.greeted:
            self._patience.spend("SETTINGS")
        self.greeted = True
        settings = list(frames.read_settings(bytes(payload)))
        if any(name == frames.HEADER_TABLE_SIZE and value < DEFAULT_TABLE_BYTES for name, value in settings):
            # Nothing of ours is ever in it, so none will do, whatever sizes there were in between.
            self.sender.before_next_block = table_size(0)
        # Of a name that comes twice, the last one counts.
        for name, value in dict(settings).items():
            self._set(name, value)
        self.sender.write(frames.SETTINGS_ACK)

    def _set(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.LARGEST_WINDOW:
                raise ConnectionFailed(ErrorCode.FLOW_CONTROL_ERROR, f"an initial window of {value}")
            self.sender.set_initial_window(value, self.streams.values())
        elif name == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
        elif name == frames.MAX_FRAME_SIZE and not frames.FRAME_BYTES <= value < 2**24:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")

    def _on_ping(self, flags: int, number: int, payload: Payload) -> None:
        _demand_size(payload, 8, "PING")
        if number:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "PING for a stream")
        if flags & frames.ACK:
            self._on_ping_answered(bytes(payload))
        else:
            self.sender.write(frames.ping(bytes(payload), ack=True))

    def _on_window_update(self, flags: int, number: int, payload: Payload) -> None:
        _demand_size(payload, 4, "WINDOW_UPDATE")
        increment = frames.U32.unpack(payload)[0] & frames.LARGEST_WINDOW
        if not number:
            self.sender.widen(increment)
            return
        if number > self.last_stream:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE for the stream {number}, which is idle")
        stream = self.streams.get(number)
        # For one that is over it was under way.
        if stream is not None:
            self.sender.widen_stream(stream, increment)

    def _on_priority(self, flags: int, number: int, payload: Payload) -> None:
        _demand_size(payload, _PRIORITY_BYTES, "PRIORITY")
        self._patience.spend("PRIORITY frames")

    def _on_push_promise(self, flags: int, number: int, payload: Payload) -> None:
        """From a client never, and from a server only to who has not said that it wants none."""
        raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")

    @abstractmethod
    def _on_goaway(self, flags: int, number: int, payload: Payload) -> None: ...

    # What goes

    def credit(self, stream: Stream, taken: int) -> None:
        """So many bytes of the stream are not held any more."""
        stream.credit += taken
        if stream.credit * 2 >= self._limits.stream_window and not stream.peer_ended:
            self.sender.write(frames.window_update(stream.number, stream.credit))
            stream.receive_window += stream.credit
            stream.credit = 0

    def _credit_connection(self, taken: int) -> None:
        self._credit += taken
        if self._credit * 2 >= self._limits.connection_window:
            self.sender.write(frames.window_update(0, self._credit))
            self._receive_window += self._credit
            self._credit = 0

    def send(self, stream: Stream, payload: Payload) -> None:
        self.sender.data(stream, payload)

    @abstractmethod
    def _on_sent(self, stream: Stream) -> None:
        """Nothing more of it waits to be sent, or will."""

    def _expect_more(self, stream: Stream) -> None:
        if len(self._ended) >= _KEPT_ENDED:
            del self._ended[next(iter(self._ended))]
        self._ended[stream.number] = stream.receive_window

    def reward(self) -> None:
        """A call was worth it."""
        self._patience.restore()

    def reset(self, number: int, code: ErrorCode) -> None:
        stream = self.streams.get(number)
        if stream is not None and not stream.peer_ended:
            self._expect_more(stream)
        self.sender.write(frames.rst_stream(number, code))
        self._drop(number, code)

    def close(self) -> None:
        """The connection is gone."""
        for number in list(self.streams):
            self._drop(number, ErrorCode.CANCEL)
        self._heads.clear()
        self._rest = bytearray()
        self._unfinished = None
        self.sender.take_output()


def _unpadded(flags: int, payload: Payload) -> Payload:
    if not flags & frames.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "more padding than there is payload")
    return payload[1 : len(payload) - payload[0]]


def _demand_size(payload: Payload, size: int, what: str) -> None:
    if len(payload) != size:
        raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes instead of {size}")
