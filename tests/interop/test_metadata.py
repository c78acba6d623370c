"""What travels beside the messages."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from calling import Call, Channel, Pair
from echo_server import METADATA_BYTES, SERVICE, as_text
from offramp_server.transport.interface import Code

from clients import SUCCESS_METADATA

RAW = bytes(range(256))


def seen(channel: Channel, *metadata: Pair) -> Any:
    """What the server sees of a call with it."""
    ended = channel.begin(Call(SERVICE + "describe", metadata=metadata)).outcome()
    assert ended.code is Code.OK
    return json.loads(ended.answers[0])["metadata"]


def test_text_and_bytes_arrive_as_they_were(channel: Channel) -> None:
    found = seen(channel, ("text", "a b, c; =\"'"), ("raw-bin", RAW), ("zeros-bin", b"\0\0"), ("none-bin", b""))
    assert found["text"] == "a b, c; =\"'"
    assert {key: base64.b64decode(found[key]["base64"]) for key in ("raw-bin", "zeros-bin", "none-bin")} == {
        "raw-bin": RAW,
        "zeros-bin": b"\0\0",
        "none-bin": b"",
    }


def test_of_a_key_that_comes_twice_the_last_value_counts(channel: Channel) -> None:
    found = seen(channel, ("k", "1"), ("k", "2"), ("k-bin", b"1"), ("k-bin", b"2"))
    assert (found["k"], found["k-bin"]) == ("2", as_text(b"2"))


@pytest.mark.needs(SUCCESS_METADATA)
def test_what_the_server_says_comes_with_the_end_of_the_call(channel: Channel) -> None:
    metadata = (("back-text", "a b"), ("back-raw-bin", RAW))
    ended = channel.begin(Call(SERVICE + "describe", metadata=metadata)).outcome()
    assert (ended.trailer("text"), ended.trailer("raw-bin")) == ("a b", RAW)


@pytest.mark.parametrize("method", ["fail", "fail_later"])
def test_a_failure_carries_its_details(channel: Channel, method: str) -> None:
    trailing = {"hint": "7", "raw-bin": as_text(RAW), "grpc-status-details-bin": as_text(b"\x08\x09\x12\xff")}
    request = json.dumps({"code": 9, "message": "no", "trailing": trailing}).encode()
    ended = channel.begin(
        Call(SERVICE + method, (request,), "unary" if method == "fail" else "server_stream")
    ).outcome()
    assert ended.code is Code.FAILED_PRECONDITION
    assert (ended.trailer("hint"), ended.trailer("raw-bin")) == ("7", RAW)
    assert ended.trailer("grpc-status-details-bin") == b"\x08\x09\x12\xff"


def test_metadata_up_to_the_limit_and_not_beyond(channel: Channel) -> None:
    """Each field counts with 32 bytes on top, as HTTP/2 has it; what a client says by itself takes some of it too."""
    fits = METADATA_BYTES - 1000
    assert len(seen(channel, ("k", "v" * fits))["k"]) == fits
    many = [(f"key-{number:04}", "v" * 60) for number in range(fits // 100)]
    assert seen(channel, *many).keys() >= {key for key, _ in many}
    for metadata in ([("k", "v" * METADATA_BYTES)], many * 2):
        ended = channel.begin(Call(SERVICE + "describe", metadata=tuple(metadata))).outcome()
        assert ended.code is Code.RESOURCE_EXHAUSTED
    # The connection lives, and so do others' calls on it.
    assert seen(channel, ("k", "v"))["k"] == "v"
