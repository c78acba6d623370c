"""What stands in the fields of a call: gRPC over HTTP/2 as bytes, and as what handlers see of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from offramp_common.grpc_framing.fields import (
    CONTENT_TYPE,
    check_field,
    is_grpc,
    metadata_field,
    metadata_of,
    quoted,
    read_timeout,
)
from offramp_common.grpc_framing.messages import ENCODINGS, IDENTITY
from offramp_common.http2.errors import ErrorCode, StreamFailed
from offramp_common.http2.hpack import STATUS_200, Field, literal

from offramp_server.transport.interface import CallFailed, Code

# There is no other one (RFC 9113, section 8.3).
_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
# Said by the protocol itself, and nothing that a handler is told.
_RESERVED = frozenset({b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"})
# Of a tuple and its two objects, beside what these hold.
_FIELD_BYTES = 130
# A call takes as much besides.
_LIGHT_BYTES = 4096


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
    # What the fields take, of a head that is no light one.
    heavy_bytes: int = 0

    @property
    def answer_encoding(self) -> str:
        """What compressed messages of the answer are in."""
        return self.encoding if self.squeezes else IDENTITY

    def metadata(self) -> Mapping[str, str | bytes]:
        """Raises CallFailed for a -bin key whose value is not base64."""
        return metadata_of(self.fields)


def read_head(fields: Iterable[Field]) -> Head:
    """Raises StreamFailed for what HTTP/2 does not allow."""
    pseudo: dict[bytes, bytes] = {}
    plain: dict[bytes, bytes] = {}
    kept: list[Field] = []
    for name, value in fields:
        check_field(name, value)
        if name == b"te" and value != b"trailers":
            raise StreamFailed(ErrorCode.PROTOCOL_ERROR, f"te: {value!r}")
        if name.startswith(b":"):
            if plain or name in pseudo or name not in _PSEUDO:
                raise StreamFailed(ErrorCode.PROTOCOL_ERROR, f"{name!r} is unknown, twice, or after other fields")
            pseudo[name] = value
            continue
        plain[name] = value
        if name not in _RESERVED:
            kept.append((name, value))
    if not pseudo.keys() >= {b":method", b":path", b":scheme"}:
        raise StreamFailed(ErrorCode.PROTOCOL_ERROR, "a request without :method, :path or :scheme")
    return _head(pseudo, plain, tuple(kept))


def _head(pseudo: Mapping[bytes, bytes], plain: Mapping[bytes, bytes], kept: tuple[Field, ...]) -> Head:
    path = pseudo[b":path"].decode("latin-1")
    if pseudo[b":method"] != b"POST":
        return Head(path, None, IDENTITY, kept, http_status=405)
    if not is_grpc(plain.get(b"content-type", b"")):
        return Head(path, None, IDENTITY, kept, http_status=415)
    encoding = plain.get(b"grpc-encoding", IDENTITY.encode()).decode("latin-1")
    try:
        timeout = read_timeout(plain.get(b"grpc-timeout"))
        if encoding not in ENCODINGS:
            said = f"grpc-encoding {encoding!r}: expected one of {', '.join(ENCODINGS)}"
            raise CallFailed(Code.UNIMPLEMENTED, said, {"grpc-accept-encoding": ",".join(ENCODINGS)})
    except CallFailed as failure:
        return Head(path, None, IDENTITY, kept, failure=failure)
    squeezes = _takes(encoding, plain.get(b"grpc-accept-encoding"))
    return Head(path, timeout, encoding, kept, squeezes=squeezes, heavy_bytes=_heavy_bytes(kept))


def _heavy_bytes(fields: Sequence[Field]) -> int:
    """A field may be a byte on the wire, and many times that here."""
    size = sum(_FIELD_BYTES + len(name) + len(value) for name, value in fields)
    return size if size > _LIGHT_BYTES else 0


def _takes(encoding: str, accepted: bytes | None) -> bool:
    return encoding != IDENTITY and (accepted is None or encoding.encode() in accepted.replace(b" ", b"").split(b","))


# What is sent. The same blocks go to every peer, since none enters its table.

_GRPC = STATUS_200 + literal(b"content-type", CONTENT_TYPE)
ANSWER_HEAD = _GRPC + literal(b"grpc-accept-encoding", ",".join(ENCODINGS).encode())
OK_TRAILERS = literal(b"grpc-status", b"0")


def answer_head(encoding: str) -> bytes:
    """For answers in that encoding."""
    return ANSWER_HEAD if encoding == IDENTITY else ANSWER_HEAD + literal(b"grpc-encoding", encoding.encode())


def ok_trailers(pairs: Iterable[tuple[str, str | bytes]]) -> bytes:
    return OK_TRAILERS + b"".join(metadata_field(key, value) for key, value in pairs)


def failure_trailers(failure: CallFailed, pairs: Iterable[tuple[str, str | bytes]] = ()) -> bytes:
    status = literal(b"grpc-status", str(int(failure.code)).encode())
    said = literal(b"grpc-message", quoted(failure.message))
    return status + said + b"".join(metadata_field(key, value) for key, value in (*pairs, *failure.trailing.items()))


def failure_only(failure: CallFailed, pairs: Iterable[tuple[str, str | bytes]] = ()) -> bytes:
    """All of an answer that has no messages."""
    return _GRPC + failure_trailers(failure, pairs)


def http_only(status: int) -> bytes:
    """For who does not speak gRPC."""
    return literal(b":status", str(status).encode())
