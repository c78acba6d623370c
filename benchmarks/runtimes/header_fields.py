"""Heads of requests as clients of gRPC compress them (RFC 7541), with fields that no two calls share.

h2load sends one block of fields over and over, which a server may recognise. Clients that trace send another
`traceparent` with each call, in one of two ways: C-core writes fields that it does not know without a place in the
table; Go, Java and most proxies let them enter it, Huffman-coded, so that each call pushes older entries out.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator, Sequence

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from offramp_common.http2.hpack import ENTRY_BYTES, encoded_integer, plain_string
from offramp_common.http2.static_table import STATIC_TABLE

Field = tuple[bytes, bytes]
# Name, length of each value, and values as they are encoded.
Unique = tuple[bytes, int, Sequence[bytes]]

# What every call says.
SAME, UNINDEXED, INDEXED = "same", "unindexed", "indexed"
METADATA = (SAME, UNINDEXED, INDEXED)
# Values of each unique field; far more than a peer's table or any cache of strings would hold.
VALUES = 4096
TABLE_BYTES = 4096
_STATIC_FIELDS = {field: number for number, field in enumerate(STATIC_TABLE, 1)}
# The first of each name.
_STATIC_NAMES = {name: number for number, (name, _) in reversed(list(enumerate(STATIC_TABLE, 1)))}
_ENTERS, _INDEXED = 0x40, 0x80


def heads(path: str, authority: str, unique: Sequence[Unique], enters: bool, first: int) -> Iterator[bytes]:
    """Blocks for the requests of one connection, in order. Those of `unique` begin with the value `first`, and enter
    the peer's table or do not."""
    table = Table()
    fixed = fixed_fields(path, authority)
    add = table.new if enters else table.unindexed
    for number in itertools.count(first):
        values = (add(name, values[number % VALUES], size) for name, size, values in unique)
        yield table.entering(fixed) + b"".join(values)


def fixed_fields(path: str, authority: str) -> list[Field]:
    """Those of a C-core client without metadata and deadline."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
        (b"user-agent", b"benchmark"),
    ]


def unique_fields(metadata: str, seed: int) -> list[Unique]:
    """A W3C trace context and an id, unless `metadata`, one of METADATA, is that of all calls. Takes a moment."""
    if metadata == SAME:
        return []
    draw = random.Random(seed)
    traces = [b"00-%032x-%016x-01" % (draw.getrandbits(128), draw.getrandbits(64)) for _ in range(VALUES)]
    ids = [b"%032x" % draw.getrandbits(128) for _ in range(VALUES)]
    shown = huffman if metadata == INDEXED else plain_string
    named = ((b"traceparent", traces), (b"x-request-id", ids))
    return [(name, len(values[0]), list(map(shown, values))) for name, values in named]


class Table:
    """What the peer's dynamic table holds, and fields encoded with it."""

    def __init__(self) -> None:
        # Bytes of each.
        self._entries: deque[int] = deque()
        self._bytes = 0
        # Entries that ever were.
        self._made = 0
        # By field, and by name: which entry.
        self._fields: dict[Field, int] = {}
        self._names: dict[bytes, int] = {}
        # What `entering` said last, and how many entries there were before and after.
        self._said: tuple[bytes, int, int] = (b"", 0, 0)

    def entering(self, fields: Sequence[Field]) -> bytes:
        """An index for each that a table has, and a literal that enters the table for any other."""
        said, before, after = self._said
        if not said or before != after or after != self._made:
            before = self._made
            said = b"".join(map(self._one, fields))
            self._said = said, before, self._made
        return said

    def _one(self, field: Field) -> bytes:
        index = _STATIC_FIELDS.get(field) or self._index(self._fields.get(field))
        if index:
            return encoded_integer(index, _INDEXED, 0x7F)
        name, value = field
        self._fields[field] = self._made
        return self.new(name, plain_string(value), len(value))

    def new(self, name: bytes, value: bytes, size: int) -> bytes:
        """A literal that enters the table. `value` is encoded, and has `size` bytes when it is not."""
        index = _STATIC_NAMES.get(name) or self._index(self._names.get(name))
        start = encoded_integer(index, _ENTERS, 0x3F) if index else bytes((_ENTERS,)) + plain_string(name)
        self._names[name] = self._made
        self._made += 1
        self._entries.append(len(name) + size + ENTRY_BYTES)
        self._bytes += self._entries[-1]
        while self._bytes > TABLE_BYTES:
            self._bytes -= self._entries.popleft()
        return start + value

    def unindexed(self, name: bytes, value: bytes, size: int) -> bytes:
        """A literal that leaves the table alone."""
        return b"\0" + plain_string(name) + value

    def _index(self, entry: int | None) -> int:
        """0: it is not there any more."""
        if entry is None or entry < self._made - len(self._entries):
            return 0
        return len(STATIC_TABLE) + self._made - entry


def huffman(text: bytes) -> bytes:
    code = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    return encoded_integer(len(code), 0x80, 0x7F) + code
