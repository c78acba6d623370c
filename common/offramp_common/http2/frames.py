"""The layout of frames (RFC 9113, sections 4 and 6): numbers, and bytes of those that are sent."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0x0, 0x1, 0x2, 0x3, 0x4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0x5, 0x6, 0x7, 0x8, 0x9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 0x1, 0x2, 0x3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 0x4, 0x5, 0x6

HEADER_BYTES = 9
# The largest payload that every peer takes, and that is taken here.
FRAME_BYTES = 16_384
# Of a window before anybody has said otherwise, and at most.
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = 2**31 - 1
LAST_STREAM = 2**31 - 1
# Of GOAWAY without its reason.
GOAWAY_BYTES = 8

# The length in two parts, type, flags, stream.
HEADER = struct.Struct(">BHBBL")
U32 = struct.Struct(">L")
_SETTING = struct.Struct(">HL")
_GOAWAY = struct.Struct(">LL")


def header(kind: int, flags: int, stream: int, length: int) -> bytes:
    return HEADER.pack(length >> 16, length & 0xFFFF, kind, flags, stream)


def headers(stream: int, block: bytes, end_stream: bool) -> Iterator[bytes]:
    """A block of fields, in as many frames as it takes."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= FRAME_BYTES:
        yield header(HEADERS, flags | END_HEADERS, stream, len(block)) + block
        return
    parts = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)]
    yield header(HEADERS, flags, stream, len(parts[0])) + parts[0]
    for part in parts[1:]:
        last = END_HEADERS if part is parts[-1] else 0
        yield header(CONTINUATION, last, stream, len(part)) + part


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    payload = b"".join(_SETTING.pack(number, value) for number, value in values)
    return header(SETTINGS, 0, 0, len(payload)) + payload


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    return _SETTING.iter_unpack(payload)


SETTINGS_ACK = header(SETTINGS, ACK, 0, 0)


def ping(opaque: bytes, ack: bool) -> bytes:
    return header(PING, ACK if ack else 0, 0, 8) + opaque


def window_update(stream: int, increment: int) -> bytes:
    return header(WINDOW_UPDATE, 0, stream, 4) + U32.pack(increment)


def rst_stream(stream: int, code: int) -> bytes:
    return header(RST_STREAM, 0, stream, 4) + U32.pack(code)


def goaway(last_stream: int, code: int, reason: str) -> bytes:
    told = reason.encode()
    return header(GOAWAY, 0, 0, GOAWAY_BYTES + len(told)) + _GOAWAY.pack(last_stream, code) + told


def read_goaway(payload: bytes) -> tuple[int, int, str]:
    """The last stream, the code and the reason."""
    last_stream, code = _GOAWAY.unpack_from(payload)
    return last_stream & LAST_STREAM, code, payload[GOAWAY_BYTES:].decode(errors="replace")
