"""The server's end of HTTP/2, frame by frame: what it takes, what it refuses, and what it never grows by."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

import pytest
from http2_peer import REQUEST, Frame, Peer, data, kinds
from hypothesis import given
from hypothesis import strategies as st
from offramp_common.http2 import frames
from offramp_common.http2.errors import ConnectionFailed, ErrorCode, StreamFailed
from offramp_common.http2.hpack import STATUS_200, literal
from offramp_common.http2.limits import Http2Limits
from offramp_common.http2.stream import Stream

HEAD, TRAILERS = STATUS_200, literal(b"grpc-status", b"0")


@pytest.fixture
def peer() -> Peer:
    peer = Peer()
    peer.greet()
    return peer


def broken(peer: Peer, *parts: bytes) -> ErrorCode:
    """What the connection ends with."""
    with pytest.raises(ConnectionFailed) as caught:
        peer.say(*parts)
    assert peer.sent[-1].kind == frames.GOAWAY
    assert peer.sent[-1].error == caught.value.code
    return caught.value.code


def only(sent: list[Frame], kind: int) -> Frame:
    [frame] = [each for each in sent if each.kind == kind]
    return frame


# Greeting


def test_it_says_its_settings_and_takes_the_peers() -> None:
    sent = Peer().greet((frames.INITIAL_WINDOW_SIZE, 10))
    assert kinds(sent) == [frames.SETTINGS, frames.WINDOW_UPDATE, frames.SETTINGS]
    assert sent[-1].flags == frames.ACK
    assert dict(frames.read_settings(sent[0].payload))[frames.MAX_CONCURRENT_STREAMS] == 1024


def test_who_speaks_something_else_is_told_before_anything_is_said() -> None:
    peer = Peer()
    assert broken(peer, b"GET / HTTP/1.1\r\n\r\n") is ErrorCode.PROTOCOL_ERROR
    assert len(peer.sent) == 1


def test_settings_come_first(peer: Peer) -> None:
    assert broken(Peer(), frames.PREFACE, frames.ping(bytes(8), ack=False)) is ErrorCode.PROTOCOL_ERROR


# Requests


def test_a_request_and_its_answer(peer: Peer) -> None:
    peer.say(peer.request(1, ("key", "value")), data(1, b"hello", ended=True))
    taken = peer.taken[1]
    assert (b"key", b"value") in taken.head
    assert (taken.data, taken.ended) == (b"hello", True)
    peer.engine.answer(taken.stream, HEAD, b"", b"answer", TRAILERS)
    head, body, trailers = peer.hear()
    assert (peer.fields(head), body.payload) == ([(":status", "200")], b"answer")
    assert peer.fields(trailers) == [("grpc-status", "0")]
    assert trailers.flags & frames.END_STREAM
    assert peer.engine.streams == {}


def test_requests_are_the_same_however_the_bytes_are_cut(peer: Peer) -> None:
    whole = Peer()
    said = [frames.PREFACE, frames.settings(()), whole.request(1), data(1, b"x" * 5000), data(1, b"", ended=True)]
    everything = b"".join([*said, whole.request(3, ("k", "v"), ended=True)])
    whole.say(everything)
    for size in (1, 2, 7, 8, 9, 10, 4999):
        cut = Peer()
        for start in range(0, len(everything), size):
            cut.say(everything[start : start + size])
        assert [(each.head, each.data, each.ended) for each in cut.taken.values()] == [
            (each.head, each.data, each.ended) for each in whole.taken.values()
        ]


def test_fields_go_on_in_continuation(peer: Peer) -> None:
    [frame] = [peer.request(1, ("long", "v" * 5000), ended=True)]
    block = frame[frames.HEADER_BYTES :]
    peer.say(
        frames.header(frames.HEADERS, frames.END_STREAM, 1, 10) + block[:10],
        frames.header(frames.CONTINUATION, 0, 1, 20) + block[10:30],
        frames.header(frames.CONTINUATION, frames.END_HEADERS, 1, len(block) - 30) + block[30:],
    )
    assert (b"long", b"v" * 5000) in peer.taken[1].head
    assert peer.taken[1].ended


def test_padding_and_priority_are_taken_off(peer: Peer) -> None:
    block = peer.request(1)[frames.HEADER_BYTES :]
    padded = b"\x03" + bytes(5) + block + bytes(3)
    flags = frames.PADDED | frames.WITH_PRIORITY | frames.END_HEADERS
    peer.say(frames.header(frames.HEADERS, flags, 1, len(padded)) + padded)
    peer.say(frames.header(frames.DATA, frames.PADDED | frames.END_STREAM, 1, 6) + b"\x03ab\0\0\0")
    assert peer.taken[1].data == b"ab"


def test_padding_is_minded_in_what_is_let_go_too(peer: Peer) -> None:
    peer.say(peer.request(1), frames.rst_stream(1, 0))
    assert broken(peer, frames.header(frames.DATA, frames.PADDED, 1, 2) + b"\5x") is ErrorCode.PROTOCOL_ERROR


def test_trailers_of_a_request_end_it(peer: Peer) -> None:
    peer.say(peer.request(1), data(1, b"x"), peer.request(1, ended=True))
    assert peer.taken[1].ended


def test_fields_after_the_end_of_a_request_end_its_stream(peer: Peer) -> None:
    peer.say(peer.request(1, ended=True))
    [reset] = peer.say(*frames.headers(1, peer.block(("checksum", "5")), end_stream=True))
    assert (reset.kind, reset.error) == (frames.RST_STREAM, ErrorCode.STREAM_CLOSED)


def test_the_same_fields_mean_the_same_only_while_the_table_does(peer: Peer) -> None:
    for number in (1, 3, 5, 7):
        peer.say(peer.request(number, ("k", "1"), ended=True))
    # The table moves on, so the bytes of before name other entries.
    peer.say(peer.request(9, ("other", "2"), ended=True), peer.request(11, ("k", "1"), ended=True))
    assert all((b"k", b"1") in peer.taken[number].head for number in (1, 3, 5, 7, 11))
    assert (b"other", b"2") in peer.taken[9].head


def test_a_head_that_is_too_large_ends_its_stream_alone() -> None:
    peer = Peer(Http2Limits(max_header_list_bytes=1000))
    peer.greet()
    peer.say(peer.request(1, ("large", "v" * 2000), ended=True), peer.request(3, ended=True))
    assert [stream.number for stream in peer.oversized] == [1]
    assert list(peer.taken) == [3]


def test_heads_that_are_too_large_are_borne_the_longer_the_less_they_are() -> None:
    def borne(excess: int) -> int:
        """Heads until the connection is over."""
        peer = Peer(Http2Limits(max_header_list_bytes=10_000, nuisances_at_once=100, nuisances_per_second=0.0))
        peer.greet()
        # More than are borne in any case.
        numbers = range(1, 2 * 150, 2)
        large = literal(b"large", bytes(10_000 + excess))
        heads = [b"".join(frames.headers(number, peer.block(*REQUEST) + large, end_stream=True)) for number in numbers]
        assert broken(peer, *heads) is ErrorCode.ENHANCE_YOUR_CALM
        return len(peer.oversized)

    assert borne(100) == 100
    assert borne(20_000) < 10


# Flow control


def test_answers_wait_for_the_stream_and_for_the_connection(peer: Peer) -> None:
    peer.say(peer.request(1, ended=True), peer.request(3, ended=True))
    first, second = peer.taken[1].stream, peer.taken[3].stream
    peer.engine.answer(first, HEAD, b"", bytes(60_000), TRAILERS)
    peer.engine.answer(second, HEAD, b"", bytes(60_000), TRAILERS)
    before = peer.hear()
    sent = [len(frame.payload) for frame in before if frame.kind == frames.DATA]
    assert sum(sent) == frames.DEFAULT_WINDOW
    assert max(sent) <= frames.FRAME_BYTES
    assert kinds(peer.say(frames.window_update(1, 10))) == []
    rest = peer.say(frames.window_update(0, 100_000))
    assert sum(len(frame.payload) for frame in rest if frame.kind == frames.DATA) == 120_000 - frames.DEFAULT_WINDOW
    assert {frame.stream for frame in (*before, *rest) if frame.flags & frames.END_STREAM} == {1, 3}
    assert peer.engine.streams == {}


def test_a_large_answer_keeps_no_small_one_waiting(peer: Peer) -> None:
    peer.say(frames.window_update(0, 10**6), peer.request(1, ended=True), peer.request(3, ended=True))
    peer.engine.sender.pause()
    peer.engine.answer(peer.taken[1].stream, HEAD, b"", bytes(60_000), TRAILERS)
    peer.engine.answer(peer.taken[3].stream, HEAD, b"", b"small", TRAILERS)
    peer.engine.sender.resume()
    order = [frame.stream for frame in peer.hear() if frame.kind == frames.DATA]
    assert order[:3] == [1, 3, 1]


def test_no_more_is_handed_to_the_socket_than_it_is_asked_to_take(peer: Peer) -> None:
    peer.say(frames.window_update(0, 10**8), frames.settings(((frames.INITIAL_WINDOW_SIZE, 10**8),)))
    peer.say(peer.request(1, ended=True), peer.request(3, ended=True))
    peer.engine.answer(peer.taken[1].stream, HEAD, b"", bytes(10**7), TRAILERS)
    assert sum(len(frame.payload) for frame in peer.hear()) < 300_000
    # What is small goes next, not after all of it.
    peer.engine.answer(peer.taken[3].stream, HEAD, b"", b"small", TRAILERS)
    assert only(peer.hear(), frames.DATA).payload == b"small"
    sent = 0
    while 1 in peer.engine.streams:
        peer.engine.sender.resume()
        sent += sum(len(frame.payload) for frame in peer.hear() if frame.kind == frames.DATA)
    assert sent + 16 * frames.FRAME_BYTES == 10**7


def test_a_window_that_shrinks_below_zero_holds_answers_back(peer: Peer) -> None:
    peer.say(peer.request(1, ended=True))
    stream = peer.taken[1].stream
    peer.engine.begin_answer(stream, HEAD)
    peer.engine.send(stream, bytes(1000))
    peer.hear()
    peer.say(frames.settings(((frames.INITIAL_WINDOW_SIZE, 0),)))
    peer.engine.send(stream, b"more")
    assert peer.hear() == []
    assert kinds(peer.say(frames.window_update(1, 999))) == []
    assert only(peer.say(frames.window_update(1, 5)), frames.DATA).payload == b"more"


def test_a_message_larger_than_the_window_comes_through(peer: Peer) -> None:
    peer.say(peer.request(1))
    room = sent = 0
    room = peer.engine.streams[1].receive_window
    while sent < 5_000_000:
        size = min(frames.FRAME_BYTES, room)
        assert size, "nobody made room"
        answers = peer.say(data(1, bytes(size)))
        sent, room = sent + size, room - size
        room += sum(int.from_bytes(each.payload) for each in answers if each.stream == 1)
    assert len(peer.taken[1].data) == sent


def test_who_sends_more_than_the_stream_may_loses_the_stream() -> None:
    peer = Peer(Http2Limits(stream_window=100_000), credits=False)
    peer.greet()
    peer.say(peer.request(1))
    for _ in range(6):
        peer.say(data(1, bytes(16_384)))
    assert only(peer.say(data(1, bytes(16_384))), frames.RST_STREAM).error is ErrorCode.FLOW_CONTROL_ERROR
    assert peer.taken[1].reset


@pytest.mark.parametrize("stream", [0, 1])
def test_windows_do_not_overflow_nor_widen_by_nothing(peer: Peer, stream: int) -> None:
    peer.say(peer.request(1))
    for increment, code in ((0, ErrorCode.PROTOCOL_ERROR), (2**31 - 1, ErrorCode.FLOW_CONTROL_ERROR)):
        update = frames.window_update(stream, increment)
        if stream:
            assert only(peer.say(update), frames.RST_STREAM).error is code
            peer.say(peer.request(stream := stream + 2))
        else:
            assert broken(peer, update) is code


# Ends


def test_a_reset_tells_the_receiver_and_forgets_the_stream(peer: Peer) -> None:
    peer.say(peer.request(1), frames.rst_stream(1, ErrorCode.CANCEL))
    assert peer.taken[1].reset
    assert peer.engine.streams == {}


def test_what_waits_of_a_stream_that_is_reset_is_never_sent(peer: Peer) -> None:
    peer.say(peer.request(1, ended=True))
    peer.engine.answer(peer.taken[1].stream, HEAD, b"", bytes(100_000), TRAILERS)
    peer.hear()
    peer.say(frames.rst_stream(1, ErrorCode.CANCEL))
    assert peer.say(frames.window_update(0, 10**6)) == []


def test_an_answer_before_the_request_has_ended_stops_the_client(peer: Peer) -> None:
    peer.say(peer.request(1), data(1, b"part"))
    peer.engine.end(peer.taken[1].stream, TRAILERS)
    trailers, reset = peer.hear()
    assert trailers.flags & frames.END_STREAM
    assert reset.error is ErrorCode.NO_ERROR
    # Under way: a window full of it is nobody's fault, in however many frames.
    for _ in range(peer.engine._limits.stream_window // 1000 - 1):
        assert peer.say(data(1, bytes(1000))) in ([], peer.sent)
    assert peer.engine._patience._left == peer.limits.nuisances_at_once


def test_streams_over_the_limit_are_refused() -> None:
    peer = Peer(Http2Limits(max_streams=2))
    peer.greet()
    sent = peer.say(*(peer.request(number) for number in (1, 3, 5)))
    assert only(sent, frames.RST_STREAM).error is ErrorCode.REFUSED_STREAM
    assert list(peer.engine.streams) == [1, 3]


def test_after_going_away_streams_above_are_not_looked_at(peer: Peer) -> None:
    peer.say(peer.request(1))
    peer.engine.go_away(1, "bye")
    assert peer.hear()[0].error is ErrorCode.NO_ERROR
    assert peer.say(peer.request(3, ("k", "v"), ended=True)) == []
    assert list(peer.taken) == [1]
    # The table has seen it all the same.
    assert peer.say(data(1, b"", ended=True)) == []


def test_streams_that_were_given_up_stay_so_whatever_ends_the_connection(peer: Peer) -> None:
    peer.say(peer.request(1))
    peer.engine.go_away(1, "bye")
    peer.say(peer.request(3, ended=True))
    peer.engine.go_away(3, "bye")
    with pytest.raises(ConnectionFailed):
        peer.say(frames.header(frames.PUSH_PROMISE, 0, 1, 0))
    assert [int.from_bytes(each.payload[:4]) for each in peer.sent if each.kind == frames.GOAWAY] == [1, 1]


def test_ping_is_answered_and_answers_are_told(peer: Peer) -> None:
    [answer] = peer.say(frames.ping(b"12345678", ack=False), frames.ping(b"87654321", ack=True))
    assert (answer.kind, answer.flags, answer.payload) == (frames.PING, frames.ACK, b"12345678")
    assert peer.pings == [b"87654321"]


def test_a_smaller_table_is_acknowledged_in_the_next_block(peer: Peer) -> None:
    peer.say(frames.settings(((frames.HEADER_TABLE_SIZE, 100),)), peer.request(1, ended=True))
    peer.engine.answer(peer.taken[1].stream, HEAD, b"", b"", TRAILERS)
    head, trailers = peer.hear()
    peer.decoder.max_allowed_table_size = 100
    assert peer.fields(head) == [(":status", "200")]
    assert peer.fields(trailers) == [("grpc-status", "0")]


def test_fields_larger_than_a_frame_are_sent_in_several(peer: Peer) -> None:
    peer.say(peer.request(1, ended=True))
    block = TRAILERS + literal(b"long", b"x" * 40_000)
    peer.engine.end(peer.taken[1].stream, block)
    sent = peer.hear()
    assert kinds(sent) == [frames.HEADERS, frames.CONTINUATION, frames.CONTINUATION]
    assert b"".join(frame.payload for frame in sent) == block
    assert [bool(frame.flags & frames.END_HEADERS) for frame in sent] == [False, False, True]


def test_a_connection_that_is_gone_resets_everything(peer: Peer) -> None:
    peer.say(peer.request(1), peer.request(3))
    peer.engine.close()
    assert all(taken.reset for taken in peer.taken.values())


# What breaks the connection


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (frames.header(frames.DATA, 0, 0, 0), ErrorCode.PROTOCOL_ERROR),
        (data(5, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.DATA, frames.PADDED, 1, 2) + b"\x05a", ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.HEADERS, frames.END_HEADERS, 2, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.HEADERS, frames.END_HEADERS, 0, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.HEADERS, frames.END_HEADERS, 3, 1) + b"\xff", ErrorCode.COMPRESSION_ERROR),
        (frames.header(frames.HEADERS, frames.END_HEADERS | 0x20, 3, 2) + b"ab", ErrorCode.FRAME_SIZE_ERROR),
        (frames.header(frames.HEADERS, 0, 3, 0) + frames.ping(bytes(8), ack=False), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.CONTINUATION, 0, 1, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.PRIORITY, 0, 1, 4) + bytes(4), ErrorCode.FRAME_SIZE_ERROR),
        (frames.header(frames.RST_STREAM, 0, 1, 3) + bytes(3), ErrorCode.FRAME_SIZE_ERROR),
        (frames.rst_stream(7, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.SETTINGS, 0, 1, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.SETTINGS, 0, 0, 5) + bytes(5), ErrorCode.FRAME_SIZE_ERROR),
        (frames.header(frames.SETTINGS, frames.ACK, 0, 6) + bytes(6), ErrorCode.FRAME_SIZE_ERROR),
        (frames.settings(((frames.ENABLE_PUSH, 2),)), ErrorCode.PROTOCOL_ERROR),
        (frames.settings(((frames.INITIAL_WINDOW_SIZE, 2**31),)), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.settings(((frames.MAX_FRAME_SIZE, 100),)), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.PUSH_PROMISE, 0, 1, 4) + bytes(4), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.PING, 0, 0, 7) + bytes(7), ErrorCode.FRAME_SIZE_ERROR),
        (frames.header(frames.PING, 0, 1, 8) + bytes(8), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(9, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.header(frames.WINDOW_UPDATE, 0, 0, 3) + bytes(3), ErrorCode.FRAME_SIZE_ERROR),
        (frames.header(frames.DATA, 0, 1, 16_385), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_what_the_protocol_does_not_allow_ends_the_connection(peer: Peer, frame: bytes, code: ErrorCode) -> None:
    peer.say(peer.request(1))
    assert broken(peer, frame) is code


def test_a_frame_of_an_unknown_type_is_passed_over(peer: Peer) -> None:
    assert peer.say(frames.header(0x77, 0, 1, 3) + b"abc", peer.request(1)) == []
    assert list(peer.taken) == [1]


# Attacks


def flood(peer: Peer, parts: Iterable[bytes]) -> int:
    """How many were taken before the connection was over because of them."""
    taken = 0

    def attack() -> None:
        nonlocal taken
        for part in parts:
            peer.say(part)
            taken += 1

    with pytest.raises(ConnectionFailed) as caught:
        attack()
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM
    return taken


def attempts(*frame_of: Callable[[int], bytes]) -> Iterator[bytes]:
    """What is made for each of many streams."""
    return (b"".join(frame(number) for frame in frame_of) for number in range(1, 40_001, 2))


@pytest.mark.parametrize(
    "frame",
    [
        data(1, b""),
        frames.header(frames.PRIORITY, 0, 1, 5) + bytes(5),
        frames.settings(()),
        frames.header(0x77, 0, 0, 0),
        frames.rst_stream(1, 0),
        frames.goaway(0, 0, ""),
        data(3, b"x"),
    ],
    ids=["empty DATA", "PRIORITY", "SETTINGS", "unknown", "RST_STREAM", "GOAWAY", "stray DATA"],
)
def test_floods_of_what_brings_nothing_forward_end_the_connection(peer: Peer, frame: bytes) -> None:
    peer.say(peer.request(1), peer.request(3), frames.rst_stream(3, 0))
    assert flood(peer, repeat(frame * 100, 1000)) < 100


def test_many_settings_in_one_frame_end_the_connection(peer: Peer) -> None:
    peer.say(peer.request(1))
    flood_of_windows = [(frames.INITIAL_WINDOW_SIZE, size) for size in range(2700)]
    assert broken(peer, frames.settings(flood_of_windows)) is ErrorCode.ENHANCE_YOUR_CALM


def test_rapid_resets_end_the_connection(peer: Peer) -> None:
    assert flood(peer, attempts(peer.request, lambda number: frames.rst_stream(number, ErrorCode.CANCEL))) < 10_000
    assert len(peer.engine.streams) <= 1


def test_resets_that_a_peer_provokes_count_as_its_own(peer: Peer) -> None:
    assert flood(peer, attempts(peer.request, lambda number: frames.window_update(number, 0))) < 10_000
    assert len(peer.engine.streams) <= 1


def test_streams_over_the_limit_without_end_end_the_connection() -> None:
    peer = Peer(Http2Limits(max_streams=10))
    peer.greet()
    assert flood(peer, attempts(peer.request)) < 10_000
    assert len(peer.taken) == 10


@pytest.mark.parametrize("size", [0, 1, 16_384])
def test_a_block_of_fields_without_end_ends_the_connection(peer: Peer, size: int) -> None:
    peer.say(frames.header(frames.HEADERS, 0, 1, 1) + b"\0")
    frame = frames.header(frames.CONTINUATION, 0, 1, size) + bytes(size)
    assert flood(peer, repeat(frame, 100_000)) < 10_000


def test_calls_that_have_been_under_way_may_be_cancelled_for_ever(peer: Peer) -> None:
    for number in range(1, 20_001, 2):
        peer.say(peer.request(number))
        peer.now += 0.2
        peer.say(frames.rst_stream(number, ErrorCode.CANCEL))
    assert peer.engine._patience._left == peer.limits.nuisances_at_once


def test_a_peer_that_mostly_makes_calls_may_cancel_for_ever(peer: Peer) -> None:
    number = 1
    for _ in range(5000):
        for _ in range(2):
            peer.say(peer.request(number, ended=True))
            peer.engine.answer(peer.taken.pop(number).stream, HEAD, b"", b"", TRAILERS)
            peer.engine.reward()
            number += 2
        peer.say(peer.request(number), frames.rst_stream(number, ErrorCode.CANCEL))
        number += 2
    assert peer.engine.streams == {}


def test_patience_comes_back_with_time(peer: Peer) -> None:
    for _ in range(100):
        peer.say((frames.header(frames.PRIORITY, 0, 1, 5) + bytes(5)) * 300)
        peer.now += 1.0


def test_pings_and_window_updates_are_no_nuisance(peer: Peer) -> None:
    for _ in range(20):
        peer.say(frames.ping(bytes(8), ack=False) * 1000, frames.window_update(0, 1) * 1000)


def test_who_pings_too_often_and_is_told_nothing_is_disconnected() -> None:
    peer = Peer(Http2Limits(min_ping_interval=10.0))
    peer.greet()
    ping = frames.ping(bytes(8), ack=False)
    # One that is too early now and then is forgiven.
    for early in (0.0, 9.9, 9.9) * 20:
        peer.now += 10.0 - early / 10
        peer.say(ping)
    peer.now += 10.0
    peer.say(ping, ping, ping)
    with pytest.raises(ConnectionFailed):
        peer.say(ping)
    [goaway] = peer.sent
    # What gRPC's clients look for.
    assert (goaway.error, goaway.payload[8:]) == (ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")


def test_a_client_that_reads_a_large_answer_slowly_may_ping_for_each_part_of_it() -> None:
    peer = Peer(Http2Limits(min_ping_interval=10.0))
    peer.greet((frames.INITIAL_WINDOW_SIZE, frames.LARGEST_WINDOW))
    peer.say(peer.request(1), frames.window_update(0, 2**30))
    stream = peer.taken[1].stream
    peer.engine.begin_answer(stream, b"")
    peer.engine.send(stream, bytes(20 * frames.FRAME_BYTES))
    ping = frames.ping(bytes(8), ack=False)
    for _ in range(20):
        peer.now += 0.1
        peer.say(ping)
    # But not for ever.
    with pytest.raises(ConnectionFailed):
        peer.say(ping * 10)


def test_pings_between_which_a_call_gets_on_are_welcome() -> None:
    peer = Peer(Http2Limits(min_ping_interval=10.0))
    peer.greet((frames.INITIAL_WINDOW_SIZE, frames.LARGEST_WINDOW))
    peer.say(peer.request(1), frames.window_update(0, 2**30))
    stream = peer.taken[1].stream
    peer.engine.begin_answer(stream, b"")
    for _ in range(200):
        peer.engine.send(stream, b"some of a large answer")
        peer.say(frames.ping(bytes(8), ack=False) * 2)
    for number in range(3, 403, 2):
        peer.say(peer.request(number, ended=True))
        peer.engine.end(peer.taken[number].stream, STATUS_200)
        peer.say(frames.ping(bytes(8), ack=False) * 2)


def test_a_listener_may_refuse(peer: Peer) -> None:
    def refuse(stream: Stream) -> None:
        raise StreamFailed(ErrorCode.REFUSED_STREAM, "not now")

    peer.refuse = refuse
    assert only(peer.say(peer.request(1)), frames.RST_STREAM).error is ErrorCode.REFUSED_STREAM
    assert peer.engine.streams == {}


FRAME = st.builds(
    lambda kind, flags, stream, payload: frames.header(kind, flags, stream, len(payload)) + payload,
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1]),
    st.one_of(st.binary(max_size=40), st.builds(lambda n: struct.pack(">L", n), st.integers(0, 2**32 - 1))),
)
STEP = st.one_of(
    FRAME,
    st.binary(max_size=30),
    st.builds(lambda number, ended: ("request", number, ended), st.sampled_from([1, 3, 5, 7, 9]), st.booleans()),
)


@given(st.lists(STEP, max_size=30))
def test_no_bytes_do_more_than_end_the_connection(steps: list[bytes | tuple[str, int, bool]]) -> None:
    peer = Peer()
    peer.greet()
    try:
        for step in steps:
            peer.say(step if isinstance(step, bytes) else peer.request(step[1], ended=step[2]))
    except ConnectionFailed:
        pass
    # Whatever is open has a receiver that was not told otherwise.
    assert all(not peer.taken[number].reset for number in peer.engine.streams if number in peer.taken)
    peer.engine.close()
    assert peer.engine.streams == {}
