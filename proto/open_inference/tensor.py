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
_BF16_MANTISSA_BITS = 7
_LENGTH = struct.Struct("<I")


@dataclass(slots=True)
class Tensor:
    """One named tensor. `data` holds exactly the elements that `shape` says, laid out as on the wire."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    @classmethod
    def from_numpy(cls, name: str, array: Array, datatype: str | None = None, *, copy: bool = True) -> Tensor:
        """Take an array of any type that the protocol has; strings and byte strings become BYTES.

        `datatype` asks for another one. Integers must lie where the other holds each of them exactly; floating point
        is rounded to nearest even (BF16 by way of float32) and must not overflow; uint16 given as BF16 is taken as
        its bits. An array of `ml_dtypes.bfloat16` is BF16 by itself. With `copy=False`, `data` shares the array's
        memory where that has the wire's layout already.

        Raises TypeError or ValueError with a sentence that names the tensor.
        """
        array = np.asarray(array)
        if array.dtype.kind in "OSU":
            return cls(name, BYTES, array.shape, _encode_array(name, array, datatype))
        own = datatype_of(array.dtype, name)
        if datatype is not None and datatype != own:
            array, own = _convert(name, array, datatype), datatype
        elif own == BF16:
            array = array.view(np.uint16)
        flat = np.ascontiguousarray(array, dtype=NUMPY_TYPES[own]).reshape(-1)
        return cls(name, own, array.shape, flat.tobytes() if copy else flat.view(np.uint8).data)

    def numpy(self) -> Array:
        """An array of `shape`: a view of `data` (read-only if that is), except BYTES (objects) and BF16 (float32).

        Raises ValueError if `data` is not what `datatype` and `shape` say.
        """
        if self.datatype == BYTES:
            return _decode_array(self)
        expected = byte_size(self.datatype, self.shape)
        if expected is None:
            raise ValueError(f'"{self.name}": no datatype {self.datatype}; one of {", ".join(DATATYPES)}')
        if len(memoryview(self.data)) != expected or min(self.shape, default=0) < 0:
            raise ValueError(
                f'"{self.name}": {self.datatype}{list(self.shape)} takes {expected} bytes, got {len(self.data)}'
            )
        array = np.frombuffer(self.data, dtype=NUMPY_TYPES[self.datatype])
        return (_bf16_values(array) if self.datatype == BF16 else array).reshape(self.shape)


def datatype_of(dtype: np.dtype[Any], name: str = "tensor") -> str:
    """The protocol's name of a numpy type. Raises TypeError if it has none."""
    if dtype.kind in "OSU":
        return BYTES
    known = _DATATYPE_OF_NUMPY.get(dtype.newbyteorder("="))
    if known is not None:
        return known
    # Asked last, because numpy works it out anew each time.
    if dtype.name == "bfloat16":
        return BF16
    raise TypeError(f'"{name}": numpy type {dtype} does not travel; one of {", ".join(DATATYPES)}')


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


def _encode_array(name: str, array: Array, datatype: str | None) -> bytes:
    if datatype not in (None, BYTES):
        raise TypeError(f'"{name}": expected {datatype}, got an array of {array.dtype}')
    try:
        return encode_bytes(array.reshape(-1).tolist())
    except TypeError as error:
        raise TypeError(f'"{name}": {error}') from None


def _decode_array(tensor: Tensor) -> Array:
    found = list(decode_bytes(tensor.data))
    count = math.prod(tensor.shape)
    # numpy would spread a single element over all of them.
    if len(found) != count or min(tensor.shape, default=0) < 0:
        raise ValueError(f'"{tensor.name}": BYTES{list(tensor.shape)} has {count} elements, got {len(found)}')
    elements = np.empty(count, dtype=object)
    elements[:] = found
    return elements.reshape(tensor.shape)


def _convert(name: str, array: Array, datatype: str) -> Array:
    target = NUMPY_TYPES.get(datatype)
    source = array.dtype
    if target is None or (source.kind not in "biuf" and datatype_of(source, name) != BF16):
        raise TypeError(f'"{name}": expected {datatype}, got an array of {source}')
    if datatype == BF16 and source == np.uint16:
        return array
    if source.kind in "biu":
        _check_range(name, array, datatype)
    elif target.kind != "f" and datatype != BF16:
        raise TypeError(f'"{name}": expected {datatype}, an array of {source} would lose its fractions')
    return _bf16_bits(name, array) if datatype == BF16 else _round(name, array, target, datatype)


def _check_range(name: str, array: Array, datatype: str) -> None:
    low, high = _integers_of(datatype)
    if array.size and not (low <= int(array.min()) and int(array.max()) <= high):
        raise ValueError(
            f'"{name}": {datatype} holds integers from {low} to {high}, got {int(array.min())} to {int(array.max())}'
        )


def _integers_of(datatype: str) -> tuple[int, int]:
    """The range in which a datatype holds every integer exactly."""
    dtype = NUMPY_TYPES[datatype]
    if datatype == "BOOL":
        return 0, 1
    if datatype != BF16 and dtype.kind in "iu":
        return int(np.iinfo(dtype.str).min), int(np.iinfo(dtype.str).max)
    limit = 1 << (_BF16_MANTISSA_BITS if datatype == BF16 else np.finfo(dtype.str).nmant) + 1
    return -limit, limit


def _round(name: str, array: Array, target: np.dtype[Any], datatype: str) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(target)
    if array.dtype.kind not in "biu":
        _refuse_overflow(name, array, rounded, datatype)
    return rounded


def _bf16_bits(name: str, array: Array) -> npt.NDArray[np.uint16]:
    """Round to nearest even, keep NaN a NaN."""
    single = _round(name, array, np.dtype(np.float32), BF16)
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded = np.where(np.isnan(single), np.uint16(0x7FC0), rounded)
    _refuse_overflow(name, single, _bf16_values(rounded), BF16)
    return rounded


def _bf16_values(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _refuse_overflow(name: str, before: Array, after: Array, datatype: str) -> None:
    if np.any(np.isinf(after) & ~np.isinf(before)):
        raise ValueError(f'"{name}": expected {datatype}, some values of this array of {before.dtype} are too large')
