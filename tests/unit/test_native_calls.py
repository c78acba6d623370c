"""Calls over our own HTTP/2: what is answered, what is cancelled, and what one client may take of the server."""

from __future__ import annotations

import gc
import gzip
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from eventually import eventually_here
from http2_peer import Frame, data
from native_client import Client, Handlers
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from offramp_common.http2.limits import Http2Limits
from offramp_server.transport.interface import CallContext, Code, Method
from offramp_server.transport.native.limits import NativeLimits
from scheduling_fakes import settle

LONG_TURN = "offramp_server.transport.native.connection._LONG_TURN"


@pytest.fixture
async def client() -> Client:
    return Client().greet()


# Calls


async def test_a_call_is_answered_in_the_turn_in_which_it_comes_and_in_one_write(client: Client) -> None:
    client.socket.writes = 0
    client.call(1, "/s/echo", b"hello")
    fields, body = await client.answer(1)
    assert (fields["grpc-status"], body) == ("0", b"\0\0\0\0\x05hello")
    assert client.socket.writes == 1


async def test_answers_that_come_together_are_written_together(client: Client) -> None:
    for number in range(1, 65, 2):
        client.call(number, "/s/wait", b"x")
    client.socket.writes = 0
    client.handlers.release.set()
    await settle()
    assert client.socket.writes == 1
    assert sum(bool(frame.flags & frames.END_STREAM) for frame in client.hear() if frame.kind == frames.HEADERS) == 32


async def test_who_does_not_speak_grpc_gets_a_status_of_http(client: Client) -> None:
    block = client.encoder.encode([(":method", "GET"), (":scheme", "http"), (":path", "/s/echo")])
    client.connection.data_received(b"".join(frames.headers(1, block, end_stream=True)))
    fields, _ = await client.answer(1)
    assert fields == {":status": "405"}


async def test_an_unknown_method_and_a_timeout_that_is_none(client: Client) -> None:
    client.call(1, "/s/nothing", b"x")
    assert await client.status(1) is Code.UNIMPLEMENTED
    client.call(3, "/s/echo", b"x", more=[("grpc-timeout", "soon")])
    assert await client.status(3) is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("path", "more", "code"),
    [
        ("/s/nothing", [], Code.UNIMPLEMENTED),
        ("/s/each", [("grpc-timeout", "soon")], Code.INVALID_ARGUMENT),
        ("/s/each", [("k", "v" * 40_000)], Code.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_is_refused_at_once_waits_for_the_first_of_its_data(
    client: Client, path: str, more: list[tuple[str, str]], code: Code
) -> None:
    """grpc.aio would tell its caller of an internal error if it were answered before."""
    head = b"".join(frames.headers(1, client.head(path, more), end_stream=False))
    client.connection.data_received(head)
    await settle()
    assert [frame.kind for frame in client.hear()] == []
    client.connection.data_received(data(1, b"\0\0\0\0\x01x", ended=False))
    assert await client.status(1) is code
    # Who sends nothing is told all the same, and who ends at once does not wait.
    client.connection.data_received(b"".join(frames.headers(3, client.head(path, more), end_stream=False)))
    assert await client.status(3) is code
    client.connection.data_received(b"".join(frames.headers(5, client.head(path, more), end_stream=True)))
    assert not client.connection.engine.streams


@pytest.mark.parametrize("messages", [(), (b"one", b"two")])
async def test_one_message_is_not_none_and_not_two(client: Client, messages: tuple[bytes, ...]) -> None:
    client.call(1, "/s/echo", *messages)
    assert await client.status(1) is Code.UNIMPLEMENTED


async def test_a_request_that_ends_within_a_message_is_refused(client: Client) -> None:
    client.call(1, "/s/echo", ended=False)
    client.connection.data_received(data(1, b"\0\0\0\0\x05ab", ended=True))
    assert await client.status(1) is Code.INTERNAL


async def test_who_compresses_is_answered_compressed(client: Client) -> None:
    message = b"hello " * 1000
    client.call(1, "/s/echo", ended=False, more=[("grpc-encoding", "gzip")])
    packed = gzip.compress(message)
    client.connection.data_received(data(1, b"\x01" + len(packed).to_bytes(4) + packed, ended=True))
    fields, body = await client.answer(1)
    assert fields["grpc-encoding"] == "gzip"
    assert body[0] == 1
    assert gzip.decompress(body[5:]) == message


async def test_an_answer_is_never_said_to_be_in_an_encoding_that_its_caller_does_not_take(client: Client) -> None:
    said = [("grpc-encoding", "gzip"), ("grpc-accept-encoding", "identity")]
    for number, path, size in ((1, "/s/echo", 20_000), (3, "/s/each", 1)):
        client.call(number, path, bytes(size), more=said)
        fields, _ = await client.answer(number)
        assert "grpc-encoding" not in fields


async def test_a_stream_of_messages_each_answered(client: Client) -> None:
    client.call(1, "/s/each", b"a", ended=False)
    await settle()
    client.connection.data_received(data(1, b"\0\0\0\0\x01b", ended=True))
    fields, body = await client.answer(1)
    assert fields["grpc-status"] == "0"
    assert body == b"\0\0\0\0\x01a\0\0\0\0\x01b"


# Deadlines and cancellation


@pytest.mark.parametrize("path", ["/s/wait", "/s/wait-in-a-task"])
async def test_a_deadline_ends_the_call_and_its_handler(client: Client, path: str) -> None:
    client.call(1, path, b"x", more=[("grpc-timeout", "5m")])
    assert await client.status(1) is Code.DEADLINE_EXCEEDED
    await settle()
    assert (client.handlers.cancelled, client.connection.running) == (1, 0)


async def test_no_time_at_all_is_no_call(client: Client) -> None:
    client.call(1, "/s/echo", b"x", more=[("grpc-timeout", "0m")])
    assert await client.status(1) is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("path", ["/s/wait", "/s/wait-in-a-task"])
async def test_a_reset_cancels_the_handler(client: Client, path: str) -> None:
    client.call(1, path, b"x")
    await settle()
    client.connection.data_received(frames.rst_stream(1, ErrorCode.CANCEL))
    await settle()
    assert (client.handlers.cancelled, client.connection.running) == (1, 0)
    assert client.hear() == []


async def test_a_client_that_is_gone_cancels_everything(client: Client) -> None:
    client.call(1, "/s/wait", b"x")
    client.call(3, "/s/each", b"x", ended=False)
    await settle()
    client.connection.connection_lost(None)
    await settle()
    assert client.connection.running == 0
    assert client.shared.connections == set()


async def test_handlers_that_outlive_their_reset_count_as_streams() -> None:
    client = Client(NativeLimits(Http2Limits(max_streams=2))).greet()
    for number in (1, 3):
        client.call(number, "/s/stubborn", b"x")
        client.connection.data_received(frames.rst_stream(number, ErrorCode.CANCEL))
    client.call(5, "/s/echo", b"x")
    [refused] = [frame for frame in client.hear() if frame.kind == frames.RST_STREAM]
    assert refused.error is ErrorCode.REFUSED_STREAM
    client.handlers.release.set()
    await settle()
    client.call(7, "/s/echo", b"x")
    assert await client.status(7) is Code.OK


# Limits


async def test_a_message_over_the_limit_is_refused_before_it_has_come() -> None:
    client = Client(max_message_bytes=1000).greet()
    client.call(1, "/s/echo", ended=False)
    client.connection.data_received(data(1, b"\0" + (1001).to_bytes(4)))
    assert await client.status(1) is Code.RESOURCE_EXHAUSTED


async def test_unfinished_requests_share_a_bound_over_all_connections() -> None:
    client = Client(NativeLimits(max_buffered_bytes=25_000)).greet()
    start = b"\0" + (500_000).to_bytes(4) + bytes(10_000)
    client.call(1, "/s/echo", ended=False)
    client.call(3, "/s/echo", ended=False)
    client.connection.data_received(data(1, start) + data(3, start))
    first = client.socket
    client.connect()
    client.greet()
    client.call(1, "/s/echo", ended=False)
    client.connection.data_received(data(1, start))
    assert await client.status(1) is Code.RESOURCE_EXHAUSTED
    # What is over gives back.
    for connection in list(client.shared.connections):
        connection.connection_lost(None)
    client.connect()
    client.greet()
    client.call(1, "/s/echo", ended=False)
    client.connection.data_received(data(1, start))
    assert not first.aborted
    assert client.hear() == []


@pytest.mark.parametrize("path", ["/s/echo", "/s/each"])
async def test_what_the_heads_of_open_calls_take_is_counted(path: str) -> None:
    """A field of three bytes on the wire is an object of fifty, twice."""
    client = Client(NativeLimits(max_buffered_bytes=40_000)).greet()
    more = [("a", str(number)) for number in range(100)]
    for number in (1, 3, 5):
        # Nothing but its head.
        block = client.head(path, [*more, ("own", str(number))])
        client.connection.data_received(b"".join(frames.headers(number, block, end_stream=False)))
    client.connection.data_received(data(5, b"\0\0\0\0\1x", ended=True))
    assert await client.status(5) is Code.RESOURCE_EXHAUSTED
    # Light ones are taken as before, and what is over gives back.
    client.call(7, "/s/echo", b"x")
    assert await client.status(7) is Code.OK
    client.connection.data_received(frames.rst_stream(1, ErrorCode.CANCEL))
    client.call(9, "/s/echo", b"x", more=more)
    assert await client.status(9) is Code.OK
    client.connection.data_received(frames.rst_stream(3, ErrorCode.CANCEL))
    await settle()
    assert client.shared.memory.take(40_000)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_message_that_waits_for_its_end_is_counted(packed: bool) -> None:
    client = Client(NativeLimits(max_buffered_bytes=150_000)).greet()
    message = bytes(100_000)
    body = gzip.compress(message) if packed else message
    more = [("grpc-encoding", "gzip")] if packed else []
    for number in (1, 3):
        client.call(number, "/s/echo", ended=False, more=more)
        whole = bytes((packed,)) + len(body).to_bytes(4) + body
        for start in range(0, len(whole), 16_384):
            client.connection.data_received(data(number, whole[start : start + 16_384]))
    assert await client.status(3) is Code.RESOURCE_EXHAUSTED
    client.connection.data_received(data(1, b"", ended=True))
    # Windows of the client are not what this is about.
    client.connection.data_received(frames.window_update(0, 10**6) + frames.window_update(1, 10**6))
    fields, _ = await client.answer(1)
    assert fields["grpc-status"] == "0"


@pytest.mark.parametrize("size", [10, 10_000])
@pytest.mark.parametrize("path", ["/s/echo", "/s/wait-in-a-task", "/s/each"])
async def test_what_does_not_unpack_ends_the_call_and_nothing_stays(path: str, size: int) -> None:
    """What is small is unpacked at once, what is large by a thread."""
    client = Client(NativeLimits()).greet()
    client.call(1, path, ended=False, more=[("grpc-encoding", "gzip")])
    client.connection.data_received(data(1, b"\1" + size.to_bytes(4) + bytes(size), ended=True))
    assert await client.status(1) is Code.INTERNAL
    await eventually_here(lambda: client.connection.running == 0)
    assert client.connection.memory.take(NativeLimits().max_buffered_bytes_of_one)


async def test_a_message_that_a_handler_has_read_counts_no_more(client: Client) -> None:
    before = client.shared.memory._left
    client.call(1, "/s/each", b"x" * 10_000, ended=False)
    assert client.shared.memory._left < before
    # The handler takes it, and nothing more comes.
    await settle()
    assert client.shared.memory._left == before
    client.connection.connection_lost(None)
    await settle()


class Elsewhere(Handlers):
    """Keeps requests where this connection does not see them, as a front end does."""

    async def each(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            context.hold(len(request) * 100)
            yield b"held"
        await self.release.wait()


async def test_a_request_that_is_kept_elsewhere_counts_until_its_call_is_over() -> None:
    client = Client(NativeLimits(max_buffered_bytes_of_one=1_500_000), handlers=Elsewhere()).greet()
    client.call(1, "/s/each", bytes(10_000), ended=False)
    await settle()
    client.call(3, "/s/each", bytes(10_000), ended=False)
    assert await client.status(3) is Code.RESOURCE_EXHAUSTED
    client.connection.data_received(frames.rst_stream(1, 8))
    await eventually_here(lambda: client.connection.running == 0)
    assert client.connection.memory.take(1_500_000)


async def test_messages_of_nothing_count_too() -> None:
    client = Client(NativeLimits(Http2Limits(stream_window=100_000))).greet()
    client.call(1, "/s/slow_reader", ended=False)
    sent = 0
    for _ in range(20):
        client.connection.data_received(data(1, bytes(5) * 1000))
        sent += 5000
        if sent > 90_000 and not _widened(client.hear(), 1):
            break
    assert sent <= 100_000
    client.connection.connection_lost(None)
    await settle()


@pytest.mark.parametrize("path", ["/s/wait", "/s/slow_reader"])
async def test_what_a_call_that_is_over_had_received_is_not_left_to_the_garbage_collector(
    client: Client, path: str
) -> None:
    gc.collect()
    gc.disable()
    try:
        client.call(1, path, ended=False)
        stream = client.connection.engine.streams[1]
        call = weakref.ref(stream.receiver)
        client.connection.data_received(data(1, b"\0" + (500_000).to_bytes(4) + bytes(10_000)))
        client.connection.data_received(frames.rst_stream(1, ErrorCode.CANCEL))
        await settle()
        assert stream.receiver is None
        assert call() is None
    finally:
        gc.enable()


async def test_an_answer_that_is_none_is_the_servers_fault(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    async def nothing(request: bytes, context: CallContext) -> Any:
        return None

    for number, swift in ((1, True), (3, False)):
        path = f"/s/nothing{number}"
        client.shared.methods[path] = Method("nothing", path, "bytes", bytes, False, False, nothing, swift)  # type: ignore[index]
        client.call(number, path, b"x")
        assert await client.status(number) is Code.INTERNAL
    assert client.connection.running == 0


async def test_an_answer_over_the_limit_is_refused() -> None:
    client = Client(max_message_bytes=5000).greet()
    client.call(1, "/s/flood", b"x")
    assert await client.status(1) is Code.RESOURCE_EXHAUSTED


async def test_what_a_client_takes_none_of_keeps_it_from_new_calls() -> None:
    client = Client(NativeLimits(max_waiting_bytes=50_000)).greet((frames.INITIAL_WINDOW_SIZE, 0))
    client.call(1, "/s/echo", bytes(60_000))
    await settle()
    client.call(3, "/s/echo", b"x")
    [refused] = [frame for frame in client.hear() if frame.kind == frames.RST_STREAM]
    assert refused.error is ErrorCode.REFUSED_STREAM


async def test_a_client_is_not_read_ahead_of_its_handler() -> None:
    client = Client(NativeLimits(Http2Limits(stream_window=100_000))).greet()
    message = b"\0" + (10_000).to_bytes(4) + bytes(10_000)
    client.call(1, "/s/slow_reader", ended=False)
    room = 100_000
    while room >= len(message):
        client.connection.data_received(data(1, message))
        room += _widened(client.hear(), 1) - len(message)
    await settle()
    assert _widened(client.hear(), 1) == 0
    client.handlers.release.set()
    await settle()
    assert _widened(client.hear(), 1) > 0


def _widened(sent: list[Frame], stream: int) -> int:
    updates = (frame for frame in sent if frame.kind == frames.WINDOW_UPDATE and frame.stream == stream)
    return sum(int.from_bytes(frame.payload) for frame in updates)


async def test_a_handler_is_not_ahead_of_a_client_that_does_not_read(client: Client) -> None:
    client.call(1, "/s/flood", b"x")
    await settle()
    produced = len(client.handlers.read)
    assert produced * 10_000 <= frames.DEFAULT_WINDOW + 100_000
    client.connection.data_received(frames.window_update(0, 10**6) + frames.window_update(1, 200_000))
    await settle()
    assert len(client.handlers.read) > produced
    client.connection.data_received(frames.rst_stream(1, ErrorCode.CANCEL))
    await settle()
    assert client.connection.running == 0


async def test_a_socket_that_takes_nothing_is_not_read_either(client: Client) -> None:
    client.connection.data_received(frames.window_update(0, 10**8))
    client.connection.data_received(frames.settings(((frames.INITIAL_WINDOW_SIZE, 10**8),)))
    client.connection.pause_writing()
    assert not client.socket.is_reading()
    client.call(1, "/s/flood", b"x")
    await settle()
    assert [frame for frame in client.hear() if frame.kind == frames.DATA] == []
    assert client.connection.engine.streams[1].queued_bytes < 200_000
    client.connection.resume_writing()
    assert client.socket.is_reading()
    await settle()
    assert [frame for frame in client.hear() if frame.kind == frames.DATA] != []
    client.connection.connection_lost(None)
    await settle()


async def test_who_keeps_the_loop_busy_is_read_again_after_others(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LONG_TURN, -1.0)
    client.call(1, "/s/echo", b"x")
    assert not client.socket.is_reading()
    await settle()
    assert client.socket.is_reading()


async def test_a_socket_that_takes_nothing_is_not_read_after_others(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LONG_TURN, -1.0)
    client.call(1, "/s/echo", b"x")
    client.connection.pause_writing()
    await settle()
    assert not client.socket.is_reading()
    client.connection.resume_writing()
    assert client.socket.is_reading()


async def test_connections_over_the_limit_are_closed() -> None:
    client = Client(NativeLimits(max_connections=1))
    first = client.socket
    client.connect()
    assert client.socket.aborted
    assert not first.aborted
