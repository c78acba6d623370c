"""What stands in the fields of a call: gRPC over HTTP/2 as bytes, and as what handlers see of it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import quote_from_bytes

from offramp_common.http2.errors import ErrorCode, StreamFailed
from offramp_common.http2.hpack import STATUS_200, Field, literal

from offramp_server.transport.interface import CallFailed, Code
from offramp_server.transport.native.messages import ENCODINGS, IDENTITY

_SECONDS = MappingProxyType({b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9})
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
# RFC 9110, section 5.6.2, without capital letters, which HTTP/2 does not have.
_NAME = re.compile(rb":?[a-z0-9!#$%&'*+.^_`|~-]+")
_BAD_IN_VALUES = re.compile(rb"[\0\r\n]")
# Of HTTP/1.1's connections (RFC 9113, section 8.2.2).
_FORBIDDEN = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
# Said by the protocol itself, and nothing that a handler is told.
_RESERVED = frozenset({b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"})
# Names of nearly every request, which need no second look.
_USUAL = _RESERVED | {b":method", b":scheme", b":path", b":authority", b"user-agent", b"accept-encoding"}
_CONTENT_TYPE = b"application/grpc"
# Everything but what stands for itself in grpc-message.
_UNQUOTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request; calls that begin with the same bytes share one."""

    path: str
    # Seconds from its arrival.
    timeout: float | None
    # What compressed messages of it are in.
    encoding: str
    # As they came, without those of the protocol.
    fields: tuple[Field, ...]
    # What to answer at once instead: a status of HTTP, or one of gRPC.
    http_status: int = 200
    failure: CallFailed | None = None
    # Answers may be compressed as the request is.
    squeezes: bool = False

    def metadata(self) -> Mapping[str, str | bytes]:
        """Raises CallFailed for a -bin key whose value is not base64."""
        return {name.decode(): _value(name, value) for name, value in self.fields}


def read_head(fields: Iterable[Field]) -> Head:
    """Raises StreamFailed for what HTTP/2 does not allow."""
    pseudo: dict[bytes, bytes] = {}
    plain: dict[bytes, bytes] = {}
    kept: list[Field] = []
    for name, value in fields:
        _check(name, value)
        if name.startswith(b":"):
            if plain or name in pseudo:
                raise StreamFailed(ErrorCode.PROTOCOL_ERROR, f"{name!r} twice, or after other fields")
            pseudo[name] = value
            continue
        plain[name] = value
        if name not in _RESERVED:
            kept.append((name, value))
    if not pseudo.keys() >= {b":method", b":path", b":scheme"}:
        raise StreamFailed(ErrorCode.PROTOCOL_ERROR, "a request without :method, :path or :scheme")
    return _head(pseudo, plain, tuple(kept))


def _check(name: bytes, value: bytes) -> None:
    bad_name = name not in _USUAL and (not _NAME.fullmatch(name) or name in _FORBIDDEN)
    if bad_name or _BAD_IN_VALUES.search(value):
        raise StreamFailed(ErrorCode.PROTOCOL_ERROR, f"a field that must not be there: {name!r}")
    if name == b"te" and value != b"trailers":
        raise StreamFailed(ErrorCode.PROTOCOL_ERROR, f"te: {value!r}")


def _head(pseudo: Mapping[bytes, bytes], plain: Mapping[bytes, bytes], kept: tuple[Field, ...]) -> Head:
    path = pseudo[b":path"].decode("latin-1")
    if pseudo[b":method"] != b"POST":
        return Head(path, None, IDENTITY, kept, http_status=405)
    if not _is_grpc(plain.get(b"content-type", b"")):
        return Head(path, None, IDENTITY, kept, http_status=415)
    encoding = plain.get(b"grpc-encoding", IDENTITY.encode()).decode("latin-1")
    try:
        timeout = read_timeout(plain.get(b"grpc-timeout"))
        if encoding not in ENCODINGS:
            said = f"grpc-encoding {encoding!r}: expected one of {', '.join(ENCODINGS)}"
            raise CallFailed(Code.UNIMPLEMENTED, said, {"grpc-accept-encoding": ",".join(ENCODINGS)})
    except CallFailed as failure:
        return Head(path, None, IDENTITY, kept, failure=failure)
    return Head(path, timeout, encoding, kept, squeezes=_takes(encoding, plain.get(b"grpc-accept-encoding")))


def _takes(encoding: str, accepted: bytes | None) -> bool:
    return encoding != IDENTITY and (accepted is None or encoding.encode() in accepted.replace(b" ", b"").split(b","))


def _is_grpc(content_type: bytes) -> bool:
    """application/grpc, with a codec or parameters behind it or without."""
    return content_type.startswith(_CONTENT_TYPE) and content_type[len(_CONTENT_TYPE) :][:1] in (b"", b"+", b";")


def read_timeout(text: bytes | None) -> float | None:
    """Seconds. Raises CallFailed."""
    if text is None:
        return None
    found = _TIMEOUT.fullmatch(text)
    if found is None:
        said = text[:32].decode("latin-1")
        raise CallFailed(Code.INVALID_ARGUMENT, f"grpc-timeout {said!r}: expected up to 8 digits and one of HMSmun")
    return int(found[1]) * _SECONDS[found[2]]


def _value(name: bytes, value: bytes) -> str | bytes:
    if not name.endswith(b"-bin"):
        return value.decode("latin-1")
    try:
        # Several values may be joined by commas; the last one counts, as with keys that come twice.
        last = value.rpartition(b",")[2]
        return base64.b64decode(last + b"=" * (-len(last) % 4), validate=True)
    except binascii.Error:
        raise CallFailed(Code.INVALID_ARGUMENT, f"metadata {name.decode()}: expected base64") from None


# What is sent. The same blocks go to every peer, since none enters its table.

_GRPC = STATUS_200 + literal(b"content-type", _CONTENT_TYPE)
ANSWER_HEAD = _GRPC + literal(b"grpc-accept-encoding", ",".join(ENCODINGS).encode())
OK_TRAILERS = literal(b"grpc-status", b"0")


def answer_head(encoding: str) -> bytes:
    """For answers in that encoding."""
    return ANSWER_HEAD if encoding == IDENTITY else ANSWER_HEAD + literal(b"grpc-encoding", encoding.encode())


def ok_trailers(pairs: Iterable[tuple[str, str | bytes]]) -> bytes:
    return OK_TRAILERS + b"".join(_pair(key, value) for key, value in pairs)


def failure_trailers(failure: CallFailed, pairs: Iterable[tuple[str, str | bytes]] = ()) -> bytes:
    status = literal(b"grpc-status", str(int(failure.code)).encode())
    said = literal(b"grpc-message", quote_from_bytes(failure.message.encode(errors="replace"), _UNQUOTED).encode())
    return status + said + b"".join(_pair(key, value) for key, value in (*pairs, *failure.trailing.items()))


def failure_only(failure: CallFailed, pairs: Iterable[tuple[str, str | bytes]] = ()) -> bytes:
    """All of an answer that has no messages."""
    return _GRPC + failure_trailers(failure, pairs)


def http_only(status: int) -> bytes:
    """For who does not speak gRPC."""
    return literal(b":status", str(status).encode())


def _pair(key: str, value: str | bytes) -> bytes:
    if key.endswith("-bin"):
        raw = value if isinstance(value, bytes) else value.encode()
        return literal(key.encode(), base64.b64encode(raw).rstrip(b"="))
    text = value if isinstance(value, str) else value.decode("latin-1")
    # What could end the field would be taken for something else.
    return literal(key.encode(), re.sub(r"[^\x20-\x7e]", "?", text).encode())
