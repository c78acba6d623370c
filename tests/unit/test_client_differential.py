"""The same answers over both kinds of channel: what a caller gets is the same, except where it is said why it is not.

That both do the same with a server as it should be is what all other tests of the SDK say, which run on both.
"""

from __future__ import annotations

import gzip
import socket
import zlib
from typing import TypeAlias

import pytest
from http2_peer import data
from offramp_client import errors
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from scripted_calls import METADATA, NATIVE_KINDS, Play, answering, framed, once
from scripted_server import HEAD, Conversation, ScriptedServer, reset

_Field: TypeAlias = tuple[str, str]
_KINDS = ("blocking", *NATIVE_KINDS)
_OK = ("grpc-status", "0")
_MAX_MESSAGE_BYTES = 100_000
# The class of the error, or what the server is called; and what it says about trying again.
_Outcome: TypeAlias = tuple[type[errors.OfframpError] | str, float | None]


def _answer(*trailers: _Field, encoding: str = "", body: bytes = framed(METADATA)) -> Play:
    def play(server: Conversation, number: int) -> None:
        head = (*HEAD, ("grpc-encoding", encoding)) if encoding else HEAD
        parts = [body[at : at + frames.FRAME_BYTES] for at in range(0, len(body), frames.FRAME_BYTES)]
        said = server.fields(number, *head), *(data(number, part) for part in parts)
        # At once: a client that has read enough may be gone.
        server.say(*said, server.fields(number, *trailers, ended=True))

    return play


def _fields(*fields: _Field) -> Play:
    """A head that is the end as well."""
    return lambda server, number: server.say(server.fields(number, *fields, ended=True))


def _http(status: int) -> Play:
    def play(server: Conversation, number: int) -> None:
        head = server.fields(number, (":status", str(status)), ("content-type", "text/html"))
        server.say(head, data(number, b"<html>", True))

    return play


def _reset(code: ErrorCode, *before: bytes) -> Play:
    """After a head and these data, if there are any."""

    def play(server: Conversation, number: int) -> None:
        said = (server.fields(number, *HEAD), *(data(number, part) for part in before)) if before else ()
        server.say(*said, reset(number, code))

    return play


def _leaves(server: Conversation, number: int) -> None:
    server.socket.shutdown(socket.SHUT_RDWR)


def _says_goodbye_and_leaves(server: Conversation, number: int) -> None:
    server.say(frames.goaway(number, ErrorCode.NO_ERROR, "bye"))
    _leaves(server, number)


def _fails(status: str, *more: _Field) -> Play:
    return _answer(("grpc-status", status), *more)


_SAME: dict[str, Play] = {
    "well": _answer(_OK),
    "gzip": _answer(_OK, encoding="gzip", body=framed(gzip.compress(METADATA), 1)),
    "deflate": _answer(_OK, encoding="deflate", body=framed(zlib.compress(METADATA), 1)),
    "an encoding, and plain all the same": _answer(_OK, encoding="gzip"),
    "no gzip": _answer(_OK, encoding="gzip", body=framed(b"no gzip", 1)),
    "compressed, and not said how": _answer(_OK, body=framed(gzip.compress(METADATA), 1)),
    "an encoding that nobody asked for": _answer(_OK, encoding="zstd", body=framed(METADATA, 1)),
    "a message that is too large": _answer(_OK, body=b"\0" + (_MAX_MESSAGE_BYTES + 1).to_bytes(4)),
    "one that unpacks to too much": _answer(_OK, encoding="gzip", body=framed(gzip.compress(bytes(10**6)), 1)),
    "digits": _fails("00"),
    "a status": _fails("5", ("grpc-message", "a%20b%zz")),
    "a status of tomorrow": _fails("77"),
    "a status within a message": _answer(("grpc-status", "5"), body=framed(METADATA)[:-1]),
    "no status": _answer(("k", "v")),
    "a hint": _fails("8", ("grpc-retry-pushback-ms", "1500")),
    "a hint to leave it": _fails("14", ("grpc-retry-pushback-ms", "-1")),
    "trailers only": _fields(*HEAD, ("grpc-status", "9"), ("grpc-message", "no")),
    "a status of both": _fields((":status", "503"), ("content-type", "application/grpc"), ("grpc-status", "7")),
    "it leaves": _leaves,
    "it says goodbye and leaves": _says_goodbye_and_leaves,
    "a reset within an answer": _reset(ErrorCode.CANCEL, framed(METADATA)),
    "a reset after an answer": _reset(ErrorCode.NO_ERROR, framed(METADATA)),
    "a refusal within an answer": _reset(ErrorCode.REFUSED_STREAM, framed(METADATA)),
    **{f"HTTP {status}": _http(status) for status in (200, 204, 301, 400, 401, 403, 404, 429, 500, 502, 503, 504)},
    # What was refused is tried again by ours alone.
    **{code.name: _reset(code) for code in ErrorCode if code is not ErrorCode.REFUSED_STREAM},
}


def _outcome(kind: str, play: Play) -> _Outcome:
    options = {"max_message_bytes": _MAX_MESSAGE_BYTES}
    with ScriptedServer(answering(play)) as server, once(kind, server.target, **options) as client:
        try:
            return client.server_metadata().name, None
        except errors.OfframpError as error:
            return type(error), error.retry_after


@pytest.mark.parametrize("said", _SAME)
def test_a_caller_gets_the_same_over_all_channels(said: str) -> None:
    outcomes = {kind: _outcome(kind, _SAME[said]) for kind in _KINDS}
    assert set(outcomes.values()) == {outcomes["blocking"]}, outcomes


# Of which grpcio makes an answer that is None.
_WITHOUT_A_MESSAGE: dict[str, Play] = {
    "no message": _answer(_OK, body=b""),
    "half a message": _answer(_OK, body=framed(METADATA)[:-1]),
    "trailers only": _fields(*HEAD, _OK),
    "what is no message": _answer(_OK, body=b"\2\0\0\0\0"),
}


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("said", _WITHOUT_A_MESSAGE)
def test_an_answer_without_its_message_is_an_error_of_the_tree(kind: str, said: str) -> None:
    found, _ = _outcome(kind, _WITHOUT_A_MESSAGE[said])
    assert isinstance(found, type)
    assert issubclass(found, errors.Internal)
