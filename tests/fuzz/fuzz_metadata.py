"""What stands in the fields of a call, read and written: held against the definitions and against itself."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from fractions import Fraction
from urllib.parse import unquote_to_bytes

from fuzz_heads import VARIATIONS, fields_of
from fuzz_steps import Step, read_script
from hpack import Decoder
from offramp_common.grpc_framing.fields import read_timeout
from offramp_common.grpc_framing.messages import ENCODINGS
from offramp_common.http2.errors import StreamFailed
from offramp_common.http2.hpack import Field
from offramp_server.transport.interface import CallFailed, Code
from offramp_server.transport.native.metadata import (
    Head,
    answer_head,
    failure_only,
    failure_trailers,
    ok_trailers,
    read_head,
)

_UNITS = {"H": Fraction(3600), "M": Fraction(60), "S": Fraction(1)} | {
    unit: Fraction(1, 1000**power) for power, unit in enumerate("mun", 1)
}
_NAMES = (b"k", b"data-bin", b"grpc-timeout", b"grpc-encoding", b"content-type", b"te", b":path", b":method", b"-bin")


def _head(step: Step) -> None:
    """A usual head with one more field, whose name and value the input says."""
    usual = fields_of("swift", VARIATIONS[step.stream % 32], "key")
    fields = [(name.encode(), value.encode()) for name, value in usual]
    cut = step.flags % (len(step.blob) + 1)
    name = _NAMES[step.value] if step.value < len(_NAMES) else step.blob[:cut]
    place = (step.flags >> 4) % (len(fields) + 1)
    fields.insert(place, (name, step.blob[cut:]))
    try:
        head = read_head(fields)
    except StreamFailed:
        return
    _check_head(head, fields)


def _check_head(head: Head, fields: list[Field]) -> None:
    assert all(re.fullmatch(rb"[^\x00-\x20A-Z\x7f-\xff]+", name) for name, _ in fields), "a name that is none"
    assert not any(re.search(rb"[\0\r\n]", value) for _, value in fields)
    assert head.path.encode("latin-1") == dict(fields)[b":path"]
    assert [each for each in fields if each in head.fields] == list(head.fields)
    assert head.encoding in ENCODINGS
    if head.failure is None and head.http_status == 200:
        assert head.timeout == read_timeout(dict(fields).get(b"grpc-timeout"))
    try:
        metadata = head.metadata()
    except CallFailed:
        return
    assert metadata.keys() == {name.decode() for name, _ in head.fields}
    for name, value in dict(head.fields).items():
        kept = metadata[name.decode()]
        if isinstance(kept, bytes):
            assert _bits(kept) == _bits_of_base64(value)
        else:
            assert kept.encode("latin-1") == value


def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def _bits_of_base64(text: bytes) -> str:
    """By the alphabet of RFC 4648; of several values the last one. Bits beyond whole bytes do not count."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bits = "".join(f"{alphabet.index(code):06b}" for code in text.split(b",")[-1].rstrip(b"="))
    return bits[: len(bits) // 8 * 8]


def _timeout(step: Step) -> None:
    text = step.blob + b"HMSmun"[step.value % 6 : step.value % 6 + 1] if step.flags & 1 else step.blob
    said = text.decode("latin-1")
    right = 2 <= len(said) <= 9 and said[:-1].isascii() and said[:-1].isdecimal() and said[-1] in _UNITS
    try:
        seconds = read_timeout(text)
    except CallFailed:
        assert not right
        return
    assert right
    assert seconds is not None
    exact = int(said[:-1]) * _UNITS[said[-1]]
    assert abs(Fraction(seconds) - exact) <= exact / 10**12


def _failure(step: Step) -> None:
    """A message of anything comes through, and nothing in it ends its field."""
    message = step.blob.decode("latin-1" if step.flags & 1 else "utf-8", errors="surrogateescape")
    failure = CallFailed(Code(step.value % 17), message, {"k": message})
    block = (failure_trailers if step.flags & 4 else failure_only)(failure, [("own-bin", message[:5])])
    fields = dict(Decoder().decode(block, raw=True))
    said = bytes(fields[b"grpc-message"])
    assert re.fullmatch(rb"[\x20-\x7e]*", said)
    assert unquote_to_bytes(said) == message.encode(errors="replace")
    assert int(fields[b"grpc-status"]) == step.value % 17
    assert re.fullmatch(rb"[\x20-\x7e]*", bytes(fields[b"k"]))


def _trailing(step: Step) -> None:
    """Bytes come back from a -bin key."""
    fields = dict(Decoder().decode(ok_trailers([("own-bin", step.blob)]), raw=True))
    text = bytes(fields[b"own-bin"])
    assert base64.b64decode(text + b"=" * (-len(text) % 4), validate=True) == step.blob
    head = Head("/", None, "identity", ((b"own-bin", text),))
    assert head.metadata() == {"own-bin": step.blob}
    for encoding in ENCODINGS:
        Decoder().decode(answer_head(encoding))


_CHECKS: tuple[Callable[[Step], None], ...] = (_head, _timeout, _failure, _trailing)
OPERATIONS = len(_CHECKS)


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    for step in read_script(data).steps:
        _CHECKS[step.operation % OPERATIONS](step)
