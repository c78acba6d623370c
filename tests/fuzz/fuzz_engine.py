"""The engine alone, with a listener that answers at once: no bytes do more than end the connection, nothing grows, and
the same bytes mean the same however they are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from fuzz_client import SAYING, Client
from fuzz_ear import Ear
from fuzz_steps import Script, read_script
from offramp_common.http2 import frames
from offramp_common.http2.errors import ConnectionFailed, ErrorCode, StreamFailed
from offramp_common.http2.hpack import DEFAULT_TABLE_BYTES, STATUS_200, Field, HuffmanCodes, literal
from offramp_common.http2.limits import Http2Limits
from offramp_common.http2.server import ServerEngine
from offramp_common.http2.stream import Payload, Stream

LIMITS = Http2Limits(
    max_streams=6,
    max_header_list_bytes=2000,
    stream_window=32_768,
    connection_window=100_000,
    nuisances_at_once=40,
    nuisances_per_second=10.0,
)
OPERATIONS = SAYING
_TRAILERS = literal(b"grpc-status", b"0")
# What the sender hands over at a time; answers stay below, since where output is taken is not the same when it is cut.
_MOST_ANSWERED = 200_000
# Input up to here is also given byte by byte.
_SHORT = 400


class _Deaf(Ear):
    """A client that does not wait for windows: what it may say is the engine's affair."""

    def room(self, stream: int) -> int:
        return frames.LARGEST_WINDOW


@dataclass
class _Receiver:
    """What it does is chosen by the path: give back what it takes or not, answer before the end or after it."""

    owner: _Listener
    stream: Stream
    path: bytes
    taken: int = 0

    def on_data(self, data: Payload, ended: bool) -> None:
        self.owner.tell("data", self.stream.number, len(data), ended)
        assert not self.stream.peer_ended or ended
        self.taken += len(data)
        if self.path != b"/s/task":
            self.give_back()
        if ended or (self.path == b"/s/client" and self.taken):
            self.answer()

    def give_back(self) -> None:
        taken, self.taken = self.taken, 0
        self.owner.engine.credit(self.stream, taken)

    def answer(self) -> None:
        engine, size = self.owner.engine, 30_000 if self.path == b"/s/server" else 100
        size = min(size, self.owner.left_to_answer)
        self.owner.left_to_answer -= size
        if self.path == b"/s/bidi":
            engine.begin_answer(self.stream, STATUS_200)
            engine.send(self.stream, bytes(size))
            engine.end(self.stream, _TRAILERS)
        else:
            engine.answer(self.stream, STATUS_200, b"", bytes(size), _TRAILERS)
        engine.reward()

    def on_reset(self, code: int) -> None:
        self.owner.tell("reset", self.stream.number, code)
        assert self.stream.number not in self.owner.engine.streams
        assert self.stream.receiver is None

    def on_room(self) -> None:
        self.owner.tell("room", self.stream.number)


@dataclass
class _Listener:
    """Writes down what it is told."""

    limits: Http2Limits
    told: list[tuple[object, ...]] = field(default_factory=list)
    left_to_answer: int = _MOST_ANSWERED
    failed: ConnectionFailed | None = None

    def __post_init__(self) -> None:
        self.engine: ServerEngine[tuple[Field, ...]] = ServerEngine(
            self, tuple, self.limits, HuffmanCodes(), lambda: None, lambda: 0.0
        )

    def tell(self, *what: object) -> None:
        self.told.append(what)

    def on_stream(self, stream: Stream, head: tuple[Field, ...]) -> _Receiver | None:
        self.tell("stream", stream.number, head)
        path = dict(head).get(b":path", b"")
        if path == b"/s/nothing":
            raise StreamFailed(ErrorCode.REFUSED_STREAM, "as asked")
        return None if path == b"/s/client_swift" else _Receiver(self, stream, path)

    def on_oversized(self, stream: Stream) -> None:
        self.tell("oversized", stream.number)
        self.engine.end(stream, STATUS_200 + _TRAILERS)

    def on_ping_answered(self, opaque: bytes) -> None:
        self.tell("ping", opaque)

    def receive(self, pieces: Iterable[bytes]) -> bytes:
        """What is said to all of it."""
        said: list[bytes] = []
        for piece in pieces:
            if self.failed is None:
                try:
                    self.engine.receive(piece)
                except ConnectionFailed as failure:
                    self.failed = failure
                self._check_bounds()
                said += self._output()
        return b"".join(said)

    def _output(self) -> Iterator[bytes]:
        while out := self.engine.sender.take_output():
            yield from map(bytes, out)
            self.engine.sender.resume()

    def _check_bounds(self) -> None:
        engine, limits = self.engine, self.limits
        assert len(engine.streams) <= limits.max_streams
        assert len(engine._rest) < frames.HEADER_BYTES + frames.FRAME_BYTES or self.failed is not None
        assert engine._unfinished is None or len(engine._unfinished[2]) <= limits.max_block_bytes + frames.FRAME_BYTES
        assert engine._decoder._used <= DEFAULT_TABLE_BYTES
        assert len(engine._heads._heads) <= 16
        assert len(engine._ended) <= 256
        assert engine.sender.queued_bytes == sum(stream.queued_bytes for stream in engine.streams.values())
        assert engine.sender.queued_bytes <= _MOST_ANSWERED
        for stream in engine.streams.values():
            assert stream.queued_bytes == sum(map(len, stream.queue or ()))
            # A stream that is refused for what it sends stands at less than nothing until then.
            assert stream.receive_window + stream.credit <= limits.stream_window


def _bytes_of(script: Script) -> bytes:
    client = Client(_Deaf(LIMITS), lambda: 0.0)
    parts = [] if script.setup & 2 else [client.greet(with_windows=bool(script.setup & 4))]
    parts += (client.says(replace(step, operation=step.operation % SAYING)) for step in script.steps)
    return b"".join(parts)


def _cut(said: bytes, script: Script) -> Iterator[bytes]:
    """In pieces of sizes that the input chooses."""
    sizes = [1 + step.value % 40 if step.flags & 64 else 1 + step.value * 16 for step in script.steps] or [7]
    at = place = 0
    while at < len(said):
        size = sizes[place % len(sizes)]
        yield said[at : at + size]
        at += size
        place += 1


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    script = read_script(data)
    said = _bytes_of(script)
    whole = _Listener(LIMITS)
    ear = Ear(LIMITS)
    ear.told(said)
    answer = whole.receive([said])
    ear.hear(answer)
    assert (ear.failed is None) == (whole.failed is None)
    assert whole.failed is not None or not ear.unbearable, f"taken as if it were right: {ear.unbearable}"
    ways = [_cut(said, script)]
    if len(said) <= _SHORT:
        ways.append(said[at : at + 1] for at in range(len(said)))
    for pieces in ways:
        other = _Listener(LIMITS)
        assert other.receive(pieces) == answer, "other pieces are answered differently"
        assert other.told == whole.told, "other pieces mean something else"
        assert repr(other.failed) == repr(whole.failed)
    whole.engine.close()
    assert not whole.engine.streams
    assert not whole.engine.sender.queued_bytes
