"""The connections of our own HTTP/2: time, and the end."""

from __future__ import annotations

import pytest
from http2_peer import data
from native_client import Client
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from offramp_server.transport.interface import CallContext, CallFailed, Code, Method
from offramp_server.transport.native.limits import NativeLimits
from scheduling_fakes import settle


@pytest.fixture
async def client() -> Client:
    return Client().greet()


# Time


def later(client: Client, seconds: float) -> None:
    client.connection.look(client.connection.loop.time() + seconds)


async def test_who_never_greets_is_disconnected() -> None:
    client = Client(NativeLimits(greeting_timeout=10))
    client.connection.data_received(frames.PREFACE)
    later(client, 9)
    assert not client.socket.aborted
    later(client, 11)
    assert client.socket.aborted


async def test_who_is_silent_is_asked_and_then_given_up(client: Client) -> None:
    later(client, 30)
    assert client.hear() == []
    later(client, 61)
    await settle()
    [ping] = client.hear()
    client.connection.data_received(frames.ping(ping.payload, ack=True))
    later(client, 61)
    later(client, 75)
    assert not client.socket.aborted
    later(client, 90)
    assert client.socket.aborted


async def test_a_socket_that_takes_nothing_for_long_is_given_up(client: Client) -> None:
    client.connection.pause_writing()
    for seconds, buffered in ((0, 1000), (50, 1000), (55, 900), (110, 900)):
        client.socket.buffered = buffered
        later(client, seconds)
        # It is slow, but it moves.
        assert not client.socket.aborted
    later(client, 116)
    assert client.socket.aborted
    client.connection.connection_lost(None)


async def test_a_call_whose_answer_is_not_taken_is_reset_and_no_other_one(client: Client) -> None:
    client.call(1, "/s/flood", b"x")
    client.call(3, "/s/wait", b"x")
    await settle()
    later(client, 0)
    # Talking of something else does not help.
    client.connection.data_received(frames.ping(bytes(8), ack=False))
    later(client, 59)
    assert [frame for frame in client.hear() if frame.kind == frames.RST_STREAM] == []
    later(client, 61)
    await settle()
    [reset] = [frame for frame in client.hear() if frame.kind == frames.RST_STREAM]
    assert (reset.stream, reset.error) == (1, ErrorCode.CANCEL)
    assert client.connection.running == 1
    assert not client.socket.aborted
    client.connection.connection_lost(None)
    await settle()


async def test_a_request_that_does_not_go_on_is_reset() -> None:
    client = Client(NativeLimits(keepalive_interval=1000)).greet()
    client.call(1, "/s/echo", ended=False)
    client.call(3, "/s/each", b"x", ended=False)
    later(client, 0)
    client.connection.data_received(data(1, b"\0"))
    later(client, 61)
    later(client, 100)
    assert [frame.stream for frame in client.hear() if frame.kind == frames.RST_STREAM] == []
    later(client, 122)
    await settle()
    # A stream of messages may be silent.
    assert [frame.stream for frame in client.hear() if frame.kind == frames.RST_STREAM] == [1]
    client.connection.connection_lost(None)
    await settle()


# The end


async def test_http1_is_told_what_this_port_speaks() -> None:
    client = Client()
    client.connection.data_received(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.socket.written.startswith(b"HTTP/1.1 400 ")
    assert client.socket.closed


async def test_garbage_is_answered_by_the_end_of_the_connection() -> None:
    client = Client()
    client.connection.data_received(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200))
    [goaway] = client.hear()
    assert (goaway.kind, goaway.error) == (frames.GOAWAY, ErrorCode.PROTOCOL_ERROR)
    assert client.socket.closed


async def test_draining_answers_what_there_is_and_takes_nothing_new(client: Client) -> None:
    client.call(1, "/s/wait", b"x")
    await settle()
    client.connection.drain()
    await settle()
    goaway, ping = client.hear()
    assert int.from_bytes(goaway.payload[:4]) == frames.LAST_STREAM
    # Was under way.
    client.call(3, "/s/echo", b"x")
    [refused] = [frame for frame in client.hear() if frame.kind == frames.RST_STREAM]
    assert (refused.stream, refused.error) == (3, ErrorCode.REFUSED_STREAM)
    client.connection.data_received(frames.ping(ping.payload, ack=True))
    await settle()
    [last] = client.hear()
    assert int.from_bytes(last.payload[:4]) == 3
    assert not client.socket.closed
    client.handlers.release.set()
    assert await client.status(1) is Code.OK
    await settle()
    # The client is to close, and is not waited for without end.
    assert client.socket.ended
    later(client, 1)
    assert not client.socket.closed
    later(client, 6)
    assert client.socket.closed


async def test_shutting_down_says_so_to_every_call(client: Client) -> None:
    client.call(1, "/s/wait", b"x")
    client.call(3, "/s/each", b"x", ended=False)
    await settle()
    client.hear()
    client.connection.shut_down()
    ends = [frame for frame in client.hear() if frame.kind == frames.HEADERS and frame.flags & frames.END_STREAM]
    assert {frame.stream for frame in ends} == {1, 3}
    for frame in ends:
        assert {str(name): str(value) for name, value in client.decoder.decode(frame.payload)}["grpc-status"] == "14"
    await settle()
    assert client.handlers.cancelled == 1
    assert client.socket.closed
    assert client.connection.running == 0


async def test_a_handler_that_fails_by_itself_is_told(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: bytes, context: CallContext) -> bytes:
        raise ValueError("secret") if request == b"bug" else CallFailed(Code.NOT_FOUND, "not here")

    for path, swift in (("/s/swift", True), ("/s/task", False)):
        client.shared.methods[path] = Method("fail", path, "bytes", bytes, False, False, fail, swift)  # type: ignore[index]
    for number, (path, request, code) in enumerate(
        [(path, request, code) for path in ("/s/swift", "/s/task") for request, code in ((b"bug", 13), (b"", 5))]
    ):
        client.call(2 * number + 1, path, request)
        fields, _ = await client.answer(2 * number + 1)
        assert int(fields["grpc-status"]) == code
        assert "secret" not in fields["grpc-message"]
    assert "secret" in caplog.text
