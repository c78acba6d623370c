"""A client of the engine that says what it is told to, frame by frame, and reads what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hpack import Decoder, Encoder
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from offramp_common.http2.hpack import Field, HuffmanCodes
from offramp_common.http2.limits import Http2Limits
from offramp_common.http2.server import ServerEngine
from offramp_common.http2.stream import Payload, Stream

REQUEST = ((":method", "POST"), (":scheme", "http"), (":path", "/a/b"), ("content-type", "application/grpc"))


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def error(self) -> ErrorCode:
        """Of RST_STREAM and GOAWAY."""
        return ErrorCode(int.from_bytes(self.payload[-4:] if self.kind == frames.RST_STREAM else self.payload[4:8]))


def read_frames(data: bytes) -> Iterator[Frame]:
    while data:
        high, low, kind, flags, stream = frames.HEADER.unpack_from(data)
        end = frames.HEADER_BYTES + (high << 16 | low)
        yield Frame(kind, flags, stream, data[frames.HEADER_BYTES : end])
        data = data[end:]


@dataclass
class Taken:
    """A receiver that keeps what it gets."""

    engine: ServerEngine[tuple[Field, ...]]
    stream: Stream
    head: tuple[Field, ...]
    # Give back what was taken.
    credits: bool = True
    data: bytes = b""
    ended: bool = False
    reset: bool = False

    def on_data(self, data: Payload, ended: bool) -> None:
        self.data += data
        self.ended = ended
        if self.credits:
            self.engine.credit(self.stream, len(data))

    def on_reset(self, code: int) -> None:
        self.reset = True

    def on_room(self) -> None: ...


@dataclass
class Peer:
    """An engine and the client that drives it. The clock stands still unless `now` is set."""

    limits: Http2Limits = field(default_factory=Http2Limits)
    credits: bool = True
    now: float = 0.0
    taken: dict[int, Taken] = field(default_factory=dict)
    oversized: list[Stream] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    refuse: Callable[[Stream], None] | None = None

    def __post_init__(self) -> None:
        self.engine: ServerEngine[tuple[Field, ...]] = ServerEngine(
            self, tuple, self.limits, HuffmanCodes(), lambda: None, lambda: self.now
        )
        self.encoder, self.decoder = Encoder(), Decoder()
        # A connection's window is not restored by itself.
        self.sent: list[Frame] = []

    # Listener

    def on_stream(self, stream: Stream, head: tuple[Field, ...]) -> Taken:
        if self.refuse is not None:
            self.refuse(stream)
        self.taken[stream.number] = taken = Taken(self.engine, stream, head, self.credits)
        return taken

    def on_oversized(self, stream: Stream) -> None:
        self.oversized.append(stream)

    def on_ping_answered(self, opaque: bytes) -> None:
        self.pings.append(opaque)

    # The client

    def say(self, *parts: bytes) -> list[Frame]:
        """What comes back. Raises ConnectionFailed."""
        try:
            self.engine.receive(b"".join(parts))
        finally:
            self.sent = self.hear()
        return self.sent

    def hear(self) -> list[Frame]:
        return list(read_frames(b"".join(bytes(part) for part in self.engine.sender.take_output())))

    def greet(self, *settings: tuple[int, int]) -> list[Frame]:
        return self.say(frames.PREFACE, frames.settings(settings))

    def request(self, number: int, *more: tuple[str, str], ended: bool = False) -> bytes:
        return b"".join(frames.headers(number, self.block(*REQUEST, *more), ended))

    def block(self, *fields: tuple[str, str]) -> bytes:
        return bytes(self.encoder.encode(fields))

    def fields(self, frame: Frame) -> list[tuple[str, str]]:
        return [(str(name), str(value)) for name, value in self.decoder.decode(frame.payload)]


def data(number: int, payload: bytes, ended: bool = False) -> bytes:
    return frames.header(frames.DATA, frames.END_STREAM if ended else 0, number, len(payload)) + payload


def kinds(sent: list[Frame]) -> list[int]:
    return [frame.kind for frame in sent]
