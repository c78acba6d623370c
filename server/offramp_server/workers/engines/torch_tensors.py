"""Between the bytes on the wire and torch tensors, without a copy wherever that is safe."""

from __future__ import annotations

from collections.abc import Container
from types import MappingProxyType

import torch
from open_inference.tensor import Buffer, Tensor

TORCH_TYPES = MappingProxyType(
    {
        "BOOL": torch.bool,
        "UINT8": torch.uint8,
        "UINT16": torch.uint16,
        "UINT32": torch.uint32,
        "UINT64": torch.uint64,
        "INT8": torch.int8,
        "INT16": torch.int16,
        "INT32": torch.int32,
        "INT64": torch.int64,
        "FP16": torch.float16,
        "FP32": torch.float32,
        "FP64": torch.float64,
        "BF16": torch.bfloat16,
    }
)
_DATATYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}


def from_wire(tensor: Tensor, copy: bool) -> torch.Tensor:
    """A CPU tensor over the wire's memory, or over a copy of it if `copy` is set or the memory is read-only."""
    dtype = TORCH_TYPES[tensor.datatype]
    if 0 in tensor.shape:
        return torch.empty(tensor.shape, dtype=dtype)
    data = memoryview(tensor.data)
    # torch has no read-only tensors and warns about memory that it could write to by mistake.
    writable = bytearray(data) if copy or data.readonly else data
    return torch.frombuffer(writable, dtype=dtype).reshape(tensor.shape)


def to_wire(tensor: torch.Tensor) -> Buffer:
    """The bytes of a contiguous CPU tensor: a view, which keeps the tensor alive."""
    if tensor.numel() == 0:
        return b""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def owned(tensor: torch.Tensor, borrowed: Container[int]) -> torch.Tensor:
    """A contiguous tensor of the same values whose storage is not one of `borrowed` (see `storage_of`)."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor.clone() if storage_of(tensor) in borrowed else tensor


def storage_of(tensor: torch.Tensor) -> int:
    """Tensors that share memory share this number."""
    return tensor.untyped_storage().data_ptr()


def datatype_of(tensor: torch.Tensor) -> str:
    """The protocol's name, or torch's own name for a type that the protocol does not have."""
    return _DATATYPES.get(tensor.dtype, str(tensor.dtype))
