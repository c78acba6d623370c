"""The link between the server and a front end: what one end says arrives at the other, whole and in the order of its
call, however the socket takes it and however it is cut; and what stands in its frames comes back as it was.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

from fuzz_loop import HandLoop, Socket
from fuzz_steps import Script, Step, read_script
from offramp_common.grpc_framing.fields import check_field
from offramp_common.http2.errors import StreamFailed
from offramp_server.transport.interface import CallFailed, Code
from offramp_server.transport.relay import frames
from offramp_server.transport.relay.link import Link

_SIZES = (0, 1, 1000, 64 * 1024, 64 * 1024 + 1, 130_000, 200_000)
_CALLS = 4


class _Run:
    def __init__(self, loop: HandLoop, script: Script) -> None:
        self._loop = loop
        # How the other end's socket cuts what comes.
        self._piece = script.setup * script.setup + 1 if script.setup else 0
        self._numbers = list(range(_CALLS))
        self._sent: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self._heard: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self._parts: dict[int, bytes] = defaultdict(bytes)
        self._forgotten: set[int] = set()
        takers = {kind: self._taker(kind) for kind in (frames.CALL, frames.MESSAGE, frames.ANSWER, frames.PART)}
        self._reader = frames.FrameReader(takers)
        with loop.running():
            self._link = Link({}, lambda: None)
            self._socket = Socket(loop, self._link, self._hear)
            self._link.connection_made(self._socket)

    def play(self, script: Script) -> None:
        for step in script.steps:
            _OPERATIONS[step.operation % OPERATIONS](self, step)
            assert self._link.waiting_bytes >= 0
        self._socket.client_reads = True
        while self._socket.buffer or self._loop.has_work:
            self._socket.take(len(self._socket.buffer))
            self._loop.settle()
        assert not self._link.waiting_bytes
        for number, sent in self._sent.items():
            heard = self._heard[number]
            if number in self._forgotten:
                assert heard == sent[: len(heard)]
            else:
                assert heard == sent, "not everything has arrived, or not in order"
                assert not self._parts[number]
        self._loop.call(self._socket.end, None)
        self._loop.settle()

    # The other end

    def _hear(self, said: bytes) -> None:
        # Not so small that a large message takes long.
        size = max(self._piece or len(said), len(said) // 50, 1)
        for at in range(0, len(said), size):
            self._reader.feed(said[at : at + size])

    def _taker(self, kind: int) -> frames.Taker:
        def take(number: int, data: bytes, start: int, end: int) -> None:
            self._parts[number] += data[start:end]
            if kind != frames.PART:
                self._heard[number].append((kind, self._parts.pop(number)))

        return take

    # This end

    def _send(self, step: Step) -> None:
        number = self._numbers[step.stream % _CALLS]
        self._sent[number].append((frames.CALL, step.blob))
        self._link.send(frames.CALL, number, step.blob)

    def _send_message(self, step: Step) -> None:
        kind = frames.ANSWER if step.flags & 1 else frames.MESSAGE
        number = self._numbers[step.stream % _CALLS]
        message = step.blob.ljust(_SIZES[step.value % len(_SIZES)], b"%d" % (len(self._sent[number]) % 10))
        self._sent[number].append((kind, message))
        self._link.send_message(kind, number, message)

    def _forget(self, step: Step) -> None:
        place = step.stream % _CALLS
        self._link.forget(self._numbers[place])
        self._forgotten.add(self._numbers[place])
        self._numbers[place] += _CALLS

    def _turn(self, step: Step) -> None:
        self._loop.turn()

    def _stop_reading(self, step: Step) -> None:
        self._socket.client_reads = False

    def _read(self, step: Step) -> None:
        self._socket.client_reads = bool(step.flags & 1)
        self._socket.take(len(self._socket.buffer) if step.flags & 1 else step.value * 1000)

    # What stands in frames

    def _head(self, step: Step) -> None:
        """With any fields that HTTP/2 allows."""
        cut = step.value % (len(step.blob) + 1)
        fields = [(b"k", b""), (step.blob[:cut], step.blob[cut:])]
        try:
            check_field(*fields[1])
        except StreamFailed:
            fields.pop()
        fields = fields[: step.flags % 3]
        timeout = None if step.flags & 4 else step.value / 7
        identity = step.blob.decode(errors="surrogateescape") if step.flags & 8 else None
        said = b"before" + frames.call_head(step.value, timeout, "unix:", identity, fields)
        head = frames.CallHead(said + b"message", 6)
        assert (head.method, head.timeout, head.peer, head.identity) == (step.value, timeout, "unix:", identity)
        assert head.fields == fields
        assert said[6 + head.size :] == b""
        assert timeout != math.inf

    def _end(self, step: Step) -> None:
        text = step.blob.decode("utf-16-le", errors="surrogatepass") if len(step.blob) % 2 == 0 else "odd"
        pairs: list[tuple[str, str | bytes]] = [("k", text), ("own-bin", step.blob), ("", "")]
        pairs = pairs[: step.flags % 4]
        assert frames.read_trailing(frames.trailing(pairs)) == pairs
        failed = frames.read_failure(frames.failure(CallFailed(Code(step.value % 17), text)))
        assert (failed.code, failed.message) == (step.value % 17, text)


_OPERATIONS: tuple[Callable[[_Run, Step], None], ...] = (
    _Run._send,
    _Run._send_message,
    _Run._send_message,
    _Run._forget,
    _Run._turn,
    _Run._stop_reading,
    _Run._read,
    _Run._head,
    _Run._end,
)
OPERATIONS = len(_OPERATIONS)


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    loop = HandLoop()
    script = read_script(data)
    try:
        _Run(loop, script).play(script)
    finally:
        loop.give_up()
    assert not loop.errors, loop.errors
