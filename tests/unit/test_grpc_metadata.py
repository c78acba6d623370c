"""The fields of a call: what is read of them, and what is written."""

from __future__ import annotations

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st
from offramp_common.grpc_framing.fields import quoted, read_timeout, unquoted, written_timeout
from offramp_common.http2.errors import StreamFailed
from offramp_common.http2.hpack import Field
from offramp_server.transport.interface import CallFailed, Code
from offramp_server.transport.native.metadata import (
    Head,
    failure_only,
    failure_trailers,
    http_only,
    ok_trailers,
    read_head,
)

REQUEST: tuple[Field, ...] = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a/b"),
    (b"content-type", b"application/grpc+proto"),
    (b"te", b"trailers"),
)


def head(*more: Field) -> Head:
    return read_head((*REQUEST, *more))


def written(block: bytes) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in Decoder().decode(block)]


def test_what_a_handler_is_told() -> None:
    found = head(
        (b"grpc-timeout", b"50m"), (b"k", b"1"), (b"k", b"2"), (b"raw-bin", b"AP8"), (b"grpc-encoding", b"gzip")
    )
    assert (found.path, found.timeout, found.encoding) == ("/a/b", 0.05, "gzip")
    assert found.metadata() == {"k": "2", "raw-bin": b"\x00\xff"}


@pytest.mark.parametrize("value", [b"AP8", b"AP8=", b"AQ,AP8"])
def test_binary_metadata_with_and_without_padding_and_joined(value: bytes) -> None:
    assert head((b"raw-bin", value)).metadata() == {"raw-bin": b"\x00\xff"}


def test_binary_metadata_that_is_no_base64_is_the_callers_error() -> None:
    with pytest.raises(CallFailed, match="metadata raw-bin: expected base64"):
        head((b"raw-bin", b"!")).metadata()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99999999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert read_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"123456789S", b"1.5S", b"-1S", b"1s"])
def test_a_timeout_that_is_none_is_the_callers_error(text: bytes) -> None:
    failure = head((b"grpc-timeout", text)).failure
    assert failure is not None
    assert failure.code is Code.INVALID_ARGUMENT


@given(st.floats(0.001, 1e7))
def test_a_written_timeout_is_never_less_and_hardly_more(seconds: float) -> None:
    read = read_timeout(written_timeout(seconds))
    assert read is not None
    assert seconds <= read * (1 + 1e-9) <= seconds * 1.011 + 0.001


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.99998, b"10S"), (0.25, b"250m"), (0.0, b"1m"), (1e-9, b"1m"), (1e9, b"99999999S")]
)
def test_a_timeout_is_written_with_few_digits(seconds: float, text: bytes) -> None:
    assert written_timeout(seconds) == text


@given(st.text(max_size=60))
def test_any_message_is_read_as_it_was_written(message: str) -> None:
    assert unquoted(quoted(message)) == message.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(("said", "read"), [(b"100%", "100%"), (b"%zz%41", "%zzA"), (b"\xff%ff", "\ufffd\ufffd")])
def test_a_message_that_is_wrongly_quoted_is_read_as_far_as_possible(said: bytes, read: str) -> None:
    assert unquoted(said) == read


def test_an_unknown_compression_is_refused_with_those_that_are_known() -> None:
    failure = head((b"grpc-encoding", b"snappy")).failure
    assert failure is not None
    assert failure.code is Code.UNIMPLEMENTED
    assert failure.trailing == {"grpc-accept-encoding": "identity,gzip,deflate"}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((*REQUEST[1:], (b":method", b"GET")), 405),
        ((*REQUEST[:3], (b"content-type", b"text/html")), 415),
        ((*REQUEST[:3], (b"content-type", b"application/grpcx")), 415),
        (REQUEST[:3], 415),
    ],
)
def test_who_does_not_speak_grpc_is_told_so_in_http(fields: tuple[Field, ...], status: int) -> None:
    ordered = sorted(fields, key=lambda field: not field[0].startswith(b":"))
    assert read_head(ordered).http_status == status
    assert written(http_only(status)) == [(":status", str(status))]


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST[1:],
        (*REQUEST[:2], *REQUEST[3:]),
        (*REQUEST, (b":path", b"/c")),
        (REQUEST[0], *REQUEST),
        ((b":status", b"200"), *REQUEST),
        ((b":unknown", b"x"), *REQUEST),
        (*REQUEST, (b"Upper", b"x")),
        (*REQUEST, (b"", b"x")),
        (*REQUEST, (b"a b", b"x")),
        (*REQUEST, (b"connection", b"close")),
        (*REQUEST, (b"k", b"a\r\nb")),
        (*REQUEST[:4], (b"te", b"gzip")),
    ],
)
def test_what_http2_does_not_allow_ends_the_stream(fields: tuple[Field, ...]) -> None:
    with pytest.raises(StreamFailed):
        read_head(fields)


@given(st.text(max_size=60))
def test_any_message_arrives_as_it_was(message: str) -> None:
    from urllib.parse import unquote

    fields = dict(written(failure_trailers(CallFailed(Code.NOT_FOUND, message.encode("utf-8", "replace").decode()))))
    assert fields["grpc-status"] == "5"
    assert all(" " <= char <= "~" for char in fields["grpc-message"])
    assert unquote(fields["grpc-message"]) == message.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("message", [" ", "  ", " no model", "no model: ", " a  b  "])
def test_a_message_may_begin_and_end_with_blanks_and_its_field_does_not(message: str) -> None:
    said = quoted(message)
    assert said == said.strip()
    assert unquoted(said) == message


def test_a_message_that_is_no_text_arrives_in_part() -> None:
    assert dict(written(failure_trailers(CallFailed(Code.NOT_FOUND, "a\udc80b"))))["grpc-message"] == "a?b"


@pytest.mark.parametrize(
    ("accepted", "squeezes"), [(None, True), (b"identity, gzip", True), (b"identity,deflate", False)]
)
def test_answers_are_compressed_only_for_who_takes_it(accepted: bytes | None, squeezes: bool) -> None:
    more = [(b"grpc-accept-encoding", accepted)] if accepted is not None else []
    assert head((b"grpc-encoding", b"gzip"), *more).squeezes is squeezes
    assert not head(*more).squeezes


def test_trailers_carry_pairs_and_binary_ones_in_base64() -> None:
    assert written(ok_trailers([("one", "1"), ("raw-bin", b"\x00\xff")])) == [
        ("grpc-status", "0"),
        ("one", "1"),
        ("raw-bin", "AP8"),
    ]


def test_a_value_cannot_end_its_field() -> None:
    assert written(ok_trailers([("k", "a\r\nb\0ü")]))[1] == ("k", "a??b??")


def test_a_failure_without_messages_is_one_block() -> None:
    fields = written(failure_only(CallFailed(Code.INTERNAL, "x", {"hint": "7"}), [("one", "1")]))
    assert fields[0] == (":status", "200")
    assert fields[2:] == [("grpc-status", "13"), ("grpc-message", "x"), ("one", "1"), ("hint", "7")]


@pytest.mark.parametrize("key", ["text", "raw-bin"])
def test_text_that_has_no_bytes_is_written_all_the_same(key: str) -> None:
    # Such as what came of bytes that are no UTF-8; a call that cannot say its status would never end.
    failure = CallFailed(Code.NOT_FOUND, "no file \udcff", {key: "\udcff"})
    assert dict(written(failure_only(failure)))["grpc-message"] == "no file ?"
