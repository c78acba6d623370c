"""Large messages, and compressed ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from calling import Call, Channel, Kind, Opening, Pending
from echo import EchoServer
from echo_server import SERVICE
from forwarder import forwarding
from offramp_server.transport.interface import Code

from clients import CALL_COMPRESSION, CHANNEL_COMPRESSION

LARGE = bytes(range(256)) * (16 * 2**20 // 256)
# All of them answer with what they were sent.
METHODS: tuple[tuple[str, Kind], ...] = (("unary", "unary"), ("collect", "client_stream"), ("each", "bidi"))
# Nothing but repetition.
SQUASHY = b"offramp " * 6000


def test_16_megabytes_both_ways(channel: Channel) -> None:
    assert_answered(channel.begin(Call(SERVICE + "unary", (LARGE,))), LARGE)


def test_16_megabytes_in_a_stream_and_small_ones_beside(channel: Channel) -> None:
    large = channel.begin(Call(SERVICE + "each", (LARGE, b"1", LARGE), "bidi"))
    assert channel.begin(Call(SERVICE + "unary", (b"2",))).outcome().answers == (b"2",)
    assert_answered(large, LARGE, b"1", LARGE)


def assert_answered(pending: Pending, *answers: bytes) -> None:
    """As pytest does, but for showing a million lines of what is missing."""
    ended = pending.outcome()
    assert (ended.code, ended.message, [len(each) for each in ended.answers]) == (Code.OK, "", list(map(len, answers)))
    same = ended.answers == answers
    assert same


@pytest.mark.needs(CALL_COMPRESSION)
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_call_may_be_compressed(opened: Callable[[Opening], Channel], echo: EchoServer, algorithm: str) -> None:
    with forwarding(echo.targets["plain"]) as way:
        channel = opened(Opening(way.target))
        for method, kind in (METHODS[0], METHODS[2]):
            before = way.to_server
            ended = channel.begin(Call(SERVICE + method, (SQUASHY,), kind, compression=algorithm)).outcome()
            assert (ended.code, ended.answers) == (Code.OK, (SQUASHY,))
            assert way.to_server - before < len(SQUASHY) / 10
        before = way.to_server
        assert channel.begin(Call(SERVICE + "unary", (SQUASHY,))).outcome().answers == (SQUASHY,)
        assert way.to_server - before > len(SQUASHY)


@pytest.mark.needs(CHANNEL_COMPRESSION)
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_channel_may_be_compressed(
    opened: Callable[[Opening], Channel], echo: EchoServer, transport: str, algorithm: str
) -> None:
    with forwarding(echo.targets["plain"]) as way:
        channel = opened(Opening(way.target, compression=algorithm))
        # The first one: grpc-js does not understand which encodings gRPC's core says that it takes, and stops then.
        assert channel.begin(Call(SERVICE + "unary", (SQUASHY,))).outcome().answers == (SQUASHY,)
        assert way.to_server < len(SQUASHY) / 10
        # Only the native transport answers in kind.
        assert (way.from_server < len(SQUASHY) / 10) is (transport == "native")
        for message in (b"", b"short", SQUASHY * 4):
            for method, kind in METHODS:
                ended = channel.begin(Call(SERVICE + method, (message,), kind)).outcome()
                assert (ended.code, ended.answers) == (Code.OK, (message,))
