"""A connection with calls of all kinds, a client that does anything, and time; what has to hold whatever happens.

No sockets, no waiting: the same input does the same each time. Each step is followed by `_Run.check_bounds`. At the end
what can be answered has to be, a client that begins afresh is served, and then nothing is left of the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from fuzz_client import HOLD, MAX_MESSAGE_BYTES, SAYING, Asked, Client
from fuzz_ear import Ear, Heard, messages_of
from fuzz_loop import HIGH_WATER, HandLoop, Socket
from fuzz_services import Intended, Services, expected
from fuzz_steps import Script, Step, read_script
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from offramp_common.http2.hpack import DEFAULT_TABLE_BYTES
from offramp_common.http2.limits import Http2Limits
from offramp_server.transport.interface import Code
from offramp_server.transport.native.calls import Call
from offramp_server.transport.native.connection import Connection, Shared
from offramp_server.transport.native.limits import NativeLimits

# Small, so that a few steps reach them.
LIMITS = NativeLimits(
    http2=Http2Limits(
        max_streams=6,
        max_header_list_bytes=2000,
        stream_window=32_768,
        connection_window=100_000,
        nuisances_at_once=40,
        nuisances_per_second=10.0,
    ),
    max_buffered_bytes=200_000,
    max_buffered_bytes_of_one=150_000,
    max_waiting_bytes=90_000,
)
# A second time round each limit is far away.
WIDE = NativeLimits(http2=Http2Limits(stream_window=100_000, connection_window=200_000))
_LATER = (0.001, 0.05, 0.2, 1.0, 5.0, 15.0, 30.0, 61.0)
# What is begun of DATA at a time, an answer, and what a handler may be ahead: nobody queues more for one stream.
_MOST_QUEUED_OF_ONE = 64 * 1024 + 2 * MAX_MESSAGE_BYTES
# What one chunk of what the client says can make the server say at once, beyond the DATA that it hands over at a time.
_MOST_OUT = 256 * 1024 + 16_384
_FRESH = (
    ("swift", [b"echo this"]),
    ("task", [b"L"]),
    ("client", [b"one", b"two", b"n" * MAX_MESSAGE_BYTES]),
    ("client_swift", [b"one", b"n" * 9000]),
    ("server", [b"2"]),
    ("bidi", [b"one", b"h", b"n" * 20_000]),
)
_SHUT_DOWN = Code.UNAVAILABLE


class _Log(logging.Handler):
    """Errors that nobody meant; everything else is put into words as well, to see that it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        intended = record.exc_info is not None and isinstance(record.exc_info[1], Intended)
        if record.levelno >= logging.WARNING and not intended:
            self.errors.append(f"{said}: {record.exc_info and record.exc_info[1]!r}")


@contextmanager
def _listening() -> Iterator[_Log]:
    logger, log = logging.getLogger("offramp.transport"), _Log()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)
        logger.propagate = propagates


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    loop = HandLoop()
    with _listening() as log:
        try:
            _Run(loop, read_script(data)).play()
        finally:
            loop.give_up()
    assert not log.errors, log.errors
    assert not loop.errors, loop.errors


class _Run:
    def __init__(self, loop: HandLoop, script: Script) -> None:
        self.loop = loop
        self.script = script
        self.limits = WIDE if script.setup & 1 else LIMITS
        self.services = Services()
        self.ear = Ear(self.limits.http2)
        self.client = Client(self.ear, loop.time)
        # Said by the client, and not sent yet.
        self.held = b""
        self.drained = self.shut_down = False
        with loop.running():
            self.shared = Shared(self.services.methods(), self.limits, MAX_MESSAGE_BYTES)
            self.connection = Connection(self.shared)
            self.socket = Socket(loop, self.connection, self.ear.hear)
            self.connection.connection_made(self.socket)

    def play(self) -> None:
        if not self.script.setup & 2:
            self._deliver(self.client.greet(with_windows=bool(self.script.setup & 4)))
        for step in self.script.steps:
            operation = step.operation % OPERATIONS
            if operation < SAYING:
                self._say(replace(step, operation=operation))
            else:
                _HAPPENINGS[operation - SAYING](self, step)
            self.check_bounds()
        if not self.socket.closing:
            self._go_on_until_all_is_said()
        self._end()

    # What happens

    def _say(self, step: Step) -> None:
        self.held += self.client.says(step)
        if not step.flags & HOLD:
            self._deliver(b"")

    def _deliver(self, said: bytes) -> None:
        said, self.held = self.held + said, b""
        self.socket.deliver(said)

    def _cut(self, step: Step) -> None:
        """What is held arrives in two parts, or in many."""
        said, self.held = self.held, b""
        size = step.value + 1
        if not step.flags & 1:
            self.socket.deliver(said[:size])
            said = said[size:]
            size = len(said) or 1
        for start in range(0, min(len(said), 200 * size), size):
            self.socket.deliver(said[start : start + size])
        self.socket.deliver(said[200 * size :])

    def _turn(self, step: Step) -> None:
        self.loop.turn()

    def _settle(self, step: Step) -> None:
        self.loop.settle()
        self._deliver(self.client.pump())

    def _later(self, step: Step) -> None:
        self.loop.advance(_LATER[step.value % len(_LATER)])
        if not self.socket.lost and not step.flags & 1:
            self.loop.call(self.connection.look, self.loop.time())
        self.loop.turn()

    def _stop_reading(self, step: Step) -> None:
        self.socket.client_reads = False

    def _read(self, step: Step) -> None:
        """Some of what waits, or everything and what is still to come."""
        self.socket.client_reads = bool(step.flags & 1)
        self.socket.take(len(self.socket.buffer) if step.flags & 1 else step.value * 64)

    def _open(self, step: Step) -> None:
        for _ in range(1 + step.flags % 8):
            self.services.open(step.value)

    def _drain(self, step: Step) -> None:
        if not self.socket.lost and not self.drained:
            self.drained = True
            self.loop.call(self.connection.drain)

    def _shut_down(self, step: Step) -> None:
        if step.flags & 1 and not self.socket.lost:
            self.shut_down = True
            self.loop.call(self.connection.shut_down)

    def _lose(self, step: Step) -> None:
        if step.flags & 1:
            self.loop.call(self.socket.end, ConnectionResetError() if step.value % 2 else None)

    # What has to hold

    def check_bounds(self) -> None:
        connection, limits = self.connection, self.limits
        engine, sender = connection.engine, connection.engine.sender
        assert len(engine.streams) <= limits.http2.max_streams
        assert 0 <= connection.running <= 2 * limits.http2.max_streams
        queued = [stream.queued_bytes for stream in engine.streams.values()]
        assert sender.queued_bytes == sum(queued)
        assert max(queued, default=0) <= _MOST_QUEUED_OF_ONE
        assert sender.queued_bytes <= limits.max_waiting_bytes + limits.http2.max_streams * _MOST_QUEUED_OF_ONE
        assert sum(map(len, sender._out)) <= _MOST_OUT
        assert len(self.socket.buffer) <= HIGH_WATER + _MOST_OUT + 16 * len(self.script.steps) * 16_384
        assert engine._decoder._used <= DEFAULT_TABLE_BYTES
        assert len(engine._rest) < frames.HEADER_BYTES + frames.FRAME_BYTES
        assert engine._unfinished is None or len(engine._unfinished[2]) <= limits.http2.max_block_bytes
        assert len(engine._ended) <= 256
        self._check_memory()

    def _check_memory(self) -> None:
        """What is reserved is what is there, and within bounds."""
        calls = [each.receiver for each in self.connection.engine.streams.values() if isinstance(each.receiver, Call)]
        reserved = self.limits.max_buffered_bytes_of_one - self.connection.memory._left
        assert self.limits.max_buffered_bytes - self.shared.memory._left == reserved
        assert 0 <= reserved <= self.limits.max_buffered_bytes_of_one
        assert sum(_kept(call) for call in calls) == reserved

    # The end

    def _go_on_until_all_is_said(self) -> None:
        """The client reads, makes room and says the rest of what it has to say; handlers get what they wait for."""
        self._deliver(self.ear.rest())
        self.socket.client_reads = True
        for _ in range(100):
            if not self._went_on():
                break
        else:
            raise AssertionError("there is no end to it")
        if self.socket.closing:
            return
        for asked in self.client.asked.values():
            assert asked.odd or not asked.ending or self._is_answered(asked), f"no answer: {asked}"
        self._take_back_what_has_no_end()
        if not self.socket.closing and not self.drained and self.client.has_streams_left:
            self._begin_afresh()

    def _went_on(self) -> bool:
        """Whether anything did."""
        before = self._state()
        self.socket.take(len(self.socket.buffer))
        self.loop.settle()
        self._check_that_nothing_lies()
        self._deliver(self.client.pump())
        self.services.open(0)
        self.loop.settle()
        self.loop.advance(0.2)
        self.loop.settle()
        self._make_room()
        return self._state() != before and not self.socket.closing

    def _check_that_nothing_lies(self) -> None:
        """What there is room for has been sent, and needed nothing more of the client for it."""
        if self.socket.closing or self.ear.most <= 0:
            return
        for stream in self.connection.engine.streams.values():
            assert not stream.queue or stream.send_window <= 0, f"something of the stream {stream.number} lies about"

    def _state(self) -> object:
        heard = [(each.is_over, len(each.body), each.room) for each in self.ear.streams.values()]
        unsaid = [len(asked.unsaid) for asked in self.client.asked.values()]
        handlers = len(self.services.gates), self.services.waits, self.connection.running
        return heard, unsaid, handlers, self.socket.undelivered, self.ear.most

    def _make_room(self) -> None:
        if self.socket.closing:
            return
        if self.ear.most < 100_000:
            self._deliver(self.client.say(frames.window_update(0, 100_000 - min(self.ear.most, 0))))
        for number, heard in self.ear.streams.items():
            if heard.most < 100_000 and not heard.is_over and number in self.connection.engine.streams:
                self._deliver(self.client.say(frames.window_update(number, 100_000 - min(heard.most, 0))))

    def _is_answered(self, asked: Asked) -> bool:
        """And rightly."""
        heard = self.ear.streams.get(asked.number)
        if heard is None or not heard.is_over:
            # The server has said that it does not look at it.
            return asked.number > self.ear.accepted_up_to
        if heard.trailers is None:
            self._check_reset(asked, heard)
        else:
            self._check_answer(asked, heard)
        return True

    def _check_reset(self, asked: Asked, heard: Heard) -> None:
        stalled = self.loop.time() - asked.began_at > self.limits.stall_timeout
        allowed = {ErrorCode.REFUSED_STREAM, ErrorCode.CANCEL} if stalled else {ErrorCode.REFUSED_STREAM}
        assert heard.reset in allowed, f"{asked} was reset: {heard.reset}"

    def _check_answer(self, asked: Asked, heard: Heard) -> None:
        answers = messages_of(heard)
        code, wanted = _expected(asked)
        if heard.status in self._excuses(asked) and heard.status != code:
            assert answers == wanted[: len(answers)]
            return
        assert heard.status == code, f"{asked} ends with {heard.status} and not with {code!r}: {heard.trailers}"
        assert answers == wanted, f"{asked} has other answers than it should have"
        assert heard.trailers is not None
        if code is Code.OK:
            assert heard.trailers.get("k", "") == asked.key, f"{asked} was taken for another one: {heard.trailers}"
        if code is Code.NOT_FOUND:
            assert heard.trailers["grpc-message"] == "not here: 100 %25 %C3%BC%0A"

    def _excuses(self, asked: Asked) -> set[int]:
        excuses = set()
        timeout = asked.variation.timeout
        if timeout is not None and self.loop.time() >= asked.began_at + timeout:
            excuses.add(int(Code.DEADLINE_EXCEEDED))
        if self.limits is LIMITS:
            # Of what it holds of unfinished requests.
            excuses.add(int(Code.RESOURCE_EXHAUSTED))
        if self.shut_down:
            excuses.add(int(_SHUT_DOWN))
        return excuses

    def _take_back_what_has_no_end(self) -> None:
        # So that nobody minds the resets.
        self.loop.advance(30)
        self._deliver(self.client.say(b"".join(frames.rst_stream(each, 8) for each in self.connection.engine.streams)))
        self._let_the_stubborn_end()
        if not self.socket.closing:
            assert not self.connection.engine.streams
            assert not self.connection.running
            half = self.limits.http2.connection_window // 2
            assert self.ear.connection_room > half - 1, "the connection's window is not restored"

    def _let_the_stubborn_end(self) -> None:
        """Nobody else is left by now."""
        for _ in range(4):
            self.loop.settle()
            assert self.services.running == self.services.stubborn, "a handler runs on, and nobody waits for it"
            while self.services.gates:
                self.services.open(0)
        self.loop.settle()

    def _begin_afresh(self) -> None:
        """Whatever was before: who now does as they should is served."""
        for path, messages in _FRESH:
            asked, said = self.client.call_as_it_should_be(path, messages)
            self._deliver(said)
            while self._went_on():
                pass
            assert not self.socket.closing, "a client that does as it should is disconnected"
            assert self._is_answered(asked), f"no answer: {asked}"
            heard = self.ear.streams[asked.number]
            assert heard.status == 0, f"{asked} failed: {heard}"

    def _end(self) -> None:
        """Nothing is left."""
        connection = self.connection
        if not self.socket.closing:
            self.loop.call(self.socket.end, None)
        self.socket.take(len(self.socket.buffer))
        self._let_the_stubborn_end()
        self.loop.advance(1.0)
        self.loop.settle()
        assert self.socket.lost
        assert not connection.running, f"{connection.running} handlers run on"
        assert not self.services.running
        assert not connection.engine.streams
        assert not connection.engine.sender.queued_bytes
        assert connection.memory._left == self.limits.max_buffered_bytes_of_one, "memory is not given back"
        assert self.shared.memory._left == self.limits.max_buffered_bytes, "shared memory is not given back"
        assert not self.shared.connections
        assert not asyncio.all_tasks(self.loop)
        assert not list(self.loop.timers), "something waits for ever"


def _kept(call: Call) -> int:
    """Bytes of requests that a call holds, counted where they lie."""
    kept = len(call._message or b"") + (0 if call._over else call._head.heavy_bytes)
    if call._reader is not None:
        kept += len(call._reader._buffer)
    if call._requests is not None:
        kept += sum(len(message) + 64 for message in call._requests._messages)
    return kept


def _expected(asked: Asked) -> tuple[int, list[bytes]]:
    return (12, []) if asked.path == "nothing" else expected(asked.path, asked.messages)


_HAPPENINGS: tuple[Callable[[_Run, Step], None], ...] = (
    _Run._cut,
    _Run._turn,
    _Run._settle,
    _Run._settle,
    _Run._later,
    _Run._stop_reading,
    _Run._read,
    _Run._open,
    _Run._open,
    _Run._drain,
    _Run._shut_down,
    _Run._lose,
)
OPERATIONS = SAYING + len(_HAPPENINGS)
