"""Fields of a call that both ends read and write: timeouts, statuses, metadata (gRPC over HTTP/2)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from types import MappingProxyType
from urllib.parse import quote_from_bytes, unquote_to_bytes

from offramp_common.grpc_framing.status import CallFailed, Code
from offramp_common.http2.errors import ErrorCode, StreamFailed
from offramp_common.http2.hpack import Field, literal

CONTENT_TYPE = b"application/grpc"
_SECONDS = MappingProxyType({b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9})
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_MOST_MILLISECONDS, _MOST_SECONDS = 10**8 - 1, 10**8 - 1
# RFC 9110, section 5.6.2, without capital letters, which HTTP/2 does not have.
_NAME = re.compile(rb":?[a-z0-9!#$%&'*+.^_`|~-]+")
_BAD_IN_VALUES = re.compile(rb"[\0\r\n]")
# Of HTTP/1.1's connections (RFC 9113, section 8.2.2).
_FORBIDDEN = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
# Names of nearly every call, which need no second look.
_USUAL = frozenset(
    {b":method", b":scheme", b":path", b":authority", b"te", b"user-agent", b"accept-encoding"}
    | {b":status", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"}
    | {b"grpc-status", b"grpc-message"}
)
# Everything but what stands for itself in grpc-message.
_UNQUOTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
# Which HTTP/2 allows at neither end of a value (RFC 9113, section 8.2.1): some clients end the connection for one.
_OUTER_BLANK = re.compile(r"\A | \Z")


def check_field(name: bytes, value: bytes) -> None:
    """Raises StreamFailed for what HTTP/2 does not allow."""
    bad_name = name not in _USUAL and (not _NAME.fullmatch(name) or name in _FORBIDDEN)
    if bad_name or _BAD_IN_VALUES.search(value):
        raise StreamFailed(ErrorCode.PROTOCOL_ERROR, f"a field that must not be there: {name!r}")


def is_grpc(content_type: bytes) -> bool:
    """application/grpc, with a codec or parameters behind it or without."""
    return content_type.startswith(CONTENT_TYPE) and content_type[len(CONTENT_TYPE) :][:1] in (b"", b"+", b";")


def read_timeout(text: bytes | None) -> float | None:
    """Seconds. Raises CallFailed."""
    if text is None:
        return None
    found = _TIMEOUT.fullmatch(text)
    if found is None:
        said = text[:32].decode("latin-1")
        raise CallFailed(Code.INVALID_ARGUMENT, f"grpc-timeout {said!r}: expected up to 8 digits and one of HMSmun")
    return int(found[1]) * _SECONDS[found[2]]


def written_timeout(seconds: float) -> bytes:
    """At least so many, and at most one in a hundred or a millisecond more: calls with about the same time left then
    begin with the same bytes."""
    milliseconds = max(1, -int(-seconds * 1000 // 1))
    beyond = len(str(milliseconds)) - 3
    if beyond > 0:
        unit = int(10**beyond)
        milliseconds = -(-milliseconds // unit) * unit
    if milliseconds % 1000 and milliseconds <= _MOST_MILLISECONDS:
        return b"%dm" % milliseconds
    return b"%dS" % min(-(-milliseconds // 1000), _MOST_SECONDS)


def quoted(message: str) -> bytes:
    """As grpc-message."""
    text = quote_from_bytes(message.encode(errors="replace"), _UNQUOTED)
    return _OUTER_BLANK.sub("%20", text).encode()


def unquoted(message: bytes) -> str:
    """Of grpc-message. What is wrongly quoted stays as it is."""
    return unquote_to_bytes(message).decode(errors="replace")


def metadata_value(name: bytes, value: bytes) -> str | bytes:
    """What a field says. Raises CallFailed for a -bin field that is not base64."""
    if not name.endswith(b"-bin"):
        return value.decode("latin-1")
    try:
        # Several values may be joined by commas; the last one counts, as with keys that come twice.
        last = value.rpartition(b",")[2]
        return base64.b64decode(last + b"=" * (-len(last) % 4), validate=True)
    except binascii.Error:
        raise CallFailed(Code.INVALID_ARGUMENT, f"metadata {name.decode()}: expected base64") from None


def metadata_of(fields: Iterable[Field]) -> dict[str, str | bytes]:
    """What a handler sees: of a key that comes several times the last value. Raises CallFailed for a -bin key whose
    value is not base64."""
    return {name.decode(): metadata_value(name, value) for name, value in fields}


def metadata_field(key: str, value: str | bytes) -> bytes:
    """A pair as a block's part that enters no table."""
    if key.endswith("-bin"):
        raw = value if isinstance(value, bytes) else value.encode(errors="replace")
        return literal(key.encode(), base64.b64encode(raw).rstrip(b"="))
    text = value if isinstance(value, str) else value.decode("latin-1")
    # What could end the field would be taken for something else.
    return literal(key.encode(), re.sub(r"[^\x20-\x7e]", "?", text).encode())
