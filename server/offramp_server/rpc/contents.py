"""Typed tensor contents of the protocol, to and from the bytes that a `Tensor` holds."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

import numpy as np
from offramp_common.text import quoted
from open_inference.grpc_predict_v2_pb2 import InferTensorContents
from open_inference.tensor import BYTES, NUMPY_TYPES, Array, Tensor, decode_bytes, encode_bytes

from offramp_server.errors import InvalidRequest

# FP16 and BF16 have none.
FIELDS = MappingProxyType(
    {
        "BOOL": "bool_contents",
        "INT8": "int_contents",
        "INT16": "int_contents",
        "INT32": "int_contents",
        "INT64": "int64_contents",
        "UINT8": "uint_contents",
        "UINT16": "uint_contents",
        "UINT32": "uint_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        BYTES: "bytes_contents",
    }
)

# Protobuf packs the elements of these exactly as the protocol's raw form lays them out (encoding guide, "packed
# repeated fields"), so whole arrays move without a Python object for each element.
_PACKED = frozenset({"BOOL", "FP32", "FP64"})
_LENGTH_DELIMITED = 2


def read(name: str, datatype: str, contents: InferTensorContents) -> bytes:
    """The raw form of typed contents. Raises InvalidRequest if the field is not the datatype's."""
    field = FIELDS.get(datatype)
    if field is None:
        raise InvalidRequest(
            f"input {quoted(name)}: {quoted(datatype)} has no typed contents; send raw_input_contents, "
            f"or one of {', '.join(FIELDS)}"
        )
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    if filled != [field]:
        if not filled:
            return b""
        raise InvalidRequest(f"input {quoted(name)}: {datatype} travels in {field} alone, got {', '.join(filled)}")
    if datatype in _PACKED:
        return _packed_payload(contents.SerializeToString())
    values = getattr(contents, field)
    return encode_bytes(values) if datatype == BYTES else _integers(name, datatype, values)


def write(tensor: Tensor, contents: InferTensorContents) -> None:
    """Fill in the field of the tensor's datatype, which has to be one of FIELDS."""
    field = FIELDS[tensor.datatype]
    if tensor.datatype == BYTES:
        contents.bytes_contents.extend(decode_bytes(tensor.data))
    elif tensor.datatype in _PACKED:
        number = InferTensorContents.DESCRIPTOR.fields_by_name[field].number
        data = bytes(tensor.data)
        contents.MergeFromString(bytes([number << 3 | _LENGTH_DELIMITED]) + _varint(len(data)) + data)
    else:
        getattr(contents, field).extend(np.frombuffer(tensor.data, dtype=NUMPY_TYPES[tensor.datatype]).tolist())


def _integers(name: str, datatype: str, values: Iterable[int]) -> bytes:
    target = NUMPY_TYPES[datatype]
    wide = np.dtype("<u8") if target.kind == "u" else np.dtype("<i8")
    array: Array = np.fromiter(values, dtype=wide)
    limits = np.iinfo(str(target))
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise InvalidRequest(
            f"input {quoted(name)}: {datatype} holds {limits.min} to {limits.max}, "
            f"got values from {array.min()} to {array.max()}"
        )
    return array.astype(target).tobytes()


def _packed_payload(message: bytes) -> bytes:
    """The elements in a message whose only field is packed: a tag of one byte, a varint length, the payload."""
    length, shift, position = 0, 0, 1
    while True:
        byte = message[position]
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return message[position : position + length]
        shift += 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
