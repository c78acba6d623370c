"""A client that says what the steps of an input mean: calls as they should be, frames as they should not be."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fuzz_heads import PATHS, VARIATIONS, Variation, fields_of
from fuzz_steps import Step
from hpack import Encoder
from offramp_common.http2 import frames

# Of the flags of a step that says something. Some mean one thing for heads, and another one for messages.
END, IN_PARTS, PACKED, PADDED, PRIORITY, CUT, FIXED, RESIZED, PLAIN, BOMB, HOLD = 1, 2, 2, 4, 8, 8, 16, 32, 64, 64, 128

SIZES = (0, 1, 2, 5, 100, 1000, 2000, 9000, 16_000, 16_379, 16_380, 20_000, 33_000, 39_999, 40_000, 40_001)
MAX_MESSAGE_BYTES = 40_000
# What a message asks of its handler by its first byte (see `fuzz_services`).
BEHAVIOURS = b"eewwsfbdLmuh24ne"
_PADDING = 9
_KEYS = 4
_INCREMENTS = (0, 1, 100, 5000, 65_535, 10**6, 2**30, 2**31 - 1)
_SETTINGS = (
    (frames.INITIAL_WINDOW_SIZE, (0, 1, 100, 5000, 65_535, 10**6, 2**31 - 1, 2**31)),
    (frames.HEADER_TABLE_SIZE, (0, 100, 4095, 4096, 10**6)),
    (frames.MAX_FRAME_SIZE, (16_384, 2**24 - 1, 16_383, 2**24)),
    (frames.ENABLE_PUSH, (0, 1, 2)),
    (frames.MAX_CONCURRENT_STREAMS, (0, 100)),
    (frames.MAX_HEADER_LIST_SIZE, (0, 2**32 - 1)),
    (0x77, (0, 2**32 - 1)),
)
_MOST_REPEATED_BYTES = 60_000
_ONE_MESSAGE = ("swift", "task", "server")


class Server(Protocol):
    """What the client knows of the other side."""

    def told(self, said: bytes) -> None: ...

    def room(self, stream: int) -> int:
        """Bytes of DATA that its windows allow."""
        ...

    def asked_back(self) -> bytes:
        """What the next PING of the server's said that has not been answered; empty: there is none."""
        ...


@dataclass(slots=True)
class Asked:
    """A call as its client knows it."""

    number: int
    path: str
    variation: Variation
    # What its handler is to tell back.
    key: str
    began_at: float
    messages: list[bytes] = field(default_factory=list)
    # What the server's windows have no room for yet.
    unsaid: bytearray = field(default_factory=bytearray)
    # There is nothing more to say once that is out; and it is out.
    ending: bool = False
    ended: bool = False
    # Something was said of it that is not well-formed, or that takes it back.
    odd: bool = False


class Client:
    """Says bytes. What it says of a call keeps to the server's windows, unless a step is for breaking rules."""

    def __init__(self, server: Server, now: Callable[[], float]) -> None:
        self.asked: dict[int, Asked] = {}
        self._server = server
        self._now = now
        self._said: list[bytes] = []
        self._encoder = Encoder()
        self._last = -1
        # The server may not have understood something: nothing can be expected of what is asked from here on.
        self._out_of_step = False
        self._repeatable = b""
        self._repeatable_stream = 0

    def greet(self, with_windows: bool) -> bytes:
        self._say(frames.PREFACE)
        self._say(frames.settings(((frames.INITIAL_WINDOW_SIZE, 200_000),) if with_windows else ()))
        if with_windows:
            self._say(frames.window_update(0, 200_000))
        return self._take()

    def says(self, step: Step) -> bytes:
        """`step.operation` is below `SAYING`."""
        _OPERATIONS[step.operation](self, step)
        return self.pump()

    def pump(self) -> bytes:
        """What there is room for now."""
        for asked in self.asked.values():
            if asked.ending or asked.unsaid:
                self._pump(asked)
        return self._take()

    def say(self, frame: bytes) -> bytes:
        self._say(frame)
        return self._take()

    def _say(self, frame: bytes) -> None:
        self._server.told(frame)
        self._said.append(frame)

    def _take(self) -> bytes:
        said, self._said = b"".join(self._said), []
        return said

    @property
    def has_streams_left(self) -> bool:
        return self._last < frames.LAST_STREAM - 100

    def call_as_it_should_be(self, path: str, messages: list[bytes]) -> tuple[Asked, bytes]:
        """Whatever was before: its fields depend on no table."""
        number = self._last = self._last + 2
        asked = self.asked[number] = Asked(number, path, VARIATIONS[0], str(number), self._now(), messages)
        fields = [(name, value, True) for name, value in fields_of(path, VARIATIONS[0], asked.key)]
        self._say(b"".join(frames.headers(number, bytes(Encoder().encode(fields)), end_stream=False)))
        for message in messages:
            asked.unsaid += bytes(1) + len(message).to_bytes(4) + message
        asked.ending = True
        return asked, self.pump()

    # Calls

    def _stream(self, step: Step) -> int:
        """Mostly one that was begun, counted from the newest."""
        if step.stream >= 248 or not self.asked:
            last = max(self._last, 1)
            return (0, 2, last + 2, last + 100, frames.LAST_STREAM, 1, 3, last)[step.stream % 8]
        begun = list(self.asked)
        return begun[-1 - step.stream % min(len(begun), 8)]

    def _spoil(self, number: int) -> None:
        if number in self.asked:
            asked = self.asked[number]
            asked.odd = True
            asked.unsaid.clear()

    def _spoil_all(self) -> None:
        self._out_of_step = True
        for number in self.asked:
            self._spoil(number)

    def _request(self, step: Step) -> None:
        if step.stream >= 192 and self.asked:
            self._trailers(step)
            return
        passed_over = step.stream % 8 if step.stream >= 128 else 0
        number = self._last + 2 + 2 * passed_over
        if number > frames.LAST_STREAM:
            return
        self._head(number, step.value, step.flags, step.blob)
        asked = self.asked[number]
        asked.ended = asked.ending = bool(step.flags & END)
        asked.odd |= asked.ended and asked.path in _ONE_MESSAGE

    def _call(self, step: Step) -> None:
        """All of it: `stream` is the size of its message, and the behaviour is in the blob."""
        number = self._last + 2
        if number > frames.LAST_STREAM:
            return
        self._head(number, step.value, step.flags & ~END, step.blob)
        behaviour = step.blob[0] if step.blob else 0
        self._say_message(self.asked[number], step.stream % 16 | behaviour % 16 << 4, END, b"")

    def _head(self, number: int, value: int, flags: int, blob: bytes) -> None:
        path, variation = PATHS[value % 8], VARIATIONS[value >> 3]
        if flags & RESIZED:
            self._encoder.header_table_size = min(4096, 32 * sum(blob[:1]))
        # Few keys, so that they are soon in the table, and the same bytes mean another one when that has changed.
        key = "" if flags & FIXED else str(number // 2 % _KEYS)
        asked = Asked(number, path, variation, key, self._now())
        asked.odd = variation.odd or self._out_of_step
        self.asked[number] = asked
        self._last = number
        self._say_fields(number, fields_of(path, variation, asked.key), flags)

    def _trailers(self, step: Step) -> None:
        number = self._stream(step)
        asked = self.asked.get(number)
        if asked is None or asked.ended or asked.unsaid or not step.flags & END:
            self._spoil(number)
        else:
            asked.ended = asked.ending = True
            asked.odd |= asked.path in _ONE_MESSAGE and len(asked.messages) != 1
        if number > self._last and number % 2:
            self._last = number
        self._say_fields(number, [("k", "trailing")], step.flags)

    def _say_fields(self, number: int, fields: list[tuple[str, str]], flags: int) -> None:
        block = bytes(self._encoder.encode(fields, huffman=not flags & PLAIN))
        self._repeatable = b""
        self._say(_headers(number, block, flags))

    def _message(self, step: Step) -> None:
        asked = self.asked.get(self._stream(step))
        if asked is not None and not asked.ending:
            self._say_message(asked, step.value, step.flags, step.blob)

    def _say_message(self, asked: Asked, value: int, flags: int, blob: bytes) -> None:
        size, packed = SIZES[value % 16], bool(flags & PACKED)
        message = (bytes((BEHAVIOURS[value >> 4],)) + blob).ljust(size, b"%d" % (asked.number % 10))[:size]
        body = message
        if packed:
            # Some stay large, since what is large is unpacked elsewhere.
            plain, level = (bytes(10**6), 1) if flags & BOMB else (message, 0 if flags & CUT else 1)
            body = _packed(plain, asked.variation.encoding, level)
            asked.odd |= asked.variation.encoding == "identity" or bool(flags & BOMB)
        asked.messages.append(message)
        asked.odd |= max(len(message), len(body)) > MAX_MESSAGE_BYTES
        asked.odd |= asked.path in _ONE_MESSAGE and len(asked.messages) > 1
        asked.unsaid += bytes((packed,)) + len(body).to_bytes(4) + body
        asked.ending = bool(flags & END)
        self._pump(asked, first=3 if flags & CUT else frames.FRAME_BYTES, padding=_PADDING if flags & PADDED else 0)

    def _pump(self, asked: Asked, first: int = frames.FRAME_BYTES, padding: int = 0) -> None:
        overhead = padding + 1 if padding else 0
        while asked.unsaid:
            room = min(self._server.room(asked.number), frames.FRAME_BYTES) - overhead
            size = min(len(asked.unsaid), first, room)
            if size <= 0:
                return
            self._say_data(asked.number, bytes(asked.unsaid[:size]), padding)
            del asked.unsaid[:size]
            first = frames.FRAME_BYTES
        if asked.ending and not asked.ended:
            asked.ended = True
            self._say(frames.header(frames.DATA, frames.END_STREAM, asked.number, 0))

    def _say_data(self, number: int, part: bytes, padding: int = 0, flags: int = 0) -> None:
        if padding:
            part, flags = bytes((padding,)) + part + bytes(padding), flags | frames.PADDED
        self._repeatable = frames.header(frames.DATA, flags, number, len(part)) + part
        self._repeatable_stream = number
        self._say(self._repeatable)

    # What is against the rules, or beside the point

    def _say_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        payload = payload[: frames.FRAME_BYTES]
        self._repeatable = frames.header(kind, flags, number, len(payload)) + payload
        self._repeatable_stream = number
        self._say(self._repeatable)

    def _data(self, step: Step) -> None:
        number = self._stream(step)
        self._spoil(number)
        payload = step.blob * (step.value * step.value if step.flags & FIXED else 1)
        self._say_frame(frames.DATA, step.flags & (END | frames.PADDED), number, payload)

    def _declared(self, step: Step) -> None:
        number = self._stream(step)
        self._spoil(number)
        length = step.value << (step.flags & 7) * 3
        payload = bytes((step.flags >> 3 & 3,)) + (length % 2**32).to_bytes(4) + step.blob
        self._say_frame(frames.DATA, 0, number, payload)

    def _reset(self, step: Step) -> None:
        number = self._stream(step)
        self._spoil(number)
        self._say_frame(frames.RST_STREAM, 0, number, step.value.to_bytes(4))

    def _widen(self, step: Step) -> None:
        number = self._stream(step)
        increment = _INCREMENTS[step.value % len(_INCREMENTS)]
        if not increment or increment >= 2**30:
            self._spoil(number)
        self._say_frame(frames.WINDOW_UPDATE, 0, number, increment.to_bytes(4))

    def _widen_all(self, step: Step) -> None:
        # The larger ones only if a bit says so: they mostly end the connection, and with it what could be found.
        increment = _INCREMENTS[step.value % (len(_INCREMENTS) if step.flags & FIXED else 6)] or 1
        self._say_frame(frames.WINDOW_UPDATE, 0, 0, increment.to_bytes(4))

    def _ping(self, step: Step) -> None:
        opaque = self._server.asked_back() if step.flags & END else b""
        self._say_frame(frames.PING, step.flags & frames.ACK, 0, opaque or step.blob[:8].ljust(8, b"."))

    def _settings(self, step: Step) -> None:
        name, values = _SETTINGS[step.value % len(_SETTINGS)]
        pairs = [(name, values[step.stream % len(values)])]
        pairs += [(frames.INITIAL_WINDOW_SIZE, sum(step.blob) * 100)] if step.blob else []
        self._say_frame(frames.SETTINGS, 0, 0, b"".join(struct.pack(">HL", *pair) for pair in pairs))

    def _acknowledge(self, step: Step) -> None:
        self._say_frame(frames.SETTINGS, frames.ACK, 0, b"")

    def _go_away(self, step: Step) -> None:
        self._say_frame(frames.GOAWAY, 0, 0, bytes(8) + step.blob)

    def _prioritise(self, step: Step) -> None:
        self._say_frame(frames.PRIORITY, 0, self._stream(step), step.blob[:5].ljust(5, b"\0"))

    def _unknown(self, step: Step) -> None:
        self._say_frame(10 + step.value % 246, step.flags, self._stream(step), step.blob)

    def _frame(self, step: Step) -> None:
        """Anything of the protocol's kinds."""
        number = self._stream(step)
        if step.value % 10 in (frames.HEADERS, frames.CONTINUATION):
            self._out_of_step = True
        if step.value % 10 == frames.HEADERS and number % 2 and self._last < number < frames.LAST_STREAM:
            self._last = number
        self._spoil(number)
        self._say_frame(step.value % 10, step.flags & 0x7F, number, step.blob)
        if step.value % 10 in (frames.HEADERS, frames.CONTINUATION):
            self._repeatable = b""

    def _bytes(self, step: Step) -> None:
        self._spoil_all()
        self._say(step.blob)

    def _again(self, step: Step) -> None:
        """What was said last, many times."""
        if self._repeatable:
            self._spoil(self._repeatable_stream)
            times = min(step.value * (4 if step.flags & FIXED else 1), _MOST_REPEATED_BYTES // len(self._repeatable))
            for _ in range(times):
                self._say(self._repeatable)


_Operation = Callable[[Client, Step], None]
_OPERATIONS: tuple[_Operation, ...] = (
    Client._request,
    Client._message,
    Client._call,
    Client._call,
    Client._data,
    Client._declared,
    Client._reset,
    Client._widen,
    Client._widen_all,
    Client._ping,
    Client._settings,
    Client._acknowledge,
    Client._go_away,
    Client._prioritise,
    Client._unknown,
    Client._frame,
    Client._bytes,
    Client._again,
)
SAYING = len(_OPERATIONS)


def _headers(number: int, block: bytes, flags: int) -> bytes:
    """`flags` are a step's."""
    before = b"\x80\0\0\1\7" if flags & PRIORITY else b""
    padding = _PADDING if flags & PADDED else 0
    on_wire = (END if flags & END else 0) | (frames.WITH_PRIORITY if before else 0) | (frames.PADDED if padding else 0)
    first, rest = (block[:5], block[5:]) if flags & IN_PARTS else (block, b"")
    payload = (bytes((padding,)) if padding else b"") + before + first + bytes(padding)
    if not flags & IN_PARTS:
        return frames.header(frames.HEADERS, on_wire | frames.END_HEADERS, number, len(payload)) + payload
    last = frames.header(frames.CONTINUATION, frames.END_HEADERS, number, len(rest)) + rest
    return frames.header(frames.HEADERS, on_wire, number, len(payload)) + payload + last


def _packed(message: bytes, encoding: str, level: int) -> bytes:
    squeeze = zlib.compressobj(level, wbits=31 if encoding == "gzip" else 15)
    return squeeze.compress(message) + squeeze.flush()
