"""What stands in the fields of an answer, and in those of a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from offramp_common.grpc_framing.fields import (
    CONTENT_TYPE,
    check_field,
    is_grpc,
    metadata_field,
    metadata_value,
    unquoted,
)
from offramp_common.grpc_framing.messages import ENCODINGS, IDENTITY
from offramp_common.grpc_framing.status import CallFailed, Code
from offramp_common.http2.errors import ErrorCode, StreamFailed
from offramp_common.http2.hpack import Field, literal

# What gRPC's documents make of a status of HTTP where there is no other one.
_OF_HTTP: Mapping[int, Code] = MappingProxyType(
    {
        400: Code.INTERNAL,
        401: Code.UNAUTHENTICATED,
        403: Code.PERMISSION_DENIED,
        404: Code.UNIMPLEMENTED,
        429: Code.UNAVAILABLE,
        502: Code.UNAVAILABLE,
        503: Code.UNAVAILABLE,
        504: Code.UNAVAILABLE,
    }
)
# Said by the protocol itself, and no metadata.
_RESERVED = frozenset({b"content-type", b"grpc-status", b"grpc-message", b"grpc-encoding", b"grpc-accept-encoding"})


@dataclass(frozen=True, slots=True)
class Fields:
    """A block of an answer: its head, its trailers, or both in one. Blocks of the same bytes share one."""

    # None in trailers.
    http_status: int | None
    # As grpc-status has it.
    status: bytes | None
    message: bytes
    content_type: bytes
    # What compressed messages are in.
    encoding: str
    # As they came, without those of the protocol.
    metadata: tuple[Field, ...]

    def ending(self) -> CallFailed | None:
        """How trailers end the call; None: well."""
        if self.status == b"0":
            return None
        if self.status is None:
            return self.not_grpc() or CallFailed(Code.UNKNOWN, "the answer ends without a grpc-status")
        code = self._code()
        return CallFailed(code, unquoted(self.message), self._trailing()) if code is not Code.OK else None

    def not_grpc(self) -> CallFailed | None:
        """Why this begins no answer of gRPC; None: it does. Not for trailers after a head."""
        if self.http_status not in (None, 200):
            code = _OF_HTTP.get(self.http_status or 0, Code.UNKNOWN)
            return CallFailed(code, f"the server answered with the status {self.http_status} of HTTP and none of gRPC")
        if self.http_status == 200 and not is_grpc(self.content_type):
            said = self.content_type[:100].decode("latin-1")
            return CallFailed(Code.UNKNOWN, f"the answer's content-type is {said!r}: expected application/grpc")
        if self.encoding not in ENCODINGS:
            return CallFailed(Code.INTERNAL, f"grpc-encoding {self.encoding[:32]!r}, which was not asked for")
        return None

    def _code(self) -> Code:
        said = self.status or b""
        try:
            return Code(int(said)) if said.isdigit() else Code.UNKNOWN
        except ValueError:
            # A code from a later version of gRPC is to be read as UNKNOWN, and what is no number likewise.
            return Code.UNKNOWN

    def _trailing(self) -> Mapping[str, str | bytes]:
        found: dict[str, str | bytes] = {}
        for name, value in self.metadata:
            try:
                found[name.decode()] = metadata_value(name, value)
            except CallFailed:
                # What is no base64 says nothing; the status counts all the same.
                continue
        return found


def read_fields(fields: Iterable[Field]) -> Fields:
    """Raises StreamFailed for what HTTP/2 does not allow."""
    status: int | None = None
    plain: dict[bytes, bytes] = {}
    kept: list[Field] = []
    for name, value in fields:
        check_field(name, value)
        if name.startswith(b":"):
            if name != b":status" or plain or status is not None:
                raise StreamFailed(ErrorCode.PROTOCOL_ERROR, f"{name!r} in an answer, twice, or after other fields")
            status = _http_status(value)
            continue
        plain[name] = value
        if name not in _RESERVED:
            kept.append((name, value))
    return Fields(
        status,
        plain.get(b"grpc-status"),
        plain.get(b"grpc-message", b""),
        plain.get(b"content-type", b""),
        plain.get(b"grpc-encoding", IDENTITY.encode()).decode("latin-1"),
        tuple(kept),
    )


def _http_status(value: bytes) -> int:
    if len(value) != 3 or not value.isdigit():
        raise StreamFailed(ErrorCode.PROTOCOL_ERROR, f":status {value[:32]!r}")
    return int(value)


def request_block(path: str, authority: str, secure: bool, metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """What the head of every request for `path` has. It depends on nothing that the server remembers."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"https" if secure else b"http"),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", CONTENT_TYPE),
        (b"user-agent", b"offramp-python"),
        (b"grpc-accept-encoding", ",".join(ENCODINGS).encode()),
    )
    said = b"".join(literal(name, value) for name, value in fields)
    return said + b"".join(metadata_field(key, value) for key, value in metadata)


class Heads:
    """The blocks of a channel's requests, each made once."""

    def __init__(self, authority: str, secure: bool) -> None:
        self._authority = authority
        self._secure = secure
        self._blocks: dict[str, tuple[object, bytes]] = {}

    def block(self, path: str, metadata: tuple[tuple[str, str], ...]) -> bytes:
        made_for, block = self._blocks.get(path, (None, b""))
        if made_for is not metadata:
            block = request_block(path, self._authority, self._secure, metadata)
            self._blocks[path] = metadata, block
        return block
