"""Messages in the data of a stream, however it is cut, compressed or wrong."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_common.grpc_framing.messages import (
    ENCODINGS,
    IDENTITY,
    MessageBytes,
    MessageReader,
    compressed,
    decompressed,
    prefix,
)
from offramp_common.grpc_framing.status import CallFailed, Code

LIMIT = 1_000_000


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4) + message


def read(*parts: bytes, encoding: str = IDENTITY, limit: int = LIMIT) -> list[MessageBytes]:
    taken: list[MessageBytes] = []
    reader = MessageReader(encoding, limit, taken.append)
    for part in parts:
        reader.feed(part)
    return taken


def refusal(*parts: bytes, encoding: str = IDENTITY, limit: int = LIMIT) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        read(*parts, encoding=encoding, limit=limit)
    return caught.value


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 50), st.booleans())
def test_messages_are_the_same_however_the_data_is_cut(messages: list[bytes], size: int, view: bool) -> None:
    data = b"".join(map(framed, messages))
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    assert read(*(memoryview(part) if view else part for part in parts)) == messages  # type: ignore[arg-type]


def test_a_large_message_in_frames() -> None:
    message = bytes(range(256)) * 2000
    data = framed(message)
    assert read(*(data[at : at + 16_384] for at in range(0, len(data), 16_384))) == [message]


def test_what_is_declared_reserves_nothing() -> None:
    reader = MessageReader(IDENTITY, 2**31, lambda message: None)
    reader.feed(prefix(60_000_000))
    assert reader.held_bytes == 0
    reader.feed(bytes(100_000))
    assert reader.held_bytes == 100_000
    reader.drop()
    assert reader.held_bytes == 0


def test_a_reader_knows_whether_a_message_is_cut_off() -> None:
    reader = MessageReader(IDENTITY, LIMIT, lambda message: None)
    states = []
    for part in (framed(b"abc"), b"\0", b"\0\0\0\x01", b"x"):
        reader.feed(part)
        states.append(reader.between_messages)
    assert states == [True, False, False, True]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_messages_are_unpacked(encoding: str) -> None:
    message = b"hello " * 1000
    packed = gzip.compress(message) if encoding == "gzip" else zlib.compress(message)
    assert read(framed(packed, 1), framed(b"plain"), encoding=encoding) == [message, b"plain"]
    assert decompressed(compressed(message, encoding), encoding, LIMIT) == message


def test_a_message_that_unpacks_to_too_much_is_refused_before_it_is_there() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert refusal(framed(bomb, 1), encoding="gzip").code is Code.RESOURCE_EXHAUSTED


def test_a_message_of_exactly_the_limit_is_taken() -> None:
    assert read(framed(bytes(100)), limit=100) == [bytes(100)]
    assert read(framed(gzip.compress(bytes(100)), 1), encoding="gzip", limit=100) == [bytes(100)]
    assert refusal(framed(bytes(101)), limit=100).code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("data", "encoding", "said"),
    [
        (framed(b"x", 2), IDENTITY, "first byte is 2"),
        (framed(b"x", 1), IDENTITY, "no grpc-encoding"),
        (framed(b"no gzip", 1), "gzip", "not gzip"),
        (framed(gzip.compress(b"x", mtime=0)[:-1], 1), "gzip", "not one whole"),
        (framed(gzip.compress(b"x", mtime=0) + b"more", 1), "gzip", "not one whole"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(data: bytes, encoding: str, said: str) -> None:
    failure = refusal(data, encoding=encoding)
    assert failure.code is Code.INTERNAL
    assert said in failure.message


def test_the_encodings_are_those_that_are_told() -> None:
    assert ENCODINGS == ("identity", "gzip", "deflate")
