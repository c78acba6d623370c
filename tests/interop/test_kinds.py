"""Calls of each kind, how they fail, their deadlines, and their end before the time."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from calling import Call, Channel, Client, Kind, Opening, Outcome
from echo import EchoServer
from echo_server import SERVICE
from eventually import eventually
from offramp_server.transport.interface import Code
from python_clients import AsyncioClient

from clients import UNARY_CANCEL

MESSAGES = (b"a", b"", b"ccc" * 10_000)


def outcome(channel: Channel, method: str, *messages: bytes, kind: Kind = "unary") -> Outcome:
    return channel.begin(Call(SERVICE + method, messages, kind)).outcome()


def test_unary(channel: Channel) -> None:
    for message in MESSAGES:
        ended = outcome(channel, "unary", message)
        assert (ended.code, ended.answers) == (Code.OK, (message,))


def test_a_stream_of_requests(channel: Channel) -> None:
    for messages in (MESSAGES, (), (b"1",) * 500):
        ended = outcome(channel, "collect", *messages, kind="client_stream")
        assert (ended.code, ended.answers) == (Code.OK, (b"".join(messages),))


def test_a_stream_of_answers(channel: Channel) -> None:
    for times, size in ((0, 1), (3, 0), (500, 10), (20, 100_000)):
        ended = outcome(channel, "repeat", json.dumps({"times": times, "size": size}).encode(), kind="server_stream")
        assert (ended.code, [len(answer) for answer in ended.answers]) == (Code.OK, [size] * times)
        assert ended.answers == tuple(bytes([number % 256]) * size for number in range(times))


def test_streams_both_ways(channel: Channel) -> None:
    for messages in (MESSAGES, (), tuple(b"%d" % number for number in range(500))):
        ended = outcome(channel, "each", *messages, kind="bidi")
        assert (ended.code, ended.answers) == (Code.OK, messages)


def test_a_failure_has_its_status_and_message(channel: Channel) -> None:
    said = "trop chargé: 100 % \n of it"
    for code in Code:
        if code is not Code.OK:
            request = json.dumps({"code": code, "message": said, "trailing": {}}).encode()
            ended = outcome(channel, "fail", request)
            assert (ended.code, ended.message, ended.answers) == (code, said, ())


def test_a_failure_comes_after_the_answers_that_were_sent(channel: Channel) -> None:
    request = json.dumps({"code": 10, "message": "enough", "trailing": {}}).encode()
    ended = outcome(channel, "fail_later", request, kind="server_stream")
    assert (ended.code, ended.message, ended.answers) == (Code.ABORTED, "enough", (b"1", b"2"))


def test_a_method_that_is_not_there_is_unimplemented(channel: Channel, transport: str, client: Client) -> None:
    assert outcome(channel, "nothing", b"1").code is Code.UNIMPLEMENTED
    for kind in ("client_stream", "server_stream", "bidi"):
        if (kind, transport) == ("bidi", "grpcio") and isinstance(client, AsyncioClient):
            # It forgets the status where the server was very fast; the native transport waits for its message.
            continue
        assert outcome(channel, "nothing", b"1", kind=kind).code is Code.UNIMPLEMENTED
    assert outcome(channel, "unary", b"1").code is Code.OK


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """Of the calls of one test that wait."""
    return str(request.node.name)


async def test_a_deadline_is_told_and_ends_both_sides(channel: Channel, echo: EchoServer, key: str) -> None:
    ended = channel.begin(Call(SERVICE + "describe", timeout=50)).outcome()
    assert 1 < json.loads(ended.answers[0])["remaining"] <= 51

    methods: tuple[tuple[str, Kind], ...] = (("wait", "unary"), ("wait_stream", "server_stream"))
    calls = [Call(SERVICE + method, (f"{key} {kind}".encode(),), kind, timeout=0.2) for method, kind in methods]
    for pending in [channel.begin(call) for call in calls]:
        assert pending.outcome().code is Code.DEADLINE_EXCEEDED
    # They may have come too late to be begun at all.
    keys = [call.messages[0].decode() for call in calls]
    await eventually(lambda: all(echo.count(f"{each} begun") == echo.count(f"{each} ended") for each in keys))


@pytest.mark.needs(UNARY_CANCEL)
async def test_a_call_that_is_cancelled_ends_on_both_sides(channel: Channel, echo: EchoServer, key: str) -> None:
    pending = channel.begin(Call(SERVICE + "wait", (key.encode(),)))
    await eventually(lambda: echo.count(f"{key} begun") == 1)
    pending.cancel()
    assert pending.outcome().code is Code.CANCELLED
    await eventually(lambda: echo.count(f"{key} cancelled") == 1)


async def test_a_stream_that_is_left_ends_on_both_sides(channel: Channel, echo: EchoServer, key: str) -> None:
    call = Call(SERVICE + "wait_stream", (key.encode(),), "server_stream", cancel_after_answers=1)
    ended = channel.begin(call).outcome()
    assert (ended.code, ended.answers) == (Code.CANCELLED, (b"waiting",))
    await eventually(lambda: echo.count(f"{key} cancelled") == 1)


@pytest.mark.parametrize("connections", [1, 6])
async def test_600_calls_at_once(
    opened: Callable[[Opening], Channel], echo: EchoServer, key: str, connections: int
) -> None:
    channels = [opened(Opening(echo.targets["plain"])) for _ in range(connections)]
    call = Call(SERVICE + "wait", (key.encode(),))
    pending = [channels[number % connections].begin(call) for number in range(600)]
    await eventually(lambda: echo.count(f"{key} begun") == 600)
    echo.ask("release", key.encode())
    assert {(each.outcome().code, each.outcome().answers) for each in pending} == {(Code.OK, (b"released",))}
