"""Messages that carry tensors, put into bytes with one copy of the tensors.

Protobuf copies a bytes field when it is set and again when the message is serialised, which for an image costs more
than everything else that a client does. A serialised message may be continued with further fields, in any order
(the wire format says so), hence the raw contents are joined on at the end.
"""

from __future__ import annotations

from collections.abc import Iterable

from open_inference.tensor import Buffer

_LENGTH_DELIMITED = 2


def serialize(before: bytes, field: int, contents: Iterable[Buffer]) -> bytes:
    """A serialised message and, as its repeated bytes field number `field` that is empty so far, `contents`.

    For ModelInferRequest and ModelInferResponse `field` is their RAW_INPUT_CONTENTS_FIELD_NUMBER and
    RAW_OUTPUT_CONTENTS_FIELD_NUMBER.
    """
    tag = _varint(field << 3 | _LENGTH_DELIMITED)
    parts: list[Buffer] = [before]
    for content in contents:
        parts += (tag + _varint(memoryview(content).nbytes), content)
    return b"".join(parts)


def serialize_in_parts(before: bytes, field: int, contents: Iterable[Buffer]) -> list[bytes | memoryview]:
    """What `serialize` joins, with no copy of `contents` at all. The first part is bytes."""
    tag = _varint(field << 3 | _LENGTH_DELIMITED)
    parts: list[bytes | memoryview] = []
    for content in contents:
        view = memoryview(content).cast("B")
        parts += (before + tag + _varint(len(view)), view)
        before = b""
    return parts or [before]


def nest_in_parts(field: int, parts: Iterable[bytes | memoryview]) -> list[bytes | memoryview]:
    """A message that has nothing but another one, which lies in `parts`, as its field number `field`."""
    first, *others = parts
    size = len(first) + sum(map(len, others))
    return [b"".join((_varint(field << 3 | _LENGTH_DELIMITED), _varint(size), first)), *others]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
    if value <= 0x7F:
        return bytes((value,))
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
