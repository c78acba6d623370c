"""What a strict client makes of what a server says: whatever the protocol or an announced limit forbids is a failure.

It also reads what the client says, since that is what makes an answer right or wrong.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn

from hpack import Decoder
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from offramp_common.http2.limits import Http2Limits

_HTTP1 = b"HTTP/1.1 400 "
_SIZES = MappingProxyType({frames.RST_STREAM: 4, frames.PING: 8, frames.WINDOW_UPDATE: 4, frames.PRIORITY: 5})
_PADDED = (frames.DATA, frames.HEADERS)
_NOTHING: frozenset[int] = frozenset()


@dataclass(slots=True)
class Heard:
    """A stream."""

    # Bytes of DATA: what the server may send of it at most, and what it said that it takes.
    most: int
    room: int
    head: dict[str, str] | None = None
    trailers: dict[str, str] | None = None
    body: bytearray = field(default_factory=bytearray)
    # The code of RST_STREAM.
    reset: int | None = None

    @property
    def is_over(self) -> bool:
        return self.trailers is not None or self.reset is not None

    @property
    def status(self) -> int | None:
        return None if self.trailers is None else int(self.trailers.get("grpc-status", "-1"))


class Ear:
    """`told` gets what the client says, in order; `hear` what the server does. Raises AssertionError."""

    def __init__(self, limits: Http2Limits) -> None:
        self.streams: dict[int, Heard] = {}
        # The code of the GOAWAY that ends the connection.
        self.failed: int | None = None
        # The client has said a frame after which there must be one.
        self.unbearable = ""
        self.most = frames.DEFAULT_WINDOW
        self.connection_room = frames.DEFAULT_WINDOW
        self._limits = limits
        self._decoder = Decoder()
        # Bytes of a frame that is not complete, of the client's and of the server's.
        self._told, self._heard = bytearray(), bytearray()
        self._preface = frames.PREFACE
        self._spoke_first = False
        # Of a block that is not complete: its stream, flags and bytes.
        self._block: tuple[int, int, bytes] | None = None
        # In which stream the client's block goes on.
        self._told_block: int | None = None
        self._last = 0
        self._initial = frames.DEFAULT_WINDOW
        # Of SETTINGS that have not been acknowledged: by how much which windows shrink, and the table's size.
        self._unacknowledged: deque[tuple[int, frozenset[int], int | None]] = deque()
        self._unanswered: deque[bytes] = deque()
        self._asked_back: deque[bytes] = deque()
        self.accepted_up_to = frames.LAST_STREAM

    # What the client says

    def told(self, said: bytes) -> None:
        self._told += said
        if self._preface:
            size = min(len(self._preface), len(self._told))
            if self._told[:size] != self._preface[:size]:
                return
            del self._told[:size]
            self._preface = self._preface[size:]
        at = 0
        while len(self._told) - at >= frames.HEADER_BYTES:
            high, low, kind, flags, number = frames.HEADER.unpack_from(self._told, at)
            end = at + frames.HEADER_BYTES + (high << 16 | low)
            if end > len(self._told):
                break
            self._on_told(kind, flags, number & frames.LAST_STREAM, bytes(self._told[at + frames.HEADER_BYTES : end]))
            at = end
        del self._told[:at]

    def rest(self) -> bytes:
        """What completes the frame, and the block, that the client has begun."""
        missing = b""
        if self._preface or not self._told:
            pass
        else:
            missing = bytes(max(0, frames.HEADER_BYTES - len(self._told)))
            high, low, *_ = frames.HEADER.unpack_from(self._told + missing)
            missing += bytes(frames.HEADER_BYTES + (high << 16 | low) - len(self._told) - len(missing))
        self.told(missing)
        if self._told_block is not None:
            more = frames.header(frames.CONTINUATION, frames.END_HEADERS, self._told_block, 0)
            self.told(more)
            missing += more
        return missing

    def room(self, stream: int) -> int:
        heard = self.streams.get(stream)
        return min(self.connection_room, heard.room) if heard is not None else 0

    def asked_back(self) -> bytes:
        return self._asked_back.popleft() if self._asked_back else b""

    def _on_told(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        self.unbearable = self.unbearable or _unbearable(kind, flags, number, payload)
        if kind in (frames.HEADERS, frames.CONTINUATION):
            self._told_block = None if flags & frames.END_HEADERS else number
        if kind == frames.HEADERS and number % 2 and number > self._last:
            self._last = number
            self.streams[number] = Heard(self._initial, self._limits.stream_window)
        elif kind == frames.DATA:
            self.connection_room -= len(payload)
            if number in self.streams:
                self.streams[number].room -= len(payload)
        elif kind == frames.WINDOW_UPDATE and len(payload) == 4:
            self._on_told_window(number, int.from_bytes(payload) & frames.LARGEST_WINDOW)
        elif kind == frames.SETTINGS and not flags & frames.ACK and len(payload) % 6 == 0:
            self._on_told_settings(dict(frames.read_settings(payload)))
        elif kind == frames.PING and not flags & frames.ACK:
            self._unanswered.append(payload)

    def _on_told_window(self, number: int, increment: int) -> None:
        if not number:
            self.most += increment
        elif number in self.streams:
            self.streams[number].most += increment

    def _on_told_settings(self, settings: dict[int, int]) -> None:
        """A window that grows does so at once, and one that shrinks when the server says that it knows."""
        change = settings.get(frames.INITIAL_WINDOW_SIZE, self._initial) - self._initial
        self._initial += change
        if change > 0:
            for heard in self.streams.values():
                heard.most += change
        shrinking = frozenset(self.streams) if change < 0 else _NOTHING
        self._unacknowledged.append((change, shrinking, settings.get(frames.HEADER_TABLE_SIZE)))

    # What the server says

    def hear(self, said: bytes) -> None:
        if not said:
            return
        self._heard += said
        if not self._spoke_first and self._heard.startswith(_HTTP1):
            assert self._preface, "an answer of HTTP/1.1 to HTTP/2"
            return
        at = 0
        while len(self._heard) - at >= frames.HEADER_BYTES:
            high, low, kind, flags, number = frames.HEADER.unpack_from(self._heard, at)
            length = high << 16 | low
            assert length <= frames.FRAME_BYTES, f"a frame of {length} bytes"
            end = at + frames.HEADER_BYTES + length
            if end > len(self._heard):
                break
            self._on_frame(kind, flags, number, bytes(self._heard[at + frames.HEADER_BYTES : end]))
            at = end
        del self._heard[:at]

    def is_between_frames(self) -> bool:
        return not self._heard

    def _on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        assert self.failed is None, "something after the end of the connection"
        assert self._spoke_first or kind in (frames.SETTINGS, frames.GOAWAY), "something before SETTINGS"
        self._spoke_first = True
        assert self._block is None or (kind == frames.CONTINUATION and number == self._block[0]), "a torn block"
        handlers = {
            frames.DATA: self._on_data,
            frames.HEADERS: self._on_headers,
            frames.CONTINUATION: self._on_continuation,
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window,
        }
        handlers.get(kind, self._on_other)(flags, number, payload)

    def _on_other(self, flags: int, number: int, payload: bytes) -> NoReturn:
        raise AssertionError("a frame of a kind that a server does not send")

    def _open(self, number: int) -> Heard:
        assert number in self.streams, f"something of the stream {number}, which nobody began"
        heard = self.streams[number]
        assert not heard.is_over, f"something of the stream {number}, which is over"
        return heard

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        heard = self._open(number)
        assert heard.head is not None, "DATA before the head"
        assert not flags, "flags of DATA"
        heard.most -= len(payload)
        self.most -= len(payload)
        assert heard.most >= 0, "more than the stream's window"
        assert self.most >= 0, "more than the connection's window"
        heard.body += payload

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        assert not flags & ~(frames.END_STREAM | frames.END_HEADERS)
        self._block = number, flags, b""
        self._on_continuation(flags, number, payload)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        assert self._block is not None, "CONTINUATION of nothing"
        _, first, block = self._block
        self._block = number, first, block + payload
        if not flags & frames.END_HEADERS:
            return
        self._block = None
        heard = self._open(number)
        fields = [(str(name), str(value)) for name, value in self._decoder.decode(block + payload)]
        names = [name for name, _ in fields]
        assert names.count(":status") == (heard.head is None), "a status in the wrong place"
        assert not first & frames.END_STREAM or names.count("grpc-status") <= 1
        if heard.head is None:
            heard.head = dict(fields)
        else:
            assert first & frames.END_STREAM, "a third block of fields"
        if first & frames.END_STREAM:
            heard.trailers = dict(fields)

    def _on_reset(self, flags: int, number: int, payload: bytes) -> None:
        assert number in self.streams, f"a reset of the stream {number}, which nobody began"
        heard = self.streams[number]
        code = int.from_bytes(payload)
        assert heard.reset is None, "a stream is reset twice"
        # Without an error: the answer is complete, and the client need not go on.
        assert (heard.trailers is not None) == (code == ErrorCode.NO_ERROR), f"a reset with {code}"
        heard.reset = code

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            said = dict(frames.read_settings(payload))
            assert said[frames.INITIAL_WINDOW_SIZE] == self._limits.stream_window
            return
        assert self._unacknowledged, "SETTINGS are acknowledged that nobody said"
        change, shrinking, table = self._unacknowledged.popleft()
        for number in shrinking:
            self.streams[number].most += change
        if table is not None:
            self._decoder.max_allowed_table_size = table

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self._asked_back.append(payload)
            return
        assert self._unanswered, "an answer to a PING that nobody said"
        assert payload == self._unanswered.popleft(), "answers to PING in another order"

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:
        last, code = int.from_bytes(payload[:4]), int.from_bytes(payload[4:8])
        if code:
            self.failed = code
        else:
            assert last <= self.accepted_up_to, "a stream is accepted that was not"
            self.accepted_up_to = last

    def _on_window(self, flags: int, number: int, payload: bytes) -> None:
        increment = int.from_bytes(payload)
        assert increment, "a window is widened by nothing"
        if not number:
            self.connection_room += increment
            assert self.connection_room <= self._limits.connection_window, "the connection's window is too wide"
            return
        heard = self._open(number)
        heard.room += increment
        assert heard.room <= self._limits.stream_window, "a stream's window is too wide"


def _unbearable(kind: int, flags: int, number: int, payload: bytes) -> str:
    """Why a frame ends the connection whatever was before it (RFC 9113, section 6)."""
    size = _SIZES.get(kind)
    if size is not None and len(payload) != size:
        return f"{len(payload)} bytes of the kind {kind}"
    if kind in _PADDED and flags & frames.PADDED and (not payload or payload[0] >= len(payload)):
        return "more padding than payload"
    if kind in (frames.PING, frames.SETTINGS) and number:
        return "a stream's, where only the connection has one"
    if kind in (*_PADDED, frames.RST_STREAM) and not number:
        return "the connection's, where only streams have one"
    if kind == frames.HEADERS and not number % 2:
        return "a stream of the server's"
    if kind == frames.SETTINGS and (len(payload) % 6 or (flags & frames.ACK and payload)):
        return "SETTINGS of a wrong size"
    return "PUSH_PROMISE" if kind == frames.PUSH_PROMISE else ""


def messages_of(heard: Heard) -> list[bytes]:
    """Raises AssertionError if the stream does not end with a message."""
    body, found = bytes(heard.body), []
    while body:
        assert len(body) >= 5, "an answer ends within a prefix"
        flag, size = body[0], int.from_bytes(body[1:5])
        assert len(body) >= 5 + size, "an answer ends within a message"
        message, body = body[5 : 5 + size], body[5 + size :]
        if flag:
            encoding = (heard.head or {}).get("grpc-encoding")
            assert encoding in ("gzip", "deflate"), "a compressed answer, and nothing that says how"
            message = zlib.decompress(message, 31 if encoding == "gzip" else 15)
        found.append(message)
    return found
