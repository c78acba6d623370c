"""What is said on a link between the server and one of its front ends: frames, each with its length before it.

Both ends are of one version and start together, so nothing is negotiated and nothing is optional.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

from offramp_common.http2.hpack import Field

from offramp_server.transport.interface import CallFailed, Code

# Bytes of what follows, what it is, and which call it belongs to. A front end counts its calls; 0 is the link itself.
HEADER = struct.Struct("<IBQ")
HEADER_BYTES = HEADER.size

# Of a front end. A call with its only message, or one whose messages follow; the client has ended its messages; nobody
# wants the call any more.
CALL, OPEN, FINISHED, CANCEL = 1, 2, 3, 4
# Of both. A message and a part of one that others follow; so many bytes of messages have been read.
MESSAGE, PART, CREDIT = 5, 6, 7
# Of the server. What ends a call: its only message, the end of its messages, a failure, and that a call which nobody
# wants is really over. Trailing metadata comes before that. A front end says FAILED where a message cannot be read.
ANSWER, END, FAILED, GONE, TRAILING = 8, 9, 10, 11, 12
# Of the link itself. What a front end is to do, that it is to end, how it is to log; that it listens or why it cannot,
# and how many connections it has, which shows as well that it goes on.
HELLO, DRAIN, LOGGING, READY, REFUSED, CONNECTIONS = 13, 14, 15, 16, 17, 18
KINDS = 19

# The number of the method, seconds that are left, and the sizes of the peer, of its identity (-1: none) and of the
# metadata, which follow.
_HEAD = struct.Struct("<HdHiI")
_PAIR = struct.Struct("<HI")
_NUMBER = struct.Struct("<Q")
_SECONDS = struct.Struct("<d")

# Takes a frame's call, and its body as a part of some bytes.
Taker: TypeAlias = Callable[[int, bytes, int, int], None]


class FrameReader:
    """Finds the frames in what comes of a stream. A part of a message may be handed over in pieces, as it comes."""

    __slots__ = ("_missing", "_part_of", "_rest", "_takers")

    def __init__(self, takers: Mapping[int, Taker]) -> None:
        """`takers` by kind."""
        self._takers: Sequence[Taker] = [takers.get(kind, _unexpected) for kind in range(KINDS)]
        # The frame that was cut off by the end of what came.
        self._rest = bytearray()
        # Of a part of a message that was: its call, and what has not come.
        self._part_of = self._missing = 0

    def feed(self, data: bytes) -> None:
        """Raises whatever a taker raises, and LookupError or struct.error for what is no frame."""
        position = self._finish_rest(data) if self._rest else 0
        if self._missing:
            position = self._go_on_with_part(data, position)
        unpack, takers, size = HEADER.unpack_from, self._takers, len(data)
        while size - position >= HEADER_BYTES:
            length, kind, number = unpack(data, position)
            start = position + HEADER_BYTES
            end = start + length
            if end > size:
                if kind == PART:
                    self._part_of, self._missing = number, length
                    position = self._go_on_with_part(data, start)
                break
            position = end
            takers[kind](number, data, start, end)
        if position < size:
            self._rest += memoryview(data)[position:]

    def _go_on_with_part(self, data: bytes, start: int) -> int:
        """As far as `data` goes; where it ends there."""
        end = min(start + self._missing, len(data))
        self._missing -= end - start
        if end > start:
            self._takers[PART](self._part_of, data, start, end)
        return end

    def _finish_rest(self, data: bytes) -> int:
        """Complete the frame that was cut off, as far as `data` goes; where it ends there."""
        rest, position = self._rest, 0
        if len(rest) < HEADER_BYTES:
            position = HEADER_BYTES - len(rest)
            rest += data[:position]
            if len(rest) < HEADER_BYTES:
                return len(data)
        length, kind, number = HEADER.unpack_from(rest)
        if kind == PART:
            self._rest = bytearray()
            self._part_of, self._missing = number, length
            return position
        wanted: int = HEADER_BYTES + length - len(rest)
        rest += memoryview(data)[position : position + wanted]
        if len(rest) < HEADER_BYTES + length:
            return len(data)
        self._rest = bytearray()
        self._takers[kind](number, bytes(rest), HEADER_BYTES, len(rest))
        return position + wanted


def _unexpected(number: int, data: bytes, start: int, end: int) -> None:
    raise LookupError("a frame that this end does not take")


class CallHead:
    """How a call begins. Only what is asked for is read."""

    __slots__ = ("_details", "_identity_at", "_metadata_at", "method", "size", "timeout")

    def __init__(self, data: bytes, start: int) -> None:
        self.method: int
        self.method, seconds, peer, identity, metadata = _HEAD.unpack_from(data, start)
        # Seconds; None: no limit.
        self.timeout: float | None = None if seconds == math.inf else seconds
        self._identity_at = peer
        self._metadata_at = None if identity < 0 else peer + identity
        details = peer + max(identity, 0) + metadata
        self.size = _HEAD.size + details
        self._details = data[start + _HEAD.size : start + self.size]

    @property
    def peer(self) -> str:
        return self._details[: self._identity_at].decode()

    @property
    def identity(self) -> str | None:
        if self._metadata_at is None:
            return None
        return self._details[self._identity_at : self._metadata_at].decode(errors="surrogateescape")

    @property
    def fields(self) -> list[Field]:
        metadata = self._details[self._identity_at if self._metadata_at is None else self._metadata_at :]
        if not metadata:
            return []
        parts = iter(metadata.split(b"\n"))
        return list(zip(parts, parts, strict=True))


def call_head(method: int, timeout: float | None, peer: str, identity: str | None, fields: Iterable[Field]) -> bytes:
    """`timeout`: seconds that are left. HTTP/2 allows no line feed in `fields`."""
    by, metadata = peer.encode(), b"\n".join(chain.from_iterable(fields))
    seconds = math.inf if timeout is None else timeout
    if identity is None:
        return _HEAD.pack(method, seconds, len(by), -1, len(metadata)) + by + metadata
    who = identity.encode(errors="surrogateescape")
    return _HEAD.pack(method, seconds, len(by), len(who), len(metadata)) + by + who + metadata


def trailing(pairs: Iterable[tuple[str, str | bytes]]) -> bytes:
    return b"".join(_pair(key.encode(), value) for key, value in pairs)


def _pair(key: bytes, value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
    return _PAIR.pack(len(key), len(raw)) + key + raw


def read_trailing(body: bytes) -> list[tuple[str, str | bytes]]:
    """Values are bytes if the key says so by its end, and text otherwise."""
    pairs: list[tuple[str, str | bytes]] = []
    position = 0
    while position < len(body):
        of_key, of_value = _PAIR.unpack_from(body, position)
        key_at = position + _PAIR.size
        value_at = key_at + of_key
        position = value_at + of_value
        key, raw = body[key_at:value_at].decode(), body[value_at:position]
        pairs.append((key, raw if key.endswith("-bin") else raw.decode(errors="surrogatepass")))
    return pairs


def failure(failed: CallFailed) -> bytes:
    """Without its trailing metadata."""
    return bytes((failed.code,)) + failed.message.encode(errors="surrogatepass")


def read_failure(body: bytes) -> CallFailed:
    return CallFailed(Code(body[0]), body[1:].decode(errors="surrogatepass"))


def number(value: int) -> bytes:
    return _NUMBER.pack(value)


def read_number(data: bytes, start: int) -> int:
    found: int = _NUMBER.unpack_from(data, start)[0]
    return found


def seconds(value: float) -> bytes:
    return _SECONDS.pack(value)


def read_seconds(data: bytes, start: int) -> float:
    found: float = _SECONDS.unpack_from(data, start)[0]
    return found


def log(level: int, form: str) -> bytes:
    """How to log: a level of the `logging` module, and the name of a form of lines."""
    return number(level) + form.encode()


def read_log(body: bytes) -> tuple[int, str]:
    return read_number(body, 0), body[_NUMBER.size :].decode()
