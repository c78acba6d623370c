"""The calls of our own channels on their connections, without a socket and with a clock that stands still."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast

import pytest
from hpack import Encoder
from http2_peer import Frame, data, kinds, read_frames
from offramp_client._native.addresses import Address, addresses_of, authority_of
from offramp_client._native.calls import Call
from offramp_client._native.dispatch import Dispatch
from offramp_client._native.session import Lost, Session
from offramp_client._native.settings import Settings
from offramp_client.options import KeepAlive
from offramp_common.grpc_framing.messages import compressed
from offramp_common.grpc_framing.status import CallFailed, Code
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode

HEAD = ((":status", "200"), ("content-type", "application/grpc"))
OK = ("grpc-status", "0")


@dataclass
class Wire:
    """A channel whose attempts to connect succeed when the test says so, and the server at its other end."""

    keepalive: KeepAlive | None = None
    now: float = 0.0
    attempts: int = 0
    encoders: dict[Session, Encoder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        addresses = (Address("127.0.0.1", 1),)
        self.settings = Settings(addresses, "a", 1_000_000, self.keepalive, lambda: self.now, lambda: 0.0)
        self.dispatch = Dispatch(self.settings, self._connect)

    def _connect(self) -> None:
        self.attempts += 1

    def connect(self, *settings: tuple[int, int]) -> Session:
        session = Session(self.dispatch, self.settings, lambda: None)
        self.encoders[session] = Encoder()
        self.dispatch.on_connected(session)
        session.engine.sender.take_output()
        self.say(session, frames.settings(settings))
        return session

    def say(self, session: Session, *parts: bytes) -> list[Frame]:
        """What comes back."""
        session.received(b"".join(parts))
        self.dispatch.begin_waiting()
        return self.hear(session)

    def hear(self, session: Session) -> list[Frame]:
        return list(read_frames(b"".join(map(bytes, session.engine.sender.take_output()))))

    def fields(self, session: Session, number: int, *fields: tuple[str, str], ended: bool = False) -> bytes:
        return b"".join(frames.headers(number, bytes(self.encoders[session].encode(fields)), ended))

    def call(self, seconds: float = math.inf, streaming: bool = False) -> Call:
        call = Call(self.dispatch, b"", b"request", self.now + seconds, streaming)
        self.dispatch.start(call)
        return call


def code(call: Call) -> Code | None:
    assert call.over
    return None if call.failure is None else call.failure.code


# Connections


def test_the_first_call_connects_and_the_others_wait_with_it() -> None:
    wire = Wire()
    calls = [wire.call() for _ in range(3)]
    assert wire.attempts == 1
    session = wire.connect()
    assert [call.stream and call.stream.number for call in calls] == [1, 3, 5]
    wire.say(session, wire.fields(session, 3, *HEAD, OK, ended=True))
    assert (calls[1].over, calls[0].over) == (True, False)


def test_a_server_that_cannot_be_reached_is_left_alone_for_ever_longer_up_to_a_bound() -> None:
    wire = Wire()
    pauses: list[float] = []
    for _ in range(8):
        waiting = wire.call()
        wire.dispatch.on_unreachable("nobody there")
        failed_at = wire.now
        assert code(waiting) is code(wire.call()) is Code.UNAVAILABLE
        while wire.attempts == len(pauses) + 1:
            wire.now += 1 / 64
            wire.call()
        pauses.append(wire.now - failed_at)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0], abs=1 / 32)


def test_after_a_connection_that_was_one_the_next_call_connects_at_once() -> None:
    wire = Wire()
    call = wire.call()
    session = wire.connect()
    wire.dispatch.on_lost(session, "cut")
    assert code(call) is Code.UNAVAILABLE
    wire.call()
    assert wire.attempts == 2


def test_a_connection_that_is_lost_before_its_greeting_is_one_that_could_not_be_made() -> None:
    wire = Wire()
    call = wire.call()
    session = Session(wire.dispatch, wire.settings, lambda: None)
    wire.dispatch.on_connected(session)
    wire.dispatch.on_lost(session, "cut")
    assert code(call) is code(wire.call()) is Code.UNAVAILABLE
    assert wire.attempts == 1


def test_calls_that_wait_for_their_turn_outlive_the_connection() -> None:
    wire = Wire()
    first, second = wire.call(), wire.call()
    session = wire.connect((frames.MAX_CONCURRENT_STREAMS, 1))
    wire.dispatch.on_lost(session, "cut")
    assert (code(first), second.over, wire.attempts) == (Code.UNAVAILABLE, False, 2)
    session = wire.connect()
    wire.say(session, wire.fields(session, 1, *HEAD, OK, ended=True))
    assert second.over


def test_a_call_that_is_given_up_makes_room_for_another_one() -> None:
    wire = Wire()
    first, second, third = wire.call(), wire.call(), wire.call()
    wire.connect((frames.MAX_CONCURRENT_STREAMS, 1))
    first.cancel()
    second.cancel()
    assert (code(first), code(second)) == (Code.CANCELLED, Code.CANCELLED)
    assert third.stream is not None


def test_a_call_that_is_given_up_in_the_queue_holds_no_request_any_more() -> None:
    wire = Wire()
    wire.call()
    wire.connect((frames.MAX_CONCURRENT_STREAMS, 1))
    wire.call()
    request = bytearray(1000)
    call = Call(wire.dispatch, b"", cast("bytes", memoryview(request)), math.inf, False)
    wire.dispatch.start(call)
    call.cancel()
    # Which cannot be while somebody has a view of it.
    request.clear()


def test_a_connection_is_done_when_the_calls_are_that_it_still_had() -> None:
    wire = Wire()
    call = wire.call()
    session = wire.connect()
    wire.say(session, frames.goaway(1, ErrorCode.NO_ERROR, ""))
    assert (call.over, session.is_done, wire.attempts) == (False, False, 1)
    later = wire.call()
    assert (wire.attempts, later.stream) == (2, None)
    wire.say(session, wire.fields(session, 1, *HEAD, OK, ended=True))
    assert session.is_done


def test_a_server_whose_first_settings_break_the_rules_is_one_that_cannot_be_reached() -> None:
    wire = Wire()
    call = wire.call()
    with pytest.raises(Lost) as lost:
        wire.connect((frames.ENABLE_PUSH, 1))
    assert wire.dispatch.session is not None
    wire.dispatch.on_lost(wire.dispatch.session, str(lost.value))
    assert code(call) is Code.UNAVAILABLE
    wire.now += 1
    wire.call()
    assert wire.attempts == 2


def test_settings_of_the_connection_before_begin_no_second_attempt() -> None:
    """Of two connections the channel would know only one, and not watch the deadlines of the calls on the other."""
    wire = Wire()
    wire.call()
    session = wire.connect()
    wire.say(session, frames.goaway(1, ErrorCode.NO_ERROR, ""))
    wire.call()
    wire.say(session, frames.settings(()))
    wire.call()
    assert wire.attempts == 2


def test_the_last_stream_number_is_followed_by_a_new_connection() -> None:
    wire = Wire()
    wire.call()
    session = wire.connect()
    session.engine.last_stream = frames.LAST_STREAM - 2
    assert wire.call().stream is not None
    assert wire.call().stream is None
    assert wire.attempts == 2


@pytest.mark.parametrize("ends", ["farewell", "loss"])
def test_a_server_that_takes_no_call_is_left_alone_for_ever_longer(ends: str) -> None:
    """As one that drains for a long time and still listens, or dies with whoever connects."""
    wire = Wire()
    for attempt, pause in enumerate((0.1, 0.2, 0.4), 1):
        call = wire.call()
        session = wire.connect((frames.MAX_CONCURRENT_STREAMS, 0))
        if ends == "loss":
            wire.dispatch.on_lost(session, "cut")
        else:
            wire.say(session, frames.goaway(0, ErrorCode.NO_ERROR, ""))
        assert code(call) is Code.UNAVAILABLE
        wire.now += pause - 1 / 64
        assert code(wire.call()) is Code.UNAVAILABLE
        assert wire.attempts == attempt
        wire.now += 1 / 32


# Time


def test_calls_whose_time_is_up_are_given_up_wherever_they_are() -> None:
    wire = Wire()
    begun = wire.call(2.0)
    session = wire.connect((frames.MAX_CONCURRENT_STREAMS, 1))
    waiting, patient = wire.call(1.0), wire.call(5.0)
    wire.hear(session)
    assert wire.dispatch.expire(0.5) == 1.0
    assert wire.dispatch.expire(1.0) == 2.0
    assert wire.dispatch.expire(2.0) == 5.0
    assert code(waiting) is code(begun) is Code.DEADLINE_EXCEEDED
    reset, *more = wire.hear(session)
    assert (reset.kind, reset.stream, reset.error) == (frames.RST_STREAM, 1, ErrorCode.CANCEL)
    # Its turn has come.
    assert {frame.stream for frame in more} == {3}
    assert patient.stream is not None


def test_a_server_that_is_silent_is_asked_while_a_call_waits_for_it() -> None:
    wire = Wire(KeepAlive(interval=10.0, timeout=3.0))
    session = wire.connect()
    assert session.look(50.0) == 60.0
    assert wire.hear(session) == []
    wire.call()
    wire.hear(session)
    assert session.look(60.0) == 63.0
    [ping] = wire.hear(session)
    assert ping.kind == frames.PING
    wire.now = 61.0
    wire.say(session, frames.ping(ping.payload, ack=True))
    assert session.look(63.0) == 71.0
    assert session.look(71.0) == 74.0
    with pytest.raises(Lost, match="has not answered a ping for 3 s"):
        session.look(74.0)


def test_who_wants_it_is_heard_of_while_idle() -> None:
    wire = Wire(KeepAlive(interval=10.0, timeout=3.0, while_idle=True))
    session = wire.connect()
    session.look(10.0)
    assert kinds(wire.hear(session)) == [frames.PING]


# What a server may be ahead of its reader


def test_a_stream_that_is_not_read_stops_its_server() -> None:
    wire = Wire()
    call = wire.call(streaming=True)
    session = wire.connect()
    wire.hear(session)
    message = data(1, b"\0" + (10_000).to_bytes(4) + bytes(10_000))
    wire.say(session, wire.fields(session, 1, *HEAD))
    updates = [frame.stream for _ in range(100) for frame in wire.say(session, message)]
    assert 1 not in updates
    while call.messages:
        call.take()
    assert 1 in [frame.stream for frame in wire.hear(session)]


def packed(message: bytes) -> bytes:
    body = compressed(message, "gzip")
    return b"\1" + len(body).to_bytes(4) + body


def test_compressed_answers_are_unpacked_one_by_one_as_they_are_read() -> None:
    """A window full of them may stand for a thousand times as much."""
    wire = Wire()
    call = wire.call(streaming=True)
    session = wire.connect()
    wire.hear(session)
    message = data(1, packed(bytes(900_000)) * 4)
    wire.say(session, wire.fields(session, 1, *HEAD, ("grpc-encoding", "gzip")), *[message] * 5)
    assert len(call.messages) == 20
    assert sum(map(len, call.messages)) < 100_000
    assert call.take() == bytes(900_000)


def test_an_answer_that_unpacks_to_too_much_ends_the_stream_after_those_before_it() -> None:
    wire = Wire()
    call = wire.call(streaming=True)
    session = wire.connect()
    wire.hear(session)
    said = data(1, packed(b"1") + packed(bytes(1_000_001)) + packed(b"3"))
    wire.say(session, wire.fields(session, 1, *HEAD, ("grpc-encoding", "gzip")), said)
    assert call.take() == b"1"
    with pytest.raises(CallFailed) as caught:
        call.take()
    assert caught.value.code is code(call) is Code.RESOURCE_EXHAUSTED
    assert not call.messages
    assert kinds(wire.hear(session)) == [frames.RST_STREAM]


def test_a_message_larger_than_the_window_comes_through_before_it_can_be_read() -> None:
    wire = Wire()
    wire.dispatch.max_message_bytes = 5_000_000
    call = wire.call(streaming=True)
    session = wire.connect()
    rest = b"\0" + (4_000_000).to_bytes(4) + bytes(4_000_000)
    wire.say(session, wire.fields(session, 1, *HEAD))
    window = 1024 * 1024
    while rest:
        part, rest = rest[: frames.FRAME_BYTES], rest[frames.FRAME_BYTES :]
        window -= len(part)
        assert window >= 0
        for frame in wire.say(session, data(1, part)):
            window += int.from_bytes(frame.payload) if frame.stream == 1 else 0
    assert [len(message) for message in call.messages] == [4_000_000]


# Targets


@pytest.mark.parametrize(
    ("target", "addresses", "authority"),
    [
        ("localhost:1", (Address("localhost", 1),), "localhost:1"),
        ("[::1]:1", (Address("::1", 1),), "[::1]:1"),
        ("unix-7.example:1", (Address("unix-7.example", 1),), "unix-7.example:1"),
        ("dns:///models.example:80", (Address("models.example", 80),), "models.example:80"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", (Address("10.0.0.1", 1), Address("10.0.0.2", 2)), "10.0.0.1:1"),
        ("ipv6:[fe80::1]:1", (Address("fe80::1", 1),), "[fe80::1]:1"),
        ("unix:/run/x", (Address(path="/run/x"),), "localhost"),
        ("unix:///run/x", (Address(path="/run/x"),), "localhost"),
        ("unix-abstract:x", (Address(path="\0x"),), "localhost"),
    ],
)
def test_targets(target: str, addresses: tuple[Address, ...], authority: str) -> None:
    assert (addresses_of(target), authority_of(target)) == (addresses, authority)


@pytest.mark.parametrize("target", ["vsock:2:1", "xds:///x:1", "dns://10.0.0.1/x:1", "ipv4:10.0.0.1", "x:99999"])
def test_targets_that_only_grpcio_knows_or_nobody(target: str) -> None:
    with pytest.raises(ValueError, match="target"):
        addresses_of(target)
