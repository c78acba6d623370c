"""What is said between the server and its front ends comes out as it went in, however it is cut on its way."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_server.transport.interface import CallFailed, Code
from offramp_server.transport.relay import frames
from offramp_server.transport.relay.frames import HEADER, CallHead, FrameReader

Frame = tuple[int, int, bytes]

FIELDS = st.lists(st.tuples(st.binary(min_size=1), st.binary()).map(lambda pair: tuple(map(_clean, pair))))
TEXT = st.text(st.characters(codec="utf-8"))


def _clean(value: bytes) -> bytes:
    """As HTTP/2 allows it."""
    return bytes(byte for byte in value if byte not in b"\0\r\n")


def reader() -> tuple[FrameReader, list[Frame]]:
    taken: list[Frame] = []

    def taker(kind: int) -> frames.Taker:
        return lambda call, data, start, end: taken.append((kind, call, data[start:end]))

    return FrameReader({kind: taker(kind) for kind in range(1, frames.KINDS)}), taken


def joined(sequence: list[Frame]) -> list[Frame]:
    """Parts of a message may come in pieces, and those that follow each other are one."""
    found: list[Frame] = []
    for kind, call, body in sequence:
        if kind == frames.PART and found and found[-1][:2] == (kind, call):
            found[-1] = (kind, call, found[-1][2] + body)
        elif kind != frames.PART or body:
            found.append((kind, call, body))
    return found


@given(
    st.lists(st.tuples(st.integers(1, frames.KINDS - 1), st.integers(0, 2**64 - 1), st.binary(max_size=100))),
    st.lists(st.integers(1, 30)),
)
def test_frames_are_found_wherever_the_stream_is_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(HEADER.pack(len(body), kind, call) + body for kind, call, body in sent)
    found, taken = reader()
    for size in cuts:
        part, stream = stream[:size], stream[size:]
        found.feed(part)
    found.feed(stream)
    assert joined(taken) == joined(sent)


@pytest.mark.parametrize("kind", [0, frames.READY, frames.KINDS, 255])
def test_a_frame_that_an_end_does_not_take_is_an_error(kind: int) -> None:
    with pytest.raises(LookupError):
        FrameReader({}).feed(HEADER.pack(0, kind, 1))


@given(
    st.integers(0, 2**16 - 1),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.none() | TEXT,
    FIELDS,
    st.binary(),
)
def test_the_head_of_a_call(
    method: int,
    timeout: float | None,
    peer: str,
    identity: str | None,
    fields: list[tuple[bytes, bytes]],
    message: bytes,
) -> None:
    body = frames.call_head(method, timeout, peer, identity, fields) + message
    head = CallHead(b"before" + body, 6)
    assert (head.method, head.timeout, head.peer, head.identity) == (method, timeout, peer, identity)
    assert head.fields == fields
    assert body[head.size :] == message


def test_a_head_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(struct.error):
        CallHead(b"\0\0", 0)


@given(st.lists(st.tuples(TEXT, TEXT)), st.lists(st.tuples(TEXT.map(lambda key: key + "-bin"), st.binary())))
def test_trailing_metadata(texts: list[tuple[str, str]], binaries: list[tuple[str, bytes]]) -> None:
    pairs: list[tuple[str, str | bytes]] = [*((key, value) for key, value in texts if not key.endswith("-bin"))]
    pairs += binaries
    assert frames.read_trailing(frames.trailing(pairs)) == pairs


@given(st.sampled_from(Code), st.text())
def test_a_failure(code: Code, message: str) -> None:
    read = frames.read_failure(frames.failure(CallFailed(code, message)))
    assert (read.code, read.message) == (code, message)
