"""Messages in the data of a stream, after gRPC over HTTP/2: whether it is compressed and its length come before each.

What a peer declares is no reason to reserve memory: a buffer grows with what has come.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from offramp_common.grpc_framing.status import CallFailed, Code
from offramp_common.http2.stream import Payload

# A whole message, which nobody changes any more.
MessageBytes: TypeAlias = bytes | bytearray

PREFIX_BYTES = 5
_PREFIX = struct.Struct(">BL")
# Of zlib: with the header of gzip, or of zlib itself, which is what "deflate" means in HTTP.
_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS

# Compressed messages of up to so many bytes are unpacked where they come: to four megabytes at the very most.
_SOON_UNPACKED = 4096

IDENTITY = "identity"
WINDOW_BITS: Mapping[str, int] = MappingProxyType({"gzip": _GZIP, "deflate": _ZLIB})
ENCODINGS = (IDENTITY, *WINDOW_BITS)


def prefix(size: int, compressed: bool = False) -> bytes:
    return _PREFIX.pack(compressed, size)


def compressed(message: bytes, encoding: str) -> bytes:
    """`encoding` is one of WINDOW_BITS."""
    squeeze = zlib.compressobj(1, wbits=WINDOW_BITS[encoding])
    return squeeze.compress(message) + squeeze.flush()


class Packed:
    """A compressed message that somebody else is to unpack, since that takes long."""

    __slots__ = ("_encoding", "_max_bytes", "_message")

    def __init__(self, message: MessageBytes, encoding: str, max_bytes: int) -> None:
        self._message = message
        self._encoding = encoding
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        """Bytes as it came."""
        return len(self._message)

    def unpacked(self) -> bytes:
        """Raises CallFailed as `decompressed` does. Other threads may run meanwhile."""
        return decompressed(self._message, self._encoding, self._max_bytes)


class MessageReader:
    """Takes the data of one stream and makes messages of it."""

    __slots__ = ("_buffer", "_encoding", "_flag", "_leave", "_max_bytes", "_prefix", "_size", "_soon", "_take")

    def __init__(
        self,
        encoding: str,
        max_bytes: int,
        take: Callable[[MessageBytes], None],
        leave: Callable[[Packed], None] | None = None,
        soon: int = _SOON_UNPACKED,
    ) -> None:
        """`encoding` is what the stream says that compressed messages are in; `take` gets each message, but those that
        take long to unpack, having more than `soon` bytes, go to `leave` if there is one."""
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._take = take
        self._leave = leave
        self._soon = soon
        # What has come of the next prefix.
        self._prefix = b""
        # Of the message that is coming; -1: its prefix is not complete.
        self._size = -1
        self._flag = 0
        self._buffer = bytearray()

    @property
    def held_bytes(self) -> int:
        """Of an incomplete message."""
        return len(self._buffer)

    @property
    def between_messages(self) -> bool:
        return self._size < 0 and not self._prefix

    def feed(self, data: Payload) -> None:
        """Raises CallFailed for what is no message, or too large."""
        size = len(data)
        if len(self._buffer) + size < self._size:
            # Nearly always of a large message: there is more of it to come.
            self._buffer += data
            return
        if self._size < 0 and not self._prefix and size >= PREFIX_BYTES:
            flag, length = _PREFIX.unpack_from(data)
            if size == PREFIX_BYTES + length:
                # Nearly always: a message in a frame of its own.
                self._check(flag, length)
                self._complete(flag, bytes(data[PREFIX_BYTES:]))
                return
        self._feed_in_parts(memoryview(data))

    def drop(self) -> None:
        """What has come of a message, and who would take it."""
        self._buffer = bytearray()
        self._take = _nothing
        self._leave = None

    def _feed_in_parts(self, data: memoryview) -> None:
        while data or self._is_complete:
            if self._is_complete:
                # Not made bytes of: copying a large one again would cost as much as the rest of its way.
                message, self._buffer = self._buffer, bytearray()
                self._size = -1
                self._complete(self._flag, message)
            elif self._size < 0:
                data = self._begin(data)
            else:
                wanted = self._size - len(self._buffer)
                self._buffer += data[:wanted]
                data = data[wanted:]

    @property
    def _is_complete(self) -> bool:
        return len(self._buffer) == self._size

    def _begin(self, data: memoryview) -> memoryview:
        wanted = PREFIX_BYTES - len(self._prefix)
        self._prefix += data[:wanted]
        if len(self._prefix) == PREFIX_BYTES:
            self._flag, length = _PREFIX.unpack(self._prefix)
            self._check(self._flag, length)
            self._prefix, self._size = b"", length
        return data[wanted:]

    def _check(self, flag: int, length: int) -> None:
        if flag > 1:
            raise CallFailed(Code.INTERNAL, f"a message's first byte is {flag}: expected 0, or 1 for a compressed one")
        if flag and self._encoding == IDENTITY:
            raise CallFailed(Code.INTERNAL, "a compressed message, and no grpc-encoding that says how")
        if length > self._max_bytes:
            raise CallFailed(
                Code.RESOURCE_EXHAUSTED, f"a message of {length} bytes: at most {self._max_bytes} are taken"
            )

    def _complete(self, flag: int, message: MessageBytes) -> None:
        if not flag:
            self._take(message)
        elif self._leave is not None and len(message) > self._soon:
            self._leave(Packed(message, self._encoding, self._max_bytes))
        else:
            self._take(decompressed(message, self._encoding, self._max_bytes))


def _nothing(message: MessageBytes) -> None:
    pass


def decompressed(message: MessageBytes, encoding: str, max_bytes: int) -> bytes:
    """Raises CallFailed for what is not of that encoding, or has more than `max_bytes` when it is unpacked."""
    unpack = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        plain = unpack.decompress(message, max_bytes + 1)
    except zlib.error as error:
        raise CallFailed(Code.INTERNAL, f"a message is not {encoding}, as grpc-encoding says: {error}") from error
    if len(plain) > max_bytes or unpack.unconsumed_tail:
        raise CallFailed(
            Code.RESOURCE_EXHAUSTED, f"a message unpacks to more than the {max_bytes} bytes that are taken"
        )
    if not unpack.eof or unpack.unused_data:
        raise CallFailed(Code.INTERNAL, f"a message is not one whole of {encoding}")
    return plain
