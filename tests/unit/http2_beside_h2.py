"""Steps of a client as bytes, given to the engine and to h2's state machine: they have to mean the same to both.

Each place where they disagree is named here, with the reason. What comes after such a step is not compared, since one
of the two has ended its connection or its stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hpack import Encoder
from http2_peer import REQUEST, Peer, Taken, data
from offramp_common.http2 import frames
from offramp_common.http2.errors import ConnectionFailed
from offramp_common.http2.hpack import STATUS_200, literal

# What there is most of in life comes more often.
OF_A_STREAM = (
    "request",
    "request",
    "request-in-parts",
    "data",
    "data",
    "answer",
    "answer",
    "reset",
    "widen",
    "priority",
)
OF_THE_CONNECTION = ("widen-all", "ping", "settings", "unknown")
STREAMS = (1, 3, 5, 7)
SIZES = (0, 1, 100, 16_384)
# What a client does: the name, the stream, a size or an increment, and whether it ends the stream.
Step: TypeAlias = tuple[str, int, int, bool]


@dataclass
class Theirs:
    """h2 as a server."""

    events: list[tuple[object, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()

    def receive(self, said: bytes) -> None:
        """Raises h2's ProtocolError."""
        for event in self.connection.receive_data(said):
            if isinstance(event, h2.events.RequestReceived):
                self.events.append(("request", event.stream_id))
            elif isinstance(event, h2.events.DataReceived):
                if event.data:
                    self.events.append(("data", event.stream_id, bytes(event.data)))
                self.connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            elif isinstance(event, h2.events.StreamEnded):
                self.events.append(("ended", event.stream_id))
            elif isinstance(event, h2.events.StreamReset) and event.remote_reset:
                self.events.append(("reset", event.stream_id))

    def answer(self, number: int) -> None:
        self.connection.send_headers(number, [(b":status", b"200")])
        self.connection.send_headers(number, [(b"grpc-status", b"0")], end_stream=True)


class Ours(Peer):
    """The same of the engine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: list[tuple[object, ...]] = []

    def receive(self, said: bytes) -> None:
        """Raises ConnectionFailed."""
        self.say(said)
        for number, taken in self.taken.items():
            self._tell(number, taken)

    def _tell(self, number: int, taken: Taken) -> None:
        told = {event[0] for event in self.events if event[1] == number}
        if "request" not in told:
            self.events.append(("request", number))
        if taken.data:
            self.events.append(("data", number, taken.data))
            taken.data = b""
        if taken.ended and "ended" not in told:
            self.events.append(("ended", number))
        if taken.reset and "reset" not in told:
            self.events.append(("reset", number))

    def answer(self, number: int) -> None:
        self.engine.answer(self.taken[number].stream, STATUS_200, b"", b"", literal(b"grpc-status", b"0"))


@dataclass
class Client:
    """Writes the bytes of steps, and knows what has become of each stream."""

    encoder: Encoder = field(default_factory=Encoder)
    ended: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)
    last: int = 0

    def bytes_of(self, step: Step) -> bytes:
        name, number, size, ended = step
        if name.startswith("request"):
            return self._request(number, ended, in_parts=name == "request-in-parts")
        return {
            "data": lambda: data(number, b"x" * size, ended),
            "reset": lambda: frames.rst_stream(number, 8),
            "widen": lambda: frames.window_update(number, size),
            "widen-all": lambda: frames.window_update(0, size),
            "ping": lambda: frames.ping(b"12345678", ack=False),
            "settings": lambda: frames.settings(((frames.INITIAL_WINDOW_SIZE, size),)),
            "priority": lambda: frames.header(frames.PRIORITY, 0, number, 5) + b"\0\0\0\0\1",
            "unknown": lambda: frames.header(0x77, 0, number, size) + bytes(size),
        }[name]()

    def _request(self, number: int, ended: bool, in_parts: bool) -> bytes:
        # Trailers have none of the fields that only the head of a request may have.
        fields = [("k", str(number))] if number <= self.last else [*REQUEST, (":authority", "a"), ("k", str(number))]
        fields.sort(key=lambda pair: not pair[0].startswith(":"))
        block = bytes(self.encoder.encode(fields))
        if not in_parts:
            return b"".join(frames.headers(number, block, ended))
        flags = frames.END_STREAM if ended else 0
        rest = frames.header(frames.CONTINUATION, frames.END_HEADERS, number, len(block) - 1) + block[1:]
        return frames.header(frames.HEADERS, flags, number, 1) + block[:1] + rest

    def note(self, step: Step) -> None:
        """Both have taken it."""
        name, number, _, ended = step
        if name.startswith("request"):
            self.last = max(self.last, number)
            self.begun.add(number)
        if name.startswith("request") or name == "data":
            self.ended |= {number} if ended else set()
        if name in ("reset", "answer"):
            self.over.add(number)

    def is_known_difference(self, step: Step) -> str:
        """Why h2 may refuse what we take, or answer with less than the end of the connection."""
        name, number, size, ended = step
        if name == "reset" and number > self.last:
            return "RFC 9113, 6.4, has the reset of an idle stream end the connection, and h2 passes over it"
        if number < self.last and number not in self.begun and name not in OF_THE_CONNECTION:
            return "a stream that was passed over is closed: we pass over its frames as well"
        if number in self.over and name in ("request", "request-in-parts", "data", "widen", "reset"):
            return "frames for streams that are over may have been under way: we pass over them"
        if number in self.ended and name in ("request", "request-in-parts", "data"):
            return "what follows the end of a stream ends that stream with us, and the connection with h2"
        if name.startswith("request") and number <= self.last and not ended:
            return "trailers that do not end a stream end it with us, and the connection with h2"
        if name == "widen" and not size:
            return "a window that is widened by nothing ends its stream, as RFC 9113, 6.9, says"
        if name == "priority" and number == 1:
            return "h2 minds a stream that depends on itself"
        return ""


def compare(steps: Iterable[Step]) -> None:
    """Raises AssertionError where the two do not mean the same."""
    ours, theirs, client = Ours(), Theirs(), Client()
    greeting = frames.PREFACE + frames.settings(())
    ours.receive(greeting)
    theirs.receive(greeting)
    for step in steps:
        name, number, _, _ = step
        if name == "answer":
            # Only to a request that has ended: otherwise we also stop the client, which h2 leaves to its user.
            if number in client.ended and number not in client.over:
                ours.answer(number)
                theirs.answer(number)
                client.note(step)
            continue
        said = client.bytes_of(step)
        explained = client.is_known_difference(step)
        refused = None
        try:
            theirs.receive(said)
        except h2.exceptions.ProtocolError as error:
            refused = error
        try:
            ours.receive(said)
        except ConnectionFailed:
            assert refused is not None or explained, f"only we refuse {step}"
            return
        assert refused is None or explained, f"only h2 refuses {step}: {refused!r}"
        if refused is not None or explained:
            return
        assert ours.events == theirs.events
        client.note(step)
