"""The decoder of fields beside the hpack package, over the blocks of one connection and the table between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fuzz_steps import Script, Step, read_script
from hpack import Decoder
from hpack.exceptions import HPACKError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from offramp_common.http2.hpack import DEFAULT_TABLE_BYTES, ENTRY_BYTES, Field, HeaderDecoder, HpackError, HuffmanCodes

_LIST_BYTES = 3000
_NAMED, _CODED, _LONG, _OVERLONG = 0x04, 0x08, 0x10, 0x20
_MODES = ((0x40, 0x3F), (0x00, 0x0F), (0x10, 0x0F))


def _integer(value: int, pattern: int, mask: int, overlong: bool) -> bytes:
    """In the form of RFC 7541, 5.1; `overlong` has more bytes than it needs."""
    if value < mask and not overlong:
        return bytes((pattern | value,))
    encoded = bytearray((pattern | mask,))
    value = max(value - mask, 0)
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded += bytes((value | 0x80, 0x80, 0)) if overlong else bytes((value,))
    return bytes(encoded)


def _string(text: bytes, coded: bool, overlong: bool) -> bytes:
    if coded:
        text = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    return _integer(len(text), 0x80 if coded else 0, 0x7F, overlong) + text


def _indexed(step: Step) -> bytes:
    return _integer(step.value, 0x80, 0x7F, bool(step.flags & _OVERLONG))


def _literal(step: Step) -> bytes:
    pattern, mask = _MODES[step.flags % 4 % len(_MODES)]
    coded, overlong = bool(step.flags & _CODED), bool(step.flags & _OVERLONG)
    name, value = step.blob[: step.stream], step.blob[step.stream :]
    if step.flags & _LONG:
        value += b"v" * (16 * step.value)
    if step.flags & _NAMED:
        return _integer(step.value, pattern, mask, overlong) + _string(value, coded, overlong)
    return bytes((pattern,)) + _string(name, coded, overlong) + _string(value, coded, overlong)


def _table_size(step: Step) -> bytes:
    return _integer(step.value * (32 if step.flags & _LONG else 1), 0x20, 0x1F, bool(step.flags & _OVERLONG))


def _raw(step: Step) -> bytes:
    return step.blob


_PARTS: tuple[Callable[[Step], bytes], ...] = (_indexed, _literal, _table_size, _raw)
_END, _AGAIN = len(_PARTS), len(_PARTS) + 1
OPERATIONS = len(_PARTS) + 2


def _blocks(script: Script) -> Iterator[bytes]:
    block = b""
    for step in script.steps:
        operation = step.operation % OPERATIONS
        if operation < _END:
            block += _PARTS[operation](step)
        else:
            yield block
            block = block if operation == _AGAIN else b""
    yield block


def check(data: bytes) -> None:
    """Raises AssertionError where the two do not mean the same."""
    script = read_script(data)
    ours = HeaderDecoder(HuffmanCodes(), _LIST_BYTES)
    # Whether a list is too large is compared here, since the package gives up where ours goes on.
    theirs = Decoder(max_header_list_size=2**31)
    for block in _blocks(script):
        changes, before = ours.changes, list(ours._table)
        found = _ours(ours, block)
        expected = _theirs(theirs, block)
        size = sum(len(name) + len(value) + ENTRY_BYTES for name, value in expected or ())
        if isinstance(found, HpackError):
            assert expected is None or _is_known_difference(found, size), f"only ours refuses {block!r}: {found}"
            return
        assert expected is not None, f"only the package refuses {block!r}"
        assert found == (expected if size <= _LIST_BYTES else None)
        assert found is not None or ours.excess == size - _LIST_BYTES
        assert ours._table[::-1] == [(bytes(name), bytes(value)) for name, value in theirs.header_table.dynamic_entries]
        assert ours._used == sum(len(name) + len(value) + ENTRY_BYTES for name, value in ours._table)
        assert ours._used <= ours._table_bytes <= DEFAULT_TABLE_BYTES
        assert ours.changes != changes or ours._table == before, "the table has changed, and nobody is told"


def _ours(decoder: HeaderDecoder, block: bytes) -> list[Field] | HpackError | None:
    try:
        return decoder.decode(block)
    except HpackError as error:
        return error


def _theirs(decoder: Decoder, block: bytes) -> list[Field] | None:
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except HPACKError:
        return None


def _is_known_difference(error: HpackError, size: int) -> bool:
    """The package reads integers of any length, and lists of any size where it is told to."""
    return "an integer without an end" in str(error) or ("far too large" in str(error) and size > 2 * _LIST_BYTES)
