"""The client's end of HTTP/2, frame by frame: what it sends, what it takes, and what it never grows by."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from itertools import repeat

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded, StreamReset
from http2_peer import data, kinds
from http2_server import BLOCK, OK, Server
from hypothesis import given
from hypothesis import strategies as st
from offramp_common.http2 import frames
from offramp_common.http2.errors import ConnectionFailed, ErrorCode
from offramp_common.http2.limits import Http2Limits


@pytest.fixture
def server() -> Server:
    server = Server()
    server.greet()
    return server


def broken(server: Server, *parts: bytes) -> ErrorCode:
    """What the connection ends with."""
    with pytest.raises(ConnectionFailed) as caught:
        server.say(*parts)
    assert server.sent[-1].kind == frames.GOAWAY
    assert server.sent[-1].error == caught.value.code
    return caught.value.code


def goaway(last_stream: int, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = "") -> bytes:
    return frames.goaway(last_stream, code, reason)


# Greeting


def test_it_wants_no_pushes_and_takes_the_servers_settings() -> None:
    server = Server()
    assert not server.engine.can_begin
    sent = server.greet((frames.MAX_CONCURRENT_STREAMS, 2))
    assert kinds(sent) == [frames.SETTINGS, frames.WINDOW_UPDATE, frames.SETTINGS]
    assert dict(frames.read_settings(sent[0].payload))[frames.ENABLE_PUSH] == 0
    assert sent[-1].flags == frames.ACK
    assert (server.engine.can_begin, server.settings) == (True, 1)


def test_an_acknowledgement_is_no_greeting() -> None:
    server = Server()
    server.engine.greet()
    server.say(frames.SETTINGS_ACK)
    assert not server.engine.can_begin


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", frames.ping(bytes(8), ack=False)])
def test_who_begins_with_something_else_is_no_server(said: bytes) -> None:
    assert broken(Server(), said) in (ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR)


# Requests


def test_a_small_request_leaves_in_one_piece(server: Server) -> None:
    asked = server.ask(b"hello")
    [piece] = server.engine.sender.take_output()
    assert asked.stream.number == 1
    assert bytes(piece) == b"".join([*frames.headers(1, BLOCK, False), data(1, b"hello", ended=True)])


def test_numbers_are_odd_and_rise(server: Server) -> None:
    assert [server.ask(b"x").stream.number for _ in range(3)] == [1, 3, 5]


@pytest.mark.parametrize("size", [frames.FRAME_BYTES, frames.FRAME_BYTES + 1, 60_000, 500_000])
def test_a_large_request_waits_for_room_and_ends(server: Server, size: int) -> None:
    server.ask(bytes(size))
    heard = server.hear()
    body = [frame for frame in heard if frame.kind == frames.DATA]
    assert sum(len(frame.payload) for frame in body) == min(size, frames.DEFAULT_WINDOW)
    heard += server.say(frames.window_update(0, size), frames.window_update(1, size))
    body = [frame for frame in heard if frame.kind == frames.DATA]
    assert sum(len(frame.payload) for frame in body) == size
    assert [frame.flags & frames.END_STREAM for frame in body].count(1) == 1
    assert body[-1].flags & frames.END_STREAM


def test_a_request_of_parts_ends_when_it_is_said_to(server: Server) -> None:
    asked = server.ask()
    server.engine.send(asked.stream, b"one")
    server.engine.send(asked.stream, b"two")
    server.engine.end(asked.stream)
    _, *body = server.hear()
    assert [(frame.payload, frame.flags) for frame in body] == [(b"one", 0), (b"two", 0), (b"", frames.END_STREAM)]


def test_there_are_no_more_streams_than_the_server_allows() -> None:
    server = Server()
    server.greet((frames.MAX_CONCURRENT_STREAMS, 2))
    first, _ = server.ask(b"x"), server.ask(b"x")
    could_begin = [server.engine.can_begin]
    server.say(server.fields(first.stream.number, *OK, ended=True))
    could_begin.append(server.engine.can_begin)
    server.say(frames.settings(((frames.MAX_CONCURRENT_STREAMS, 1),)))
    assert [*could_begin, server.engine.can_begin] == [False, True, False]
    assert server.settings == 2


def test_nothing_begins_while_the_socket_takes_nothing(server: Server) -> None:
    server.engine.sender.pause()
    paused = server.engine.can_begin
    server.engine.sender.resume()
    assert (paused, server.engine.can_begin) == (False, True)


def test_a_server_with_a_smaller_table_is_told_in_the_next_block(server: Server) -> None:
    server.say(frames.settings(((frames.HEADER_TABLE_SIZE, 0),)))
    server.ask(b"x")
    assert server.hear()[0].payload == b"\x20" + BLOCK
    server.ask(b"x")
    assert server.hear()[0].payload == BLOCK


# Answers


def test_an_answer_has_a_head_data_and_trailers(server: Server) -> None:
    asked = server.ask(b"hello")
    server.say(server.fields(1, *OK), data(1, b"answer"), server.fields(1, ("grpc-status", "0"), ended=True))
    assert asked.fields == [((b":status", b"200"),), ((b"grpc-status", b"0"),)]
    assert (asked.data, asked.ended, server.engine.streams) == (b"answer", True, {})
    assert asked.stream.receiver is None


def test_answers_are_the_same_however_the_bytes_are_cut() -> None:
    def answered(size: int) -> object:
        server = Server()
        server.greet()
        asked = [server.ask(b"x"), server.ask(b"y")]
        trailers = ("grpc-status", "0")
        said = server.fields(1, *OK) + server.fields(3, *OK, ("k", "v" * 300)) + data(3, b"three" * 2000)
        said += data(1, b"one") + server.fields(1, trailers, ended=True) + server.fields(3, trailers, ended=True)
        for start in range(0, len(said), size):
            server.say(said[start : start + size])
        return [(each.fields, each.data, each.ended) for each in asked]

    assert len({repr(answered(size)) for size in (1, 2, 8, 9, 10, 4999, 100_000)}) == 1


def test_an_answer_before_the_request_has_ended_stops_the_request(server: Server) -> None:
    asked = server.ask(bytes(100_000))
    server.hear()
    sent = server.say(server.fields(1, *OK, ("grpc-status", "8"), ended=True))
    assert [(frame.kind, frame.error) for frame in sent] == [(frames.RST_STREAM, ErrorCode.NO_ERROR)]
    assert (asked.ended, asked.reset, server.engine.streams) == (True, None, {})
    assert server.say(frames.window_update(0, 100_000), frames.window_update(1, 100_000)) == []


def test_fields_that_are_too_large_end_their_stream_alone() -> None:
    server = Server(Http2Limits(max_header_list_bytes=1000))
    server.greet()
    asked, other = server.ask(b"x"), server.ask(b"y")
    server.hear()
    sent = server.say(server.fields(1, *OK, ("long", "v" * 2000)))
    assert (sent[0].kind, asked.reset) == (frames.RST_STREAM, ErrorCode.ENHANCE_YOUR_CALM)
    server.say(server.fields(3, *OK, ended=True))
    assert other.ended


def test_the_same_fields_mean_the_same_only_while_the_table_does(server: Server) -> None:
    for number, value in ((1, "a"), (3, "b"), (5, "a"), (7, "b"), (9, "a")):
        asked = server.ask(b"x")
        server.say(server.fields(number, *OK, ("key", value), ended=True))
        assert asked.fields == [((b":status", b"200"), (b"key", value.encode()))]


def test_an_answer_larger_than_the_windows_comes_through_if_it_is_taken() -> None:
    server = Server(Http2Limits(stream_window=100_000, connection_window=200_000))
    server.greet()
    asked = server.ask(b"x")
    server.say(server.fields(1, *OK))
    for _ in range(40):
        server.say(data(1, bytes(10_000)))
    assert len(asked.data) == 400_000


def test_a_server_that_sends_more_than_there_is_room_for_loses_the_stream() -> None:
    server = Server(Http2Limits(stream_window=100_000, connection_window=200_000))
    server.greet()
    asked = server.ask(b"x", credits=False)
    server.say(server.fields(1, *OK), *repeat(data(1, bytes(10_000)), 10))
    [reset] = server.say(data(1, b"x"))
    assert (reset.kind, asked.reset) == (frames.RST_STREAM, ErrorCode.FLOW_CONTROL_ERROR)


# With h2 on the other side, which is strict


def test_it_is_understood_by_h2_and_understands_it() -> None:
    server = Server()
    other = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    other.initiate_connection()
    server.engine.greet()
    small, large = b"hello", bytes(200_000)

    def exchange() -> None:
        while True:
            said = server.output()
            for event in other.receive_data(said):
                if isinstance(event, DataReceived):
                    other.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    got[event.stream_id] += event.data
                elif isinstance(event, StreamEnded):
                    other.send_headers(event.stream_id, [(":status", "200")])
                    other.send_data(event.stream_id, b"answer")
                    other.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
                elif isinstance(event, StreamReset):
                    resets.append(event.error_code)
            heard = other.data_to_send()
            if not (said or heard):
                return
            server.engine.receive(heard)

    got: defaultdict[int, bytes] = defaultdict(bytes)
    resets: list[int] = []
    exchange()
    asked = [server.ask(small), server.ask(large), server.ask()]
    server.engine.reset(5, ErrorCode.CANCEL)
    exchange()
    assert (dict(got), resets) == ({1: small, 3: large}, [ErrorCode.CANCEL])
    assert [(each.data, each.ended) for each in asked] == [(b"answer", True), (b"answer", True), (b"", False)]


# Resets, and the end


def test_a_reset_is_told_with_its_code(server: Server) -> None:
    asked = server.ask(b"x")
    server.say(frames.rst_stream(1, ErrorCode.REFUSED_STREAM))
    assert (asked.reset, server.engine.streams) == (ErrorCode.REFUSED_STREAM, {})


def test_what_is_under_way_of_a_cancelled_call_is_passed_over(server: Server) -> None:
    server.ask(b"x")
    server.engine.reset(1, ErrorCode.CANCEL)
    server.hear()
    said = server.fields(1, *OK), data(1, bytes(10_000)), server.fields(1, ("grpc-status", "0"), ended=True)
    assert server.say(*said) == []


def test_a_client_may_cancel_for_ever(server: Server) -> None:
    for _ in range(10_000):
        number = server.ask(b"x").stream.number
        server.engine.reset(number, ErrorCode.CANCEL)
        server.hear()
        server.say(server.fields(number, *OK), data(number, b"x"), server.fields(number, *OK, ended=True))


def test_going_away_refuses_what_was_not_looked_at_and_ends_the_rest_well(server: Server) -> None:
    first, second = server.ask(b"x"), server.ask(b"y")
    server.say(goaway(1, ErrorCode.NO_ERROR, "drained"))
    assert (first.reset, second.reset) == (None, ErrorCode.REFUSED_STREAM)
    assert server.goaways == [(ErrorCode.NO_ERROR, "drained")]
    assert not server.engine.can_begin
    server.say(server.fields(1, *OK, ended=True))
    assert first.ended


def test_ping_is_answered_and_answers_are_told(server: Server) -> None:
    [answer] = server.say(frames.ping(b"12345678", ack=False), frames.ping(b"abcdefgh", ack=True))
    assert (answer.flags, answer.payload) == (frames.ACK, b"12345678")
    assert server.pings == [b"abcdefgh"]


def test_a_connection_that_is_gone_resets_everything(server: Server) -> None:
    asked = server.ask(b"x")
    server.engine.close()
    assert (asked.reset, server.engine.streams) == (ErrorCode.CANCEL, {})


def test_the_last_number_is_the_end_of_the_connection(server: Server) -> None:
    server.engine.last_stream = frames.LAST_STREAM - 2
    assert server.ask(b"x").stream.number == frames.LAST_STREAM
    assert not server.engine.can_begin


# What no server may do

_PUSH = frames.header(frames.PUSH_PROMISE, frames.END_HEADERS, 1, 4) + struct.pack(">L", 2)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (_PUSH, ErrorCode.PROTOCOL_ERROR),
        (frames.settings(((frames.ENABLE_PUSH, 1),)), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.HEADERS, frames.END_HEADERS, 2, 1) + b"\x88", ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.HEADERS, frames.END_HEADERS, 3, 1) + b"\x88", ErrorCode.PROTOCOL_ERROR),
        (data(3, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frames.rst_stream(3, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(3, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(0, frames.LARGEST_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.header(frames.GOAWAY, 0, 0, 4) + bytes(4), ErrorCode.FRAME_SIZE_ERROR),
        (frames.header(frames.GOAWAY, 0, 1, 8) + bytes(8), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.HEADERS, frames.END_HEADERS, 1, 1) + b"\xff", ErrorCode.COMPRESSION_ERROR),
        (frames.header(frames.DATA, 0, 1, 20_000), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_what_the_protocol_does_not_allow_ends_the_connection(server: Server, said: bytes, code: ErrorCode) -> None:
    server.ask(b"x")
    assert broken(server, said) is code


@pytest.mark.parametrize(
    "flood",
    [
        lambda server: frames.settings(()),
        lambda server: goaway(frames.LAST_STREAM),
        lambda server: frames.rst_stream(1, 0),
        lambda server: server.fields(1, *OK),
        lambda server: data(1, b""),
        lambda server: frames.header(frames.PRIORITY, 0, 1, 5) + bytes(5),
        lambda server: frames.header(0x55, 0, 0, 0),
    ],
    ids=["settings", "goaway", "resets", "fields", "empty data", "priority", "unknown"],
)
def test_floods_of_what_brings_nothing_forward_end_the_connection(
    server: Server, flood: Callable[[Server], bytes]
) -> None:
    server.ask(b"x")
    server.engine.reset(1, ErrorCode.CANCEL)
    with pytest.raises(ConnectionFailed):
        server.say(*(flood(server) for _ in range(5000)))


@pytest.mark.parametrize("size", [0, 100, frames.FRAME_BYTES])
def test_a_block_of_fields_without_end_ends_the_connection(server: Server, size: int) -> None:
    server.ask(b"x")
    more = frames.header(frames.CONTINUATION, 0, 1, size) + bytes(size)
    assert broken(server, frames.header(frames.HEADERS, 0, 1, 0), *repeat(more, 5000)) is ErrorCode.ENHANCE_YOUR_CALM


@given(st.lists(st.one_of(st.binary(max_size=40), st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 5),
                                                            st.binary(max_size=20))), max_size=12))  # fmt: skip
def test_no_bytes_do_more_than_end_the_connection(steps: list[bytes | tuple[int, int, int, bytes]]) -> None:
    server = Server()
    server.greet()
    asked = [server.ask(b"x"), server.ask()]
    try:
        for step in steps:
            if isinstance(step, bytes):
                server.say(step)
            else:
                kind, flags, number, payload = step
                server.say(frames.header(kind, flags, number, len(payload)) + payload)
    except ConnectionFailed:
        pass
    server.engine.close()
    assert all(each.ended or each.reset is not None for each in asked)
