"""What our own channels make of servers that refuse, go away, break the rules, or say nothing."""

from __future__ import annotations

import gzip
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from client_fakes import client_of
from eventually import PATIENCE
from http2_peer import data
from offramp_client import Client, InferRequest, KeepAlive, errors
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from open_inference import grpc_predict_v2_pb2 as pb
from scripted_calls import METADATA, NATIVE_KINDS, Play, answering, framed, once, raised, well
from scripted_server import HEAD, Conversation, ScriptedServer, reset

X = {"x": np.zeros(1, np.float32)}


@pytest.fixture(params=NATIVE_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Answers


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.CANCEL, errors.Cancelled),
        (ErrorCode.ENHANCE_YOUR_CALM, errors.ResourceExhausted),
        (ErrorCode.INADEQUATE_SECURITY, errors.PermissionDenied),
        (ErrorCode.INTERNAL_ERROR, errors.Internal),
        (ErrorCode.NO_ERROR, errors.Internal),
    ],
)
def test_a_reset_is_the_status_that_grpc_makes_of_it(kind: str, code: ErrorCode, expected: type) -> None:
    error = raised(kind, lambda server, number: server.say(reset(number, code)))
    assert (type(error), error.message) == (expected, f"the stream was reset: {code.name}")


def _http(status: str) -> Play:
    return lambda server, number: server.say(server.fields(number, (":status", status), ended=True))


def _head(*fields: tuple[str, str]) -> Play:
    return lambda server, number: server.say(server.fields(number, *fields))


def _said(*parts: bytes, ended: bool = False) -> Play:
    """A head, and these data."""
    return lambda server, number: server.say(
        server.fields(number, *HEAD), *(data(number, part, ended and part is parts[-1]) for part in parts)
    )


def _ended(*parts: bytes) -> Play:
    """A head, these data, and a status of OK."""

    def play(server: Conversation, number: int) -> None:
        _said(*parts)(server, number)
        server.say(server.fields(number, ("grpc-status", "0"), ended=True))

    return play


@pytest.mark.parametrize(
    ("play", "code", "sentence"),
    [
        (_http("404"), "UNIMPLEMENTED", "the status 404 of HTTP"),
        (_http("503"), "UNAVAILABLE", "the status 503"),
        (_http("302"), "UNKNOWN", "the status 302"),
        (_http("200"), "UNKNOWN", "content-type is ''"),
        (_head((":status", "200"), ("content-type", "text/html")), "UNKNOWN", "content-type is 'text/html'"),
        (_head(*HEAD, ("grpc-encoding", "zstd")), "INTERNAL", "zstd"),
        (_head(("content-type", "application/grpc")), "INTERNAL", "PROTOCOL_ERROR"),
        (_head((":status", "200"), (":status", "200")), "INTERNAL", "PROTOCOL_ERROR"),
        (_head((":status", "2x0")), "INTERNAL", "PROTOCOL_ERROR"),
        (_head((":status", "200"), ("connection", "close")), "INTERNAL", "PROTOCOL_ERROR"),
        (_said(framed(METADATA), ended=True), "INTERNAL", "without trailers"),
        (_said(framed(METADATA), framed(METADATA)), "INTERNAL", "one answer was expected"),
        (_said(framed(METADATA) * 2), "INTERNAL", "one answer was expected"),
        (_said(b"\x02\0\0\0\0"), "INTERNAL", "first byte is 2"),
        (_said(framed(gzip.compress(METADATA), 1)), "INTERNAL", "no grpc-encoding"),
        (_said(b"\0\x7f\xff\xff\xff"), "RESOURCE_EXHAUSTED", "2147483647 bytes"),
        (_ended(), "INTERNAL", "has no message"),
        (_ended(framed(METADATA)[:-1]), "INTERNAL", "ends within a message"),
        (lambda server, number: server.say(data(number, framed(METADATA))), "INTERNAL", "PROTOCOL_ERROR"),
        (lambda server, number: server.answer(number, METADATA, status="77"), "UNKNOWN", "the server said UNKNOWN"),
        (lambda server, number: server.answer(number, METADATA, status="+5"), "UNKNOWN", "the server said UNKNOWN"),
        (lambda server, number: server.answer(number, METADATA, status="x"), "UNKNOWN", "the server said UNKNOWN"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_an_error(play: Play, code: str, sentence: str) -> None:
    error = raised("blocking native", play)
    assert error.code == code
    assert sentence in error.message


def test_a_status_may_be_written_with_more_digits() -> None:
    def play(server: Conversation, number: int) -> None:
        server.answer(number, METADATA, status="00")

    with ScriptedServer(answering(play)) as server, once("blocking native", server.target) as client:
        assert client.server_metadata().name == "scripted"
    error = raised("blocking native", lambda server, number: server.answer(number, METADATA, status="05"))
    assert isinstance(error, errors.NotFound)


def test_an_answer_may_come_compressed_and_unpacks_to_no_more_than_is_taken(kind: str) -> None:
    def compressed(message: bytes) -> Play:
        def play(server: Conversation, number: int) -> None:
            server.say(server.fields(number, *HEAD, ("grpc-encoding", "gzip")))
            server.say(data(number, framed(gzip.compress(message), 1)))
            server.say(server.fields(number, ("grpc-status", "0"), ended=True))

        return play

    with ScriptedServer(answering(compressed(METADATA))) as server, once(kind, server.target) as client:
        assert client.server_metadata().name == "scripted"
    error = raised(kind, compressed(bytes(1_000_000)), max_message_bytes=100_000)
    assert isinstance(error, errors.ResourceExhausted)


def test_what_announces_a_head_is_passed_over_but_not_for_ever(kind: str) -> None:
    def announced(times: int) -> Play:
        def play(server: Conversation, number: int) -> None:
            server.say(*(server.fields(number, (":status", "103")) for _ in range(times)))
            server.answer(number, METADATA)

        return play

    with ScriptedServer(answering(announced(2))) as server, once(kind, server.target) as client:
        assert client.server_metadata().name == "scripted"
    assert isinstance(raised(kind, announced(50)), errors.ResourceExhausted)


# Refusals, which the caller does not see


def test_a_call_that_the_server_has_not_looked_at_is_made_again(kind: str) -> None:
    def script(server: Conversation) -> None:
        server.greet()
        server.say(reset(server.request(), ErrorCode.REFUSED_STREAM))
        well(server, server.request())
        server.until_gone()

    with ScriptedServer(script) as server, once(kind, server.target) as client:
        # Never tried again by the client itself.
        assert client.server_metadata().name == "scripted"


def test_a_call_that_is_refused_twice_is_unavailable(kind: str) -> None:
    def script(server: Conversation) -> None:
        server.greet()
        for _ in range(2):
            server.say(reset(server.request(), ErrorCode.REFUSED_STREAM))
        server.until_gone()

    with (
        ScriptedServer(script) as server,
        once(kind, server.target) as client,
        pytest.raises(errors.Unavailable, match="REFUSED_STREAM"),
    ):
        client.server_metadata()


def test_calls_that_a_server_which_goes_away_has_not_looked_at_go_to_the_next_one(kind: str) -> None:
    def draining(server: Conversation) -> None:
        server.greet()
        server.request()
        server.say(frames.goaway(0, ErrorCode.NO_ERROR, "drained"))
        server.until_gone()

    with ScriptedServer(draining, answering(well)) as server, once(kind, server.target) as client:
        assert client.server_metadata().name == "scripted"


def test_the_next_call_after_a_servers_farewell_goes_to_a_new_connection(kind: str) -> None:
    def draining(server: Conversation) -> None:
        server.greet()
        number = server.request()
        server.answer(number, METADATA)
        server.say(frames.goaway(number, ErrorCode.NO_ERROR, ""))
        server.until_gone()

    with ScriptedServer(draining, answering(well)) as server, once(kind, server.target) as client:
        assert [client.server_metadata().name for _ in range(2)] == ["scripted"] * 2


def test_a_connection_that_ended_while_nobody_called_is_noticed_before_the_next_call() -> None:
    gone = threading.Event()

    def leaving(server: Conversation) -> None:
        server.greet()
        well(server, server.request())
        server.socket.shutdown(socket.SHUT_RDWR)
        gone.set()

    with ScriptedServer(leaving, answering(well)) as server, once("blocking native", server.target) as client:
        assert client.server_metadata().name == "scripted"
        assert gone.wait(PATIENCE)
        assert client.server_metadata().name == "scripted"


def test_what_a_farewell_says_is_passed_on_with_the_loss(kind: str) -> None:
    def calm(server: Conversation, number: int) -> None:
        server.say(frames.goaway(number, ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings"))
        server.socket.shutdown(socket.SHUT_RDWR)

    error = raised(kind, calm)
    assert isinstance(error, errors.Unavailable)
    assert "ENHANCE_YOUR_CALM too_many_pings" in error.message


def test_calls_wait_for_their_turn_where_the_server_allows_few_at_a_time() -> None:
    most = 0

    def script(server: Conversation) -> None:
        nonlocal most
        server.greet((frames.MAX_CONCURRENT_STREAMS, 2))
        waiting: list[int] = []
        for left in range(8, 0, -1):
            waiting.append(server.request())
            most = max(most, len(waiting))
            if len(waiting) == 2 or left == 1:
                for number in waiting:
                    well(server, number)
                waiting.clear()
        server.until_gone()

    with (
        ScriptedServer(script) as server,
        once("blocking native", server.target) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        assert [each.name for each in pool.map(lambda _: client.server_metadata(), range(8))] == ["scripted"] * 8
    assert most == 2


# Silence, and the end


def test_a_server_that_dies_within_a_call_is_unavailable_and_found_again(kind: str) -> None:
    def dying(server: Conversation) -> None:
        server.greet()
        server.request()

    with ScriptedServer(dying, answering(well)) as server, once(kind, server.target) as client:
        with pytest.raises(errors.Unavailable, match="the connection was lost"):
            client.server_metadata()
        assert client.server_metadata().name == "scripted"


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n" * 10, bytes(100)])
def test_who_speaks_something_else_is_unavailable(kind: str, said: bytes) -> None:
    def script(server: Conversation) -> None:
        server.say(said)
        server.until_gone()

    expected = "speaks HTTP/1" if said.startswith(b"HTTP") else "broke HTTP/2"
    with (
        ScriptedServer(script) as server,
        once(kind, server.target) as client,
        pytest.raises(errors.Unavailable, match=expected),
    ):
        client.server_metadata()


def test_nobody_there_is_unavailable_at_once_and_left_alone_for_a_while(kind: str) -> None:
    with ScriptedServer() as server:
        target = server.target
    with once(kind, target) as client:
        for _ in range(2):
            with pytest.raises(errors.Unavailable, match=f"no connection to {target}: "):
                client.server_metadata()


@pytest.mark.parametrize("greets", [False, True])
def test_a_server_that_says_nothing_costs_a_call_no_more_than_its_time(kind: str, greets: bool) -> None:
    def silent(server: Conversation) -> None:
        if greets:
            server.greet()
        server.until_gone()
        if greets:
            assert [frame.error for frame in server.heard if frame.kind == frames.RST_STREAM] == [ErrorCode.CANCEL]

    with (
        ScriptedServer(silent) as server,
        once(kind, server.target) as client,
        pytest.raises(errors.DeadlineExceeded),
    ):
        client.server_metadata(timeout=0.1)


def test_a_server_that_is_dead_is_found_by_asking(kind: str) -> None:
    keepalive = KeepAlive(interval=1.0, timeout=0.1)

    def dead(server: Conversation, number: int) -> None:
        server.hear(frames.PING)

    error = raised(kind, dead, keepalive=keepalive, timeout=PATIENCE)
    assert isinstance(error, errors.Unavailable)
    assert "has not answered a ping for 0.1 s" in error.message


def test_a_server_that_asks_for_answers_and_reads_none_is_given_up(kind: str) -> None:
    """What the client would keep for it has a bound."""

    def flood(server: Conversation, number: int) -> None:
        many = frames.ping(bytes(8), ack=False) * 10_000
        with suppress(ConnectionError):
            while True:
                server.say(many)

    with (
        ScriptedServer(answering(flood)) as server,
        once(kind, server.target, timeout=PATIENCE) as client,
        pytest.raises(errors.Unavailable, match="asks for answers, and does not read them"),
    ):
        client.server_metadata()


def test_closing_with_calls_in_flight_ends_them_and_says_goodbye() -> None:
    working = threading.Event()

    def script(server: Conversation) -> None:
        server.greet()
        server.request()
        working.set()
        server.until_gone()
        assert [frame.kind for frame in server.heard[-2:]] == [frames.RST_STREAM, frames.GOAWAY]

    with ScriptedServer(script) as server, ThreadPoolExecutor(1) as pool:
        client = once("blocking native", server.target)
        call = pool.submit(client.server_metadata)
        assert working.wait(PATIENCE)
        client.close()
        with pytest.raises(errors.Cancelled, match="the client was closed"):
            call.result(PATIENCE)


# Streams


def test_a_stream_goes_on_as_it_is_read(kind: str) -> None:
    message = framed(pb.ModelStreamInferResponse(error_message="e" * 10_000).SerializeToString())

    def script(server: Conversation) -> None:
        server.greet()
        number = server.hear(frames.HEADERS).stream
        server.say(server.fields(number, *HEAD))
        window = 1024 * 1024
        for _ in range(300):
            while window < len(message):
                update = server.hear(frames.WINDOW_UPDATE)
                window += int.from_bytes(update.payload) if update.stream == number else 0
            server.say(data(number, message))
            window -= len(message)
        server.say(server.fields(number, ("grpc-status", "0"), ended=True))
        server.until_gone()

    with ScriptedServer(script) as server, once(kind, server.target) as client:
        assert len(list(client.infer_stream([InferRequest("echo", X)]))) == 300


# Threads and processes


def test_one_client_serves_many_threads_some_of_which_lose_patience() -> None:
    """Nobody waits for ever, and nobody gets another one's answer."""

    def script(server: Conversation) -> None:
        server.greet()
        while True:
            number = server.request()
            request = pb.ModelInferRequest.FromString(server.heard.pop().payload[5:])
            if request.model_name == "echo":
                server.answer(number, pb.ModelInferResponse(id=request.id).SerializeToString())

    with ScriptedServer(script) as server, client_of("blocking native", server.target) as client:

        def calls(thread: int) -> list[str | None]:
            found = []
            for number in range(40):
                if number % 10 == 9:
                    with pytest.raises(errors.DeadlineExceeded):
                        client.infer("slow", X, timeout=0.005)
                found.append(client.infer("echo", X, request_id=f"{thread}-{number}").id)
            return found

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(calls, range(8)))
    assert answers == [[f"{thread}-{number}" for number in range(40)] for thread in range(8)]


def test_a_stream_that_is_dropped_in_the_middle_of_another_call_is_ended_after_it() -> None:
    """As the garbage collector may do."""
    ended: list[int] = []

    def script(server: Conversation) -> None:
        server.greet()
        stream = server.request()
        server.say(server.fields(stream, *HEAD), data(stream, framed(b"")))
        ended.append(server.hear(frames.RST_STREAM).stream)
        well(server, server.request())
        server.until_gone()

    with ScriptedServer(script) as server, once("blocking native", server.target) as client:
        answers = client.watch_routes()
        next(answers)
        with client._channel._exchange:
            answers.close()
        assert client.server_metadata().name == "scripted"
    assert ended == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_was_forked_makes_connections_of_its_own() -> None:
    def twice(server: Conversation) -> None:
        server.greet()
        for _ in range(2):
            well(server, server.request())
        server.until_gone()

    with ScriptedServer(twice, answering(well)) as server, Client(server.target, transport="native") as client:
        assert client.server_metadata().name == "scripted"
        child = os.fork()
        if not child:
            try:
                os._exit(0 if client.server_metadata(timeout=PATIENCE).name == "scripted" else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.server_metadata().name == "scripted"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_was_forked_leaves_its_parents_stream_alone() -> None:
    """Whether it reads the stream, or ends with it in hand."""

    def script(server: Conversation) -> None:
        server.greet()
        number = server.request()
        message = data(number, framed(b""))
        server.say(server.fields(number, *HEAD), message)
        forked.wait(PATIENCE)
        server.say(message)
        server.until_gone()
        assert [frame.kind for frame in server.heard].count(frames.RST_STREAM) == 1

    forked = threading.Event()
    with ScriptedServer(script) as server, once("blocking native", server.target) as client:
        answers = client.watch_routes()
        next(answers)
        child = os.fork()
        if not child:
            try:
                next(answers)
            except errors.Cancelled:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = os.fork()
        if not child:
            answers.close()
            os._exit(0)
        os.waitpid(child, 0)
        forked.set()
        next(answers)
        answers.close()
