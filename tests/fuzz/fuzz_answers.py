"""The client's end without sockets: calls of a channel, and servers that say anything. Whatever they say, every call
ends once, what is held has a bound, and the next server that does as it should is understood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from fuzz_replies import SAYING, Replies
from fuzz_steps import Step, read_script
from offramp_client._native.addresses import Address
from offramp_client._native.calls import Call
from offramp_client._native.dispatch import Dispatch
from offramp_client._native.session import Lost, Session
from offramp_client._native.settings import Settings
from offramp_client.options import KeepAlive
from offramp_common.grpc_framing.status import CallFailed, Code
from offramp_common.http2 import frames
from offramp_common.http2.hpack import DEFAULT_TABLE_BYTES
from offramp_common.http2.limits import Http2Limits

LIMITS = Http2Limits(
    max_header_list_bytes=2000,
    stream_window=32_768,
    connection_window=100_000,
    nuisances_at_once=40,
    nuisances_per_second=10.0,
)
_MAX_MESSAGE_BYTES = 40_000
# What a stream may hold that nobody reads: what it may be ahead, its window, and what that counts of small messages.
_MOST_UNREAD = 64 * 1024 + 16 * LIMITS.stream_window
_SEND_AHEAD = 64 * 1024
_MOST_CALLS = 40
_SIZES = (0, 1, 100, 5000, 16_384, 39_999, 40_000, 40_001)
_SECONDS = (math.inf, 0.001, 1.0, 60.0)
_PAUSES = (0.0, 0.01, 1.0, 5.0, 11.0, 70.0)
_GOOD = b"as it should be"


class _Call(Call):
    """Counts what it is told."""

    ends = 0

    def on_message(self) -> None:
        assert not self.over
        assert self._server_streaming or len(self.messages) == 1

    def on_over(self) -> None:
        self.ends += 1
        assert self.over
        assert self.stream is None

    def on_room(self) -> None:
        assert not self.over


@dataclass
class _Channel:
    """Does what both of ours do, whatever they wait with."""

    keepalive: KeepAlive | None
    now: float = 1000.0
    wanted: bool = False
    calls: list[_Call] = field(default_factory=list)
    servers: dict[Session, Replies] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = Settings(
            (Address("127.0.0.1", 1),),
            "a",
            _MAX_MESSAGE_BYTES,
            self.keepalive,
            lambda: self.now,
            lambda: 0.5,
            limits=LIMITS,
        )
        self.dispatch = Dispatch(self.settings, self._connect)

    def _connect(self) -> None:
        assert not self.wanted, "two attempts at a time"
        self.wanted = True

    # Calls

    def call(self, request: bytes | None, seconds: float, streaming: bool) -> _Call:
        call = _Call(self.dispatch, b"", request, self.now + seconds, streaming)
        self.calls.append(call)
        self.dispatch.start(call)
        self.settle()
        return call

    def begin(self, step: Step) -> None:
        if len(self.calls) < _MOST_CALLS:
            request = bytes(_SIZES[step.value % len(_SIZES)]) if step.flags & 3 else None
            self.call(request, _SECONDS[step.stream % len(_SECONDS)], streaming=bool(step.flags & 2) or request is None)

    def _chosen(self, step: Step) -> _Call | None:
        return self.calls[-1 - step.stream % len(self.calls)] if self.calls else None

    def more(self, step: Step) -> None:
        """Of a stream's requests."""
        call = self._chosen(step)
        if call is None or call._request is not None:
            return
        if call.queued_bytes <= _SEND_AHEAD and not (call.stream and call.stream.trailers is not None):
            call.send(bytes(_SIZES[step.value % len(_SIZES)]))
            if step.flags & 1:
                call.end_requests()
        self.settle()

    def take(self, step: Step) -> None:
        call = self._chosen(step)
        for _ in range(1 + step.value % 16):
            if call is None or not call.messages:
                break
            try:
                assert len(call.take()) <= _MAX_MESSAGE_BYTES
            except CallFailed:
                assert call.over
                assert not call.messages
        self.settle()

    def cancel(self, step: Step) -> None:
        call = self._chosen(step)
        if call is not None:
            call.cancel()
            self.settle()

    # Connections

    def connect(self, step: Step) -> None:
        """Or it cannot be done."""
        if not self.wanted:
            return
        self.wanted = False
        if step.flags & 128:
            self.dispatch.on_unreachable("nobody there")
            return
        session = Session(self.dispatch, self.settings, lambda: None)
        self.servers[session] = Replies()
        self.dispatch.on_connected(session)
        self.settle()

    def session(self, step: Step) -> Session | None:
        """Mostly the newest."""
        sessions = list(self.servers)
        return sessions[-1 - (step.stream >> 6 if step.flags & 64 else 0) % len(sessions)] if sessions else None

    def hear(self, session: Session, said: bytes) -> None:
        try:
            session.received(said)
        except Lost as lost:
            self.lose(session, str(lost))
        else:
            if session.is_done:
                self.lose(session, "done")
        self.settle()

    def lose(self, session: Session, why: str) -> None:
        del self.servers[session]
        useless = session is self.dispatch.session and not session.engine.last_stream
        self.dispatch.on_lost(session, why)
        assert not (useless and self.dispatch.waiting), "a server that takes no call is asked again and again"
        assert not session.engine.streams
        assert not session.engine.sender.queued_bytes

    def lose_one(self, step: Step) -> None:
        session = self.session(step)
        if session is not None:
            self.lose(session, "cut")
            self.settle()

    def pause(self, step: Step) -> None:
        """The socket takes nothing for now, or takes again."""
        session = self.session(step)
        if session is not None:
            sender = session.engine.sender
            (sender.pause if step.flags & 1 else sender.resume)()
            self.settle()

    def wait(self, step: Step) -> None:
        self.now += _PAUSES[step.value % len(_PAUSES)]
        self.dispatch.expire(self.now)
        for session in list(self.servers):
            try:
                assert session.look(self.now) > self.now
            except Lost as lost:
                self.lose(session, str(lost))
        self.settle()

    def settle(self) -> None:
        """What is to be sent goes out, and those begin that can."""
        self._flush()
        self.dispatch.begin_waiting()
        self._flush()
        self._check()

    def _flush(self) -> None:
        for session, server in self.servers.items():
            sender = session.engine.sender
            while out := sender.take_output():
                server.hear(b"".join(map(bytes, out)))
                if sender.is_paused:
                    break
                sender.resume()

    # What holds at any time

    def _check(self) -> None:
        for session in self.servers:
            _check_bounds(session)
        assert set(self.servers) == set(self.dispatch.sessions)
        begun = {id(call) for session in self.servers for call in session.calls()}
        waiting = {id(call) for call in self.dispatch.waiting}
        assert not begun & waiting
        for call in self.calls:
            assert call.ends == call.over
            assert (call.stream is not None) == (id(call) in begun)
            assert call.over or id(call) in begun | waiting, "a call that nobody thinks of any more"
            assert sum(map(len, call.messages)) <= _MOST_UNREAD
            if call.over and call.failure is None and not call._server_streaming:
                assert len(call.messages) <= 1
        if self.dispatch.waiting and not self.servers:
            assert self.wanted, "nobody connects for those who wait"


def _check_bounds(session: Session) -> None:
    engine = session.engine
    assert len(engine._rest) < frames.HEADER_BYTES + frames.FRAME_BYTES
    assert engine._unfinished is None or len(engine._unfinished[2]) <= LIMITS.max_block_bytes + frames.FRAME_BYTES
    assert engine._decoder._used <= DEFAULT_TABLE_BYTES
    assert len(engine._heads._heads) <= 16
    assert len(engine._ended) <= 256
    assert engine.sender.queued_bytes == sum(stream.queued_bytes for stream in engine.streams.values())
    for stream in engine.streams.values():
        assert stream.receive_window + stream.credit <= LIMITS.stream_window
        call = stream.receiver
        assert isinstance(call, _Call)
        assert not call.over


_Operation: TypeAlias = Callable[[_Channel, Step], None]


def _say(channel: _Channel, step: Step) -> None:
    session = channel.session(step)
    if session is not None:
        said = channel.servers[session].says(step)
        cut = step.blob[0] * 8 if step.flags & 32 and step.blob else 0
        if cut:
            channel.hear(session, said[:cut])
        if session in channel.servers:
            channel.hear(session, said[cut:])


# Those of the server come first.
_OPERATIONS: tuple[_Operation, ...] = (
    *(_say,) * SAYING,
    _Channel.begin,
    _Channel.begin,
    _Channel.more,
    _Channel.take,
    _Channel.cancel,
    _Channel.connect,
    _Channel.connect,
    _Channel.lose_one,
    _Channel.pause,
    _Channel.wait,
)
OPERATIONS = len(_OPERATIONS)
_KEEPALIVES = (None, KeepAlive(10.0, 3.0), KeepAlive(1.0, 1.0, while_idle=True), None)


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    script = read_script(data)
    channel = _Channel(_KEEPALIVES[script.setup % 4])
    if not script.setup & 4:
        channel.begin(Step(0, value=2, flags=script.setup >> 4))
        channel.connect(Step(0))
    for step in script.steps:
        operation = step.operation % OPERATIONS
        _OPERATIONS[operation](channel, Step(operation, step.stream, step.value, step.flags, step.blob))
    _check_end(channel)
    _check_that_it_goes_on(channel)


def _check_end(channel: _Channel) -> None:
    """With their connections all calls are over that were on them, and the others with the next attempt."""
    for session in list(channel.servers):
        channel.lose(session, "the end")
    if channel.wanted:
        channel.connect(Step(0, flags=128))
    for call in channel.calls:
        assert call.over
        assert call.ends == 1
    assert not channel.dispatch.waiting


def _check_that_it_goes_on(channel: _Channel) -> None:
    """After a while the next call is answered by a server that does as it should."""
    channel.now += channel.settings.max_backoff
    call = channel.call(_GOOD, 10.0, streaming=False)
    assert channel.wanted
    channel.connect(Step(0))
    [(session, server)] = channel.servers.items()
    channel.hear(session, frames.settings(()))
    channel.hear(session, server.answer_as_it_should_be(1, _GOOD))
    assert (call.over, call.failure) == (True, None)
    assert call.take() == _GOOD
    channel.dispatch.close("the end")
    late = channel.call(b"", 10.0, streaming=False)
    assert late.failure is not None
    assert late.failure.code is Code.CANCELLED
