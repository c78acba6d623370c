"""Header compression (RFC 7541), for the ends that a server has: a decoder of what comes, and literals for what goes.

Huffman codes are the `hpack` package's. What is sent never enters the peer's dynamic table: a server's answers are the
same few fields each time, and a block that depends on nothing can be made once for all connections.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

from offramp_common.http2.static_table import STATIC_TABLE

Field: TypeAlias = tuple[bytes, bytes]

DEFAULT_TABLE_BYTES = 4096
# What an entry costs beyond its bytes (section 4.1).
ENTRY_BYTES = 32
_STATIC = len(STATIC_TABLE)
# An integer of more continuation bytes than that is of no use but to an attacker.
_MOST_SHIFT = 28
# A list that is by so many times its limit too large is a bomb of references, and not read to its end.
_MOST_EXCESS = 7
# Strings that come again and again are decoded once; longer ones are not kept.
_KEPT_CODES, _KEPT_CODE_BYTES = 1024, 64


class HpackError(Exception):
    """The block cannot be decoded, and neither can any that follow: the connection is lost."""


class HuffmanCodes:
    """Decodes strings. One for all connections, since they mostly say the same.

    The package's table takes half a byte at a time. Here its steps are joined in pairs, once each as they come to be
    needed: a string that is new takes half of the time (measured).
    """

    def __init__(self) -> None:
        self._short = lru_cache(_KEPT_CODES)(self._decode)
        # By state and byte: the state after it (times 256), what it stands for, and whether the code may end there.
        # There are at most 65,536.
        self._steps: dict[int, tuple[int, bytes, int]] = {}

    def decode(self, code: bytes) -> bytes:
        """Raises HpackError."""
        return self._short(code) if len(code) <= _KEPT_CODE_BYTES else self._decode(code)

    def _decode(self, code: bytes) -> bytes:
        steps = self._steps
        state, complete = 0, HUFFMAN_COMPLETE
        decoded = bytearray()
        for byte in code:
            state, symbols, complete = steps.get(state | byte) or self._step(state | byte)
            decoded += symbols
        if not complete:
            raise HpackError("a string's Huffman code ends in the middle of a symbol")
        return bytes(decoded)

    def _step(self, key: int) -> tuple[int, bytes, int]:
        state, flags, symbols = key >> 8, 0, b""
        for half in (key >> 4 & 0xF, key & 0xF):
            state, flags, symbol = HUFFMAN_TABLE[state << 4 | half]
            if flags & HUFFMAN_FAIL:
                raise HpackError("a string's Huffman code has what is no symbol")
            if flags & HUFFMAN_EMIT_SYMBOL:
                symbols += bytes((symbol,))
        step = self._steps[key] = state << 8, symbols, flags & HUFFMAN_COMPLETE
        return step


class HeaderDecoder:
    """The fields of one connection's blocks, in the order in which they come."""

    def __init__(self, codes: HuffmanCodes, max_list_bytes: int, max_table_bytes: int = DEFAULT_TABLE_BYTES) -> None:
        self._codes = codes
        self._max_list_bytes = max_list_bytes
        self._max_table_bytes = self._table_bytes = max_table_bytes
        # The newest is the last one.
        self._table: list[Field] = []
        self._used = 0
        # Of the last list that was too large: by how much it was. Bytes.
        self.excess = 0
        # Changes with the dynamic table: a block decoded before may mean something else now.
        self.changes = 0

    def decode(self, block: bytes) -> list[Field] | None:
        """None: the list is larger than `max_list_bytes`, counted as in SETTINGS_MAX_HEADER_LIST_SIZE. The table is up
        to date then as well. Raises HpackError, also for a list that is so large that nobody meant it."""
        fields: list[Field] = []
        position, end, room = 0, len(block), self._max_list_bytes
        try:
            while position < end:
                first = block[position]
                if first >= 0x80:
                    index, position = _integer(block, position, 0x7F)
                    field = self._indexed(index)
                elif first & 0xE0 == 0x20:
                    position = self._resized(block, position, began=bool(fields) or room < 0)
                    continue
                else:
                    field, position = self._literal(block, position, first)
                room -= len(field[0]) + len(field[1]) + ENTRY_BYTES
                if room >= 0:
                    fields.append(field)
                elif room < -_MOST_EXCESS * self._max_list_bytes:
                    raise HpackError("a list that is far too large")
        except IndexError:
            raise HpackError("a block ends within a field") from None
        self.excess = max(0, -room)
        return fields if room >= 0 else None

    def _literal(self, block: bytes, position: int, first: int) -> tuple[Field, int]:
        indexing = first & 0x40
        index, position = _integer(block, position, 0x3F if indexing else 0x0F)
        if index:
            name = self._indexed(index)[0]
        else:
            name, position = self._string(block, position)
        value, position = self._string(block, position)
        field = name, value
        if indexing:
            self._add(field)
        return field, position

    def _string(self, block: bytes, position: int) -> tuple[bytes, int]:
        coded = block[position] & 0x80
        length, position = _integer(block, position, 0x7F)
        end = position + length
        if end > len(block):
            raise HpackError("a string is longer than its block")
        text = block[position:end]
        return (self._codes.decode(text) if coded else text), end

    def _indexed(self, index: int) -> Field:
        if 0 < index <= _STATIC:
            return STATIC_TABLE[index - 1]
        place = index - _STATIC
        if not 0 < place <= len(self._table):
            raise HpackError(f"there is no field {index}")
        return self._table[-place]

    def _add(self, field: Field) -> None:
        self.changes += 1
        self._table.append(field)
        self._used += len(field[0]) + len(field[1]) + ENTRY_BYTES
        self._evict()

    def _resized(self, block: bytes, position: int, began: bool) -> int:
        if began:
            raise HpackError("a change of the table's size within a block")
        size, position = _integer(block, position, 0x1F)
        if size > self._max_table_bytes:
            raise HpackError(f"a table of {size} bytes, where {self._max_table_bytes} are allowed")
        self.changes += 1
        self._table_bytes = size
        self._evict()
        return position

    def _evict(self) -> None:
        gone = 0
        while self._used > self._table_bytes:
            name, value = self._table[gone]
            self._used -= len(name) + len(value) + ENTRY_BYTES
            gone += 1
        del self._table[:gone]


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """Value and the position after it (section 5.1). Raises IndexError where the block ends."""
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > _MOST_SHIFT:
            raise HpackError("an integer without an end")


def literal(name: bytes, value: bytes) -> bytes:
    """A field that does not enter the peer's table."""
    return b"\0" + plain_string(name) + plain_string(value)


def table_size(size: int) -> bytes:
    """What a block begins with after the peer has allowed less than there was (section 4.2)."""
    return encoded_integer(size, 0x20, 0x1F)


STATUS_200 = b"\x88"


def plain_string(text: bytes) -> bytes:
    """Without a Huffman code."""
    return encoded_integer(len(text), 0, 0x7F) + text


def encoded_integer(value: int, pattern: int, mask: int) -> bytes:
    """Section 5.1: in the bits of `mask` as far as it fits there, beside those of `pattern`."""
    if value < mask:
        return bytes((pattern | value,))
    encoded = bytearray((pattern | mask,))
    value -= mask
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
