"""Tensors as the Open Inference Protocol puts them on the wire.

A tensor is kept as the bytes that travel: row-major and little-endian, and for BYTES each element preceded by its
length as a little-endian uint32. Rows of such tensors can be joined and cut without decoding them, which is all
that batching needs; numpy views are made where somebody looks at the numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Buffer: TypeAlias = bytes | bytearray | memoryview
Array: TypeAlias = npt.NDArray[Any]

BYTES = "BYTES"
BF16 = "BF16"

# BF16 has no numpy type: its bits are seen as uint16.
NUMPY_TYPES = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype("<u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype("<i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        BF16: np.dtype("<u2"),
    }
)
DATATYPES = (*NUMPY_TYPES, BYTES)
ITEM_SIZES = MappingProxyType({name: dtype.itemsize for name, dtype in NUMPY_TYPES.items()})

_DATATYPE_OF_NUMPY = {dtype.newbyteorder("="): name for name, dtype in NUMPY_TYPES.items() if name != BF16}
_LENGTH = struct.Struct("<I")


@dataclass(slots=True)
class Tensor:
    """One named tensor. `data` holds exactly the elements that `shape` says, laid out as on the wire."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    @classmethod
    def from_numpy(cls, name: str, array: Array, datatype: str | None = None) -> Tensor:
        """Take an array of any type that the protocol has; strings and byte strings become BYTES.

        `datatype` asks for another one: BF16 (rounded from floating point), or a conversion that loses nothing.
        Raises TypeError or ValueError with a sentence that names the tensor.
        """
        array = np.asarray(array)
        shape = tuple(array.shape)
        if datatype == BF16 and array.dtype != np.uint16:
            return cls(name, BF16, shape, _bf16_bits(array).tobytes())
        if array.dtype.kind in "OSU":
            return cls(name, BYTES, shape, encode_bytes(array.reshape(-1).tolist()))
        own = datatype_of(array.dtype, name)
        if datatype is not None and datatype != own:
            array = _convert(name, array, datatype)
            own = datatype
        return cls(name, own, shape, array.astype(NUMPY_TYPES[own], copy=False).tobytes())

    def numpy(self) -> Array:
        """An array of `shape`: a read-only view of `data`, except BYTES (objects) and BF16 (widened to float32)."""
        if self.datatype == BYTES:
            elements = np.empty(math.prod(self.shape), dtype=object)
            elements[:] = list(decode_bytes(self.data))
            return elements.reshape(self.shape)
        array = np.frombuffer(self.data, dtype=NUMPY_TYPES[self.datatype])
        if self.datatype == BF16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array.reshape(self.shape)


def datatype_of(dtype: np.dtype[Any], name: str = "tensor") -> str:
    """The protocol's name of a numpy type. Raises TypeError if it has none."""
    if dtype.kind in "OSU":
        return BYTES
    try:
        return _DATATYPE_OF_NUMPY[dtype.newbyteorder("=")]
    except KeyError:
        raise TypeError(f'"{name}": numpy type {dtype} does not travel; one of {", ".join(DATATYPES)}') from None


def byte_size(datatype: str, shape: Sequence[int]) -> int | None:
    """Bytes that a tensor of this datatype and shape takes; None for BYTES, whose elements vary."""
    size = ITEM_SIZES.get(datatype)
    return None if size is None else size * math.prod(shape)


def encode_bytes(elements: Sequence[bytes | str]) -> bytes:
    """Lay out BYTES elements; text becomes UTF-8. Raises TypeError for an element of another type."""
    parts: list[bytes] = []
    for element in elements:
        raw = element.encode() if isinstance(element, str) else element
        if not isinstance(raw, bytes):
            raise TypeError(f"a BYTES tensor holds bytes or str, got {type(element).__name__}")
        parts.append(_LENGTH.pack(len(raw)))
        parts.append(raw)
    return b"".join(parts)


def decode_bytes(data: Buffer) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor. Raises ValueError where it is truncated."""
    view = memoryview(data)
    position, end = 0, len(view)
    while position < end:
        start, stop = _element_bounds(view, position)
        yield bytes(view[start:stop])
        position = stop


def skip_bytes(data: Buffer, position: int, count: int) -> int:
    """The offset behind `count` BYTES elements that begin at `position`. Raises ValueError where truncated."""
    view = memoryview(data)
    for _ in range(count):
        position = _element_bounds(view, position)[1]
    return position


def _element_bounds(view: memoryview, position: int) -> tuple[int, int]:
    start = position + _LENGTH.size
    if start > len(view):
        raise ValueError(f"BYTES data ends inside a length prefix at offset {position} of {len(view)}")
    stop = start + _LENGTH.unpack_from(view, position)[0]
    if stop > len(view):
        raise ValueError(
            f"BYTES element at offset {position} says {stop - start} bytes, only {len(view) - start} are left"
        )
    return start, stop


def _bf16_bits(array: Array) -> npt.NDArray[np.uint16]:
    """Round to nearest even, keep NaN a NaN."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(array.astype(np.float32)), np.uint16(0x7FC0), rounded).reshape(array.shape)


def _convert(name: str, array: Array, datatype: str) -> Array:
    target = NUMPY_TYPES.get(datatype)
    if target is None:
        raise TypeError(f'"{name}": expected {datatype}, got an array of {array.dtype}')
    if not np.can_cast(array.dtype, target, casting="same_kind"):
        raise TypeError(f'"{name}": expected {datatype}, an array of {array.dtype} would lose information')
    return array.astype(target)
