"""A server of the client's engine that says what it is told to, frame by frame, and reads what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpack import Decoder, Encoder
from http2_peer import Frame, read_frames
from offramp_common.http2 import frames
from offramp_common.http2.client import ClientEngine
from offramp_common.http2.hpack import Field, HuffmanCodes, literal
from offramp_common.http2.limits import Http2Limits
from offramp_common.http2.stream import Payload, Stream

REQUEST = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b":authority", b"models.example"))
BLOCK = b"".join(literal(name, value) for name, value in REQUEST)
OK = ((":status", "200"),)


@dataclass
class Waiting:
    """Waits for an answer, and keeps what it gets."""

    engine: ClientEngine[tuple[Field, ...]]
    # Give back what was taken.
    credits: bool = True
    fields: list[tuple[Field, ...]] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None
    rooms: int = 0

    def begin(self, *payload: bytes) -> Stream:
        """Without any its data follow."""
        self.stream = self.engine.begin(self)
        if payload:
            self.engine.request(self.stream, BLOCK, b"", payload[0])
        else:
            self.engine.begin_request(self.stream, BLOCK)
        return self.stream

    def on_fields(self, fields: tuple[Field, ...], ended: bool) -> None:
        self.fields.append(fields)
        self.ended = ended

    def on_data(self, data: Payload, ended: bool) -> None:
        self.data += data
        self.ended = ended
        if self.credits:
            self.engine.credit(self.stream, len(data))

    def on_reset(self, code: int) -> None:
        self.reset = code

    def on_room(self) -> None:
        self.rooms += 1


@dataclass
class Server:
    """An engine and the server that drives it. The clock stands still unless `now` is set."""

    limits: Http2Limits = field(default_factory=Http2Limits)
    now: float = 0.0
    settings: int = 0
    goaways: list[tuple[int, str]] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine: ClientEngine[tuple[Field, ...]] = ClientEngine(
            self, tuple, self.limits, HuffmanCodes(), lambda: None, lambda: self.now
        )
        self.encoder, self.decoder = Encoder(), Decoder()
        self.sent: list[Frame] = []

    # Listener

    def on_settings(self) -> None:
        self.settings += 1

    def on_goaway(self, code: int, reason: str) -> None:
        self.goaways.append((code, reason))

    def on_ping_answered(self, opaque: bytes) -> None:
        self.pings.append(opaque)

    # The server

    def greet(self, *settings: tuple[int, int]) -> list[Frame]:
        """The client's greeting, whose preface is taken off, and its answer to the server's."""
        self.engine.greet()
        said = self.output()
        assert said.startswith(frames.PREFACE)
        return [*read_frames(said[len(frames.PREFACE) :]), *self.say(frames.settings(settings))]

    def say(self, *parts: bytes) -> list[Frame]:
        """What comes back. Raises ConnectionFailed."""
        try:
            self.engine.receive(b"".join(parts))
        finally:
            self.sent = self.hear()
        return self.sent

    def output(self) -> bytes:
        said = b"".join(bytes(part) for part in self.engine.sender.take_output())
        self.engine.sender.resume()
        return said

    def hear(self) -> list[Frame]:
        heard: list[Frame] = []
        while said := self.output():
            heard += read_frames(said)
        return heard

    def ask(self, *payload: bytes, credits: bool = True) -> Waiting:
        asked = Waiting(self.engine, credits)
        asked.begin(*payload)
        return asked

    def fields(self, number: int, *fields: tuple[str, str], ended: bool = False) -> bytes:
        return b"".join(frames.headers(number, bytes(self.encoder.encode(fields)), ended))
